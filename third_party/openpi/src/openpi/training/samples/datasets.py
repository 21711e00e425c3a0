"""Datasets as the loader sees them: a length, and samples by index."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Literal, Protocol, SupportsIndex, TypeAlias

import flax.traverse_util
import jax
import numpy as np

from openpi.models import model as _model
from openpi.shared import errors
from openpi.training.configs import mixture
from openpi.training.configs.data_config import FAKE_REPO_ID
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.mixture import MixedDataset
from openpi.training.lerobot import metadata as lerobot_metadata
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi.training.samples import sampling
from openpi.training.samples import stated_names
import openpi.transforms as _transforms

_NUM_FAKE_SAMPLES = 1024
# Largest token id of fake prompts, exclusive.
_FAKE_TOKENS = 2048

# Frames of all episodes, of those to train on, or of those kept out for validation.
Part: TypeAlias = Literal["all", "train", "validation"]


class Dataset(Protocol):
    """Samples by index. Several threads may read at once."""

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Return sample `index`, 0 <= index < len."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...


class TransformedDataset:
    """A dataset whose samples pass through transforms."""

    def __init__(self, dataset: Dataset, transforms: Sequence[_transforms.DataTransformFn]) -> None:
        """Wrap `dataset`. The transforms run in order when a sample is read."""
        self._dataset = dataset
        self._transform = _transforms.compose(transforms)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        sample = self._dataset[index]
        place = f"sample {index.__index__()}"
        if "episode_index" in sample:
            place = f"episode {sample['episode_index']}, frame {sample['frame_index']}"
        return apply(self._transform, sample, place)

    def __len__(self) -> int:
        return len(self._dataset)


class Mixture:
    """Several datasets in a row, each with a share of the samples."""

    def __init__(self, parts: Sequence[Dataset], shares: Sequence[float]) -> None:
        """Join datasets whose shares sum to 1."""
        self.parts = tuple(parts)
        self.shares = tuple(shares)
        self._ends = np.cumsum([len(part) for part in parts])

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        part = int(np.searchsorted(self._ends, index.__index__(), side="right"))
        return self.parts[part][index.__index__() - (int(self._ends[part - 1]) if part else 0)]

    def __len__(self) -> int:
        return int(self._ends[-1])


def sample_order(dataset: Dataset, seed: int, *, shuffle: bool) -> sampling.Order:
    """Return the order in which a loader draws a dataset's samples."""
    if isinstance(dataset, Mixture):
        return sampling.MixtureOrder(tuple(map(len, dataset.parts)), dataset.shares, shuffle, seed)
    return sampling.SampleOrder(len(dataset), shuffle, seed)


class Frames:
    """Some frames of a dataset, with indices of their own."""

    def __init__(self, dataset: Dataset, frames: np.ndarray) -> None:
        """Choose frames.

        Args:
            dataset: The dataset to choose from.
            frames: Indices of the frames in it, int (n,).
        """
        self._dataset = dataset
        self._frames = frames

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self._dataset[int(self._frames[index.__index__()])]

    def __len__(self) -> int:
        return len(self._frames)


def apply(transform: _transforms.DataTransformFn, sample: dict[str, Any], place: str) -> dict[str, Any]:
    """Transform a sample, and name its place if a transform refuses it.

    Raises:
        DataError: The transform refused the sample.
    """
    try:
        return transform(sample)
    except ValueError as e:
        raise errors.DataError(f"{place}: {e}") from e


