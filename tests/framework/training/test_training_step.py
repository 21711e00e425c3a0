"""A training step on a small model: frozen parameters stay, and averaged ones follow the formula."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import pi0_fast
from openpi.shared import nnx_utils
from openpi.training.configs.train_config import TrainConfig
from openpi.training.step import train_state
from openpi.training.step import train_step


class Line(_model.BaseModel):
    """y = slope * x + offset."""

    def __init__(self, config):
        super().__init__(config)
        self.slope = nnx.Param(jnp.ones((8,), jnp.float32))
        self.offset = nnx.Param(jnp.linspace(0.1, 3.0, 8).astype(jnp.bfloat16))

    def compute_loss(self, rng, observation, actions, *, train=False):
        return jnp.square(self.slope[...] * observation + self.offset[...] - actions)

    def sample_actions(self, rng, observation):
        raise AssertionError("not part of training")


def test_averaging_leaves_frozen_parameters_as_they_are_and_follows_the_trained_ones():
    """A frozen bfloat16 parameter that is averaged with itself decays by rounding: 0.99 becomes 0.988."""
    config = TrainConfig(
        name="line",
        exp_name="x",
        ema_decay=0.99,
        freeze_filter=nnx_utils.PathRegex("offset"),
        model=pi0_config.Pi0Config(),
    )
    model_def, params = nnx.split(Line(config.model))
    state = train_state.create_train_state(config, params)
    step = jax.jit(functools.partial(train_step.train_step, config, model_def))
    first = nnx_utils.to_pure_dict(params)
    average = np.asarray(first["slope"])
    for _ in range(30):
        state, _ = step(jax.random.key(0), state, (jnp.ones(8), jnp.full(8, 5.0)))
        average = 0.99 * average + 0.01 * np.asarray(nnx_utils.to_pure_dict(state.params)["slope"])
    trained, averaged = nnx_utils.to_pure_dict(state.params), nnx_utils.to_pure_dict(state.ema_params)
    for kept in (trained, averaged):
        assert kept["offset"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(kept["offset"], first["offset"])
    assert np.abs(trained["slope"] - 1).max() > 1e-6
    np.testing.assert_allclose(averaged["slope"], average, rtol=1e-6)


def test_the_loss_of_fast_makes_no_one_hot_targets():
    """A target for every token of the vocabulary would be the largest array of a training step, a second time."""
    vocab_size = 1031
    size = dataclasses.replace(gemma_config.VARIANTS["dummy"], vocab_size=vocab_size)
    config = pi0_fast.Pi0FASTConfig(paligemma_variant=size, vision_variant="mu/32", max_token_len=9)
    model_def, params = nnx.split(nnx.eval_shape(config.create, jax.random.key(0)))
    observation, actions = config.inputs_spec(batch_size=2)
    loss = lambda params, *args: nnx.merge(model_def, params).compute_loss(jax.random.key(0), *args)  # noqa: E731
    equations = jax.make_jaxpr(loss)(params, observation, actions).jaxpr.eqns
    assert any(equation.primitive.name == "scan" for equation in equations)
    wide = {
        equation.primitive.name
        for equation in equations
        for out in equation.outvars
        if out.aval.shape[-1:] == (vocab_size,) and out.aval.dtype != jnp.float32
    }
    assert not wide, f"{wide} make an array over the vocabulary that is not a score"
