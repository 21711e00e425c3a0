"""Measure what one episode's cameras show.

Measured are change between sampled frames, brightness, contrast and size, and a few thumbnails are kept.
"""

import dataclasses

import cv2
import numpy as np

from realman import spec
from realman.arrays import Image
from realman.data.inspection.inspected_data import EpisodeView
from realman.errors import RealmanError

THUMBNAIL_HEIGHT_PX = 120
NUM_MOMENTS = 5
"""Number of thumbnails of each camera, spread over the episode."""

_GRID = (64, 48)
"""Width and height in px at which frames are compared.

Small enough to ignore noise, large enough to see an object move.
"""

_BLANK_STD = 1.5
"""An image with less contrast than this (of 255) shows nothing. Sensor noise of a covered lens is below it."""

_JPEG_QUALITY = 80


@dataclasses.dataclass(frozen=True, eq=False)
class CameraMeasure:
    """Measures of one camera in one episode, at `ImageMeasure.frames`."""

    size: tuple[int, int]
    """Height and width, px."""
    halves: np.ndarray
    """(k - 1, 2) mean absolute change from one sampled frame to the next in the left and right half, 0..255."""
    brightness: np.ndarray
    """(k,) mean, 0..255."""
    contrast: np.ndarray
    """(k,) standard deviation, 0..255."""
    thumbnails: tuple[bytes, ...]
    """JPEGs. Empty for most episodes."""

    @property
    def change(self) -> np.ndarray:
        """(k - 1,) mean absolute change of the image."""
        return self.halves.mean(axis=1)

    @property
    def is_blank(self) -> np.ndarray:
        """(k,) whether the image shows nothing."""
        return self.contrast < _BLANK_STD


@dataclasses.dataclass(frozen=True, eq=False)
class ImageMeasure:
    """Measures of all cameras of one episode."""

    frames: np.ndarray
    """(k,) sampled frames."""
    travel: np.ndarray
    """(k - 1, 2) how far the right and left arm moved between sampled frames, rad summed over its joints."""
    moments: tuple[int, ...]
    """Frames of the thumbnails."""
    cameras: dict[str, CameraMeasure]
    problems: tuple[str, ...]
    """Why cameras cannot be read, one message each."""


def measure_images(episode: EpisodeView, *, max_frames: int, with_thumbnails: bool) -> ImageMeasure:
    """Measure all cameras of an episode.

    Args:
        episode: The open episode.
        max_frames: Number of frames of each camera to sample.
        with_thumbnails: Whether to keep some of them as thumbnails.
    """
    frames = np.unique(np.linspace(0, episode.num_frames - 1, min(max_frames, episode.num_frames)).round().astype(int))
    # The first and last frames often show a hand at the recorder. The middle of each fifth shows the task.
    shown = frames[np.unique((np.arange(NUM_MOMENTS) + 0.5) / NUM_MOMENTS * len(frames) // 1).astype(int)]
    moments = tuple(shown.tolist()) if with_thumbnails else ()
    cameras, problems = {}, []
    for camera, size in episode.cameras.items():
        try:
            cameras[camera] = _measure_camera(episode, camera, size, frames.tolist(), moments)
        except RealmanError as e:
            problems.append(str(e))
    return ImageMeasure(frames, _travel(episode, frames), moments, cameras, tuple(problems))


def _travel(episode: EpisodeView, frames: np.ndarray) -> np.ndarray:
    steps = np.abs(np.diff(np.nan_to_num(episode.state), axis=0, prepend=episode.state[:1]))
    way = np.cumsum(steps, axis=0, dtype=np.float64)[frames]
    arms = [way[:, arm][:, : len(spec.ARM_JOINTS)].sum(axis=1) for arm in spec.ARM_SLICES.values()]
    return np.diff(np.stack(arms, axis=1), axis=0)


def _measure_camera(
    episode: EpisodeView, camera: str, size: tuple[int, int], frames: list[int], moments: tuple[int, ...]
) -> CameraMeasure:
    halves, levels, thumbnails = [], [], []
    previous = None
    for t, image in zip(frames, episode.images(camera, frames), strict=True):
        small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), _GRID, interpolation=cv2.INTER_AREA)
        levels.append((small.mean(), small.std()))
        small = small.astype(np.float32)
        if previous is not None:
            columns = np.abs(small - previous).mean(axis=0)
            halves.append((columns[: _GRID[0] // 2].mean(), columns[_GRID[0] // 2 :].mean()))
        previous = small
        if t in moments:
            thumbnails.append(_thumbnail(image))
    brightness, contrast = np.array(levels, np.float64).T
    return CameraMeasure(size, np.array(halves, np.float64).reshape(-1, 2), brightness, contrast, tuple(thumbnails))


def _thumbnail(image: Image) -> bytes:
    height, width = image.shape[:2]
    size = (round(width * THUMBNAIL_HEIGHT_PX / height), THUMBNAIL_HEIGHT_PX)
    bgr = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1])
