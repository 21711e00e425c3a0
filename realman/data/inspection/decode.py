"""Decode images for inspection, not for training."""

import cv2
import numpy as np

from realman.arrays import Image
from realman.data.raw import jpeg

SMALL_HEIGHT_PX = 240
"""JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if they stay at least this high. This is up to 8 times faster."""

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def decode_small(data: bytes) -> Image | None:
    """Decode an image to RGB, JPEGs at a reduced size.

    Returns None if it cannot be decoded.
    """
    try:
        height = jpeg.read_header(data).height
    except ValueError:  # A PNG.
        height = SMALL_HEIGHT_PX
    factor = max((f for f in _REDUCED if height // f >= SMALL_HEIGHT_PX), default=1)
    flag = _REDUCED.get(factor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
