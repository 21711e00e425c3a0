"""Statistics of a column with many numbers per frame, piece by piece."""

import numpy as np

from realman.data.dataset.stats import Stats


class WideStats:
    """Statistics of each number over the frames.

    Only a few sums of one frame's size are held.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: np.ndarray | None = None

    def add(self, values: np.ndarray) -> None:
        """Count the values (n, ...) of n frames."""
        if self._sums is None:
            # Sums of differences from the first frame lose no digits to a large mean.
            self._first = values[0].astype(np.float64)
            self._sums, self._squares = np.zeros((2, *values.shape[1:]))
            self._min, self._max = values[0].copy(), values[0].copy()
        for frame in values:
            difference = frame - self._first
            self._sums += difference
            self._squares += difference**2
            np.minimum(self._min, frame, out=self._min)
            np.maximum(self._max, frame, out=self._max)
        self._count += len(values)

    def result(self) -> Stats:
        """Return the statistics, each in the shape of a frame.

        Add at least one frame first.
        """
        assert self._sums is not None
        mean = self._sums / self._count
        variance = np.maximum(self._squares / self._count - mean**2, 0.0)
        return {
            "min": self._min.tolist(),
            "max": self._max.tolist(),
            "mean": (self._first + mean).tolist(),
            "std": np.sqrt(variance).tolist(),
            "count": [self._count],
        }
