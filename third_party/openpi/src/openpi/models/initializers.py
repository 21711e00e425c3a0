"""Random initial values of parameters, of the usual distributions.

Every draw is a flat vector that is then shaped: the values are the same as those of a shaped draw, but the random
number generator compiles several times faster, which is most of the time that it takes to create a small model.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[[Any, Sequence[int], Any], jax.Array]
"""`(random key, shape, dtype) -> values`."""

# Standard deviation of a standard normal distribution cut off at -2 and 2.
_TRUNCATED_STD = 0.87962566103423978


def normal(stddev: float) -> Initializer:
    """Normal distribution around zero."""

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return (stddev * jax.random.normal(key, (math.prod(shape),), dtype)).reshape(shape)

    return init


def lecun_normal(in_axes: Sequence[int] | None = None) -> Initializer:
    """Normal distribution, cut off at two deviations, of variance 1 / fan-in.

    Args:
        in_axes: Axes that are summed over when the weight is applied; by default all but the last.
    """

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in = math.prod(shape[axis] for axis in (range(len(shape) - 1) if in_axes is None else in_axes))
        draw = jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),), dtype)
        return (draw * (fan_in**-0.5 / _TRUNCATED_STD)).reshape(shape)

    return init


def xavier_uniform() -> Initializer:
    """Uniform distribution of variance 2 / (fan-in + fan-out) for a matrix."""

    def init(key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in, fan_out = shape
        limit = math.sqrt(6 / (fan_in + fan_out))
        return jax.random.uniform(key, (fan_in * fan_out,), dtype, -limit, limit).reshape(shape)

    return init


def zeros(_: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Zeros."""
    return jnp.zeros(shape, dtype)
