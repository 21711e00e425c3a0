"""Normalization statistics of a dataset: their file and their one-pass computation."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from typing import Any, TypeAlias

import numpy as np

from openpi.shared import errors

logger = logging.getLogger(__name__)

FILE_NAME = "norm_stats.json"

PROVENANCE_NAME = "norm_stats.provenance.json"
"""A file next to the statistics, because openpi's own reader must understand the statistics file."""

Provenance: TypeAlias = Mapping[str, Any]
"""What statistics were computed from: plain JSON values, made and read by `openpi.training.stats.provenance`."""

_DIGEST_KEY = "norm_stats_sha256"
"""Ties the two files together. The provenance is void once `norm_stats.json` was edited or replaced."""

_NUM_BINS = 5000
"""Resolution of the quantiles: a five-thousandth of the range seen (formula: as in the released statistics)."""

_QUANTILES = (0.01, 0.99)


@dataclasses.dataclass(frozen=True, eq=False)
class NormStats:
    """Statistics of the vectors under one key. Every field has shape [d]."""

    mean: np.ndarray
    # Population standard deviation.
    std: np.ndarray
    # The 1 % and the 99 % quantile.
    q01: np.ndarray | None = None
    q99: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                object.__setattr__(self, field.name, np.asarray(value))


class RunningStats:
    """Computes mean, standard deviation and quantiles, batch by batch.

    Batches may have any size. Sums are kept in float64 around the running mean, so that values far from zero lose no
    precision. The quantiles come from one histogram per dimension over the range seen so far. When that range grows, the
    counts move to the new bins.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = np.zeros(0)
        self._sum_sq_deviation = np.zeros(0)
        self._min = np.zeros(0)
        self._max = np.zeros(0)
        self._histograms: list[np.ndarray] = []

    def update(self, batch: np.ndarray) -> None:
        """Add vectors.

        Args:
            batch: Any shape [..., d]. All axes but the last are batch axes.

        Raises:
            DataError: d differs from earlier batches, or a number is not finite.
        """
        vectors = np.asarray(batch, dtype=np.float64)
        vectors = vectors.reshape(-1, vectors.shape[-1])
        if not len(vectors):
            return
        if self._count and vectors.shape[1] != self._mean.size:
            raise errors.DataError(
                f"statistics: found vectors of {vectors.shape[1]} numbers, expected {self._mean.size} as before"
            )
        if not np.isfinite(vectors).all():
            raise errors.DataError(f"statistics: {np.sum(~np.isfinite(vectors))} numbers are not finite")
        self._update_moments(vectors)
        self._update_histograms(vectors)

    def _update_moments(self, vectors: np.ndarray) -> None:
        """Merge a batch into the mean and the squared deviations.

        The formula is from Chan, Golub and LeVeque (1979).
        """
        num = len(vectors)
        mean = vectors.mean(axis=0)
        sum_sq = np.square(vectors - mean).sum(axis=0)
        if not self._count:
            self._count, self._mean, self._sum_sq_deviation = num, mean, sum_sq
            return
        total = self._count + num
        shift = mean - self._mean
        self._sum_sq_deviation = self._sum_sq_deviation + sum_sq + np.square(shift) * (self._count * num / total)
        self._mean = self._mean + shift * (num / total)
        self._count = total

    def _update_histograms(self, vectors: np.ndarray) -> None:
        low, high = vectors.min(axis=0), vectors.max(axis=0)
        if not self._histograms:
            self._min, self._max = low, high
            self._histograms = [np.zeros(_NUM_BINS) for _ in low]
        new_min, new_max = np.minimum(self._min, low), np.maximum(self._max, high)
        for dim, counts in enumerate(self._histograms):
            if new_min[dim] < self._min[dim] or new_max[dim] > self._max[dim]:
                counts = _rebin(counts, (self._min[dim], self._max[dim]), (new_min[dim], new_max[dim]))
            self._histograms[dim] = counts + _histogram(vectors[:, dim], new_min[dim], new_max[dim])
        self._min, self._max = new_min, new_max

    def get_statistics(self) -> NormStats:
        """Return float64 statistics of all vectors so far.

        Raises:
            DataError: There are fewer than two vectors.
        """
        if self._count < 2:
            raise errors.DataError(f"statistics: found {self._count} vectors, expected at least 2")
        quantiles = [
            np.array([self._quantile(dim, quantile) for dim in range(self._mean.size)]) for quantile in _QUANTILES
        ]
        std = np.sqrt(self._sum_sq_deviation / self._count)
        return NormStats(mean=self._mean, std=std, q01=quantiles[0], q99=quantiles[1])

    def _quantile(self, dim: int, quantile: float) -> float:
        """Return the left edge of the bin that holds the quantile.

        It is the first bin at whose end the counts reach the share `quantile` of all vectors.
        """
        reached = np.cumsum(self._histograms[dim]) >= quantile * self._count
        return float(_edges(self._min[dim], self._max[dim])[np.argmax(reached)])


def _edges(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, _NUM_BINS + 1)


def _bins(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the bin of each value between `low` and `high`.

    Rounding at the borders never loses a value.
    """
    width = (high - low) / _NUM_BINS
    if width == 0:
        return np.zeros(len(values), dtype=np.int64)
    return np.clip(((values - low) / width).astype(np.int64), 0, _NUM_BINS - 1)


