"""Statistics of one episode, in the form of LeRobot v2.1.

Every feature has min, max, mean, population std and count.
"""

import math
from typing import Any

import cv2
from jaxtyping import Int64
from jaxtyping import Shaped
import numpy as np

from realman.arrays import Image
from realman.data.raw.camera import every_nth

Stats = dict[str, list[Any]]
"""min, max, mean and std as lists with one entry per number (shape (3, 1, 1) for images), count as a list of one."""

LevelCounts = Int64[np.ndarray, "3 256"]
"""Number of pixels of an image by color channel and level."""

_MIN_SAMPLES = 100
_MAX_SAMPLES = 10_000
_SAMPLE_POWER = 0.75

_LEVELS = 256

_SMALL_IMAGE_PX = 300
"""Smaller images are used whole."""
_TARGET_IMAGE_PX = 150
"""Other images are strided down to about this size."""


def sample_frames(num_frames: int) -> list[int]:
    """Return the frames whose images enter the statistics.

    They are evenly spaced. Their number is num_frames ** 0.75 within 100..10000, or all frames if there are fewer.
    """
    wanted = max(_MIN_SAMPLES, min(int(num_frames**_SAMPLE_POWER), _MAX_SAMPLES))
    return np.round(np.linspace(0, num_frames - 1, min(num_frames, wanted))).astype(int).tolist()


def vector_stats(values: Shaped[np.ndarray, " t *d"]) -> Stats:
    """Return statistics of a feature over its frames.

    The values are (t,) or (t, d), and statistics have the same precision.
    """
    values = values.reshape(len(values), -1)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
    }


def level_counts(pixels: Image) -> LevelCounts:
    """Count how often each level occurs in each color channel."""
    # Several times faster than bincount. Its float32 counts are exact up to 2 ** 24 pixels.
    counts = [cv2.calcHist([pixels], [channel], None, [_LEVELS], [0, _LEVELS]) for channel in range(3)]
    return np.stack(counts).reshape(3, _LEVELS).astype(np.int64)


class ImageStats:
    """Statistics per color channel over the sampled frames of one camera.

    Values are scaled to 0..1. Only a histogram of the 256 levels is kept, so the result is exact and does not depend on
    the order of frames.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((3, _LEVELS), np.int64)
        self._num_frames = 0

    def add(self, image: Image) -> None:
        """Count one sampled frame of full size."""
        stride = image_stride(*image.shape[:2])
        self.add_counts(level_counts(every_nth(image, stride)))

    def add_counts(self, counts: LevelCounts) -> None:
        """Add the counts of one sampled frame, strided by `image_stride`."""
        self._counts += counts
        self._num_frames += 1

    def result(self) -> Stats:
        """Return the statistics. Add at least one frame first."""
        levels = np.arange(_LEVELS)
        num_pixels = int(self._counts[0].sum())
        seen = [np.flatnonzero(counts) for counts in self._counts]
        sums = (self._counts @ levels).tolist()
        square_sums = (self._counts @ levels**2).tolist()
        stats = {
            "min": [int(values[0]) for values in seen],
            "max": [int(values[-1]) for values in seen],
            "mean": [s / num_pixels for s in sums],
            # n * sum(x^2) - sum(x)^2 is exact with Python's integers, so only the last step rounds.
            "std": [math.sqrt(num_pixels * q - s * s) / num_pixels for s, q in zip(sums, square_sums, strict=True)],
        }
        scaled: Stats = {name: [[[value / (_LEVELS - 1)]] for value in values] for name, values in stats.items()}
        return {**scaled, "count": [self._num_frames]}


def image_stride(height: int, width: int) -> int:
    """Return n if every n-th pixel, in both directions, enters the statistics."""
    if max(height, width) < _SMALL_IMAGE_PX:
        return 1
    return int((width if width > height else height) / _TARGET_IMAGE_PX)
