"""Create the train state and lay it out on the devices."""

import functools
import logging

from flax import nnx
from flax import struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax

from openpi.shared import array_typing as at
from openpi.shared import nnx_utils
from openpi.shared.bounded_cache import BoundedCache
from openpi.training import optimizer as _optimizer
from openpi.training import sharding as _sharding
from openpi.training import weight_loaders
from openpi.training.configs.train_config import TrainConfig
from openpi.training.step import partition

logger = logging.getLogger(__name__)


@struct.dataclass
class TrainState:
    """A pytree of everything that a training step changes.

    The config defines all that stays the same.
    """

    # Number of steps done, int32 scalar.
    step: jax.Array
    # All parameters, including the frozen ones.
    params: nnx.State
    # State of the config's optimizer for the trainable parameters.
    opt_state: optax.OptState
    # Averaged parameters, None without averaging.
    ema_params: nnx.State | None = None


# Tracing a model takes a second or more, and several parts of a run ask for its shapes.
_definitions: BoundedCache[nnx.GraphDef] = BoundedCache(4)
_abstract_states: BoundedCache[TrainState] = BoundedCache(4)


def model_definition(config: TrainConfig) -> nnx.GraphDef:
    """Return the structure of the config's model without its parameters.

    Use `nnx.merge` to join both.
    """
    return _definitions.get(config.model, lambda: nnx.split(nnx.eval_shape(config.model.create, jax.random.key(0)))[0])


def create_train_state(config: TrainConfig, params: nnx.State) -> TrainState:
    """Return the state of a new run with the given parameters.

    It is at step 0, its optimizer is fresh, and the averaged parameters equal the given ones.
    """
    tx = _optimizer.create_optimizer(config.optimizer, config.lr_schedule)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(partition.split(params, config.trainable_filter)[0]),
        ema_params=None if config.ema_decay is None else jax.tree.map(jnp.copy, params),
    )


def _initialize(config: TrainConfig, rng: jax.Array, loaded: at.Params) -> TrainState:
    _, model_rng = jax.random.split(rng)
    params = nnx.state(config.model.create(model_rng))
    nnx_utils.replace_by_pure_dict(params, loaded)
    trainable, frozen = partition.split(params, config.trainable_filter)
    # Frozen parameters are only read, so half precision is enough and takes half the memory.
    frozen = jax.tree.map(lambda x: x.astype(jnp.bfloat16), frozen)
    return create_train_state(config, partition.merge(trainable, frozen))


def abstract_train_state(config: TrainConfig) -> TrainState:
    """Return the train state of a config as ShapeDtypeStructs.

    Nothing is allocated.
    """
    key = (config.model, config.trainable_filter, config.optimizer, config.lr_schedule, config.ema_decay is None)
    return _abstract_states.get(
        key, lambda: jax.eval_shape(functools.partial(_initialize, config, loaded={}), jax.random.key(0))
    )


def state_sharding(config: TrainConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Return the sharding of each leaf of the train state."""
    return _sharding.fsdp_sharding(abstract_train_state(config), mesh)


def init_train_state(config: TrainConfig, rng: jax.Array, mesh: jax.sharding.Mesh) -> TrainState:
    """Create the train state on the devices.

    The parameters come from the config's weight loader. Those that it does not load are random.

    Raises:
        UserError: The weights are missing or do not fit the model.
    """
    loaded = _load_weights(config, abstract_train_state(config).params)
    init = jax.jit(
        functools.partial(_initialize, config),
        donate_argnums=(1,),  # the loaded parameters become part of the state
        in_shardings=_sharding.replicated_sharding(mesh),
        out_shardings=state_sharding(config, mesh),
    )
    return init(rng, loaded)


def _load_weights(config: TrainConfig, params: nnx.State) -> at.Params:
    """Return only the loaded parameters, as a nested dict of arrays."""
    expected = nnx_utils.to_pure_dict(params)
    given = config.weight_loader.load(expected)
    weight_loaders.check_result(given, expected, source=f"weight loader {type(config.weight_loader).__name__}")
    flat = flax.traverse_util.flatten_dict(given)
    loaded = {path: leaf for path, leaf in flat.items() if not isinstance(leaf, jax.ShapeDtypeStruct)}
    if loaded:
        logger.info("%d of %d parameters loaded, the others are random", len(loaded), len(flat))
    return flax.traverse_util.unflatten_dict(loaded)
