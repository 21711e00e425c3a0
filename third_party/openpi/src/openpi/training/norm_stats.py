"""Normalisation statistics from the state and action columns alone: no image is read, every frame counts.

Each frame contributes its state and the `action_horizon` action rows that start at it (the episode's last row repeated
beyond its end), after the config's repack and robot transforms. Means and deviations are float64, quantiles exact.
"""

from collections.abc import Iterator
import dataclasses
import logging
import math
import pathlib
import time
from typing import Any

import numpy as np
import tqdm

from openpi.models import model as _model
from openpi.shared import errors
from openpi.shared import normalize
from openpi.training import datasets
from openpi.training import lerobot_columns
from openpi.training import lerobot_metadata
from openpi.training.data_config import FAKE_REPO_ID
from openpi.training.data_config import DataConfig
from openpi.training.train_config import TrainConfig
import openpi.transforms as _transforms

logger = logging.getLogger(__name__)

STAT_KEYS = ("state", "actions")
# Shares of the values below q01 and q99.
_QUANTILES = (0.01, 0.99)
# Vectors that are gathered before they enter the statistics; bounds memory (50 x 14 float64 rows: about 45 MB).
_BLOCK_ROWS = 400_000
# A normalised value is divided by the range; below this the dimension is constant for all purposes.
_TINY_RANGE = 1e-3
# Stands in for every camera: the robot transforms want images, the statistics do not depend on them.
_DUMMY_IMAGE = np.zeros((3, 1, 1), np.uint8)


