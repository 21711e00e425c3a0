"""Convert camera images of requests and datasets to one form."""

from typing import Any

import numpy as np

from openpi_client import image_tools


def parse_image(name: str, value: Any) -> np.ndarray:
    """Return uint8 [h, w, 3] of an image in either layout.

    Args:
        name: Name to use in errors.
        value: [h, w, 3] or [3, h, w], uint8 or float in [0, 1]. If both ends are 3, channels are last.

    Raises:
        ValueError: Another shape or dtype, or floats outside [0, 1].
    """
    image = np.asarray(value)
    if image.ndim != 3 or image.size == 0 or 3 not in (image.shape[0], image.shape[-1]):
        raise ValueError(f"image '{name}': found shape {list(image.shape)}, expected [h, w, 3] or [3, h, w]")
    if image.dtype.kind != "f" and image.dtype != np.uint8:
        raise ValueError(f"image '{name}': found {image.dtype}, expected uint8, or floats from 0 to 1")
    # The comparisons are False for NaN, so it is refused too.
    if image.dtype.kind == "f" and not (image.min() >= 0.0 and image.max() <= 1.0):
        raise ValueError(f"image '{name}': found floats from {image.min()} to {image.max()}, expected 0 to 1")
    image = image_tools.convert_to_uint8(image)
    return image if image.shape[-1] == 3 else np.moveaxis(image, 0, -1)


def require_keys(data: dict[str, Any], *keys: str) -> None:
    """Raise a ValueError that names all `keys` missing in `data`."""
    if missing := [key for key in keys if key not in data]:
        raise ValueError(f"observation: found {sorted(data)}, expected also {missing}")
