"""Identical layers stored as one and run by one scan.

Their parameters have a leading layer axis.
"""

from collections.abc import Callable, Iterator
import contextlib
import contextvars
from typing import Any, Literal, TypeAlias, TypeVar

from flax import nnx
import jax

Layer = TypeVar("Layer", bound=nnx.Module)
Carry = TypeVar("Carry")

Remat: TypeAlias = Literal["full", "dots", "none"]
"""What the backward pass computes again instead of storing it: everything, all but the products with weights, or nothing.

The numbers are the same. From the first to the last, memory rises and time falls.
"""

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_remat: contextvars.ContextVar[Remat] = contextvars.ContextVar("remat", default="full")


@contextlib.contextmanager
def set_remat(remat: Remat) -> Iterator[None]:
    """Set what the layers traced inside the block compute again."""
    token = _remat.set(remat)
    try:
        yield
    finally:
        _remat.reset(token)


def stack_layers(create: Callable[[nnx.Rngs], Layer], depth: int, rngs: nnx.Rngs) -> Layer:
    """Create `depth` layers with different random parameters.

    Every parameter gets a leading axis of that length.
    """
    keys = jax.random.split(rngs.params(), depth)  # [layer]
    graphdef, params = jax.vmap(lambda key: nnx.split(create(nnx.Rngs(key))))(keys)  # leaves [layer, ...]
    return nnx.merge(graphdef, params)


def scan_layers(
    layers: Layer, step: Callable[[Layer, Carry, Any], tuple[Carry, Any]], carry: Carry, per_layer: Any = None
) -> tuple[Carry, Any]:
    """Run the stacked layers one after the other.

    By default the backward pass computes the activations inside a layer again. Only the carry between layers is stored,
    so that full-size models fit into memory. `set_remat` changes this.

    Args:
        layers: A module made by `stack_layers`.
        step: `(layer, carry, inputs of the layer) -> (carry, outputs of the layer)`.
        carry: Input of the first layer.
        per_layer: Further inputs of each layer: a pytree of arrays with a leading layer axis, or None.

    Returns:
        The carry after the last layer, and the outputs stacked along a leading layer axis.
    """
    graphdef, params = nnx.split(layers)

    def body(carry: Carry, inputs: tuple[nnx.State, Any]) -> tuple[Carry, Any]:
        layer_params, layer_inputs = inputs
        return step(nnx.merge(graphdef, layer_params), carry, layer_inputs)

    if (policy := _POLICIES.get(_remat.get())) is not None:
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    return jax.lax.scan(body, carry, (params, per_layer))
