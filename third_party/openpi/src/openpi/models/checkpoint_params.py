"""Read the parameters of a model from a checkpoint folder."""

from collections.abc import Iterator
import contextlib
import logging
import os
import pathlib
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from openpi.shared import array_typing as at
from openpi.shared import errors
from openpi.shared import storage_errors

PARAMS_KEY = "params"
"""Key of the parameter tree inside a checkpoint item."""
_VALUE_KEY = "value"
"""Last key of every path when the tree was written from an nnx state."""


def restore_params(
    params_path: pathlib.Path | str,
    *,
    restore_type: type[np.ndarray] | type[jax.Array] = jax.Array,
    dtype: at.DTypeLike | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> at.Params:
    """Read the parameter tree of a checkpoint's `params` folder.

    Reads both trees written by the training script, where every path ends in "value", and released ones.

    Args:
        params_path: The folder. A `gs://` address is passed to orbax unchanged.
        restore_type: Kind of array to return.
        dtype: Type to convert to while reading. None keeps the stored types.
        sharding: Placement of `jax.Array` leaves. By default every device holds a copy.

    Returns:
        Nested dicts of arrays, with the paths of the model.

    Raises:
        MissingFileError: The folder does not exist.
        DataError: The folder is not a checkpoint of parameters, or some of them are not floating-point numbers.
    """
    path = _resolve(params_path)
    if restore_type is jax.Array and sharding is None:
        mesh = jax.sharding.Mesh(jax.devices(), ("x",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def describe(reason: str) -> str:
        return (
            f"{path}: cannot read parameters ({reason}), expected an undamaged '{PARAMS_KEY}' folder of a step. "
            "Copy it again or use another"
        )

    with storage_errors.explained(describe):
        return _without_value_keys(_restore(path, sharding=sharding, restore_type=restore_type, dtype=dtype))


def _restore(path: str, **array_options: Any) -> at.Params:
    import orbax.checkpoint as ocp  # takes 0.3 s, and statistics or --help read no parameters

    restore_args = ocp.ArrayRestoreArgs(**array_options)
    with ocp.PyTreeCheckpointer() as checkpointer:
        with _without_warnings():
            metadata = checkpointer.metadata(path)
        # Newer orbax wraps the tree in the metadata of a step.
        tree = getattr(metadata, "item_metadata", metadata)
        if tree is None or PARAMS_KEY not in tree:
            raise ValueError(f"tree '{PARAMS_KEY}' not found")
        item = {PARAMS_KEY: tree[PARAMS_KEY]}
        _check_types(item[PARAMS_KEY])
        args = ocp.args.PyTreeRestore(item=item, restore_args=jax.tree.map(lambda _: restore_args, item))
        return checkpointer.restore(path, args)[PARAMS_KEY]


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence orbax while it looks for its own metadata.

    It warns when an item's folder has none, and the layout of the original project never has any.
    """
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


def _check_types(tree: Any) -> None:
    """Refuse leaves that are not floating-point, such as quantized ones.

    The conversion while reading would silently turn them into weights.
    """
    wrong = [
        f"'{'/'.join(path)}' is {leaf.dtype}"
        for path, leaf in traverse_util.flatten_dict(tree).items()
        if getattr(leaf, "dtype", None) is not None and not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} parameters are not floating-point: {', '.join(wrong[:3])}")


def _resolve(path: pathlib.Path | str) -> str:
    if str(path).startswith("gs://"):
        return str(path)
    local = pathlib.Path(path).expanduser().resolve()
    if not local.is_dir():
        raise errors.MissingFileError(f"{local}: checkpoint folder not found")
    return os.fspath(local)


def _without_value_keys(params: at.Params) -> at.Params:
    flat = traverse_util.flatten_dict(params)
    if not all(path[-1] == _VALUE_KEY for path in flat):
        return params
    return traverse_util.unflatten_dict({path[:-1]: leaf for path, leaf in flat.items()})
