"""A file of equally large pictures that is filled in any order and may be cut off at any moment.

What the images were made from (a digest), a checksum a frame, the frames. A frame is there when its checksum fits: that holds for
several threads and processes that write at the same time, and after a crash of the machine.
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
# Frames begin at a multiple of it: a page of memory, a block of a disk.
_ALIGNMENT = 4096


@dataclasses.dataclass(frozen=True)
class Layout:
    """What stands where in a file."""

    # Of what the images were made from.
    digest: bytes
    num_frames: int
    # Height and width, px.
    size: tuple[int, int]

    @property
    def frame_bytes(self) -> int:
        """Bytes of a picture."""
        return 3 * self.size[0] * self.size[1]

    def sum_at(self, frame: int) -> int:
        """Offset of a frame's checksum, bytes."""
        return len(self.digest) + _SUM_BYTES * frame

    def frame_at(self, frame: int) -> int:
        """Offset of a frame's picture, bytes."""
        return -(-self.sum_at(self.num_frames) // _ALIGNMENT) * _ALIGNMENT + frame * self.frame_bytes


class ImageFile:
    """An open file; closed when the last thread that uses it lets go."""

    def __init__(self, file: io.FileIO, layout: Layout) -> None:
        """Take over an open file whose digest is right."""
        self._file = file
        self._layout = layout

    @classmethod
    def open(cls, path: pathlib.Path, layout: Layout, *, make: bool) -> Self | None:
        """Open a file for reading and, if that is allowed, writing.

        Args:
            path: The file.
            layout: What should be in it.
            make: Make an empty one where there is none, or one of other images. Two that do it at the same time end up
                with the same file.

        Returns:
            The file, or None if there is none and none is made.

        Raises:
            OSError: It cannot be read or made.
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
        """Return the picture of a frame, uint8 (h, w, 3); None if it is not there."""
        file, layout = self._file.fileno(), self._layout
        stored = os.pread(file, _SUM_BYTES, layout.sum_at(frame))
        if not any(stored):
            return None
        image = np.empty((*layout.size, 3), np.uint8)
        # New memory may hold the very picture that an earlier reader let go of: a checksum alone would not miss the file's end.
        is_whole = os.preadv(file, [image], layout.frame_at(frame)) == layout.frame_bytes
        return image if is_whole and stored == _checksum(image, frame) else None

    def write(self, frame: int, image: np.ndarray) -> None:
        """Store the picture of a frame, uint8 (h, w, 3); nothing happens where the file may only be read.

        Raises:
            OSError: The disk is full, or worse.
        """
        if self._file.writable():
            os.pwrite(self._file.fileno(), image, self._layout.frame_at(frame))
            os.pwrite(self._file.fileno(), _checksum(image, frame), self._layout.sum_at(frame))


def _open_for_all(path: pathlib.Path, *, make: bool) -> io.FileIO | None:
    """Open a file for as much as is allowed."""

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
    """Of a picture in its place; never zeros, which stand for a frame that is not there."""
    return (zlib_ng.crc32(image, frame) or 1).to_bytes(_SUM_BYTES, "little")
