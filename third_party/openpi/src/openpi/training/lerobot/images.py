"""Read camera images of a LeRobot dataset, frame by frame.

Images are stored encoded in parquet files, or as video files. Many threads may use either source at once, and each
keeps a bounded number of files open.
"""

from collections.abc import Iterator, Mapping, Sequence
import fractions
import math
import threading
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi.shared import errors
from openpi.shared.bounded_cache import BoundedCache
from openpi.training.lerobot import columns as lerobot_columns
from openpi.training.lerobot import dim_names
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot import jpeg
from openpi.training.lerobot import png
from openpi.training.lerobot.encoded_images import EncodedImages
from openpi.training.lerobot.metadata import LeRobotMetadata

_MAX_OPEN_PARQUET_FILES = 128
# Opening one takes 1 ms, holding it 2 MB (640x480, AV1).
_MAX_OPEN_VIDEOS = 96
# A frame at most this many frames ahead is reached by decoding all frames up to it, without a seek.
_NO_SEEK_FRAMES = 4
# Row groups held in memory, bytes of encoded images, for files where several frames share a row group.
_MAX_PAGE_BYTES = 512 * 2**20
# Spans of encoded images held in memory, bytes. At 16 bytes per image, enough for ten million frames of three cameras.
_MAX_SPANS_BYTES = 512 * 2**20

# The one rule for all programs: 8-bit RGB with the pixels as stored. A camera's note on how it was held would turn the
# image and change its shape, and what was recorded is what a policy sees.
_AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION
# Decoding at a reduced size skips most of the inverse cosine transform. By factor, the largest first.
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))

_REMEDY = "Convert this recording again, or remove the episode"


