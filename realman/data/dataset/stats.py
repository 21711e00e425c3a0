"""Statistics of one episode as LeRobot v2.1 keeps them: min, max, mean, population std and count of every feature."""

import math
from typing import Any

import cv2
from jaxtyping import Int64
from jaxtyping import Shaped
import numpy as np

from realman.arrays import Image
from realman.data.raw.camera import every_nth

Stats = dict[str, list[Any]]
"""min, max, mean, std as nested lists of one entry per number (images: shape (3, 1, 1)), count as a list of one."""

LevelCounts = Int64[np.ndarray, "3 256"]
"""Pixels of a picture by colour channel and level."""

_MIN_SAMPLES = 100
_MAX_SAMPLES = 10_000
_SAMPLE_POWER = 0.75

_LEVELS = 256

_SMALL_IMAGE_PX = 300
"""Images below this size are used whole."""
_TARGET_IMAGE_PX = 150
"""Larger images are strided down to about this size."""


def sample_frames(num_frames: int) -> list[int]:
    """Frames whose images enter the statistics: evenly spaced, num_frames ** 0.75 of them within 100..10000."""
    wanted = max(_MIN_SAMPLES, min(int(num_frames**_SAMPLE_POWER), _MAX_SAMPLES))
    return np.round(np.linspace(0, num_frames - 1, min(num_frames, wanted))).astype(int).tolist()


def vector_stats(values: Shaped[np.ndarray, " t *d"]) -> Stats:
    """Statistics over the frames of a feature of one number (t,) or several (t, d), in the values' own precision."""
    values = values.reshape(len(values), -1)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
    }


def level_counts(pixels: Image) -> LevelCounts:
    """How often each level is there in each colour channel."""
    # Several times faster than bincount; its float32 counts are exact up to 2 ** 24 pixels.
    counts = [cv2.calcHist([pixels], [channel], None, [_LEVELS], [0, _LEVELS]) for channel in range(3)]
    return np.stack(counts).reshape(3, _LEVELS).astype(np.int64)


class ImageStats:
    """Statistics per colour channel, scaled to 0..1, over the sampled frames of one camera.

    Kept as a histogram of the 256 levels, so the result is exact, does not depend on the order of frames, and no frame is kept.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((3, _LEVELS), np.int64)
        self._num_frames = 0

    def add(self, image: Image) -> None:
        """Count one sampled frame of full size."""
        stride = image_stride(*image.shape[:2])
        self.add_counts(level_counts(every_nth(image, stride)))

    def add_counts(self, counts: LevelCounts) -> None:
        """Count one sampled frame whose pixels, every n-th of them (`image_stride`), were counted already."""
        self._counts += counts
        self._num_frames += 1

    def result(self) -> Stats:
        """The statistics; at least one frame was added."""
        levels = np.arange(_LEVELS)
        num_pixels = int(self._counts[0].sum())
        seen = [np.flatnonzero(counts) for counts in self._counts]
        sums = (self._counts @ levels).tolist()
        square_sums = (self._counts @ levels**2).tolist()
        stats = {
            "min": [int(values[0]) for values in seen],
            "max": [int(values[-1]) for values in seen],
            "mean": [s / num_pixels for s in sums],
            # n * sum(x^2) - sum(x)^2 is exact in Python's whole numbers; only the last step rounds.
            "std": [math.sqrt(num_pixels * q - s * s) / num_pixels for s, q in zip(sums, square_sums, strict=True)],
        }
        scaled: Stats = {name: [[[value / (_LEVELS - 1)]] for value in values] for name, values in stats.items()}
        return {**scaled, "count": [self._num_frames]}


def image_stride(height: int, width: int) -> int:
    """Every how many-th pixel enters the statistics, in both directions."""
    if max(height, width) < _SMALL_IMAGE_PX:
        return 1
    return int((width if width > height else height) / _TARGET_IMAGE_PX)
