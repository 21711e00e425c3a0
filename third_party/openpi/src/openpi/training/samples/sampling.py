"""Which samples make up which batch: a pure function of (seed, position), so that it can be resumed anywhere."""

from collections.abc import Sequence
import dataclasses
import fractions
import functools
import itertools
import math
from typing import Protocol

import numpy as np

# Samples after which each dataset of a mixture has had its share, to within one.
_BLOCK = 2048


class Order(Protocol):
    """An endless sequence of samples."""

    @property
    def num_samples(self) -> int:
        """Number of different samples."""
        ...

    @property
    def seed(self) -> int:
        """What it depends on besides the position."""
        ...

    def take(self, position: int, count: int) -> np.ndarray:
        """Return the indices of samples `position` to `position + count`, int64 (count,)."""
        ...


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """An endless order of samples: epoch after epoch, each a permutation of its own.

    Batches are cut from the endless order without regard to epochs: no sample is ever dropped, and a dataset smaller
    than a batch simply comes again.
    """

    num_samples: int
    shuffle: bool
    seed: int
    # Tells the datasets of a mixture apart.
    stream: int = 0

    def take(self, position: int, count: int) -> np.ndarray:
        """Return the indices of samples `position` to `position + count` of the order, int64 (count,)."""
        parts = []
        while count > 0:
            epoch, offset = divmod(position, self.num_samples)
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_samples)
        return _permutation(self.num_samples, (self.seed, epoch, self.stream) if self.stream else (self.seed, epoch))


# A batch asks for the epoch that the one before it did; the datasets of a mixture each for their own.
@functools.lru_cache(maxsize=64)
def _permutation(num_samples: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num_samples)


@dataclasses.dataclass(frozen=True)
class MixtureOrder:
    """An endless order over several datasets that lie one behind the other, each with a share of the samples.

    In every block of 2048 samples each dataset has its share to within one sample, in random places. Within a dataset the
    order is that of `SampleOrder`: every frame comes once before any comes again, at a pace of its own.
    """

    lengths: tuple[int, ...]
    shares: tuple[float, ...]
    shuffle: bool
    seed: int

    @property
    def num_samples(self) -> int:
        """Frames of all datasets."""
        return sum(self.lengths)

    def take(self, position: int, count: int) -> np.ndarray:
        """Return the indices of samples `position` to `position + count` of the order, int64 (count,)."""
        if not self.shuffle:
            return SampleOrder(self.num_samples, shuffle=False, seed=self.seed).take(position, count)
        parts = []
        while count > 0:
            block, offset = divmod(position, _BLOCK)
            part = _mix(self, block)[offset : offset + count]
            parts.append(part)
            position += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


@functools.lru_cache(maxsize=4)
def _mix(order: MixtureOrder, block: int) -> np.ndarray:
    """Indices of the samples of one block, int64 (_BLOCK,)."""
    begin, end = (_samples_before(order.shares, number) for number in (block, block + 1))
    counts = [after - before for before, after in zip(begin, end, strict=True)]
    labels = np.repeat(np.arange(len(counts)), counts)
    # The third number keeps these draws apart from those of the epochs.
    labels = np.random.default_rng((order.seed, block, len(counts), 0)).permutation(labels)
    indices = np.empty(_BLOCK, np.int64)
    first = 0
    for stream, (length, before, taken) in enumerate(zip(order.lengths, begin, counts, strict=True)):
        of_dataset = SampleOrder(length, shuffle=True, seed=order.seed, stream=stream + 1)
        indices[labels == stream] = first + of_dataset.take(before, taken)
        first += length
    return indices


@functools.lru_cache(maxsize=4)
def _samples_before(shares: Sequence[float], block: int) -> list[int]:
    """How many samples of each dataset come before a block; exact, so that it can be computed for any block alone."""
    exact = [fractions.Fraction(share) for share in shares]
    borders = [0] + [math.floor(block * _BLOCK * sum(exact[: i + 1]) / sum(exact)) for i in range(len(exact))]
    return [upper - lower for lower, upper in itertools.pairwise(borders)]
