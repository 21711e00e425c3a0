"""Store images of one size in a file, in any order.

The file holds a digest of what the images were made from, a checksum per frame, and the frames. A frame exists if its
checksum fits. So several threads and processes may write at the same time, and the file may be cut off at any moment.
"""

import dataclasses
import errno
import io
import os
import pathlib
from typing import Self

import numpy as np
from zlib_ng import zlib_ng

_SUM_BYTES = 4
# Frames begin at a multiple of this, bytes: a page of memory, a block of a disk.
_ALIGNMENT = 4096


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of a file begin."""

    # Digest of what the images were made from.
    digest: bytes
    num_frames: int
    # Height and width, px.
    size: tuple[int, int]

    @property
    def frame_bytes(self) -> int:
        """Size of an image, bytes."""
        return 3 * self.size[0] * self.size[1]

    def sum_at(self, frame: int) -> int:
        """Return the offset of a frame's checksum, bytes."""
        return len(self.digest) + _SUM_BYTES * frame

    def frame_at(self, frame: int) -> int:
        """Return the offset of a frame's image, bytes."""
        return -(-self.sum_at(self.num_frames) // _ALIGNMENT) * _ALIGNMENT + frame * self.frame_bytes


class ImageFile:
    """An open file. It closes when its last user lets go."""

    def __init__(self, file: io.FileIO, layout: Layout) -> None:
        """Take over an open file that has the digest of `layout`."""
        self._file = file
        self._layout = layout

    @classmethod
    def open(cls, path: pathlib.Path, layout: Layout, *, make: bool) -> Self | None:
        """Open a file for reading and, if permissions allow it, writing.

        Args:
            path: The file.
            layout: What should be in it.
            make: Create the file if it does not exist, and empty it if it holds other images. Two callers that do this
                at the same time end up with the same file.

        Returns:
            The file, or None if there is none and none is created.

        Raises:
            OSError: The file cannot be read or created.
        """
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = _open_for_all(path, make=make)
        if file is None or os.pread(file.fileno(), len(layout.digest), 0) == layout.digest:
            return None if file is None else cls(file, layout)
        if not make or not file.writable():
            return None
        file.truncate(0)
        os.pwrite(file.fileno(), layout.digest, 0)
        return cls(file, layout)

    def read(self, frame: int) -> np.ndarray | None:
        """Return a frame's stored image, uint8 (h, w, 3), or None."""
        file, layout = self._file.fileno(), self._layout
        stored = os.pread(file, _SUM_BYTES, layout.sum_at(frame))
        if not any(stored):
            return None
        image = np.empty((*layout.size, 3), np.uint8)
        # Count the bytes too: new memory may still hold this very image from an earlier read, and then the checksum
        # would fit although the file has been cut off.
        is_whole = os.preadv(file, [image], layout.frame_at(frame)) == layout.frame_bytes
        return image if is_whole and stored == _checksum(image, frame) else None

    def write(self, frame: int, image: np.ndarray) -> None:
        """Store a frame's image, uint8 (h, w, 3).

        A read-only file stays as it is.

        Raises:
            OSError: The file cannot be written, for example because the disk is full.
        """
        if self._file.writable():
            os.pwrite(self._file.fileno(), image, self._layout.frame_at(frame))
            os.pwrite(self._file.fileno(), _checksum(image, frame), self._layout.sum_at(frame))


def _open_for_all(path: pathlib.Path, *, make: bool) -> io.FileIO | None:
    """Open a file for writing too, where permissions allow it."""

    def opener(name: str, _: int) -> int:
        return os.open(name, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o666)

    try:
        return io.FileIO(path, "rb+", opener=opener)
    except FileNotFoundError:
        return None
    except OSError as e:
        if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not path.exists():
            raise
        return io.FileIO(path, "rb")


def _checksum(image: np.ndarray, frame: int) -> bytes:
    """Return the checksum of an image in its place.

    It is never zero, because zeros mark a frame that is not stored.
    """
    return (zlib_ng.crc32(image, frame) or 1).to_bytes(_SUM_BYTES, "little")