class ParquetImages:
    """Images stored as PNG or JPEG in the episodes' parquet files."""

    def __init__(self, metadata: LeRobotMetadata, shrink_to: tuple[int, int] | None = None) -> None:
        """Remember the dataset. Files are opened when first needed.

        Args:
            metadata: The dataset.
            shrink_to: Height and width, px, that an image will be fitted into. JPEGs are then decoded at a half, a
                quarter or an eighth of their size, as long as the result is not smaller than this. None decodes them
                at full size.
        """
        self._metadata = metadata
        self._shrink_to = shrink_to
        self._encoded: BoundedCache[dict[str, EncodedImages] | None] = BoundedCache(
            _MAX_SPANS_BYTES, encoded_images.weigh
        )
        self._files: BoundedCache[_EpisodeFile] = BoundedCache(_MAX_OPEN_PARQUET_FILES)
        self._pages: BoundedCache[pa.Table] = BoundedCache(_MAX_PAGE_BYTES, lambda table: table.nbytes)

    def read(self, episode_index: int, frame: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Decode the images of one frame.

        Args:
            episode_index: Index of the episode.
            frame: Frame inside the episode.
            keys: Cameras.

        Returns:
            By camera: uint8 (h, w, 3), RGB.

        Raises:
            DataError: An image cannot be decoded.
        """
        located = self._encoded.get(
            (episode_index, tuple(keys)), lambda: encoded_images.find(self._metadata, episode_index, keys)
        )
        if located is None:
            encoded = self._read_group(episode_index, frame, keys)
        else:
            encoded = {key: of_camera.read(frame) for key, of_camera in located.items()}
        return {key: self._decode(encoded[key], episode_index, frame, key) for key in keys}

    def _read_group(self, episode_index: int, frame: int, keys: Sequence[str]) -> dict[str, Any]:
        file = self._files.get(episode_index, lambda: _EpisodeFile(self._metadata, episode_index))
        group, row = file.locate(frame)
        table = self._pages.get((episode_index, group, tuple(keys)), lambda: file.read_group(group, keys))
        cells = {key: table[key][row] for key in keys}
        return {key: encoded_images.cell_bytes(cell, self._metadata.root) for key, cell in cells.items()}

    def _decode(self, encoded: Any, episode_index: int, frame: int, key: str) -> np.ndarray:
        place = f"{self._metadata.data_path(episode_index)}: episode {episode_index}, frame {frame}, '{key}'"
        data = None if encoded is None else np.frombuffer(encoded, np.uint8)
        if data is None or data.size == 0:
            raise errors.DataError(f"{place}: the image is empty. {_REMEDY}")
        try:
            image = self._decode_jpeg(data, key) if jpeg.is_jpeg(data) else _decode_other(data)
        except cv2.error:  # a size beyond its limit, for example
            image = None
        if image is None:
            raise errors.DataError(f"{place}: the image ({data.size} bytes) cannot be decoded. {_REMEDY}")
        return image

    def _decode_jpeg(self, data: np.ndarray, key: str) -> np.ndarray | None:
        # The decoder would invent the missing part of a truncated JPEG.
        return _to_rgb(cv2.imdecode(data, self._flag(key) | _AS_STORED)) if jpeg.is_whole(data) else None

    def _flag(self, key: str) -> int:
        if self._shrink_to is None:
            return cv2.IMREAD_COLOR
        size = _image_size(self._metadata.features[key])
        if size is None:
            return cv2.IMREAD_COLOR
        height, width = size
        # Fitting keeps the aspect ratio, so the larger ratio decides.
        ratio = max(height / self._shrink_to[0], width / self._shrink_to[1])
        return next((flag for factor, flag in _REDUCED if factor <= ratio), cv2.IMREAD_COLOR)


def _decode_other(data: np.ndarray) -> np.ndarray | None:
    image = png.decode(data.data)
    return _to_rgb(cv2.imdecode(data, cv2.IMREAD_COLOR | _AS_STORED)) if image is None else image


def _to_rgb(image: np.ndarray | None) -> np.ndarray | None:
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _image_size(feature: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of a camera, px.

    Datasets use both orders of the axes. None if info.json does not say.
    """
    shape = feature.get("shape") or ()
    if len(shape) != 3:
        return None
    first = next(iter(dim_names.flatten(feature.get("names"))), None)
    is_first = first in ("channels", "channel") or (first is None and shape[0] == 3)
    height, width = shape[1:] if is_first else shape[:2]
    return int(height), int(width)


class _EpisodeFile:
    """An open parquet file that finds row groups by frame."""

    def __init__(self, metadata: LeRobotMetadata, episode_index: int) -> None:
        self._place = metadata.data_path(episode_index), f"episode {episode_index}"
        self._file: pq.ParquetFile = lerobot_columns.open_parquet(*self._place)
        rows = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(rows)
        # A ParquetFile is not safe for concurrent reads.
        self._lock = threading.Lock()

    def locate(self, frame: int) -> tuple[int, int]:
        """Return the row group that holds `frame`, and its row there."""
        group = int(np.searchsorted(self._ends, frame, side="right"))
        return group, frame - (int(self._ends[group - 1]) if group else 0)

    def read_group(self, group: int, keys: Sequence[str]) -> pa.Table:
        with self._lock, lerobot_columns.damage_named(*self._place):
            return self._file.read_row_group(group, columns=list(keys), use_threads=False)


class VideoImages:
    """Images stored as one video per episode and camera."""

    def __init__(self, metadata: LeRobotMetadata) -> None:
        """Remember the dataset. Videos are opened when first needed."""
        self._metadata = metadata
        self._videos: BoundedCache[_Video] = BoundedCache(_MAX_OPEN_VIDEOS)

    def read(self, episode_index: int, frame: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Decode the images of one frame.

        Arguments and result are those of `ParquetImages.read`.

        Raises:
            MissingFileError: A video file is missing.
            DataError: A video cannot be decoded up to the frame.
        """
        return {key: self._read_one(episode_index, frame, key) for key in keys}

    def _read_one(self, episode_index: int, frame: int, key: str) -> np.ndarray:
        path = self._metadata.video_path(episode_index, key)
        place = f"{path}: episode {episode_index}, frame {frame}, '{key}'"
        try:
            video = self._videos.get(path, lambda: _Video(str(path)))
            image = video.read(frame / self._metadata.fps, 0.5 / self._metadata.fps)
        except FileNotFoundError as e:
            raise errors.MissingFileError(
                f"{place}: the video file is missing. Copy it back, convert this recording again, or remove the episode"
            ) from e
        except (av.FFmpegError, _DamagedFrameError) as e:
            raise errors.DataError(f"{place}: the video cannot be decoded ({e}). {_REMEDY}") from e
        if image is None:
            raise errors.DataError(f"{place}: the video has no frame at this time. {_REMEDY}")
        return image


class _DamagedFrameError(Exception):
    """The decoder has invented a part of a frame."""


class _Video:
    """An open video whose frames are decoded by time, in any order."""

    def __init__(self, path: str) -> None:
        self._container = av.open(path)
        self._stream = self._container.streams.video[0]
        # One thread per decoder: the loader's own threads already keep the cores busy.
        self._stream.codec_context.thread_count = 1
        self._time_base = self._stream.time_base or fractions.Fraction(1, 1)
        self._start = self._stream.start_time or 0
        self._lock = threading.Lock()
        self._frames: Iterator[av.VideoFrame] = iter(())
        # Time of the last frame that the decoder returned, s. Infinite: seek before the next read.
        self._shown_s = math.inf
        self._has_key_frame = False

    def read(self, time_s: float, tolerance_s: float) -> np.ndarray | None:
        """Return the frame at a time, uint8 (h, w, 3).

        None if the video has no frame within `tolerance_s` of `time_s`.
        """
        with self._lock:
            # For a few frames ahead, decoding them is cheaper than a seek, which jumps back to a key frame.
            if not self._shown_s < time_s - tolerance_s < self._shown_s + _NO_SEEK_FRAMES * 2 * tolerance_s:
                self._seek(time_s - tolerance_s)
            # After an error or a missing frame, the next call seeks.
            self._shown_s = math.inf
            for frame in self._frames:
                # Frames before the first key frame may lack what they refer to. After it, what a decoder has invented
                # spoils this frame and those that refer to it, and differs between decoders.
                self._has_key_frame |= bool(frame.key_frame)
                if frame.is_corrupt and self._has_key_frame:
                    raise _DamagedFrameError("a frame is damaged")
                shown_s = float((frame.pts - self._start) * self._time_base)
                if shown_s > time_s + tolerance_s:
                    return None
                if shown_s >= time_s - tolerance_s:
                    self._shown_s = shown_s
                    return frame.to_ndarray(format="rgb24")
        return None

    def _seek(self, time_s: float) -> None:
        """Start decoding at the key frame at or before a time.

        Callers pass a time half a frame early, which is safe against rounding.
        """
        first = max(int(time_s / self._time_base), 0) + self._start
        self._container.seek(first, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
        self._has_key_frame = False
