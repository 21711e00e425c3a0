"""Helpers for flax.nnx: jitted methods, path filters, pure dicts of a state."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
import re
from typing import Any

from flax import nnx
import jax

from openpi.shared import array_typing as at


def module_jit(method: Callable[..., Any], **jit_kwargs: Any) -> Callable[..., Any]:
    """Apply `jax.jit` to a bound method of an nnx module.

    The parameters are frozen as they are now, so later changes of the module do not reach the returned function. They are
    the first argument of the jitted function, so they are not compiled into the program as constants.

    Args:
        method: Bound method of an `nnx.Module`.
        jit_kwargs: Keyword arguments for `jax.jit`. In argument numbers, the parameters count as number 0, like `self`.

    Raises:
        ValueError: `method` is not bound to an `nnx.Module`.
    """
    if not (inspect.ismethod(method) and isinstance(method.__self__, nnx.Module)):
        raise ValueError("module_jit: expected a method bound to an nnx.Module")
    graphdef, state = nnx.split(method.__self__)

    def call(state: nnx.State, *args: Any, **kwargs: Any) -> Any:
        return method.__func__(nnx.merge(graphdef, state), *args, **kwargs)

    jitted = jax.jit(call, **jit_kwargs)

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return jitted(state, *args, **kwargs)

    return wrapper


@dataclasses.dataclass(frozen=True)
class PathRegex:
    """An nnx filter that selects leaves by their path.

    The regular expression must match the whole path, joined by `sep`.
    """

    pattern: str | re.Pattern[str]
    sep: str = "/"

    def __call__(self, path: tuple[Any, ...], x: Any) -> bool:
        """Return whether the leaf at `path` is selected."""
        return re.fullmatch(self.pattern, self.sep.join(str(key) for key in path)) is not None


def state_map(state: nnx.State, filter: nnx.filterlib.Filter, fn: Callable[[Any], Any]) -> nnx.State:
    """Apply `fn` to the leaves (nnx variables) that `filter` selects.

    The other leaves stay as they are.
    """
    selected = nnx.filterlib.to_predicate(filter)

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        return fn(leaf) if selected(_plain_path(path), leaf) else leaf

    return jax.tree_util.tree_map_with_path(visit, state, is_leaf=lambda x: not isinstance(x, Mapping))


def to_pure_dict(state: nnx.State) -> at.Params:
    """Return the state as nested dicts of plain arrays.

    The "value" level of nnx variables is left out.
    """
    convert = getattr(nnx, "to_pure_dict", None)  # a method of the state before flax 0.12
    return convert(state) if convert else state.to_pure_dict()


def replace_by_pure_dict(state: nnx.State, params: at.Params) -> None:
    """Put the arrays of nested dicts into `state`, in place.

    Paths that `params` lacks keep their value.
    """
    replace = getattr(nnx, "replace_by_pure_dict", None)
    if replace:
        replace(state, params)
    else:
        state.replace_by_pure_dict(params)


def _plain_path(path: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
