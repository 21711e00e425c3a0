"""Array types for signatures, and their run-time check.

Letters used in shapes: `*b` batch, `h w c` image, `s` tokens, `l` prompt length, `d` width, `ah` action horizon,
`ad` action dimension.
"""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import beartype
import jax
from jaxtyping import ArrayLike as ArrayLike
from jaxtyping import Bool as Bool
from jaxtyping import DTypeLike as DTypeLike
from jaxtyping import Float as Float
from jaxtyping import Int as Int
from jaxtyping import Key as Key
from jaxtyping import Num as Num
from jaxtyping import PyTree as PyTree
from jaxtyping import Real as Real
from jaxtyping import UInt8 as UInt8
from jaxtyping import UInt32 as UInt32
from jaxtyping import config as _config
from jaxtyping import jaxtyped

Array: TypeAlias = jax.Array
KeyArrayLike = Key[Array, ""] | UInt32[Array, "2"]
"""A JAX random key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""
Params = dict[str, Any]
"""Parameters as nested dicts whose leaves are arrays."""

P = ParamSpec("P")
R = TypeVar("R")


def typecheck(fn: Callable[P, R]) -> Callable[P, R]:
    """Check the annotated shapes and types of `fn` on each call.

    A check takes about 60 us, so keep it off inner loops.
    """
    return cast(Callable[P, R], jaxtyped(fn, typechecker=beartype.beartype))


@contextlib.contextmanager
def disable_typechecking() -> Iterator[None]:
    """Switch the checks of `typecheck` off inside the block.

    The previous setting returns even after an error.
    """
    before = _config.jaxtyping_disable
    _config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        _config.update("jaxtyping_disable", before)


def check_pytree_equality(
    *, expected: PyTree, got: PyTree, check_shapes: bool = False, check_dtypes: bool = False
) -> None:
    """Require two pytrees to have the same structure.

    Args:
        expected: The reference.
        got: The pytree to check.
        check_shapes: Also require the same shapes of the leaves.
        check_dtypes: Also require the same dtypes of the leaves.

    Raises:
        ValueError: They differ. The message has one line for each key path that does.
    """
    want, have = _leaves_by_path(expected), _leaves_by_path(got)
    problems = [f"{path}: expected, but missing" for path in want if path not in have]
    problems += [f"{path}: found, but not expected" for path in have if path not in want]
    for path in want.keys() & have.keys():
        if check_shapes and want[path].shape != have[path].shape:
            problems.append(f"{path}: shape {have[path].shape}, expected {want[path].shape}")
        if check_dtypes and want[path].dtype != have[path].dtype:
            problems.append(f"{path}: dtype {have[path].dtype}, expected {want[path].dtype}")
    if not problems and jax.tree.structure(expected) != jax.tree.structure(got):
        problems = [f"structure {jax.tree.structure(got)}, expected {jax.tree.structure(expected)}"]
    if problems:
        raise ValueError(f"pytrees differ in {len(problems)} places:\n  " + "\n  ".join(sorted(problems)))


def _leaves_by_path(tree: PyTree) -> dict[str, Any]:
    return {_path_str(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _path_str(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
