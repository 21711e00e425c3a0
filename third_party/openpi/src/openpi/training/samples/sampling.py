"""Choose the samples of each batch from seed and position alone.

The order is a pure function of both, so training can be resumed anywhere.
"""

from collections.abc import Sequence
import dataclasses
import fractions
import functools
import itertools
import math
from typing import Protocol

import numpy as np

# In each block of this many samples, every dataset of a mixture has its share to within one sample.
_BLOCK = 2048


class Order(Protocol):
    """An endless sequence of samples."""

    @property
    def num_samples(self) -> int:
        """Number of different samples."""
        ...

    @property
    def seed(self) -> int:
        """Seed that the order depends on, in addition to the position."""
        ...

    def take(self, position: int, count: int) -> np.ndarray:
        """Return the indices of `count` samples from `position` on, int64 (count,)."""
        ...


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """An endless order of samples, one permutation per epoch.

    Batches are cut from the endless order without regard to epochs. No sample is ever dropped, and a dataset smaller
    than a batch is repeated within it.
    """

    num_samples: int
    shuffle: bool
    seed: int
    # Separates the datasets of a mixture from each other.
    stream: int = 0

    def take(self, position: int, count: int) -> np.ndarray:
        """Return the indices of `count` samples from `position` on, int64 (count,)."""
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


# Consecutive batches ask for the same epoch, and each dataset of a mixture asks for its own.
@functools.lru_cache(maxsize=64)
def _permutation(num_samples: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(num_samples)


@dataclasses.dataclass(frozen=True)
class MixtureOrder:
    """An endless order over several datasets, each with its share.

    The datasets' indices follow each other. In every block of 2048 samples, each dataset has its share to within one
    sample, in random places. Within a dataset the order is that of `SampleOrder`: every frame comes once before any
    frame comes again, and each dataset advances at its own pace.
    """

    lengths: tuple[int, ...]
    shares: tuple[float, ...]
    shuffle: bool
    seed: int

    @property
    def num_samples(self) -> int:
        """Number of frames of all datasets."""
        return sum(self.lengths)

    def take(self, position: int, count: int) -> np.ndarray:
        """Return the indices of `count` samples from `position` on, int64 (count,)."""
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
    """Return the indices of the samples of one block, int64 (_BLOCK,)."""
    # Which dataset each sample comes from.
    begin, end = (_samples_before(order.shares, number) for number in (block, block + 1))
    counts = [after - before for before, after in zip(begin, end, strict=True)]
    labels = np.repeat(np.arange(len(counts)), counts)
    # The third number keeps these draws apart from those of the epochs.
    labels = np.random.default_rng((order.seed, block, len(counts), 0)).permutation(labels)
    # Which of the dataset's frames it is.
    indices = np.empty(_BLOCK, np.int64)
    first = 0
    for stream, (length, before, taken) in enumerate(zip(order.lengths, begin, counts, strict=True)):
        of_dataset = SampleOrder(length, shuffle=True, seed=order.seed, stream=stream + 1)
        indices[labels == stream] = first + of_dataset.take(before, taken)
        first += length
    return indices


@functools.lru_cache(maxsize=4)
def _samples_before(shares: Sequence[float], block: int) -> list[int]:
    """Return how many samples of each dataset come before a block.

    The arithmetic is exact, so that the numbers can be computed for any block alone.
    """
    exact = [fractions.Fraction(share) for share in shares]
    borders = [0] + [math.floor(block * _BLOCK * sum(exact[: i + 1]) / sum(exact)) for i in range(len(exact))]
    return [upper - lower for lower, upper in itertools.pairwise(borders)]
