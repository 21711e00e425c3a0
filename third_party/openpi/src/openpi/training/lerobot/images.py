"""Camera images of a LeRobot dataset, read one frame at a time: encoded pictures in parquet, or video files.

Both sources may be used by many threads at once and keep a bounded number of files open.
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
from openpi.training.lerobot import encoded_images
from openpi.training.lerobot import png
from openpi.training.lerobot.metadata import LeRobotMetadata

_MAX_OPEN_PARQUET_FILES = 128
# Opening one takes 1 ms, holding it 2 MB (640x480, AV1).
_MAX_OPEN_VIDEOS = 96
# A frame at most so many after the last one is reached by decoding on, without a jump.
_GO_ON_FRAMES = 4
# Row groups kept of files where several frames share one, bytes of encoded pictures.
_MAX_PAGE_BYTES = 512 * 2**20
# Places of pictures, 16 bytes a frame and camera: those of ten million frames of three cameras.
_MAX_PLACES_BYTES = 512 * 2**20

_JPEG_END = b"\xff\xd9"
# Bytes in which the end of a JPEG must lie; recorders pad the short ones with zeros.
_JPEG_TAIL = 256 * 1024

_REMEDY = "convert this recording again, or remove the episode"


class ParquetImages:
    """Images stored as encoded bytes (PNG or JPEG) in the episodes' parquet files."""

    def __init__(self, metadata: LeRobotMetadata, shrink_to: tuple[int, int] | None = None) -> None:
        """Remember the dataset; files are opened when first needed.

        Args:
            metadata: The dataset.
            shrink_to: Height and width, px, that a picture will be fitted into. JPEGs are then decoded at a half, a
                quarter or an eighth of their size, where that is still no smaller; None: at their own.
        """
        self._metadata = metadata
        self._shrink_to = shrink_to
        self._places: BoundedCache[dict[str, encoded_images.EncodedImages] | None] = BoundedCache(
            _MAX_PLACES_BYTES, encoded_images.weigh
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
            DataError: A picture cannot be decoded.
        """
        runs = self._places.get(
            (episode_index, tuple(keys)), lambda: encoded_images.find(self._metadata, episode_index, keys)
        )
        encoded = self._read_group(episode_index, frame, keys) if runs is None else _read_runs(runs, frame)
        return {key: self._decode(encoded[key], episode_index, frame, key) for key in keys}

    def _read_group(self, episode_index: int, frame: int, keys: Sequence[str]) -> dict[str, Any]:
        file = self._files.get(episode_index, lambda: _EpisodeFile(self._metadata, episode_index))
        group, row = file.locate(frame)
        table = self._pages.get((episode_index, group, tuple(keys)), lambda: file.read_group(group, keys))
        cells = {key: table[key][row] for key in keys}
        return {key: cell["bytes"].as_buffer() if cell.is_valid else None for key, cell in cells.items()}

    def _decode(self, encoded: Any, episode_index: int, frame: int, key: str) -> np.ndarray:
        place = f"{self._metadata.data_path(episode_index)}: episode {episode_index}, frame {frame}, '{key}'"
        data = None if encoded is None else np.frombuffer(encoded, np.uint8)
        if data is None or data.size == 0:
            raise errors.DataError(f"{place}: the image is empty; {_REMEDY}")
        image = self._decode_jpeg(data, key) if is_jpeg(data) else _decode_other(data)
        if image is None:
            raise errors.DataError(f"{place}: the image ({data.size} bytes) cannot be decoded; {_REMEDY}")
        return image

    def _decode_jpeg(self, data: np.ndarray, key: str) -> np.ndarray | None:
        # The decoder fills up what is missing of a JPEG that was cut off; zeros may follow the end.
        is_whole = data[-_JPEG_TAIL:].tobytes().rstrip(b"\0").endswith(_JPEG_END)
        return _to_rgb(cv2.imdecode(data, self._flag(key))) if is_whole else None

    def _flag(self, key: str) -> int:
        if self._shrink_to is None:
            return cv2.IMREAD_COLOR
        height, width = _image_size(self._metadata.features[key])
        # Fitting keeps the proportions: the larger ratio decides.
        ratio = max(height / self._shrink_to[0], width / self._shrink_to[1])
        return next((flag for factor, flag in _REDUCED if factor <= ratio), cv2.IMREAD_COLOR)


# Decoding at a part of the size skips most of the inverse cosine transform.
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


def _read_runs(runs: Mapping[str, encoded_images.EncodedImages], frame: int) -> dict[str, bytes | None]:
    return {key: run.read(frame) for key, run in runs.items()}


def is_jpeg(data: np.ndarray) -> bool:
    """Whether encoded bytes (n,) begin as a JPEG does."""
    return data[:2].tobytes() == b"\xff\xd8"


def _decode_other(data: np.ndarray) -> np.ndarray | None:
    image = png.decode(data.data)
    return _to_rgb(cv2.imdecode(data, cv2.IMREAD_COLOR)) if image is None else image


def _to_rgb(image: np.ndarray | None) -> np.ndarray | None:
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _image_size(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, px, of a camera; both orders of the axes are in use."""
    shape = list(feature["shape"])
    names = feature.get("names") or []
    is_first = list(names)[:1] in (["channels"], ["channel"]) or (not names and shape[0] == 3)
    height, width = shape[1:] if is_first else shape[:2]
    return int(height), int(width)


class _EpisodeFile:
    """One open parquet file; its row groups are found by frame."""

    def __init__(self, metadata: LeRobotMetadata, episode_index: int) -> None:
        self._file: pq.ParquetFile = lerobot_columns.open_parquet(
            metadata.data_path(episode_index), f"episode {episode_index}"
        )
        rows = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(rows)
        # A ParquetFile is not safe for concurrent reads.
        self._lock = threading.Lock()

    def locate(self, frame: int) -> tuple[int, int]:
        """Row group that holds `frame`, and its row there."""
        group = int(np.searchsorted(self._ends, frame, side="right"))
        return group, frame - (int(self._ends[group - 1]) if group else 0)

    def read_group(self, group: int, keys: Sequence[str]) -> pa.Table:
        with self._lock:
            return self._file.read_row_group(group, columns=list(keys), use_threads=False)


class VideoImages:
    """Images stored as one video per episode and camera."""

    def __init__(self, metadata: LeRobotMetadata) -> None:
        """Remember the dataset; videos are opened when first needed."""
        self._metadata = metadata
        self._videos: BoundedCache[_Video] = BoundedCache(_MAX_OPEN_VIDEOS)

    def read(self, episode_index: int, frame: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Decode the images of one frame; arguments and result as `ParquetImages.read`.

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
            raise errors.MissingFileError(f"{place}: the video file is missing; copy it back, or {_REMEDY}") from e
        except av.FFmpegError as e:
            raise errors.DataError(f"{place}: the video cannot be decoded ({e}); {_REMEDY}") from e
        if image is None:
            raise errors.DataError(f"{place}: the video has no frame at this time; {_REMEDY}")
        return image


class _Video:
    """An open video that decodes the frame nearest to a time, wherever the last one was."""

    def __init__(self, path: str) -> None:
        self._container = av.open(path)
        self._stream = self._container.streams.video[0]
        # One thread per decoder: the loader's own threads already keep the cores busy.
        self._stream.codec_context.thread_count = 1
        self._time_base = self._stream.time_base or fractions.Fraction(1, 1)
        self._start = self._stream.start_time or 0
        self._lock = threading.Lock()
        self._frames: Iterator[av.VideoFrame] = iter(())
        # Time of the last frame that came out of the decoder.
        self._shown_s = math.inf

    def read(self, time_s: float, tolerance_s: float) -> np.ndarray | None:
        """Return uint8 (h, w, 3) of the frame within `tolerance_s` of `time_s`; None if there is none."""
        with self._lock:
            # Going on is cheaper than jumping back to a key frame, if not by much more than one frame.
            if not self._shown_s < time_s - tolerance_s < self._shown_s + _GO_ON_FRAMES * 2 * tolerance_s:
                self._seek(time_s - tolerance_s)
            # After an error, or a frame that is not there, the next call begins anew.
            self._shown_s = math.inf
            for frame in self._frames:
                shown_s = float((frame.pts - self._start) * self._time_base)
                if shown_s > time_s + tolerance_s:
                    return None
                if shown_s >= time_s - tolerance_s:
                    self._shown_s = shown_s
                    return frame.to_ndarray(format="rgb24")
        return None

    def _seek(self, time_s: float) -> None:
        """Begin to decode at the key frame at or before a time; half a frame early is safe against rounding."""
        first = max(int(time_s / self._time_base), 0) + self._start
        self._container.seek(first, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)
