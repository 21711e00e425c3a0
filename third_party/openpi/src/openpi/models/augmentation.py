"""Random crop, rotation and color jitter of training images.

Crop and rotation are one bilinear resample, so each image is read once. The random draws follow the transforms that
published models were trained with (crop to 95 %, resize back, rotate, color jitter), key by key. A training run can
therefore be repeated.
"""

import jax
import jax.numpy as jnp

from openpi.shared import array_typing as at

# Side of the random crop as a fraction of the image.
CROP_FRACTION = 0.95
MAX_ROTATION_DEG = 5.0
# Largest change of each color property. Hue is a fraction of the full circle.
MAX_BRIGHTNESS = 0.3
MAX_CONTRAST = 0.4
MAX_HUE = 0.1
# Share of the images whose colors change.
COLOR_PROBABILITY = 0.5


def augment(
    rng: at.KeyArrayLike, images: at.Float[at.Array, "b h w 3"], *, geometric: bool
) -> at.Float[at.Array, "b h w 3"]:
    """Augment each image of a batch independently.

    Args:
        rng: Random key. The same key gives the same crop, angle and colors for any images.
        images: RGB in [0, 1].
        geometric: Also crop and rotate. Off for wrist cameras, whose view moves with the hand.

    Returns:
        RGB in [0, 1]. Areas outside the original image are black.
    """

    def augment_one(key: at.KeyArrayLike, image: at.Float[at.Array, "h w 3"]) -> at.Float[at.Array, "h w 3"]:
        if geometric:
            geometry_key, color_key = jax.random.split(key)
            image = _crop_and_rotate(geometry_key, image)
        else:
            (color_key,) = jax.random.split(key, 1)
        return _jitter_colors(jax.random.split(color_key, 1)[0], image)

    return jax.vmap(augment_one)(jax.random.split(rng, images.shape[0]), images)


def _crop_and_rotate(key: at.KeyArrayLike, image: at.Float[at.Array, "h w 3"]) -> at.Float[at.Array, "h w 3"]:
    height, width, _ = image.shape
    crop = jnp.array([int(height * CROP_FRACTION), int(width * CROP_FRACTION)])
    size = jnp.array([height, width])
    # The second key belonged to the resize, which draws nothing.
    crop_key, _, rotation_key = jax.random.split(key, 3)
    margin = (size - crop) / 2
    offset = jax.random.uniform(crop_key, (2,), minval=-margin, maxval=margin)
    limit = jnp.deg2rad(MAX_ROTATION_DEG)
    angle = jax.random.uniform(rotation_key, minval=-limit, maxval=limit)

    # For each output pixel, the place in the input to read from.
    center = (size - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - center[0], jnp.arange(width) - center[1], indexing="ij")  # [h, w] each
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    scale = crop / size
    source_y = scale[0] * (cos * y + sin * x) + offset[0] + center[0]
    source_x = scale[1] * (-sin * y + cos * x) + offset[1] + center[1]
    return jax.vmap(
        lambda channel: jax.scipy.ndimage.map_coordinates(channel, [source_y, source_x], order=1, mode="constant"),
        in_axes=-1,
        out_axes=-1,
    )(image)


def _jitter_colors(key: at.KeyArrayLike, image: at.Float[at.Array, "h w 3"]) -> at.Float[at.Array, "h w 3"]:
    apply = jax.random.bernoulli(key, COLOR_PROBABILITY)
    # Five keys, as published models were trained with. The fourth (saturation) had no effect there and has none here.
    brightness_key, contrast_key, hue_key, _, _ = jax.random.split(key, 5)

    def draw(key: at.KeyArrayLike, limit: float) -> jax.Array:
        return jax.random.uniform(key, minval=-limit, maxval=limit)

    hue, saturation, value = _rgb_to_hsv(image)  # [h, w] each
    value = _change_brightness(value, draw(brightness_key, MAX_BRIGHTNESS))
    value = _change_contrast(value, draw(contrast_key, MAX_CONTRAST))
    hue = hue + draw(hue_key, MAX_HUE)
    return jnp.where(apply, _hsv_to_rgb(hue, saturation, value), image)


def _change_brightness(value: jax.Array, amount: jax.Array) -> jax.Array:
    """Move values toward black (amount < 0) or white (amount > 0).

    All values are 0 at amount -1 and 1 at amount 1.
    """
    return jnp.where(amount < 0, value * (1 + amount), value * (1 - amount) + amount)


def _change_contrast(value: jax.Array, amount: jax.Array) -> jax.Array:
    """Apply a piecewise linear contrast curve.

    It passes through (0, 0), (1/2, 1/2) and (1, 1). Its slope in the middle is tan((amount + 1) pi / 4).
    """
    slope = jnp.tan((amount + 1) * jnp.pi / 4)
    knee = (slope - slope**2) / (2 * (1 - slope**2))
    dark, middle, bright = value / slope, slope * (value - 0.5) + 0.5, value / slope + 1 - 1 / slope
    return jnp.where(value < knee, dark, jnp.where(value > 1 - knee, bright, middle))


def _rgb_to_hsv(rgb: at.Float[at.Array, "h w 3"]) -> tuple[jax.Array, jax.Array, jax.Array]:
    value, darkest = jnp.max(rgb, axis=-1), jnp.min(rgb, axis=-1)  # [h, w]
    spread = value - darkest
    # Replace zero denominators before dividing. A masked division by zero would still be undefined.
    saturation = jnp.where(value > 0, spread / jnp.where(value > 0, value, 1), 0)
    largest = jnp.argmax(rgb, axis=-1)  # [h, w]
    following, previous = (
        jnp.take_along_axis(rgb, ((largest + step) % 3)[..., None], axis=-1)[..., 0] for step in (1, 2)
    )
    hue = (2 * largest + (following - previous) / jnp.where(spread > 0, spread, 1)) / 6
    return jnp.where(spread > 0, hue, 0), saturation, value


def _hsv_to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> at.Float[at.Array, "h w 3"]:
    k = (jnp.array([5.0, 3.0, 1.0]) + 6 * hue[..., None]) % 6  # [h, w, 3]
    share = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * share)
