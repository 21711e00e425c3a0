"""The frames of one camera of a recording, raw or JPEG, read in blocks so that memory stays bounded."""

from typing import Any

import cv2
import h5py
import numpy as np

from realman.arrays import Image
from realman.errors import EpisodeError
from realman.raw import hdf5
from realman.raw import jpeg
from realman.raw.options import ColorOrder

_BLOCK_BYTES = 4 * 2**20
"""Bytes read at once per camera: enough that HDF5's cost per call vanishes, small beside the 1 GiB budget of a run."""

_MAX_CHUNK_BYTES = 64 * 2**20
"""A compressed HDF5 chunk up to this size is read whole, or every frame in it would decompress all of it again."""

_VARIABLE_LENGTH_ROWS = 16
"""Frames read at once when a row's size is unknown beforehand."""


class CameraStream:
    """Random access to the frames of one camera; the block around the last frame stays in memory."""

    def __init__(
        self, dataset: h5py.Dataset, *, place: str, color: ColorOrder, lengths: h5py.Dataset | None = None
    ) -> None:
        """Look at the dataset's form and at its first frame.

        Args:
            dataset: (T, h, w, 3) uint8 frames; (T, n) uint8 JPEG buffers padded at the end; or T JPEG buffers of variable length.
            place: File and dataset, for messages.
            color: Channel order of the frames.
            lengths: (cameras, T) true lengths of padded buffers, for padding that is not zero; rows in any order.

        Raises:
            EpisodeError: The dataset has another form, or its first frame is damaged.
        """
        self._dataset = dataset
        self._place = place
        self._swap = color == "bgr"
        self._lengths = lengths
        self._block_start = 0
        self._block: np.ndarray = np.empty(0)
        self.is_jpeg = _is_jpeg(dataset, place)
        self.block_rows = _rows_per_block(dataset)
        if len(dataset) == 0:
            raise EpisodeError(f"{place}: has no frames; record the episode again")
        self.height, self.width = self._measure()

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def keeps_encoding(self) -> bool:
        """Whether the recorded JPEG bytes show the right colours in an ordinary decoder."""
        return self.is_jpeg and not self._swap

    @property
    def stored_bytes(self) -> int:
        """Size of all frames as stored; buffers of variable length are taken to be as long as the first."""
        if self._dataset.ndim == 1:
            return len(self.jpeg_bytes(0)) * len(self)
        return int(np.prod(self._dataset.shape))

    def stored(self, t: int) -> bytes | Image:
        """Frame `t` as recorded: a whole JPEG without padding, or the raw frame in the recorded channel order (not to be changed).

        Raises:
            EpisodeError: The buffer is no whole colour JPEG, or has another size than the first frame.
        """
        return self.jpeg_bytes(t) if self.is_jpeg else self._read(t)

    def jpeg_bytes(self, t: int) -> bytes:
        """Frame `t` as it was encoded, without padding; only for JPEG recordings.

        Raises:
            EpisodeError: As for `stored`.
        """
        data = self._trim(self._read(t), t)
        try:
            size = jpeg.image_size(data)
        except ValueError as e:
            raise EpisodeError(f"{self._place} {e} at frame {t}; record the episode again") from e
        if t and size != (self.height, self.width):
            raise EpisodeError(
                f"{self._place} is {size[0]}x{size[1]} px at frame {t}, but {self.height}x{self.width} px at frame 0"
            )
        return data

    def image(self, t: int) -> Image:
        """Frame `t` as RGB; a fresh array.

        Raises:
            EpisodeError: The frame cannot be decoded.
        """
        return self.decode(self.stored(t), t)

    def decode(self, stored: bytes | Image, t: int, stride: int = 1) -> Image:
        """RGB picture of what `stored` gave for frame `t`, a fresh array; may run in any thread.

        Args:
            stored: The frame as recorded.
            t: Its number, for messages.
            stride: Only every n-th pixel in both directions is wanted.

        Raises:
            EpisodeError: The frame cannot be decoded.
        """
        if isinstance(stored, np.ndarray):
            frame = stored[::stride, ::stride]
            return np.array(frame[..., ::-1] if self._swap else frame, order="C")
        # A camera's EXIF rotation would change the shape, and ordinary readers of datasets ignore it.
        bgr = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if bgr is None or bgr.shape != (self.height, self.width, 3):
            raise EpisodeError(f"{self._place} cannot be decoded at frame {t}; record the episode again")
        pixels = np.ascontiguousarray(bgr[::stride, ::stride])
        # Of a JPEG encoded with swapped channels, OpenCV's "BGR" is the true RGB.
        return pixels if self._swap else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    def _measure(self) -> tuple[int, int]:
        if self.is_jpeg:
            return jpeg.image_size(self.jpeg_bytes(0))
        return int(self._dataset.shape[1]), int(self._dataset.shape[2])

    def _read(self, t: int) -> Any:
        """Row `t` as HDF5 gives it: a raw frame, or a buffer as array, bytes or void."""
        if not 0 <= t < len(self):
            raise IndexError(f"frame {t} of {len(self)}")
        if not self._block_start <= t < self._block_start + len(self._block):
            start = t // self.block_rows * self.block_rows
            with hdf5.reading(f"{self._place} near frame {t}"):
                self._block = self._dataset[start : start + self.block_rows]
            self._block_start = start
        return self._block[t - self._block_start]

    def _trim(self, row: Any, t: int) -> bytes:
        """Cut the padding off a buffer: a JPEG ends with ffd9, so trailing zeros are never part of it."""
        data = bytes(row)
        end = data.rstrip(b"\0")
        if self._lengths is not None and not jpeg.is_whole(end):
            # Recorders disagree on the order of cameras in this table, so any length that gives a whole JPEG is right.
            candidates = (data[: int(n)] for n in self._lengths[:, t])
            return next((c for c in candidates if jpeg.is_whole(c)), end)
        return end


def _is_jpeg(dataset: h5py.Dataset, place: str) -> bool:
    """Tell JPEG buffers from raw frames by the dataset's form alone.

    Raises:
        EpisodeError: It is neither.
    """
    kind = dataset.dtype
    if dataset.ndim == 4 and kind == np.uint8 and dataset.shape[-1] == 3:
        return False
    if dataset.ndim == 2 and kind == np.uint8:
        return True
    if dataset.ndim == 1 and (
        h5py.check_vlen_dtype(kind) == np.uint8 or h5py.check_string_dtype(kind) or kind.kind in "SV"
    ):
        return True
    raise EpisodeError(
        f"{place} has shape {dataset.shape} of {kind}, expected (T, height, width, 3) uint8 frames or T JPEG buffers"
    )


def _rows_per_block(dataset: h5py.Dataset) -> int:
    if dataset.ndim == 1:
        return _VARIABLE_LENGTH_ROWS
    row_bytes = max(1, int(np.prod(dataset.shape[1:])))
    rows = max(1, _BLOCK_BYTES // row_bytes)
    if dataset.chunks and dataset.compression:
        chunk_rows = dataset.chunks[0]
        if chunk_rows * row_bytes <= _MAX_CHUNK_BYTES:
            # Whole chunks only: a chunk cut by a block's border is decompressed twice.
            return -(-rows // chunk_rows) * chunk_rows
    return rows
