"""Split parameters into trainable and frozen ones.

The functions work with every supported version of flax.
"""

from flax import nnx


def split(params: nnx.State, selected: nnx.filterlib.Filter) -> tuple[nnx.State, nnx.State]:
    """Return the parameters that the filter selects, and the others."""
    if hasattr(nnx, "split_state"):  # before flax 0.12 it is a method of the state
        return nnx.split_state(params, selected, ...)
    return params.split(selected, ...)


def merge(first: nnx.State, second: nnx.State) -> nnx.State:
    """Undo `split`."""
    if hasattr(nnx, "merge_state"):
        return nnx.merge_state(first, second)
    return nnx.State.merge(first, second)