class FakeDataset:
    """Random samples of a model's input shapes.

    Floats are in -1..1, token ids are small, and everything else is zero.
    """

    def __init__(self, model_config: _model.BaseModelConfig, num_samples: int = _NUM_FAKE_SAMPLES) -> None:
        """Remember the shapes. Sample `i` depends on `i` alone."""
        self._num_samples = num_samples
        self._observation_spec, self._actions_spec = model_config.inputs_spec()

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        rng = np.random.default_rng(index.__index__())

        def draw(spec: jax.ShapeDtypeStruct) -> np.ndarray:
            shape = spec.shape[1:]  # without the batch
            if spec.dtype == np.float32:
                return rng.uniform(-1.0, 1.0, shape).astype(np.float32)
            if spec.dtype == np.int32:
                return rng.integers(0, _FAKE_TOKENS, shape, dtype=np.int32)
            return np.zeros(shape, spec.dtype)

        sample = jax.tree.map(draw, self._observation_spec).to_dict()
        present = {key: value for key, value in sample.items() if value is not None}
        return {**present, "actions": draw(self._actions_spec)}

    def __len__(self) -> int:
        return self._num_samples


def create_dataset(
    data_config: DataConfig, action_horizon: int, model_config: _model.BaseModelConfig, *, part: Part = "train"
) -> Dataset:
    """Open the dataset that a data config names.

    Only the cameras that the config's repack transform uses are decoded.

    Args:
        data_config: Names the dataset, its keys and the split.
        action_horizon: Length of the windows of actions, frames.
        model_config: Shapes of fake samples, for the config that has no dataset.
        part: Which episodes to read.

    Raises:
        ConfigError: The config names no dataset or datasets of several rates, or the split leaves nothing to train on.
        MissingFileError: The dataset or one of its files is missing.
        DataError: It cannot be read, or lacks what the config asks for.
    """
    if data_config.repo_id == FAKE_REPO_ID:
        return FakeDataset(model_config)
    return join(open_sources(data_config, action_horizon), data_config, part)


@dataclasses.dataclass(frozen=True, eq=False)
class MixedSource:
    """An opened dataset and its share of the samples."""

    member: MixedDataset
    dataset: LeRobotDataset
    # Share of the samples, 0..1.
    share: float


def open_sources(data_config: DataConfig, action_horizon: int) -> list[MixedSource]:
    """Open the datasets that a data config names.

    Arguments and errors are those of `create_dataset`.
    """
    members = data_config.members()
    if not members:
        raise errors.ConfigError("data: repo_id is not set. Name the dataset with --data.repo-id")
    opened = [_open(data_config, member, action_horizon) for member in members]
    mixture.check_rates(members, [dataset.meta.fps for dataset in opened])
    shares = mixture.shares(members, [len(dataset) for dataset in opened])
    return [MixedSource(*row) for row in zip(members, opened, shares, strict=True)]


def _open(data_config: DataConfig, member: MixedDataset, action_horizon: int) -> LeRobotDataset:
    metadata = lerobot_metadata.load_metadata(member.repo_id)
    used = used_keys(data_config, metadata, member)
    stated_names.check(data_config, metadata)
    return LeRobotDataset(
        member.repo_id,
        action_sequence_keys=data_config.action_sequence_keys,
        action_horizon=action_horizon,
        image_keys=[key for key in metadata.camera_keys if used is None or key in used],
        shrink_jpeg_to=_model.IMAGE_RESOLUTION if data_config.reduced_jpeg else None,
        column_keys=None if used is None else [key for key in metadata.column_keys if key in used],
    )


def join(sources: Sequence[MixedSource], data_config: DataConfig, part: Part) -> Dataset:
    """Join the frames of a part of several datasets, with prompts.

    Raises:
        ConfigError: The split leaves nothing to train on.
    """
    parts = [_part_of(source, data_config, part) for source in sources]
    return Mixture(parts, [source.share for source in sources]) if data_config.mixture else parts[0]


def _part_of(source: MixedSource, data_config: DataConfig, part: Part) -> Dataset:
    metadata = source.dataset.meta
    dataset: Dataset = source.dataset
    if part != "all" and not data_config.validation.is_empty:
        dataset = Frames(dataset, _frames_of(metadata, data_config, source.member.repo_id, part))
    if source.member.prompt is not None:
        return TransformedDataset(dataset, [_SetPrompt(source.member.prompt)])
    if data_config.prompt_from_task:
        return TransformedDataset(dataset, [_transforms.PromptFromLeRobotTask(dict(metadata.tasks))])
    return dataset


