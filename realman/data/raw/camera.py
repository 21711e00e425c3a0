"""The frames of one camera of a recording, raw or JPEG.

They are checked when they are read, and decoded only when asked for.
"""

import cv2
import h5py
import numpy as np

from realman.arrays import Bytes
from realman.arrays import Image
from realman.arrays import Pixels
from realman.arrays import StoredFrame
from realman.data.raw import jpeg
from realman.data.raw import pixels
from realman.data.raw import rows
from realman.data.raw.options import ColorOrder
from realman.errors import EpisodeError

_MAX_FRAME_BYTES = 256 * 2**20
"""No camera makes larger frames, and a length without data can be declared as large as one likes."""


class CameraStream:
    """Random access to the frames of one camera.

    Reading all frames in order goes block by block, and the last block stays in memory. Reading a single frame reads
    little more than that frame.
    """

    def __init__(
        self, dataset: h5py.Dataset, *, place: str, color: ColorOrder, lengths: np.ndarray | None = None
    ) -> None:
        """Check the layout of the dataset and measure its first frame.

        Args:
            dataset: One of three layouts: (T, h, w, 3) uint8 frames, (T, n) uint8 JPEG buffers padded at the end, or
                T JPEG buffers of variable length.
            place: File and dataset, for messages.
            color: Channel order of the frames.
            lengths: (cameras, T) true lengths of padded buffers, with rows in any order. Needed if the padding is not
                zero.

        Raises:
            EpisodeError: The dataset has another layout, or its first frame is damaged.
        """
        self._dataset = dataset
        self._place = place
        self._swap = color == "bgr"
        self._lengths = lengths
        self._header: jpeg.Header | None = None
        self.is_jpeg = _is_jpeg(dataset, place)
        if len(dataset) == 0:
            raise EpisodeError(f"{place}: has no frames. Record the episode again")
        rows.check_row_size(dataset, _MAX_FRAME_BYTES, place)
        self._rows = rows.Rows(dataset, place)
        self.height, self.width = self._measure()

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def block_rows(self) -> int:
        """Frames read at once by a reader in order."""
        return self._rows.block_rows

    @property
    def keeps_encoding(self) -> bool:
        """Whether an ordinary decoder shows the recorded JPEGs in the right colors."""
        return self.is_jpeg and not self._swap

    @property
    def stored_bytes(self) -> int:
        """Size of all frames as stored, in bytes.

        Buffers of variable length are assumed to be as long as the first one.
        """
        if self._dataset.ndim == 1:
            return len(self.jpeg_bytes(0)) * len(self)
        return int(np.prod(self._dataset.shape))

    def stored(self, t: int) -> StoredFrame:
        """Return frame `t` as recorded.

        This is a whole JPEG without padding, or the raw frame in the recorded channel order. It is a view of the data
        read, so do not change it. Reading other frames does not change it either.

        Raises:
            EpisodeError: The buffer is not a whole color JPEG, or its size differs from that of the first frame.
        """
        if not self.is_jpeg:
            return self._rows[t]
        data = self._trim(np.frombuffer(self._rows[t], np.uint8), t)
        if self._header is None or not jpeg.starts_like(data, self._header):
            self._check_header(data, t)
        return data

    def jpeg_bytes(self, t: int) -> bytes:
        """Return the JPEG of frame `t` without padding.

        Only for JPEG recordings.

        Raises:
            EpisodeError: As for `stored`.
        """
        return self.stored(t).tobytes()

    def image(self, t: int) -> Image:
        """Return frame `t` as RGB, in a new array.

        Raises:
            EpisodeError: The frame cannot be decoded.
        """
        return self.decode(self.stored(t), t)

    def decode(self, stored: StoredFrame, t: int, stride: int = 1) -> Image:
        """Decode a frame that `stored` returned, to a new RGB array.

        Safe to call from any thread.

        Args:
            stored: The frame as recorded.
            t: Its number, for messages.
            stride: Keep only every n-th pixel, in both directions.

        Raises:
            EpisodeError: The frame cannot be decoded.
        """
        if not self.is_jpeg:
            frame = stored[::stride, ::stride]
            return np.array(frame[..., ::-1] if self._swap else frame, order="C")
        bgr = pixels.decode_bgr(stored)
        if bgr is None or bgr.shape != (self.height, self.width, 3):
            raise EpisodeError(f"{self._place} cannot be decoded at frame {t}. Record the episode again")
        kept = every_nth(bgr, stride)
        # If a JPEG was encoded with swapped channels, OpenCV's "BGR" is the true RGB.
        return kept if self._swap else cv2.cvtColor(kept, cv2.COLOR_BGR2RGB)

    def _measure(self) -> tuple[int, int]:
        if not self.is_jpeg:
            return int(self._dataset.shape[1]), int(self._dataset.shape[2])
        data = self.jpeg_bytes(0)
        self._header = jpeg.read_header(data)
        return self._header.height, self._header.width

    def _check_header(self, data: Bytes, t: int) -> None:
        """Check that `data`, a JPEG, has the first frame's size.

        Called only if its header differs from the first frame's, which alone is not an error.
        """
        try:
            header = jpeg.read_header(data.tobytes())
        except ValueError as e:
            raise EpisodeError(f"{self._place} {e} at frame {t}. Record the episode again") from e
        if self._header is not None and header[1:] != self._header[1:]:
            raise EpisodeError(
                f"{self._place} is {header.height}x{header.width} px at frame {t}, "
                f"expected {self.height}x{self.width} px as at frame 0"
            )

    def _trim(self, data: Bytes, t: int) -> Bytes:
        """Cut off what follows the image in a buffer."""
        trimmed = jpeg.without_padding(data)
        if jpeg.is_whole(trimmed):
            return trimmed
        if self._lengths is not None:
            # Recorders differ in the order of cameras in this table, so any length that gives a whole JPEG is right.
            lengths = self._lengths[:, t]
            candidates = (data[: int(n)] for n in lengths[np.isfinite(lengths)] if n > 0)
            if (known := next((c for c in candidates if jpeg.is_whole(c)), None)) is not None:
                return known
        return jpeg.without_rest(trimmed)


def every_nth(image: Image, stride: int) -> Pixels:
    """Return every n-th pixel of an image in both directions.

    The result is a new array unless n is 1.
    """
    height, width = image.shape[:2]
    if height % stride or width % stride:
        return np.ascontiguousarray(image[::stride, ::stride])
    # The nearest of n pixels is the first one. This is four times faster than a strided copy of three bytes at a time.
    return cv2.resize(image, (width // stride, height // stride), interpolation=cv2.INTER_NEAREST)


def _is_jpeg(dataset: h5py.Dataset, place: str) -> bool:
    """Return whether the dataset holds JPEG buffers, judged by its layout alone.

    Raises:
        EpisodeError: It holds neither JPEG buffers nor raw frames.
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
