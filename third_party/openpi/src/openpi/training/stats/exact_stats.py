"""Compute mean, deviation and exact quantiles of vectors that come in blocks.

The vectors belong to one dataset, or to a weighted mixture of several. Only the tails that the quantiles can depend on
are kept, so memory stays at a few hundredths of the data.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from openpi.shared import errors
from openpi.shared import normalize

# Share of the values below q01 and above q99.
_TAIL = 0.01
# Rounding of a sum of shares.
_SLACK = 1e-12


class VectorStats:
    """Moments and tails of the vectors of one dataset."""

    def __init__(self, num_vectors: int, share: float = 1.0) -> None:
        """Set the length of the tails.

        Args:
            num_vectors: How many vectors will come in total.
            share: Share of this dataset in the mixture, 0..1. The smaller it is, the further into this dataset a
                quantile of the mixture can lie.
        """
        self.share = share
        self._expected = num_vectors
        self._num_tail = min(math.ceil(_TAIL / share * num_vectors * (1 - _SLACK)) + 1, num_vectors)
        self._count = 0

    def update(self, vectors: np.ndarray) -> None:
        """Take in float (n, d).

        Raises:
            DataError: A number is not finite.
        """
        if not np.isfinite(vectors).all():
            raise errors.DataError(f"norm stats: {int((~np.isfinite(vectors)).sum())} values are not finite")
        rows = np.ascontiguousarray(vectors.T)  # [d, n], so that everything below reads memory in order
        self._add_tails(rows)
        self._add_moments(rows.astype(np.float64))

    def _add_tails(self, rows: np.ndarray) -> None:
        none = rows[:, :0]
        low, high = (self._low, self._high) if self._count else (none, none)
        # [d, n], not sorted
        self._low = _add_to_tail(low, rows, self._num_tail, is_low=True)
        self._high = _add_to_tail(high, rows, self._num_tail, is_low=False)

    def _add_moments(self, rows: np.ndarray) -> None:
        """Merge a block, float64 [d, n], and overwrite it."""
        num = rows.shape[1]
        mean = rows.mean(axis=1)
        rows -= mean[:, None]
        squares = np.einsum("dn,dn->d", rows, rows)
        if self._count == 0:
            self._mean, self._squares = mean, squares
        else:
            # Parallel variance (Chan, Golub, LeVeque 1979) never subtracts large squares from each other.
            total = self._count + num
            shift = mean - self._mean
            self._squares += squares + shift**2 * (self._count * num / total)
            self._mean += shift * (num / total)
        self._count += num

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and population variance of all vectors, float64 (d,).

        Raises:
            ValueError: Fewer or more vectors came than `num_vectors`.
        """
        if self._count != self._expected:
            raise ValueError(f"expected {self._expected} vectors, found {self._count}")
        return self._mean, self._squares / self._count

    def tails(self, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the lowest and the highest values of a dimension.

        The third result is the share of the mixture that each value represents.
        """
        return self._low[dim], self._high[dim], self.share / self._count


def _add_to_tail(tail: np.ndarray, rows: np.ndarray, size: int, *, is_low: bool) -> np.ndarray:
    """Return the `size` lowest (or highest) numbers per dimension.

    They are chosen from a tail [d, <= size] and a block [d, n], and come in any order.
    """
    if tail.shape[1] < size:
        return _select(np.concatenate([tail, rows], axis=1), size, is_low=is_low)
    # Few numbers of a later block lie outside the tail. Selecting among those alone takes a third of the time.
    bounds = tail.max(axis=1) if is_low else tail.min(axis=1)
    result = []
    for kept, row, bound in zip(tail, rows, bounds, strict=True):
        further = row[row < bound if is_low else row > bound]
        result.append(_select(np.concatenate([kept, further]), size, is_low=is_low))
    return np.stack(result)


def _select(x: np.ndarray, size: int, *, is_low: bool) -> np.ndarray:
    """Return the `size` lowest (or highest) numbers along the last axis.

    If there are fewer, return all of them.
    """
    if x.shape[-1] <= size:
        return x
    return (np.partition(x, size - 1)[..., :size] if is_low else np.partition(x, -size)[..., -size:]).copy()


@dataclasses.dataclass(frozen=True, eq=False)
class Distribution:
    """Statistics, and what else a report says about the values.

    Every field has shape [d].
    """

    stats: normalize.NormStats
    low: np.ndarray
    high: np.ndarray
    # Share of the values outside q01..q99, which quantile normalization maps outside -1..1.
    outside: np.ndarray


def combine(parts: Sequence[VectorStats]) -> Distribution:
    """Return the statistics of a mixture, whose shares sum to 1.

    A quantile q is the smallest value such that at least the share q of all values is not above it.
    """
    means, variances = (np.stack(values) for values in zip(*(part.moments() for part in parts), strict=True))
    shares = np.array([part.share for part in parts])[:, None]
    mean = (shares * means).sum(axis=0)
    variance = (shares * (variances + np.square(means - mean))).sum(axis=0)
    dims = [_tails_of([part.tails(dim) for part in parts]) for dim in range(len(mean))]
    q01, q99, low, high, outside = (np.array(values) for values in zip(*dims, strict=True))
    return Distribution(normalize.NormStats(mean=mean, std=np.sqrt(variance), q01=q01, q99=q99), low, high, outside)


def _tails_of(tails: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> tuple[float, float, float, float, float]:
    """Return q01, q99, smallest, largest value and share outside of one dimension."""
    low, high = (np.concatenate([tail[side] for tail in tails]).astype(np.float64) for side in (0, 1))
    low_mass, high_mass = (np.concatenate([np.full(len(tail[side]), tail[2]) for tail in tails]) for side in (0, 1))
    order = np.argsort(low, kind="stable")
    low, below = low[order], np.cumsum(low_mass[order])  # share up to and with each value
    # Equal values belong together, so the share up to a value is the share at its last copy.
    q01 = low[np.argmax(below >= _TAIL * (1 - _SLACK))]
    order = np.argsort(high, kind="stable")[::-1]
    high, high_mass = high[order], high_mass[order]
    first_copy = np.searchsorted(-high, -high, side="left")
    above = np.concatenate([[0.0], np.cumsum(high_mass)])[first_copy]  # share strictly above each value
    q99 = high[np.flatnonzero(above <= _TAIL * (1 + _SLACK))[-1]]
    outside = below[low < q01].max(initial=0.0) + high_mass[high > q99].sum()
    return q01, q99, low[0], high[0], outside
