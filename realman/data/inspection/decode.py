"""Decode images for inspection, not for training."""

from realman.arrays import Image
from realman.data.raw import jpeg
from realman.data.raw import pixels

SMALL_HEIGHT_PX = 240
"""JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if they stay at least this high. This is up to 8 times faster."""


def decode_small(data: bytes) -> Image | None:
    """Decode an image to RGB, JPEGs at a reduced size.

    Returns None if it cannot be decoded.
    """
    try:
        height = jpeg.read_header(data).height
    except ValueError:  # A PNG.
        height = SMALL_HEIGHT_PX
    factor = max((f for f in (2, 4, 8) if height // f >= SMALL_HEIGHT_PX), default=1)
    return pixels.decode(data, factor)