@dataclasses.dataclass(frozen=True)
class _SetPrompt(_transforms.DataTransformFn):
    prompt: str

    def __call__(self, data: _transforms.DataDict) -> _transforms.DataDict:
        return {**data, "prompt": self.prompt}


def _frames_of(
    metadata: lerobot_metadata.LeRobotMetadata, data_config: DataConfig, repo_id: str, part: Part
) -> np.ndarray:
    split = data_config.validation
    if split.episodes and data_config.mixture:
        raise errors.ConfigError("validation: episodes of a mixture cannot be listed. Use --data.validation.fraction")
    kept_out = split.choose([episode.index for episode in metadata.episodes], f"dataset '{repo_id}'")
    return np.concatenate(
        [
            np.arange(episode.first_frame, episode.first_frame + episode.length)
            for episode in metadata.episodes
            if (episode.index in kept_out) == (part == "validation")
        ]
    )


def transform_dataset(dataset: Dataset, data_config: DataConfig, *, skip_norm_stats: bool = False) -> Dataset:
    """Add repack, robot, normalization and model transforms, in this order.

    Raises:
        MissingFileError: The statistics have not been computed, and are not skipped.
    """
    if isinstance(dataset, FakeDataset):
        return dataset
    # The mixture stays outermost, because the order of samples needs its shares.
    if isinstance(dataset, Mixture):
        parts = [transform_dataset(part, data_config, skip_norm_stats=skip_norm_stats) for part in dataset.parts]
        return Mixture(parts, dataset.shares)
    norm_stats = data_config.norm_stats
    if norm_stats is None and not skip_norm_stats:
        raise errors.MissingFileError(
            f"norm stats of '{data_config.asset_id}': missing. Compute them with scripts/compute_norm_stats.py"
        )
    return TransformedDataset(
        dataset,
        [
            *data_config.repack_transforms.inputs,
            *data_config.data_transforms.inputs,
            _transforms.Normalize(None if skip_norm_stats else norm_stats, use_quantiles=data_config.use_quantile_norm),
            *data_config.model_transforms.inputs,
        ],
    )


def used_keys(
    data_config: DataConfig, metadata: lerobot_metadata.LeRobotMetadata, member: MixedDataset | None = None
) -> set[str] | None:
    """Return the dataset keys that the repack transform reads.

    None if that transform does not come first, because all keys may then be used.

    Args:
        data_config: The config with the repack transform.
        metadata: The dataset.
        member: The dataset's entry in the mixture, which may set a prompt.

    Raises:
        DataError: The dataset lacks some of them. The message lists all.
        ConfigError: The entry's prompt would not reach the model.
    """
    first = next(iter(data_config.repack_transforms.inputs), None)
    if not isinstance(first, _transforms.RepackTransform):
        return None
    used = set(_leaves(first.structure))
    sets_prompt = member is not None and member.prompt is not None
    if sets_prompt and "prompt" not in used:
        raise errors.ConfigError(
            f"mixture: the prompt of '{metadata.repo_id}' would not reach the model, because this config's samples have "
            "none. Leave it out"
        )
    provided = {*metadata.features, "task"} | ({"prompt"} if data_config.prompt_from_task or sets_prompt else set())
    if absent := sorted(used - provided):
        raise errors.DataError(
            f"dataset '{metadata.repo_id}' ({metadata.root}): keys {absent} are missing, "
            f"found {sorted(metadata.features)}. Record them, or choose a config that does not use them"
        )
    return used


def _leaves(structure: Mapping[str, Any]) -> list[str]:
    return list(flax.traverse_util.flatten_dict(dict(structure), sep="/").values())
