"""Compile the training step.

The step is compiled from shapes alone, so its memory need is known before anything is allocated.
"""

import functools
import logging
import time
from typing import Any

from flax import nnx
import jax
import numpy as np

from openpi.training import sharding as _sharding
from openpi.training.configs.train_config import TrainConfig
from openpi.training.data_loader import Batch
from openpi.training.host import distributed
from openpi.training.host import host_memory
from openpi.training.step import train_state as _train_state
from openpi.training.step import train_step as _train_step
from openpi.training.step.train_state import TrainState

logger = logging.getLogger(__name__)

# Keys of two scalars of a step: its learning rate, and whether any process has been asked to stop.
LEARNING_RATE = "learning_rate"
STOP = "stop"


class StepProgram:
    """A compiled training step, made by `compile_step`."""

    def __init__(self, compiled: jax.stages.Compiled, mesh: jax.sharding.Mesh) -> None:
        self._compiled = compiled
        self._flags = _sharding.data_sharding(mesh)

    def __call__(
        self, rng: jax.Array, state: TrainState, batch: Batch, *, stop_asked: bool
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Queue a step.

        `state` is donated, so do not use it afterwards. The scalar `STOP` is 1 if any process was asked to stop.
        """
        flags = np.full(jax.local_device_count(), stop_asked, np.float32)
        return self._compiled(rng, state, batch, jax.make_array_from_process_local_data(self._flags, flags))

    def memory_bytes(self) -> int | None:
        """Return the peak memory of the program on one device, bytes.

        Arguments are included. The result is None where JAX does not report it.
        """
        try:
            analysis: Any = self._compiled.memory_analysis()
            sizes = [getattr(analysis, f"{part}_size_in_bytes") for part in ("argument", "output", "temp", "alias")]
        except (AttributeError, NotImplementedError, RuntimeError):
            return None
        argument, output, temp, alias = sizes
        return argument + output + temp - alias


def compile_step(config: TrainConfig, mesh: jax.sharding.Mesh, batch: Batch) -> StepProgram:
    """Compile the training step of a config.

    Args:
        config: Defines the model and the optimizer.
        mesh: The devices.
        batch: Shapes and types of a batch.
    """
    start_s = time.perf_counter()
    shardings = _train_state.state_sharding(config, mesh)
    replicated, data = _sharding.replicated_sharding(mesh), _sharding.data_sharding(mesh)
    step = jax.jit(
        functools.partial(_step, config, _train_state.model_definition(config)),
        in_shardings=(replicated, shardings, data, data),
        out_shardings=(shardings, replicated),
        donate_argnums=(1,),
    )
    flags = jax.ShapeDtypeStruct((jax.device_count(),), np.float32)
    with _sharding.set_mesh(mesh):
        lowered = step.lower(_abstract_key(), _train_state.abstract_train_state(config), batch, flags)
    compiled = lowered.compile()
    host_memory.give_back()
    if distributed.is_first():
        logger.info("training step compiled in %.0f s", time.perf_counter() - start_s)
    return StepProgram(compiled, mesh)


def _step(
    config: TrainConfig, model_def: nnx.GraphDef, rng: jax.Array, state: TrainState, batch: Batch, flags: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    state, info = _train_step.train_step(config, model_def, rng, state, batch)
    rate = config.lr_schedule.create()(state.step - 1)
    return state, {**info, LEARNING_RATE: rate, STOP: flags.max()}


def _abstract_key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
