"""Check a JPEG and read its size without decoding it.

A few bytes at its start and end are enough.
"""

from collections.abc import Iterator
import re
from typing import NamedTuple

from realman.arrays import Bytes

_START = b"\xff\xd8"
_END = b"\xff\xd9"

# Start-of-frame markers, ITU-T T.81 table B.1: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_TAILS = (256, 16 * 1024)
"""Sizes in bytes of the buffer's end that is searched first, because most padding is short."""


_AFTER_PIXELS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""A marker that ends a run of pixel data. Stuffed zeros, fill bytes and restart markers belong to the run (B.1.1)."""

SCAN = 0xDA
"""Marker of the header in front of pixels."""

_END_MARKER = 0xD9

MAX_PIXELS = 2**26
"""Decoders refuse images above a limit, Pillow above 2.7 of this. No camera of a robot comes near."""


class Header(NamedTuple):
    """The bytes of a JPEG before its pixels, and its size."""

    data: bytes
    """All bytes up to the end of the frame header."""
    height: int
    """px"""
    width: int
    """px"""


def is_whole(data: Bytes) -> bool:
    """Return whether `data` starts and ends as a JPEG does."""
    return data[:2].tobytes() == _START and data[-2:].tobytes() == _END


def without_padding(data: Bytes) -> Bytes:
    """Return a view of `data` without the zeros at its end.

    A JPEG ends with ffd9, so zeros at the end are never part of it.
    """
    for size in (*_TAILS, len(data)):
        start = max(0, len(data) - size)
        if tail := data[start:].tobytes().rstrip(b"\0"):
            return data[: start + len(tail)]
    return data[:0]


def starts_like(data: Bytes, header: Header) -> bool:
    """Return whether `data` is a whole JPEG with exactly this header.

    Most frames of a camera share one header.
    """
    return data[: len(header.data)].tobytes() == header.data and data[-2:].tobytes() == _END


def read_header(data: bytes) -> Header:
    """Read the image size from the frame header.

    Raises:
        ValueError: Not a JPEG, cut off, or not in color. The message says which.
    """
    if not data.startswith(_START):
        raise ValueError(f"is not a JPEG (starts with {data[:4].hex() or 'nothing'}, expected ffd8)")
    if not data.endswith(_END):
        raise ValueError(f"is a JPEG cut off after {len(data)} bytes")
    for marker, at in segments(memoryview(data)):
        if marker in _FRAME_MARKERS and at + 10 <= len(data):
            # Segment: marker (2), length (2), bits per sample (1), height (2), width (2), components (1).
            if data[at + 9] != 3:
                raise ValueError(f"is a JPEG of {data[at + 9]} channels, expected 3")
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            if not 1 <= height * width <= MAX_PIXELS:
                raise ValueError(
                    f"is a JPEG of {height}x{width} px, expected at most {MAX_PIXELS / 1e6:.0f} megapixels"
                )
            return Header(data[: at + 10], height, width)
    raise ValueError("is a JPEG without a frame header")


def without_rest(data: Bytes) -> Bytes:
    """Return a view of `data` without what follows the image.

    Encoders in hardware append bytes that every decoder ignores. Without the image's end, all of `data` is returned.
    """
    if data[:2].tobytes() != _START:
        return data
    for marker, at in segments(data.data):
        if marker == _END_MARKER:
            return data[: at + 2]
    return data


def segments(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield each segment's marker and where it starts.

    This ends at the end of the image, or at damage. Pixels are searched only if you ask for more after `SCAN`.
    """
    at = len(_START)
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte before the marker
            at += 1
            continue
        yield marker, at
        if marker == _END_MARKER:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SCAN:
            # Pixel data follow the header of a scan without a length of their own.
            found = _AFTER_PIXELS.search(data, at)
            at = found.start() if found else len(data)
