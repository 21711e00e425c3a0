"""The pictures of one recording on their way into a dataset: read once, in order; decoded and encoded in threads.

HDF5 serves one thread at a time, so one thread reads and writes; the codecs run beside it and release the interpreter.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
from typing import Literal

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
from realman.errors import EpisodeError
from realman.data.raw.episode import Episode
from realman.data.raw.plausible import CameraWatch
from realman.data.raw.plausible import Doubt
from realman.data.raw.plausible import is_black

ImageFormat = Literal["png", "jpg"]

BLOCK_FRAMES = 8
"""Frames read and handed on at once: 8 frames of 4 PNG cameras are about 16 MB."""

_BLOCKS_AHEAD = 2
"""Blocks under way while an earlier one is written; bounds memory."""

_SMALL_JPEG = 0.5
"""A JPEG smaller than this part of the largest so far shows little, so it is looked at although it is not sampled."""

Cell = tuple[bytes | Bytes, str]
"""An encoded picture and its file name."""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How pictures that are not stored as recorded are encoded."""

    image_format: ImageFormat = "png"
    jpeg_quality: int = 95
    """1..100; only for jpg."""

    def encode(self, image: Image) -> bytes:
        """Encode an RGB picture."""
        if self.image_format == "png":
            return png.encode(image)
        flags = [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality]
        done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)
        if not done:
            raise EpisodeError(f"a frame of shape {image.shape} cannot be encoded; record the episode again")
        return data.tobytes()


@dataclasses.dataclass(frozen=True)
class _Look:
    """What is kept of a picture that was looked at."""

    counts: LevelCounts
    is_black: bool


@contextlib.contextmanager
def codec_threads(threads: int) -> Iterator[Executor]:
    """An executor for codecs; one thread means the calling one."""
    if threads == 1:
        yield InlineExecutor()
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        # After an error nobody wants what is still waiting.
        pool.shutdown(cancel_futures=True)


class CameraFrames:
    """The frames of one camera; sampled ones are counted in passing, all are watched."""

    def __init__(self, episode: Episode, camera: str, threads: Executor, accept: frozenset[Doubt]) -> None:
        """Prepare to go once through an episode.

        Args:
            episode: The open recording.
            camera: Name of the camera.
            threads: Where to decode and encode.
            accept: Doubts that a person has accepted.
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
        self._looks: deque[tuple[int, Future[_Look]]] = deque()
        self._largest = 0

    def cells(self, frames: range, encoding: Encoding) -> list[Cell | Future[Cell]]:
        """Encoded pictures of the next frames: the recorded JPEGs where they show the right colours, else newly encoded."""
        return [self._cell(t, encoding) for t in frames]

    def images(self) -> Iterator[Image]:
        """All frames decoded, in order."""
        waiting: deque[Future[Image]] = deque()
        for t in range(self._num_frames):
            stored = self._pass_by(t)
            waiting.append(self._threads.submit(self._stream.decode, stored, t))
            if len(waiting) == BLOCK_FRAMES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def finish(self) -> tuple[Stats, list[str]]:
        """Statistics over the sampled frames, and what was found wrong, when all frames have been taken."""
        self._collect(0)
        found = self._watch.problems()
        return self._stats.result(), [
            f"{self._place} {text}" for doubt, text in found.items() if doubt not in self._accept
        ]

    def _cell(self, t: int, encoding: Encoding) -> Cell | Future[Cell]:
        stored = self._pass_by(t)
        if self._stream.keeps_encoding:
            return stored, f"frame_{t:06d}.jpg"
        return self._threads.submit(self._encode, stored, t, encoding)

    def _encode(self, stored: StoredFrame, t: int, encoding: Encoding) -> Cell:
        return encoding.encode(self._stream.decode(stored, t)), f"frame_{t:06d}.{encoding.image_format}"

    def _pass_by(self, t: int) -> StoredFrame:
        """Read frame `t` and see to it that it is watched, and looked at if it should be."""
        stored = self._stream.stored(t)
        self._watch.pass_by(t, stored)
        if t in self._sampled or self._is_suspicious(stored):
            self._looks.append((t, self._threads.submit(self._look, stored, t)))
            self._collect(BLOCK_FRAMES)
        return stored

    def _is_suspicious(self, stored: StoredFrame) -> bool:
        self._largest = max(self._largest, len(stored))
        return self._stream.is_jpeg and len(stored) < _SMALL_JPEG * self._largest

    def _look(self, stored: StoredFrame, t: int) -> _Look:
        counts = level_counts(self._stream.decode(stored, t, self._stride))
        return _Look(counts, is_black(counts))

    def _collect(self, pending: int) -> None:
        """Take results in order until at most `pending` are left."""
        while len(self._looks) > pending:
            t, future = self._looks.popleft()
            look = future.result()
            if look.is_black:
                self._watch.note_black(t)
            if t in self._sampled:
                self._stats.add_counts(look.counts)


def in_blocks(cameras: list[CameraFrames], num_frames: int, encoding: Encoding) -> Iterator[dict[str, list[Cell]]]:
    """Encoded pictures of all cameras, block by block, by dataset key; later blocks are under way meanwhile."""
    under_way: deque[dict[str, list[Cell | Future[Cell]]]] = deque()
    for start in range(0, num_frames, BLOCK_FRAMES):
        frames = range(start, min(start + BLOCK_FRAMES, num_frames))
        under_way.append({camera.key: camera.cells(frames, encoding) for camera in cameras})
        if len(under_way) > _BLOCKS_AHEAD:
            yield _results(under_way.popleft())
    while under_way:
        yield _results(under_way.popleft())


def _results(block: dict[str, list[Cell | Future[Cell]]]) -> dict[str, list[Cell]]:
    return {key: [c.result() if isinstance(c, Future) else c for c in cells] for key, cells in block.items()}
