"""Process a batch that is too large for the memory in parts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from openpi.training import sharding


def value_and_grad(
    mean_loss: Callable[[Any, Any], jax.Array], params: Any, inputs: Any, num_parts: int
) -> tuple[jax.Array, Any]:
    """Return the loss of a batch and its gradient, in parts.

    The result is that of the whole batch, up to rounding.

    Args:
        mean_loss: Function of the parameters and of a part of the inputs. A mean over dimension 0 of the inputs.
        params: Parameters, the first argument of `mean_loss`.
        inputs: Pytree. Dimension 0 of every leaf is the sample.
        num_parts: Number of parts. It divides the batch on each device.
    """

    def cut(leaf: jax.Array) -> jax.Array:
        # Part i has rows i, i + n, i + 2 n ... so that every device takes its share from the rows that it already holds.
        return leaf.reshape(leaf.shape[0] // num_parts, num_parts, *leaf.shape[1:]).swapaxes(0, 1)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        part = sharding.activation_sharding_constraint(part)
        return jax.tree.map(jnp.add, total, jax.value_and_grad(mean_loss)(params, part)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, jax.tree.map(cut, inputs))
    return jax.tree.map(lambda x: x / num_parts, total)
