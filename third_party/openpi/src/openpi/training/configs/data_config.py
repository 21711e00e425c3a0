"""Configure what a run reads: dataset, statistics and transforms.

The transforms lead from a stored frame to the model. A `DataConfigFactory` is the part that you set, and that the
command line shows. Its `create` turns it into a `DataConfig`.
"""

import abc
from collections.abc import Callable, Sequence
import dataclasses
import logging
import pathlib
from typing import Annotated, Any, TypeAlias

import tyro

from openpi.models import gemma as _gemma
from openpi.models import model as _model
from openpi.models import tokenizer as _tokenizer
from openpi.shared import download as _download
from openpi.shared import errors
from openpi.shared import normalize as _normalize
from openpi.shared import ranges
from openpi.training.configs.mixture import MixedDataset
from openpi.training.configs.mixture import MixedDatasetFlag
from openpi.training.configs.validation_split import ValidationSplit
import openpi.transforms as _transforms

logger = logging.getLogger(__name__)

# Stands for random samples instead of a dataset.
FAKE_REPO_ID = "fake"

GroupFactory: TypeAlias = Callable[[_model.BaseModelConfig], _transforms.Group]

MAX_FPS = 10_000.0
"""Largest rate of recorded frames, Hz."""


@dataclasses.dataclass(frozen=True)
class AssetsConfig:
    """Where normalization statistics are, if not in the config's assets folder.

    To fine-tune with the statistics of a released checkpoint:
    `AssetsConfig(assets_dir="gs://openpi-assets/checkpoints/pi0_base/assets", asset_id="trossen")`.
    """

    # Folder or URL that holds <asset_id>/norm_stats.json. The default is <assets_base_dir>/<config name>.
    assets_dir: str | None = None
    # Sub-folder of the assets. The default is the dataset's repo_id.
    asset_id: str | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Everything that the data loader needs, built by a `DataConfigFactory`."""

    # LeRobot dataset id. None means no dataset, "fake" random samples of the model's shapes.
    repo_id: str | None = None
    # Folder of the statistics inside the assets folder.
    asset_id: str | None = None
    # Statistics of `state` and `actions` after the data transforms. None if they have not been computed.
    norm_stats: dict[str, _normalize.NormStats] | None = None
    # What the statistics were computed from. None if unknown.
    norm_stats_provenance: _normalize.Provenance | None = None
    # Map dataset keys to the keys that the data transforms expect. Training only.
    repack_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    # Robot-specific: camera slots, joint order, delta actions. Training and inference, before normalization.
    data_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    # Model-specific: resize, tokenize, pad. Training and inference, after normalization.
    model_transforms: _transforms.Group = dataclasses.field(default_factory=_transforms.Group)
    # Scale with the 1 % and 99 % quantiles instead of mean and standard deviation.
    use_quantile_norm: bool = False
    # Dataset keys that are read as windows of action_horizon frames.
    action_sequence_keys: Sequence[str] = ("actions",)
    # Use the dataset's task text as the prompt.
    prompt_from_task: bool = False
    # Datasets to mix, instead of the one named repo_id.
    mixture: Sequence[MixedDataset] = ()
    # Episodes kept out of training.
    validation: ValidationSplit = dataclasses.field(default_factory=ValidationSplit)
    # Decode JPEGs at a reduced size.
    reduced_jpeg: bool = False
    # Keep images on disk in the model's size.
    keep_images: bool = True
    # This loader does not support RLDS data. The three fields exist so that such configs can be written down.
    rlds_data_dir: str | None = None
    action_space: Any | None = None
    datasets: Sequence[Any] = ()
    # Frames per second of the datasets. None until they are opened.
    fps: (
        Annotated[float, ranges.Range(0.01, MAX_FPS, "from one frame in minutes to a camera for slow motion")] | None
    ) = None

    def __post_init__(self) -> None:
        ranges.check(self, "data")

    def members(self) -> Sequence[MixedDataset]:
        """Return the datasets of the mixture, or the one named `repo_id`."""
        return self.mixture or (() if self.repo_id is None else (MixedDataset(self.repo_id),))


@dataclasses.dataclass(frozen=True)
class DataConfigFactory(abc.ABC):
    """Base of every data config.

    Subclass it as a frozen dataclass, and start `create` from `create_base_config`.
    """

    # LeRobot dataset id, a folder below $HF_LEROBOT_HOME (or ./data/lerobot). For a mixture, the name of its statistics.
    repo_id: str = tyro.MISSING
    # Where to read the statistics.
    assets: AssetsConfig = dataclasses.field(default_factory=AssetsConfig)
    # Datasets to train on together, each REPO_ID[:WEIGHT[:PROMPT]]. The weights are relative shares of the samples.
    mixture: tuple[MixedDatasetFlag, ...] = ()
    # Episodes to keep out of training, so that you can watch the loss on them.
    validation: ValidationSplit = dataclasses.field(default_factory=ValidationSplit)
    # Decode JPEGs at half their size where that still fills the model's images. It is faster, and differs by 0.4 gray
    # levels (mean).
    reduced_jpeg: bool = False
    # Keep images on disk in the model's size, in the dataset's folder, so that each is decoded once. No pixel differs.
    keep_images: bool = True
    # Values that the factory does not set itself.
    base_config: Annotated[DataConfig | None, tyro.conf.Suppress] = None

    @abc.abstractmethod
    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Build the data config of `model_config`.

        Args:
            assets_dirs: Assets folder of the training config. None if the statistics come from elsewhere (a
                checkpoint). Then nothing is looked up, on disk or on the network.
            model_config: Sets token length, padding and the kind of normalization.
        """

    def contract(self) -> dict[str, Any]:
        """Return what a server announces because of these settings.

        The values are plain. They replace those of the training config's `policy_metadata`.
        """
        return {}

    def create_base_config(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Fill in the dataset, the statistics and the kind of normalization.

        The statistics are None if they are absent, and the log says so.
        """
        repo_id = None if self.repo_id is tyro.MISSING else self.repo_id
        asset_id = self.assets.asset_id or repo_id
        stats, provenance = (None, None) if assets_dirs is None else self._load_norm_stats(assets_dirs, asset_id)
        return dataclasses.replace(
            self.base_config or DataConfig(),
            repo_id=repo_id,
            asset_id=asset_id,
            norm_stats=stats,
            norm_stats_provenance=provenance,
            mixture=self.mixture,
            validation=self.validation,
            reduced_jpeg=self.reduced_jpeg,
            keep_images=self.keep_images,
            # pi0 was pretrained on z-scores, the later models on quantiles.
            use_quantile_norm=model_config.model_type != _model.ModelType.PI0,
        )

    def _load_norm_stats(
        self, assets_dirs: pathlib.Path, asset_id: str | None
    ) -> tuple[dict[str, _normalize.NormStats] | None, _normalize.Provenance | None]:
        if asset_id is None:
            return None, None
        directory = f"{self.assets.assets_dir or assets_dirs}/{asset_id}"
        try:
            folder = _download.maybe_download(directory)
            return _normalize.load(folder), _normalize.load_provenance(folder)
        except FileNotFoundError:
            logger.info("no norm_stats.json in %s yet", directory)
        except errors.DataError:
            raise  # The file exists, but is damaged.
        except errors.UserError as e:
            logger.warning("norm stats of %s could not be fetched: %s", directory, e)
        return None, None


@dataclasses.dataclass(frozen=True)
class ModelTransformFactory:
    """The transforms of a model family, the same for every robot.

    They set default prompt, image size, tokens and padding.
    """

    # Prompt of samples that carry none.
    default_prompt: str | None = None

    def __call__(self, model_config: _model.BaseModelConfig) -> _transforms.Group:
        """Build the group for `model_config`."""
        vocab_size = _gemma.get_config(model_config.paligemma_variant).vocab_size
        prepare = [
            _transforms.InjectDefaultPrompt(self.default_prompt),
            _transforms.ResizeImages(*_model.IMAGE_RESOLUTION),
        ]
        if model_config.model_type == _model.ModelType.PI0_FAST:
            tokenizer = _fast_tokenizer(model_config, vocab_size)
            extract = _transforms.ExtractFASTActions(
                tokenizer, action_horizon=model_config.action_horizon, action_dim=model_config.action_dim
            )
            # Actions are tokens here, so nothing is padded.
            return _transforms.Group(inputs=[*prepare, _transforms.TokenizeFASTInputs(tokenizer)], outputs=[extract])
        is_pi05 = model_config.model_type == _model.ModelType.PI05
        tokenize = _transforms.TokenizePrompt(
            _tokenizer.for_vocab(vocab_size, model_config.max_token_len),
            # The original's pi0 takes its state as a token of its own, regardless of this field.
            discrete_state_input=is_pi05 and model_config.discrete_state_input,
        )
        return _transforms.Group(inputs=[*prepare, tokenize, _transforms.PadStatesAndActions(model_config.action_dim)])


def _fast_tokenizer(model_config: _model.BaseModelConfig, vocab_size: int) -> _transforms.ActionTokenizer:
    kwargs = model_config.fast_model_tokenizer_kwargs or {}
    if model_config.fast_model_tokenizer is not None:
        return model_config.fast_model_tokenizer(model_config.max_token_len, **kwargs)
    return _tokenizer.fast_for_vocab(vocab_size, model_config.max_token_len, **kwargs)


def _no_transforms(model_config: _model.BaseModelConfig) -> _transforms.Group:
    del model_config
    return _transforms.Group()


@dataclasses.dataclass(frozen=True)
class FakeDataConfig(DataConfigFactory):
    """Random samples, to try a model without a dataset."""

    # Has no effect, because there is nothing to choose from.
    repo_id: str = FAKE_REPO_ID

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Name the fake dataset. Nothing is looked up."""
        del assets_dirs, model_config
        return DataConfig(repo_id=FAKE_REPO_ID)


@dataclasses.dataclass(frozen=True)
class SimpleDataConfig(DataConfigFactory):
    """A data config with transforms as functions of the model config.

    The rest comes from `base_config`.
    """

    # Robot-specific transforms.
    data_transforms: Annotated[GroupFactory, tyro.conf.Suppress] = _no_transforms
    # Model-specific transforms.
    model_transforms: Annotated[GroupFactory, tyro.conf.Suppress] = dataclasses.field(
        default_factory=ModelTransformFactory
    )

    def create(self, assets_dirs: pathlib.Path | None, model_config: _model.BaseModelConfig) -> DataConfig:
        """Apply both functions to the model config."""
        return dataclasses.replace(
            self.create_base_config(assets_dirs, model_config),
            data_transforms=self.data_transforms(model_config),
            model_transforms=self.model_transforms(model_config),
        )
