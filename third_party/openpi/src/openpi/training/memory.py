"""How much memory a training run needs, worked out from shapes before anything is allocated, and how much there is."""

from collections.abc import Mapping
import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from openpi.shared import errors
from openpi.training import partition
from openpi.training import train_state as _train_state
from openpi.training.train_config import TrainConfig

logger = logging.getLogger(__name__)

_GIB = 2**30


class NotEnoughMemoryError(errors.UserError):
    """The machine cannot hold what the config needs."""


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """Bytes by what they hold, on one device. Activations are not included: they depend on the compiler."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of all parts, bytes."""
        return sum(self.parts.values())


def training_need(config: TrainConfig, mesh: jax.sharding.Mesh) -> MemoryNeed:
    """Work out what the train state and the gradients of a config take on one device of the mesh."""
    state = _train_state.abstract_train_state(config)
    shardings = _train_state.state_sharding(config, mesh)
    trainable, _ = partition.split(state.params, config.trainable_filter)
    trainable_shardings, _ = partition.split(shardings.params, config.trainable_filter)
    return MemoryNeed(
        {
            "parameters": _bytes(state.params, shardings.params),
            "optimizer": _bytes(state.opt_state, shardings.opt_state),
            "average": _bytes(state.ema_params, shardings.ema_params),
            "gradients": _bytes(trainable, trainable_shardings),
        }
    )


def _bytes(tree: Any, shardings: Any) -> int:
    def leaf_bytes(leaf: Any, sharding: jax.sharding.NamedSharding) -> int:
        return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(leaf_bytes, tree, shardings)))


def available_bytes(device: jax.Device) -> int | None:
    """Return the memory that `device` may use, bytes; None where the system does not tell.

    An accelerator: all that this process may take. A CPU: what is free now, over all devices of this process.
    """
    if device.platform == "cpu":
        return _free_host_bytes()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _free_host_bytes() -> int | None:
    meminfo = pathlib.Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, usage = (pathlib.Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and usage.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(usage.read_text()))
    return free


def check_fits(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
    """Stop a run that cannot fit before it allocates anything.

    Raises:
        NotEnoughMemoryError: What the run needs is more than there is; the message names both, and smaller configs.
    """
    need = training_need(config, mesh)
    device = jax.local_devices()[0]
    available = available_bytes(device)
    # All CPU "devices" share the machine's memory.
    total = need.total * (jax.local_device_count() if device.platform == "cpu" else 1)
    parts = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in need.parts.items())
    if available is not None and total > available:
        raise NotEnoughMemoryError(
            f"config '{config.name}': training needs {total / _GIB:.1f} GiB ({parts}; activations come on top), this "
            f"{device.platform} has {available / _GIB:.1f} GiB; use a larger accelerator, several with --fsdp-devices, "
            "a low-rank config (pi0_realman_lora, pi05_realman_lora), or debug_realman, which any CPU holds"
        )
    logger.info("memory for training: %.2f GiB (%s; activations come on top)", total / _GIB, parts)
