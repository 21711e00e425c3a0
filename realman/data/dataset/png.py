"""Lossless pictures as PNG files, encoded twice as fast as OpenCV does it at the same size."""

import struct

import numpy as np
from zlib_ng import zlib_ng

from realman.arrays import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 8
_RGB = 2
_FILTER_LEFT = 1
"""Each byte becomes its difference from the same channel of the pixel to the left (filter type "Sub")."""

_LEVEL = 1
# Of filtered camera noise nothing repeats, so a search for repetitions only costs time (RLE: runs of one byte alone; Huffman codes do
# the rest). Nor do the bytes then depend on the processor, as zlib-ng's search does.
_STRATEGY = zlib_ng.Z_RLE
_WINDOW_BITS = 15
_MEMORY_LEVEL = 9


def encode(image: Image) -> bytes:
    """Encode an RGB picture."""
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, _BITS_PER_SAMPLE, _RGB, 0, 0, 0)
    deflate = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, _STRATEGY)
    pixels = deflate.compress(_filtered(image)) + deflate.flush()
    return b"".join([_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", pixels), *_chunk(b"IEND", b"")])


def _filtered(image: Image) -> np.ndarray:
    """Rows of a filter type and the filtered bytes."""
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = _FILTER_LEFT
    filtered[:, 1 : 1 + channels] = rows[:, :channels]
    np.subtract(rows[:, channels:], rows[:, :-channels], out=filtered[:, 1 + channels :])
    return filtered


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    checksum = zlib_ng.crc32(data, zlib_ng.crc32(kind))
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)
