"""Decode an image to RGB, by the one rule of all commands.

Pixels are shown as they are stored, in 8 bits and without transparency. A camera's note on how it was held (EXIF) is
ignored, because turning an image would change its shape. Training follows the same rule.
"""

import cv2
import numpy as np

from realman.arrays import Bytes
from realman.arrays import Image
from realman.data.raw import jpeg

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode(data: bytes, factor: int = 1) -> Image | None:
    """Decode a JPEG, a PNG or another format that OpenCV knows.

    Args:
        data: The file's content.
        factor: 1, 2, 4 or 8, to decode at this part of the size.

    Returns:
        The image, or None if it is damaged or cut off.
    """
    content = np.frombuffer(data, np.uint8)
    # The decoder would invent the missing part of a JPEG. What recorders write behind it does no harm.
    if content[:2].tobytes() == b"\xff\xd8" and not jpeg.is_whole(jpeg.without_rest(content)):
        return None
    bgr = decode_bgr(content, factor)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def decode_bgr(content: Bytes, factor: int = 1) -> Image | None:
    """Decode whole content (n,) as `decode` does, to BGR."""
    try:
        return cv2.imdecode(content, _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION) if len(content) else None
    except cv2.error:
        return None
