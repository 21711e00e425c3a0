"""Converts, resizes and compresses images for a policy."""

import io
import struct

import numpy as np
from PIL import Image

JPEG_START = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

_MAX_PIXELS = 4096 * 4096

# What PIL raises about damaged files, depending on where the damage is.
_DAMAGED = (
    OSError,
    Image.DecompressionBombError,
    SyntaxError,
    ValueError,
    IndexError,
    TypeError,
    EOFError,
    struct.error,
)


def convert_to_uint8(img: np.ndarray) -> np.ndarray:
    """Convert a float image in [0, 1] to uint8 by truncation.

    Any other dtype is returned as it is. Truncation is part of the interface: k/255 in float32 gives k again for every gray
    level k.
    """
    if np.issubdtype(img.dtype, np.floating):
        return (255 * img).astype(np.uint8)
    return img


def resize_with_pad(
    images: np.ndarray, height: int, width: int, method: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """Resize images to fit height x width, centered on black.

    The proportions are kept.

    Args:
        images: uint8 [..., h, w, c] with 1, 3 or 4 channels.
        height: Wanted height, px.
        width: Wanted width, px.
        method: PIL's resampling filter. It smooths when an image shrinks.

    Returns:
        uint8 [..., height, width, c]. This is the same array if it has that size already.

    Raises:
        ValueError: The images are not uint8, or the channels are not last.
    """
    if images.shape[-3:-1] == (height, width):
        return images
    if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"image: found {images.dtype} {list(images.shape)}, expected uint8 [..., height, width, channels]"
        )
    if images.ndim == 3:
        return _resize_one(images, height, width, method)
    frames = images.reshape(-1, *images.shape[-3:])
    resized = np.stack([_resize_one(frame, height, width, method) for frame in frames])
    return resized.reshape(*images.shape[:-3], *resized.shape[-3:])


def _resize_one(image: np.ndarray, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    ratio = max(image.shape[1] / width, image.shape[0] / height)
    new_height, new_width = int(image.shape[0] / ratio), int(image.shape[1] / ratio)
    # PIL accepts a single channel only without its axis.
    # It also gathers views with other strides (channels first) pixel by pixel, and nothing else runs meanwhile.
    source = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    pixels = np.asarray(source.resize((new_width, new_height), resample=method))
    padded = np.zeros((height, width, image.shape[-1]), dtype=np.uint8)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded[top : top + new_height, left : left + new_width] = pixels.reshape(new_height, new_width, -1)
    return padded


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode an image as JPEG.

    Args:
        image: RGB, uint8 (h, w, 3).
        quality: 1..100.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def decode_jpeg(data: bytes, max_pixels: int = _MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG to RGB, uint8 (h, w, 3).

    Args:
        data: The file.
        max_pixels: Refuse an image that has more, before it is decoded.

    Raises:
        ValueError: The data are not a JPEG, are damaged, or hold so many pixels that they would fill the memory.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.width * image.height <= max_pixels:
                return np.asarray(image.convert("RGB"))
            size = f"{image.width}x{image.height}"
    except _DAMAGED as e:
        raise ValueError(f"a JPEG of {len(data)} bytes cannot be decoded ({e})") from e
    raise ValueError(f"found a JPEG of {size} px, expected at most {max_pixels} px. Send a smaller image")
