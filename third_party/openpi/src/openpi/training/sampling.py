"""Which samples make up which batch: a pure function of (seed, position), so that it can be resumed anywhere."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """An endless order of samples: epoch after epoch, each a permutation of its own.

    Batches are cut from the endless order without regard to epochs: no sample is ever dropped, and a dataset smaller
    than a batch simply comes again.
    """

    num_samples: int
    shuffle: bool
    seed: int

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
        return _permutation(self.num_samples, self.seed, epoch)


@functools.lru_cache(maxsize=2)  # a batch asks for the epoch that the one before it did
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
