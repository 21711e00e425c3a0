"""Which samples make up which batch: a pure function of (seed, position), so that it can be resumed anywhere."""

import dataclasses

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
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
