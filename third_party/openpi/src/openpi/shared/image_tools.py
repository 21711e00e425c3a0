"""Image resizing on the device.

`openpi_client.image_tools` holds the version for a client without JAX.
"""

import functools

import jax
import jax.numpy as jnp

from openpi.shared import array_typing as at
from openpi.shared import errors


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames=("height", "width", "method"))
@at.typecheck
def resize_with_pad(
    images: at.UInt8[at.Array, "*b h w c"] | at.Float[at.Array, "*b h w c"],
    height: int,
    width: int,
    method: jax.image.ResizeMethod = jax.image.ResizeMethod.LINEAR,
) -> at.UInt8[at.Array, "*b {height} {width} c"] | at.Float[at.Array, "*b {height} {width} c"]:
    """Resize images to fit height x width, centered on black.

    The proportions are kept. Downscaling is antialiased. The geometry is that of the client's version: sizes are rounded
    down, and an odd row or column of padding goes to the bottom or right.

    Args:
        images: uint8 in 0..255, or float32 in [-1, 1].
        height: Wanted height, px.
        width: Wanted width, px.
        method: Interpolation.

    Returns:
        Images of the same dtype, height x width. Black is 0 for uint8 and -1 for float32.

    Raises:
        DataError: The dtype is neither uint8 nor float32.
    """
    if images.dtype not in (jnp.uint8, jnp.float32):
        raise errors.DataError(f"resize_with_pad: found images of {images.dtype}, expected uint8 or float32")
    *batch, old_height, old_width, channels = images.shape
    ratio = max(old_width / width, old_height / height)
    new_height, new_width = int(old_height / ratio), int(old_width / ratio)
    resized = jax.image.resize(images, (*batch, new_height, new_width, channels), method)
    black: float
    if images.dtype == jnp.uint8:
        # jax.image.resize returns floats for integer images.
        resized = jnp.round(resized).clip(0, 255).astype(jnp.uint8)
        black = 0
    else:
        resized = resized.clip(-1.0, 1.0)
        black = -1.0
    top, left = (height - new_height) // 2, (width - new_width) // 2
    rows, columns = (top, height - new_height - top), (left, width - new_width - left)
    return jnp.pad(resized, [(0, 0)] * len(batch) + [rows, columns, (0, 0)], constant_values=black)
