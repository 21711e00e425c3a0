"""Decode the PNGs that this project's converter writes, faster than OpenCV.

OpenCV decodes all other PNGs.
"""

import struct

import numpy as np
from zlib_ng import zlib_ng

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Length and name of the header chunk, and how it ends: 8 bits per sample, RGB, the only compression and filter methods
# of the standard, rows in order.
_HEADER = struct.Struct(">8s I4s II BBBBB I")
_HEADER_KIND = (13, b"IHDR")
_RGB_ROWS = (8, 2, 0, 0, 0)
_CHUNK = struct.Struct(">I4s")
# Each byte is stored as its difference from the same channel of the pixel to the left.
_FILTER_LEFT = 1
# Rows whose sums are computed at once. They stay in a core's cache.
_BLOCK_ROWS = 64


def decode(data: bytes | memoryview) -> np.ndarray | None:
    """Decode a PNG of the converter's kind.

    Its RGB pixels are in one chunk, and all rows have filter type "Sub". The checksum of the pixels is verified.

    Returns:
        uint8 (h, w, 3), or None if the file is of another kind or broken.
    """
    pixels = _pixels(memoryview(data))
    if pixels is None:
        return None
    (height, width), compressed = pixels
    # Decompress and verify.
    try:
        raw = zlib_ng.decompress(compressed, bufsize=height * (1 + 3 * width))
    except zlib_ng.error:
        return None
    if len(raw) != height * (1 + 3 * width):
        return None
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + 3 * width)
    if (rows[:, 0] != _FILTER_LEFT).any():
        return None
    # Undo the filter.
    image = rows[:, 1:].copy()
    for start in range(0, height, _BLOCK_ROWS):
        _add_up(image[start : start + _BLOCK_ROWS])
    return image.reshape(height, width, 3)


def _pixels(data: memoryview) -> tuple[tuple[int, int], memoryview] | None:
    """Return the size (height, width) and compressed pixels of the only chunk."""
    begin = _HEADER.size + _CHUNK.size
    if len(data) < begin:
        return None
    signature, length, kind, width, height, *form, _ = _HEADER.unpack_from(data)
    size, name = _CHUNK.unpack_from(data, _HEADER.size)
    following = begin + size + 4  # the next chunk, after the checksum
    is_ours = (
        signature == _SIGNATURE
        and (length, kind) == _HEADER_KIND
        and tuple(form) == _RGB_ROWS
        and name == b"IDAT"
        and bytes(data[following + 4 : following + 8]) == b"IEND"
    )
    return ((height, width), data[begin : begin + size]) if is_ours else None


def _add_up(rows: np.ndarray) -> None:
    """Replace differences (n, 3 w) by running sums, modulo 256, per channel.

    Each pass doubles how many pixels to the left a sum includes.
    """
    reach = 3
    while reach < rows.shape[1]:
        rows[:, reach:] += rows[:, :-reach].copy()
        reach *= 2
