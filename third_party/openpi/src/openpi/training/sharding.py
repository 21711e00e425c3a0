"""Lay out arrays on the devices.

There is one mesh of (batch, fsdp). Batches are split over both axes, and large parameters over `fsdp`.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import logging
from typing import Any

import jax
import numpy as np

from openpi.shared import errors

logger = logging.getLogger(__name__)

BATCH_AXIS = "batch"
FSDP_AXIS = "fsdp"
# A batch is split over all devices, including those that share parameters.
DATA_AXIS = (BATCH_AXIS, FSDP_AXIS)

# A context variable and not a module global, because two threads may trace for different meshes.
_active_mesh: contextvars.ContextVar[jax.sharding.Mesh | None] = contextvars.ContextVar("active_mesh", default=None)


def make_mesh(num_fsdp_devices: int) -> jax.sharding.Mesh:
    """Arrange all devices as (device_count / num_fsdp_devices, num_fsdp_devices), axes `batch` and `fsdp`.

    Raises:
        ConfigError: The device count is not a multiple of `num_fsdp_devices`.
    """
    num_devices = jax.device_count()
    if num_fsdp_devices < 1 or num_devices % num_fsdp_devices:
        raise errors.ConfigError(
            f"fsdp_devices: {num_devices} device(s) cannot be split into groups of {num_fsdp_devices}. "
            "Set --fsdp-devices to a divisor of the device count"
        )
    # jax.sharding.Mesh has Auto axes in every jax release. jax.make_mesh changed its default to Explicit.
    grid = np.asarray(jax.devices()).reshape(num_devices // num_fsdp_devices, num_fsdp_devices)
    return jax.sharding.Mesh(grid, (BATCH_AXIS, FSDP_AXIS))


@contextlib.contextmanager
def set_mesh(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Set the mesh for `activation_sharding_constraint` in this block.

    The mesh counts while a function is traced inside the block.

    Raises:
        ValueError: A mesh is already set. Nesting would silently change the meaning of the outer block.
    """
    if _active_mesh.get() is not None:
        raise ValueError("set_mesh: a mesh is already set in this context, and set_mesh blocks cannot be nested")
    token = _active_mesh.set(mesh)
    try:
        yield
    finally:
        _active_mesh.reset(token)


def activation_sharding_constraint(pytree: Any) -> Any:
    """Keep dimension 0 of every activation split over all devices.

    This is a hint to the compiler. Outside `set_mesh` it does nothing.
    """
    mesh = _active_mesh.get()
    if mesh is None:
        return pytree
    return jax.lax.with_sharding_constraint(pytree, data_sharding(mesh))


def data_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Return the sharding of a batch, with dimension 0 over all devices."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DATA_AXIS))


def replicated_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Return the sharding of arrays that every device holds in full."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def fsdp_sharding(pytree: Any, mesh: jax.sharding.Mesh, *, min_size_mbytes: float = 4, log: bool = False) -> Any:
    """Choose a sharding for each leaf of a pytree.

    Leaves are arrays or ShapeDtypeStructs. A leaf is split along its largest dimension that the size of the `fsdp` axis
    divides. It is replicated if that axis has size 1, or if the leaf has fewer than 2 dimensions, is smaller than
    `min_size_mbytes` MiB, or has no such dimension.
    """
    min_bytes = min_size_mbytes * 2**20
    fsdp_size = mesh.shape[FSDP_AXIS]
    replicated = replicated_sharding(mesh)

    def choose(path: Any, leaf: Any) -> jax.sharding.NamedSharding:
        shape = getattr(leaf, "shape", ())
        if fsdp_size == 1 or len(shape) < 2 or np.prod(shape) * np.dtype(leaf.dtype).itemsize < min_bytes:
            return replicated
        # Try the largest dimension first.
        for axis in np.argsort(shape)[::-1]:
            if shape[axis] % fsdp_size == 0:
                if log:
                    logger.info(
                        "%s: axis %d of %s split over %d devices", jax.tree_util.keystr(path), axis, shape, fsdp_size
                    )
                spec = [None] * len(shape)
                spec[axis] = FSDP_AXIS
                return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        logger.warning(
            "%s: no axis of %s is divisible by %d devices, so it is kept whole",
            jax.tree_util.keystr(path),
            shape,
            fsdp_size,
        )
        return replicated

    return jax.tree_util.tree_map_with_path(choose, pytree)
