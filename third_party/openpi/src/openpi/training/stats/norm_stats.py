"""Compute normalization statistics from the state and action columns alone.

No image is read, and every frame counts. Each frame contributes its state and the `action_horizon` action rows that
start at it (the episode's last row is repeated beyond its end), after the config's repack and robot transforms. Means
and deviations are float64, quantiles are exact. Each dataset of a mixture counts with its share of the samples.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np
import tqdm

from openpi.shared import errors
from openpi.shared import normalize
from openpi.shared import places
from openpi.training.configs import mixture
from openpi.training.configs.data_config import FAKE_REPO_ID
from openpi.training.configs.data_config import DataConfig
from openpi.training.configs.train_config import TrainConfig
from openpi.training.lerobot import columns as lerobot_columns
from openpi.training.lerobot import metadata as lerobot_metadata
from openpi.training.samples import datasets
from openpi.training.samples import stated_names
from openpi.training.stats import exact_stats
from openpi.training.stats import provenance as stats_provenance
import openpi.transforms as _transforms

STAT_KEYS = ("state", "actions")
# Vectors that are transformed at once. It bounds memory: 11 MB at 14 float32 numbers each, and copies of them.
_BLOCK_VECTORS = 200_000
# Frames on which the transforms are tried with a batch.
_NUM_TRIED = 16
# Time between redraws of a progress bar, s. It is long where each redraw is a line of a log file.
_BAR_INTERVAL_S = 0.5 if sys.stderr.isatty() else 20.0
# q99 - q01 of a normal distribution, in standard deviations. It turns a floor of the range into one of the deviation.
_NORMAL_SPAN = 4.653


@dataclasses.dataclass(frozen=True)
class Report:
    """What was computed and where it was written."""

    path: pathlib.Path
    distributions: dict[str, exact_stats.Distribution]
    # The statistics that were written: those of `distributions` with the floor applied.
    stats: dict[str, normalize.NormStats]
    # Name of each number of `state` and `actions`, in the model's order.
    names: dict[str, list[str]]
    min_range: float
    num_frames: int
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class _StatsInput:
    """The numbers of one dataset that enter the statistics."""

    repo_id: str
    metadata: lerobot_metadata.LeRobotMetadata
    # Number columns by key, (n, ...).
    columns: Mapping[str, np.ndarray]
    # Indices of the frames that count, sorted.
    frames: np.ndarray
    # Share of the samples, 0..1.
    share: float


def compute_norm_stats(config: TrainConfig, *, max_frames: int | None = None, min_range: float = 0.0) -> Report:
    """Compute a config's statistics and write them where training reads them.

    Args:
        config: Names datasets, transforms and target folder.
        max_frames: Use only this many frames, drawn at random (seed 0). None means all.
        min_range: Smallest q99 - q01 of a dimension, in its unit. Smaller ranges are widened around their middle, and
            deviations are raised to those of a normal distribution of that range.

    Raises:
        ConfigError: The config has no dataset, or reads its statistics from a URL.
        MissingFileError: A dataset is missing.
        DataError: A dataset cannot be read, or holds values that are not finite.
    """
    start = time.perf_counter()
    # Check the flags before anything is read.
    if not 0 <= min_range < np.inf:
        raise errors.ConfigError(f"min_range: found {min_range}, expected a range of 0 or more")
    target = _target_dir(config)
    places.check(target, "--assets-base-dir")
    data_config = config.data.create(None, config.model)
    sources = _open_sources(data_config, max_frames)
    num_frames = sum(len(source.frames) for source in sources)
    distributions = _accumulate(sources, data_config, config.model.action_horizon, num_frames)
    stats = {key: _with_floor(found.stats, min_range) for key, found in distributions.items()}
    # Store them with a description of the data they belong to.
    basis = _basis(sources, data_config, config.model.action_horizon)
    provenance = stats_provenance.make(basis, config=config.name, frames_used=num_frames, min_range=min_range)
    normalize.save(target, stats, provenance)
    return Report(
        path=target / normalize.FILE_NAME,
        distributions=distributions,
        stats=stats,
        names=_dim_names(sources[0].metadata, data_config),
        min_range=min_range,
        num_frames=num_frames,
        seconds=time.perf_counter() - start,
    )


def _target_dir(config: TrainConfig) -> pathlib.Path:
    assets = config.data.assets
    asset_id = assets.asset_id or config.data.repo_id
    if not isinstance(asset_id, str) or asset_id == FAKE_REPO_ID:
        raise errors.ConfigError(
            f"config '{config.name}': no dataset to compute statistics of. Choose a config that has one"
        )
    if assets.assets_dir is not None and "://" in assets.assets_dir:
        raise errors.ConfigError(
            f"config '{config.name}': its statistics come from {assets.assets_dir}/{asset_id}, nothing to compute. To "
            "use those of its own data, give '--data.assets.assets-dir None' here and in training"
        )
    return pathlib.Path(assets.assets_dir or config.assets_dirs) / asset_id


def _open_sources(data_config: DataConfig, max_frames: int | None) -> list[_StatsInput]:
    if max_frames is not None and max_frames < 1:
        raise errors.ConfigError(f"max_frames: found {max_frames}, expected at least 1")
    members = data_config.members()
    metadatas = [lerobot_metadata.load_metadata(member.repo_id) for member in members]
    mixture.check_rates(members, [metadata.fps for metadata in metadatas])
    shares = mixture.shares(members, [metadata.total_frames for metadata in metadatas])
    sources = []
    for member, metadata, share in zip(members, metadatas, shares, strict=True):
        used = datasets.used_keys(data_config, metadata, member)
        stated_names.check(data_config, metadata)
        wanted = None if max_frames is None else max(round(max_frames * share), 1)
        columns = _read_columns(metadata, stats_provenance.stats_keys(metadata, used))
        _check_finite(member.repo_id, metadata, columns)
        frames = _choose_frames(metadata.total_frames, wanted)
        sources.append(_StatsInput(member.repo_id, metadata, columns, frames, share))
    return sources


def _read_columns(metadata: lerobot_metadata.LeRobotMetadata, keys: Sequence[str]) -> dict[str, np.ndarray]:
    with tqdm.tqdm(total=len(metadata.episodes), unit="ep", desc="read columns", mininterval=_BAR_INTERVAL_S) as bar:
        return lerobot_columns.read_columns(metadata, keys, on_episode=bar.update)


def _check_finite(repo_id: str, metadata: lerobot_metadata.LeRobotMetadata, columns: Mapping[str, np.ndarray]) -> None:
    for key, column in columns.items():
        if not np.isfinite(column).all():
            bad = np.argwhere(~np.isfinite(column))
            frame, dim = int(bad[0][0]), int(bad[0][-1])
            episode = metadata.episode_of(frame)
            raise errors.DataError(
                f"dataset '{repo_id}', episode {episode.index}, frame {frame - episode.first_frame}: '{key}' [{dim}] is "
                f"not finite ({len(bad)} such values). Convert the recording again, or remove the episode"
            )


def _choose_frames(num_frames: int, wanted: int | None) -> np.ndarray:
    if wanted is None or wanted >= num_frames:
        return np.arange(num_frames)
    return np.sort(np.random.default_rng(0).choice(num_frames, wanted, replace=False))


class _Sampler:
    """Transformed states and action windows of many frames at once."""

    def __init__(self, source: _StatsInput, data_config: DataConfig, action_horizon: int) -> None:
        self._source = source
        self._sequence_keys = data_config.action_sequence_keys
        self._window = np.arange(action_horizon)
        self._last = np.concatenate([np.full(e.length, e.first_frame + e.length - 1) for e in source.metadata.episodes])
        self._transform = _chain(data_config)
        self._stand_ins = stats_provenance.stand_ins(source.metadata)

    def blocks(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Yield each block's number of frames and its vectors (n, d)."""
        frames = self._source.frames
        read = self._read_batch if self._takes_batches() else self._read_singly
        size = max(_BLOCK_VECTORS // len(self._window), 1)
        for start in range(0, len(frames), size):
            block = frames[start : start + size]
            yield len(block), {key: x.reshape(-1, x.shape[-1]) for key, x in read(block).items()}

    def _takes_batches(self) -> bool:
        """Return whether the transforms treat a batch of frames like single frames."""
        frames = self._source.frames
        tried = frames[np.linspace(0, len(frames) - 1, min(_NUM_TRIED, len(frames))).astype(int)]
        singly = self._read_singly(tried)
        try:
            batch = self._read_batch(tried)
        except (ValueError, IndexError, KeyError, TypeError):
            return False
        return all(np.array_equal(batch[key], singly[key]) for key in STAT_KEYS)

    def _read_batch(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        result = self._transform(self._sample(frames))
        return {key: np.asarray(result[key]) for key in STAT_KEYS}

    def _read_singly(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        results = [
            datasets.apply(self._transform, self._sample(frame), f"dataset '{self._source.repo_id}', frame {frame}")
            for frame in frames
        ]
        return {key: np.stack([np.atleast_1d(result[key]) for result in results]) for key in STAT_KEYS}

    def _sample(self, frames: np.ndarray | np.integer) -> dict[str, Any]:
        """Return one frame, or a batch, as input of the transforms."""
        columns = self._source.columns
        sample = self._stand_ins | {key: column[frames] for key, column in columns.items()}
        window = np.minimum(frames[..., None] + self._window, self._last[frames][..., None])
        return sample | {key: columns[key][window] for key in self._sequence_keys}


def _chain(data_config: DataConfig) -> _transforms.DataTransformFn:
    return _transforms.compose([*data_config.repack_transforms.inputs, *data_config.data_transforms.inputs])


def _accumulate(
    sources: Sequence[_StatsInput], data_config: DataConfig, action_horizon: int, num_frames: int
) -> dict[str, exact_stats.Distribution]:
    parts: dict[str, list[exact_stats.VectorStats]] = {key: [] for key in STAT_KEYS}
    with tqdm.tqdm(total=num_frames, unit="frame", desc="norm stats", mininterval=_BAR_INTERVAL_S) as bar:
        for source in sources:
            of_source: dict[str, exact_stats.VectorStats] = {}
            for count, block in _Sampler(source, data_config, action_horizon).blocks():
                for key, vectors in block.items():
                    # Every frame gives the same number of vectors: 1 state, action_horizon actions.
                    total = len(source.frames) * (len(vectors) // count)
                    of_source.setdefault(key, exact_stats.VectorStats(total, source.share)).update(vectors)
                bar.update(count)
            for key, stats in of_source.items():
                parts[key].append(stats)
    return {key: exact_stats.combine(found) for key, found in parts.items()}


def _with_floor(stats: normalize.NormStats, min_range: float) -> normalize.NormStats:
    middle = (stats.q01 + stats.q99) / 2
    is_narrow = stats.q99 - stats.q01 < min_range
    return normalize.NormStats(
        mean=stats.mean,
        std=np.maximum(stats.std, min_range / _NORMAL_SPAN),
        q01=np.where(is_narrow, middle - min_range / 2, stats.q01),
        q99=np.where(is_narrow, middle + min_range / 2, stats.q99),
    )


def _basis(sources: Sequence[_StatsInput], data_config: DataConfig, action_horizon: int) -> dict[str, Any]:
    facts = [
        stats_provenance.dataset_facts(
            source.repo_id, source.share, source.metadata, source.columns, list(source.columns)
        )
        for source in sources
    ]
    return stats_provenance.describe(data_config, action_horizon, facts, sources[0].metadata)


def _dim_names(metadata: lerobot_metadata.LeRobotMetadata, data_config: DataConfig) -> dict[str, list[str]]:
    """Name each transformed number after the dataset's number that moves it most."""
    # A frame in which every number is 0.5.
    transform = _chain(data_config)
    keys = stats_provenance.stats_keys(metadata, datasets.used_keys(data_config, metadata))
    base = stats_provenance.stand_ins(metadata)
    base |= {key: np.full(metadata.shape(key), 0.5, np.float32) for key in keys}
    base |= {key: base[key][None] for key in data_config.action_sequence_keys}

    def outputs(sample: Mapping[str, Any]) -> dict[str, np.ndarray]:
        result = transform(dict(sample))
        return {key: np.asarray(result[key], np.float64).reshape(-1) for key in STAT_KEYS}

    # Move one number of the dataset at a time, and see what changes.
    still = outputs(base)
    names = {key: [str(i) for i in range(len(value))] for key, value in still.items()}
    most = {key: np.zeros(len(value)) for key, value in still.items()}
    # Actions come last, because a number that depends on both (a difference to the state) is named after the action.
    for key in sorted(keys, key=lambda key: key in data_config.action_sequence_keys):
        for i, name in enumerate(metadata.dim_names(key)):
            moved = base[key].copy()
            moved.reshape(-1)[i] += 0.1
            for out_key, values in outputs(base | {key: moved}).items():
                change = np.abs(values - still[out_key])
                for dim in np.flatnonzero((change > 1e-6) & (change >= most[out_key] * (1 - 1e-6))):
                    names[out_key][dim], most[out_key][dim] = name, change[dim]
    return names
