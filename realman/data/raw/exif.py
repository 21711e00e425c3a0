"""Remove a camera's note on how it was held from a JPEG.

Some readers turn an image by that note, others do not. A dataset should look the same to all of them, and as recorded.
"""

from collections.abc import Iterator
import re

import numpy as np

from realman.arrays import Bytes
from realman.data.raw import jpeg

_APP1 = 0xE1
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1
# The same note in XMP, as an attribute or as an element.
_XMP_NOTE = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)([0-9])")


def without_orientation(data: Bytes) -> Bytes:
    """Return a JPEG (n,) whose note says that it is upright.

    No other byte differs. Without such a note, or if `data` is not a JPEG, it is returned as it is.
    """
    # Most frames have no such segment, and are not copied.
    segments = list(_app1_segments(data.data))
    if not segments:
        return data
    content = data.tobytes()
    changed = bytearray(content)
    for start, stop in segments:
        segment = content[start:stop]
        if segment.startswith(_EXIF):
            _clear_exif(changed, start + len(_EXIF), segment[len(_EXIF) :])
        else:
            changed[start:stop] = _XMP_NOTE.sub(rb"\g<1>1", segment)
    return data if changed == content else np.frombuffer(bytes(changed), np.uint8)


def _app1_segments(content: memoryview) -> Iterator[tuple[int, int]]:
    """Yield where the content of each APP1 segment starts and stops."""
    for marker, at in jpeg.segments(content):
        if marker == jpeg.SCAN:
            return
        stop = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _APP1 and stop <= len(content):
            yield at + 4, stop


def _clear_exif(changed: bytearray, start: int, tiff: bytes) -> None:
    """Set the orientation of a TIFF header that begins at `start`."""
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    # Entry: tag (2), type (2), count (4), value (4). Short values are at the front of the value's bytes.
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if entry + 12 > len(tiff):
            return
        if number(entry, 2) == _ORIENTATION_TAG:
            size = 4 if number(entry + 2, 2) == 4 else 2  # LONG or SHORT
            changed[start + entry + 8 : start + entry + 8 + size] = _UPRIGHT.to_bytes(size, order)  # type: ignore[arg-type]
