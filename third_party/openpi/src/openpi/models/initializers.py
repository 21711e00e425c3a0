"""Random initial values of parameters.

Every draw is a flat vector that is reshaped afterwards. The values are the same as those of a shaped draw, but the random
number generator compiles several times faster. Its compilation is most of the time that it takes to create a small model.
"""

from collections.abc import Sequence
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp


class Initializer(Protocol):
    """Draws the values of an array."""

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = ..., /) -> jax.Array:
        """Return the values for a random key."""


# Standard deviation of a standard normal distribution cut off at -2 and 2.
_TRUNCATED_STD = 0.87962566103423978


def normal(stddev: float) -> Initializer:
    """Draw from a normal distribution around zero."""

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return (stddev * jax.random.normal(key, (math.prod(shape),), dtype)).reshape(shape)

    return init


def lecun_normal(in_axes: Sequence[int] | None = None) -> Initializer:
    """Draw from a truncated normal distribution of variance 1 / fan-in.

    It is cut off at two standard deviations.

    Args:
        in_axes: Axes that are summed over when the weight is applied. By default all but the last.
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in = math.prod(shape[axis] for axis in (range(len(shape) - 1) if in_axes is None else in_axes))
        draw = jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),), dtype)
        return (draw * (fan_in**-0.5 / _TRUNCATED_STD)).reshape(shape)

    return init


def xavier_uniform() -> Initializer:
    """Draw a matrix from a uniform distribution.

    Its variance is 2 / (fan-in + fan-out).
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in, fan_out = shape
        limit = math.sqrt(6 / (fan_in + fan_out))
        return jax.random.uniform(key, (fan_in * fan_out,), dtype, -limit, limit).reshape(shape)

    return init


def zeros(_: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Return zeros."""
    return jnp.zeros(shape, dtype)