class ExactStats:
    """Mean, standard deviation and exact quantiles of vectors that are fed in blocks.

    Only the lowest and highest hundredth of the values is kept, which is all that the quantiles can depend on.
    """

    def __init__(self, num_vectors: int) -> None:
        """Prepare for `num_vectors` vectors in all; the ranks of the quantiles follow from it."""
        self._expected = num_vectors
        low_rank, high_rank = (max(math.ceil(q * num_vectors), 1) - 1 for q in _QUANTILES)
        self._num_low = low_rank + 1
        self._num_high = num_vectors - high_rank
        self._count = 0

    def update(self, vectors: np.ndarray) -> None:
        """Take in float (n, d).

        Raises:
            DataError: A number is not finite.
        """
        block = np.asarray(vectors, np.float64)
        if not np.isfinite(block).all():
            raise errors.DataError(f"norm stats: {int((~np.isfinite(block)).sum())} values are not finite")
        mean = block.mean(axis=0)
        squares = np.square(block - mean).sum(axis=0)
        if self._count == 0:
            self._mean, self._squares = mean, squares
            self._low = self._high = np.empty((0, block.shape[1]))
        else:
            # Parallel variance (Chan, Golub, LeVeque 1979): no difference of large squares.
            total = self._count + len(block)
            shift = mean - self._mean
            self._squares += squares + shift**2 * (self._count * len(block) / total)
            self._mean += shift * (len(block) / total)
        self._count += len(block)
        self._low = _lowest(np.concatenate([self._low, block]), self._num_low)
        self._high = -_lowest(-np.concatenate([self._high, block]), self._num_high)

    def result(self) -> normalize.NormStats:
        """Return the statistics; q is the smallest value that at least the share q of all values does not exceed."""
        if self._count != self._expected:
            raise ValueError(f"expected {self._expected} vectors, found {self._count}")
        return normalize.NormStats(
            mean=self._mean,
            std=np.sqrt(self._squares / self._count),
            q01=self._low.max(axis=0),
            q99=self._high.min(axis=0),
        )


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    return values if len(values) <= count else np.partition(values, count - 1, axis=0)[:count]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was computed and where it lies."""

    path: pathlib.Path
    stats: dict[str, normalize.NormStats]
    num_frames: int
    seconds: float


def compute_norm_stats(config: TrainConfig, *, max_frames: int | None = None) -> Report:
    """Compute a config's statistics and write them where its training reads them.

    Args:
        config: Names dataset, transforms and target folder.
        max_frames: Use only so many frames, drawn at random (seed 0); None: all.

    Raises:
        ConfigError: The config has no dataset, or reads its statistics from a URL.
        MissingFileError: The dataset is missing.
        DataError: The dataset cannot be read, or holds values that are not finite.
    """
    start = time.perf_counter()
    target = _target_dir(config)
    data_config = config.data.create(None, config.model)
    metadata = lerobot_metadata.load_metadata(data_config.repo_id)
    frames = _choose_frames(metadata.total_frames, max_frames)
    samples = _read_samples(data_config, metadata, config.model, frames)
    stats = _accumulate(samples, len(frames))
    normalize.save(target, stats)
    warn_tiny_ranges(stats)
    return Report(
        path=target / "norm_stats.json", stats=stats, num_frames=len(frames), seconds=time.perf_counter() - start
    )


def _target_dir(config: TrainConfig) -> pathlib.Path:
    assets = config.data.assets
    asset_id = assets.asset_id or config.data.repo_id
    if not isinstance(asset_id, str) or asset_id == FAKE_REPO_ID:
        raise errors.ConfigError(
            f"config '{config.name}': has no dataset to compute statistics of; choose one that has"
        )
    if assets.assets_dir is not None and "://" in assets.assets_dir:
        raise errors.ConfigError(
            f"config '{config.name}': takes its statistics from {assets.assets_dir}/{asset_id}; nothing to compute"
        )
    return pathlib.Path(assets.assets_dir or config.assets_dirs) / asset_id


def _choose_frames(num_frames: int, max_frames: int | None) -> np.ndarray:
    if max_frames is None or max_frames >= num_frames:
        return np.arange(num_frames)
    if max_frames < 1:
        raise errors.ConfigError(f"max_frames: found {max_frames}, expected at least 1")
    return np.sort(np.random.default_rng(0).choice(num_frames, max_frames, replace=False))


def _read_samples(
    data_config: DataConfig,
    metadata: lerobot_metadata.LeRobotMetadata,
    model_config: _model.BaseModelConfig,
    frames: np.ndarray,
) -> Iterator[dict[str, Any]]:
    """Yield each chosen frame after repack and robot transforms."""
    used = datasets.used_keys(data_config, metadata)
    keys = [key for key in metadata.column_keys if used is None or key in used]
    with tqdm.tqdm(total=len(metadata.episodes), unit="ep", desc="read columns") as bar:
        columns = lerobot_columns.read_columns(metadata, keys, on_episode=bar.update)
    constant: dict[str, Any] = dict.fromkeys(metadata.camera_keys, _DUMMY_IMAGE)
    constant |= {"task": "", "prompt": ""}
    last_frames = np.concatenate(
        [np.full(episode.length, episode.first_frame + episode.length - 1) for episode in metadata.episodes]
    )
    window = np.arange(model_config.action_horizon)
    transform = _transforms.compose([*data_config.repack_transforms.inputs, *data_config.data_transforms.inputs])
    for frame in tqdm.tqdm(frames.tolist(), unit="frame", desc="norm stats", mininterval=0.5):
        sample = constant | {key: column[frame] for key, column in columns.items()}
        for key in data_config.action_sequence_keys:
            sample[key] = columns[key][np.minimum(frame + window, last_frames[frame])]
        yield datasets.apply(transform, sample, f"dataset '{data_config.repo_id}', frame {frame}")


def _accumulate(samples: Iterator[dict[str, Any]], num_frames: int) -> dict[str, normalize.NormStats]:
    stats: dict[str, ExactStats] = {}
    blocks: dict[str, list[np.ndarray]] = {key: [] for key in STAT_KEYS}
    rows = 0

    def flush() -> None:
        for key, parts in blocks.items():
            stacked = np.concatenate(parts)
            # Every frame contributes the same number of rows: 1 state, action_horizon actions.
            stats.setdefault(key, ExactStats(num_frames * (len(stacked) // len(parts)))).update(stacked)
            parts.clear()

    for sample in samples:
        for key, parts in blocks.items():
            parts.append(np.atleast_2d(sample[key]))
            rows += len(parts[-1])
        if rows >= _BLOCK_ROWS:
            flush()
            rows = 0
    if rows:
        flush()
    return {key: stat.result() for key, stat in stats.items()}


def warn_tiny_ranges(stats: dict[str, normalize.NormStats]) -> None:
    """Warn of dimensions that hardly move: normalisation amplifies any deviation there."""
    for key, stat in stats.items():
        spans = stat.q99 - stat.q01
        dims = np.flatnonzero(spans < _TINY_RANGE).tolist()
        if dims:
            logger.warning(
                "norm stats: dimensions %s of '%s' hardly move (1 %% to 99 %% within %s); any deviation there is "
                "amplified a thousand times: check the recordings",
                dims,
                key,
                _TINY_RANGE,
            )
