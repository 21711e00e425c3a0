"""Compare the memory that a training run needs with what there is.

The need follows from shapes, before anything is allocated. It is checked twice. `check_fits` adds up arrays and a rule of
thumb for activations within a second. `check_program` asks the compiled step for its plan. If the config does not fit,
both name what would fit.
"""

from collections.abc import Mapping
import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import psutil

from openpi.shared import errors
from openpi.training import sharding as _sharding
from openpi.training.configs.train_config import TrainConfig
from openpi.training.host import free_space
from openpi.training.memory import activation_memory
from openpi.training.memory import memory_advice
from openpi.training.step import partition
from openpi.training.step import train_state as _train_state
from openpi.training.step.step_program import StepProgram

logger = logging.getLogger(__name__)

_GIB = 2**30
_ACTIVATIONS, _BATCHES = "activations", "batches"
# Batches in addition to the one that a step works on: that of the step before, kept until its loss is known to be good.
_KEPT_BATCHES = 1.0
# On a CPU, whose memory is the host's, there are also three batches that the loader reads ahead and the next one, twice, on
# its way to the device. Their images have one byte where the model's have four.
_BATCHES_READ_AHEAD = 5 / 4


class NotEnoughMemoryError(errors.UserError):
    """Raised when the machine has less memory than the config needs."""


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """The bytes that a run needs on one device, by part."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of all parts, bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / _GIB:.2f}" for name, size in self.parts.items())


def training_need(config: TrainConfig, mesh: jax.sharding.Mesh) -> MemoryNeed:
    """Return what a run takes on a device of the mesh.

    Activations are estimated by a rule of thumb. All other parts follow from shapes.
    """
    state = _train_state.abstract_train_state(config)
    shardings = _train_state.state_sharding(config, mesh)
    trainable, _ = partition.split(state.params, config.trainable_filter)
    trainable_shardings, _ = partition.split(shardings.params, config.trainable_filter)
    gradients = _bytes(trainable, trainable_shardings)
    return MemoryNeed(
        {
            "parameters": _bytes(state.params, shardings.params),
            "optimizer": _bytes(state.opt_state, shardings.opt_state),
            "average": _bytes(state.ema_params, shardings.ema_params),
            # With accumulation there are the sum over the parts and the gradients of one part.
            "gradients": gradients * (2 if config.grad_accumulation > 1 else 1),
            _ACTIVATIONS: activation_memory.estimate_bytes(config, mesh.size),
            _BATCHES: _batches_bytes(config, mesh.size),
        }
    )


def _batches_bytes(config: TrainConfig, num_devices: int) -> int:
    num_batches = _KEPT_BATCHES + (_BATCHES_READ_AHEAD if jax.local_devices()[0].platform == "cpu" else 0)
    spec = config.model.inputs_spec(batch_size=config.batch_size)
    return int(num_batches * free_space.tree_bytes(spec) / num_devices)


def _bytes(tree: Any, shardings: Any) -> int:
    def leaf_bytes(leaf: Any, sharding: jax.sharding.NamedSharding) -> int:
        return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(leaf_bytes, tree, shardings)))


def available_bytes(device: jax.Device) -> int | None:
    """Return the memory that `device` may use, bytes.

    For an accelerator it is all that this process may take. For a CPU it is what is free now, shared by all devices of this
    process. The result is None where the system does not report it.
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
    # A container may use less than the machine has.
    limit, usage = (pathlib.Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and usage.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(usage.read_text()))
    return free


def check_fits(config: TrainConfig, mesh: jax.sharding.Mesh) -> MemoryNeed:
    """Return the estimated need of a run, or refuse it.

    The check comes before the run compiles or allocates anything.

    Raises:
        NotEnoughMemoryError: The run needs more than there is. The message names both, and what would fit.
    """
    need = training_need(config, mesh)
    available, sharing = _available()
    # The activations are a guess, so only the other parts decide here. `check_program` decides where activations matter.
    certain = need.total - need.parts[_ACTIVATIONS]
    if available is not None and certain * sharing > available:
        raise NotEnoughMemoryError(_refusal(config, need.total, available, sharing, f" ({need})"))
    logger.info("memory for training, estimated: %.3f GiB on each device (%s)", need.total / _GIB, need)
    return need


def check_program(config: TrainConfig, mesh: jax.sharding.Mesh, need: MemoryNeed, program: StepProgram) -> None:
    """Refuse a run whose compiled step needs more than there is.

    Raises:
        NotEnoughMemoryError: The run needs more than there is.
    """
    planned = program.memory_bytes()
    if planned is None:
        return
    available, sharing = _available()
    total = planned + need.parts[_BATCHES]
    # The estimates of what would fit use the same rule of thumb, so they are corrected by its error here.
    if available is not None and total * sharing > available:
        raise NotEnoughMemoryError(_refusal(config, total, available, sharing, "", total / need.total))
    process = psutil.Process().memory_info().rss
    logger.info(
        "memory of the compiled step: %.3f GiB on each device, of other batches: %.3f GiB, of this process before: %.3f GiB",
        *(planned / _GIB, need.parts[_BATCHES] / _GIB, process / _GIB),
    )


def _available() -> tuple[int | None, int]:
    """Return the memory that there is, and how many devices share it.

    All CPU "devices" share the machine's memory.
    """
    device = jax.local_devices()[0]
    return available_bytes(device), jax.local_device_count() if device.platform == "cpu" else 1


def _refusal(config: TrainConfig, total: int, available: int, sharing: int, parts: str, correction: float = 1.0) -> str:
    def estimate(changed: TrainConfig) -> float:
        mesh = _sharding.make_mesh(changed.fsdp_devices)
        return training_need(changed, mesh).total * sharing * correction

    platform = jax.local_devices()[0].platform
    return (
        f"config '{config.name}': training needs {total * sharing / _GIB:.1f} GiB{parts}, this {platform} has "
        f"{available / _GIB:.1f} GiB. {memory_advice.advise(config, available, estimate)}"
    )