def _histogram(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.bincount(_bins(values, low, high), minlength=_NUM_BINS).astype(np.float64)


def _rebin(counts: np.ndarray, old: tuple[float, float], new: tuple[float, float]) -> np.ndarray:
    """Move counts to the bins of a wider range.

    The count of an old bin is spread evenly over its width. To move whole bins instead, to the bin of an edge or of the
    center, would shift the mass a little at every growth, and always the same way where data have a trend.
    """
    if old[0] == old[1]:
        rebinned = np.zeros(_NUM_BINS)
        rebinned[_bins(np.array([old[0]]), *new)] = counts.sum()
        return rebinned
    cumulative = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(_edges(*new), _edges(*old), cumulative))


def serialize_json(norm_stats: Mapping[str, NormStats]) -> str:
    """Return the JSON text of statistics by key.

    Raises:
        DataError: A number is not finite.
    """
    stats = {
        key: {
            field.name: None if (value := getattr(stats, field.name)) is None else np.asarray(value).tolist()
            for field in dataclasses.fields(NormStats)
        }
        for key, stats in norm_stats.items()
    }
    try:
        return json.dumps({"norm_stats": stats}, indent=2, allow_nan=False)
    except ValueError as e:
        raise errors.DataError(f"norm stats of {sorted(norm_stats)}: a number is not finite") from e


def deserialize_json(data: str) -> dict[str, NormStats]:
    """Return the statistics by key that `serialize_json` wrote.

    Raises:
        DataError: The text is not JSON, it has no statistics, a number is not finite, or widths differ.
    """
    try:
        found = {key: NormStats(**fields) for key, fields in json.loads(data)["norm_stats"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise errors.DataError(f"norm stats: not the expected JSON ({type(e).__name__}: {e})") from e
    problems = [problem for key, stats in found.items() for problem in _problems(key, stats)]
    if problems or not found:
        raise errors.DataError(f"norm stats: {', and '.join(problems) or 'found none'}. Compute them again")
    return found


def _problems(key: str, stats: NormStats) -> list[str]:
    shape = list(np.shape(stats.mean))
    problems = []
    for field in dataclasses.fields(NormStats):
        value = getattr(stats, field.name)
        if value is None and field.name.startswith("q"):
            continue
        is_vector = value is not None and value.ndim > 0 and value.size > 0 and list(value.shape) == shape
        if not is_vector or value.dtype.kind not in "fiu":
            what = "missing" if value is None else f"{value.dtype} {list(value.shape)}"
            problems.append(f"'{key}' {field.name} is {what}, expected numbers {shape or '[*]'}")
        elif not np.isfinite(value).all():
            problems.append(f"'{key}' {field.name} has {np.sum(~np.isfinite(value))} numbers that are not finite")
    return problems


def save(
    directory: pathlib.Path | str, norm_stats: Mapping[str, NormStats], provenance: Provenance | None = None
) -> None:
    """Write `norm_stats.json` into a folder.

    The folder is created if it is missing. An old file is replaced atomically.

    Args:
        directory: The folder.
        norm_stats: Statistics by key.
        provenance: What they were computed from, written to a file of its own. None removes an older file.
    """
    path = pathlib.Path(directory) / FILE_NAME
    text = serialize_json(norm_stats)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, text)
    provenance_path = path.with_name(PROVENANCE_NAME)
    if provenance is None:
        provenance_path.unlink(missing_ok=True)
    else:
        _replace(provenance_path, json.dumps({**provenance, _DIGEST_KEY: _digest(text)}, indent=2))


def _replace(path: pathlib.Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load_provenance(directory: pathlib.Path | str) -> Provenance | None:
    """Read what the statistics of a folder were computed from.

    Returns:
        The provenance, or None if it is unknown. A file that is damaged or void causes a warning.
    """
    path = pathlib.Path(directory) / PROVENANCE_NAME
    if not path.exists():
        return None
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
        is_theirs = provenance[_DIGEST_KEY] == _digest(path.with_name(FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as e:
        logger.warning(
            "%s: cannot be read (%s: %s), so the origin of the norm stats is unknown", path, type(e).__name__, e
        )
        return None
    if not is_theirs:
        logger.warning(
            "%s: changed after it was computed, so its origin is unknown. Compute it again with: make norm-stats",
            path.with_name(FILE_NAME),
        )
    return provenance if is_theirs else None


def load(directory: pathlib.Path | str) -> dict[str, NormStats]:
    """Read `norm_stats.json` of a folder.

    Raises:
        MissingFileError: There is no such file (also a FileNotFoundError).
        DataError: The file does not hold valid statistics.
    """
    path = pathlib.Path(directory) / FILE_NAME
    if not path.exists():
        raise errors.MissingFileError(f"{path}: no norm stats here. Compute them first")
    try:
        return deserialize_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as e:
        raise errors.DataError(f"{path}: norm stats: not the expected JSON ({e}). Compute them again") from e
    except errors.DataError as e:
        raise errors.DataError(f"{path}: {e}") from e
