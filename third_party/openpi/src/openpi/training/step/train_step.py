"""One optimization step as a pure function."""

import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from openpi.models import model as _model
from openpi.models import stacking
from openpi.shared import nnx_utils
from openpi.training import optimizer as _optimizer
from openpi.training.configs.train_config import TrainConfig
from openpi.training.data_loader import Batch
from openpi.training.step import accumulation
from openpi.training.step import partition
from openpi.training.step.train_state import TrainState

# Keys of the scalars that a step reports.
METRICS = ("loss", "grad_norm", "param_norm")

# Parameters that are not weight matrices. Their norm would hide that of the matrices.
_NOT_A_KERNEL = re.compile(r".*/(bias|scale|pos_embedding|input_embedding)")


def train_step(
    config: TrainConfig, model_def: nnx.GraphDef, rng: jax.Array, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one optimizer step.

    Args:
        config: Defines the optimizer, the averaging and the trainable parameters.
        model_def: Structure of the config's model.
        rng: Key of the run. The key of the step is derived from it and from `state.step`.
        state: State before the step.
        batch: Observation and actions.

    Returns:
        The state after the step, and scalars: `loss`, `grad_norm` (before clipping) and `param_norm` (of the weight
        matrices, after the step).
    """
    observation, actions = batch
    step_rng = jax.random.fold_in(rng, state.step)
    trainable, frozen = partition.split(state.params, config.trainable_filter)

    def model(trainable: nnx.State) -> _model.BaseModel:
        return nnx.merge(model_def, trainable, frozen)

    def loss_of_batch(trainable: nnx.State) -> jax.Array:
        return jnp.mean(model(trainable).compute_loss(step_rng, observation, actions, train=True))

    def loss_of_part(trainable: nnx.State, inputs: Any) -> jax.Array:
        return jnp.mean(model(trainable).loss_of_inputs(inputs))

    # Loss and gradient, of the whole batch at once or in parts.
    with stacking.set_remat(config.remat):
        if config.grad_accumulation == 1:
            loss, grads = jax.value_and_grad(loss_of_batch)(trainable)
        else:
            # Noise, times and augmentation are drawn for the whole batch, so that parts do not change the loss.
            inputs = model(trainable).draw_loss_inputs(step_rng, observation, actions, train=True)
            loss, grads = accumulation.value_and_grad(loss_of_part, trainable, inputs, config.grad_accumulation)

    # The optimizer changes the trainable parameters only.
    tx = _optimizer.create_optimizer(config.optimizer, config.lr_schedule)
    updates, opt_state = tx.update(grads, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    params = partition.merge(trainable, frozen)

    ema_params = state.ema_params
    if ema_params is not None:
        # Frozen parameters do not change. Averaging them would let bfloat16 rounding pull them toward zero.
        decay = config.ema_decay
        averaged, constant = partition.split(ema_params, config.trainable_filter)
        averaged = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, averaged, trainable)
        ema_params = partition.merge(averaged, constant)

    info = {"loss": loss, "grad_norm": _norm(grads), "param_norm": _norm(_kernels(params))}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, ema_params=ema_params), info


def _norm(tree: Any) -> jax.Array:
    """Return the L2 norm over all leaves."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def _kernels(params: nnx.State) -> list[jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx_utils.to_pure_dict(params))
    return [
        leaf
        for path, leaf in leaves
        if leaf.ndim > 1 and not _NOT_A_KERNEL.fullmatch("/".join(str(key.key) for key in path))
    ]
