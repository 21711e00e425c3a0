"""Read the images of a recording once and encode them in threads.

HDF5 serves one thread at a time, so one thread reads and writes. Codecs run in other threads and release the
interpreter.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
from typing import Annotated, Literal

import cv2

from realman import spec
from realman.arrays import Bytes
from realman.arrays import Image
from realman.arrays import StoredFrame
from realman.data.dataset import png
from realman.data.dataset.pool import InlineExecutor
from realman.data.dataset.stats import ImageStats
from realman.data.dataset.stats import LevelCounts
from realman.data.dataset.stats import Stats
from realman.data.dataset.stats import image_stride
from realman.data.dataset.stats import level_counts
from realman.data.dataset.stats import sample_frames
from realman.data.raw import exif
from realman.data.raw.episode import Episode
from realman.data.raw.plausible import CameraWatch
from realman.data.raw.plausible import Doubt
from realman.data.raw.plausible import is_black
from realman.errors import EpisodeError
from realman.ranges import Range
from realman.ranges import check_flags

ImageFormat = Literal["png", "jpg"]

BLOCK_FRAMES = 8
"""Frames per block. 8 frames of 4 cameras are about 16 MB as PNG."""

_MAX_PENDING_BLOCKS = 2
"""Blocks in progress while an earlier one is written. This bounds memory."""

_SMALL_JPEG = 0.5
"""A JPEG smaller than this fraction of the largest so far shows little, so it is measured even if it is not sampled."""

EncodedImage = tuple[bytes | Bytes, str]
"""An encoded image and its file name."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How to encode images that are not stored as recorded."""

    image_format: ImageFormat = "png"
    jpeg_quality: Annotated[int, Range(1, 100, "what JPEG has")] = 95
    """1..100, only for jpg."""

    def __post_init__(self) -> None:
        check_flags(self)

    def encode(self, image: Image) -> bytes:
        """Encode an RGB image."""
        if self.image_format == "png":
            return png.encode(image)
        flags = [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality]
        done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
        if not done:
            raise EpisodeError(f"a frame of shape {image.shape} cannot be encoded. Record the episode again")
        return data.tobytes()


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What is kept of a measured image."""

    counts: LevelCounts
    is_black: bool


@contextlib.contextmanager
def codec_threads(threads: int) -> Iterator[Executor]:
    """Open an executor for codecs. One thread means the calling thread."""
    if threads == 1:
        yield InlineExecutor()
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        # After an error, work that has not started is not needed any more.
        pool.shutdown(cancel_futures=True)


class CameraFrames:
    """Read, check and measure the frames of one camera.

    Every frame is read once, in order. Sampled frames enter the statistics, and all frames are watched for doubts.
    """

    def __init__(self, episode: Episode, camera: str, threads: Executor, accept: frozenset[Doubt]) -> None:
        """Prepare to read an episode once.

        Args:
            episode: The open recording.
            camera: Name of the camera.
            threads: Executor for decoding and encoding.
            accept: Doubts that the user has accepted.
        """
        self.key = spec.image_key(camera)
        self._num_frames = episode.num_frames
        self._stream = episode.camera(camera)
        self._place = episode.camera_place(camera)
        self._threads = threads
        self._accept = accept
        self._stride = image_stride(self._stream.height, self._stream.width)
        self._sampled = frozenset(sample_frames(episode.num_frames))
        self._stats = ImageStats()
        self._watch = CameraWatch(camera, episode.state, episode.fps)
        self._pending: deque[tuple[int, Future[_Measured]]] = deque()
        self._largest = 0

    def encoded_images(self, frames: range, encoding: Encoding) -> list[EncodedImage | Future[EncodedImage]]:
        """Return the encoded images of the next frames.

        These are the recorded JPEGs if an ordinary decoder shows them in the right colors, otherwise new ones.
        """
        return [self._encoded_image(t, encoding) for t in frames]

    def images(self) -> Iterator[Image]:
        """Yield all frames decoded, in order."""
        waiting: deque[Future[Image]] = deque()
        for t in range(self._num_frames):
            stored = self._read(t)
            waiting.append(self._threads.submit(self._stream.decode, stored, t))
            if len(waiting) == BLOCK_FRAMES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def finish(self) -> tuple[Stats, list[str]]:
        """Return the statistics over the sampled frames, and all problems.

        Call this after all frames have been taken.
        """
        self._collect(0)
        found = self._watch.problems()
        return self._stats.result(), [
            f"{self._place} {text}" for doubt, text in found.items() if doubt not in self._accept
        ]

    def _encoded_image(self, t: int, encoding: Encoding) -> EncodedImage | Future[EncodedImage]:
        stored = self._read(t)
        if self._stream.keeps_encoding:
            return exif.without_orientation(stored), f"frame_{t:06d}.jpg"
        return self._threads.submit(self._encode, stored, t, encoding)

    def _encode(self, stored: StoredFrame, t: int, encoding: Encoding) -> EncodedImage:
        return encoding.encode(self._stream.decode(stored, t)), f"frame_{t:06d}.{encoding.image_format}"

    def _read(self, t: int) -> StoredFrame:
        """Read frame `t`, watch it for doubts, and measure it if needed."""
        stored = self._stream.stored(t)
        self._watch.add_frame(t, stored)
        if t in self._sampled or self._is_suspicious(stored):
            self._pending.append((t, self._threads.submit(self._measure, stored, t)))
            self._collect(BLOCK_FRAMES)
        return stored

    def _is_suspicious(self, stored: StoredFrame) -> bool:
        self._largest = max(self._largest, len(stored))
        return self._stream.is_jpeg and len(stored) < _SMALL_JPEG * self._largest

    def _measure(self, stored: StoredFrame, t: int) -> _Measured:
        counts = level_counts(self._stream.decode(stored, t, self._stride))
        return _Measured(counts, is_black(counts))

    def _collect(self, pending: int) -> None:
        """Take results in order until at most `pending` are left."""
        while len(self._pending) > pending:
            t, future = self._pending.popleft()
            measured = future.result()
            if measured.is_black:
                self._watch.note_black(t)
            if t in self._sampled:
                self._stats.add_counts(measured.counts)


def image_blocks(
    cameras: list[CameraFrames], num_frames: int, encoding: Encoding
) -> Iterator[dict[str, list[EncodedImage]]]:
    """Yield the encoded images of all cameras, block by block.

    Keys are those of the dataset. Later blocks are encoded meanwhile.
    """
    in_progress: deque[dict[str, list[EncodedImage | Future[EncodedImage]]]] = deque()
    for start in range(0, num_frames, BLOCK_FRAMES):
        frames = range(start, min(start + BLOCK_FRAMES, num_frames))
        in_progress.append({camera.key: camera.encoded_images(frames, encoding) for camera in cameras})
        if len(in_progress) > _MAX_PENDING_BLOCKS:
            yield _results(in_progress.popleft())
    while in_progress:
        yield _results(in_progress.popleft())


def _results(block: dict[str, list[EncodedImage | Future[EncodedImage]]]) -> dict[str, list[EncodedImage]]:
    return {
        key: [c.result() if isinstance(c, Future) else c for c in encoded_images]
        for key, encoded_images in block.items()
    }
