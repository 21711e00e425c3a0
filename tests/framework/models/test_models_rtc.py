"""Real-time chunking in the model: the published formulas as numbers, sampling against a loop written out, compilations."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0
from openpi.models import pi0_config
from openpi.models import real_time_chunking as rtc
from openpi.shared import nnx_utils
from openpi.shared.errors import OutOfRangeError

F32 = {"rtol": 2e-5, "atol": 2e-5}
HORIZON, DIM, STEPS = 10, 16, 4
MAX_DELAY = 4


def mask(delay, end, horizon, schedule):
    return np.asarray(
        rtc.soft_mask(jnp.int32(delay), jnp.int32(end), horizon, jnp.int32(rtc.SCHEDULES.index(schedule)))
    )


def test_the_linear_mask_is_the_published_example():
    np.testing.assert_allclose(mask(2, 6, 10, "linear"), [1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("horizon", "steps_between", "delay"), [(50, 25, 7), (50, 40, 10), (10, 4, 0), (10, 3, 7), (8, 8, 0)]
)
def test_the_exponential_mask_is_the_papers_formula(horizon, steps_between, delay):
    end = horizon - steps_between
    expected = np.zeros(horizon)
    for i in range(end):
        c = (end - i) / (end - delay + 1)
        expected[i] = 1.0 if i < delay else c * (np.exp(c) - 1) / (np.e - 1)
    np.testing.assert_allclose(mask(delay, end, horizon, "exp"), expected, atol=1e-6)


def test_the_other_masks_and_a_delay_beyond_the_left_over():
    np.testing.assert_array_equal(mask(2, 5, 7, "ones"), [1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(mask(2, 5, 7, "zeros"), [1, 1, 0, 0, 0, 0, 0])
    for schedule in rtc.SCHEDULES:
        np.testing.assert_array_equal(mask(6, 4, 7, schedule), [1, 1, 1, 1, 0, 0, 0])


def test_the_weight_has_the_published_values():
    tau = np.arange(1, 10) / 10
    published = [9.11, 4.25, 2.76, 2.17, 2.00, 2.17, 2.76, 4.25, 9.11]
    np.testing.assert_allclose(rtc.guidance_weight(1 - tau, 100.0), published, atol=5e-3)
    np.testing.assert_allclose(rtc.guidance_weight(1 - tau, 5.0), np.minimum(published, 5.0), atol=5e-3)
    np.testing.assert_array_equal(rtc.guidance_weight(jnp.array([0.0, 1.0]), 7.0), [7.0, 7.0])


@pytest.mark.parametrize("std", [0.2, 0.5, 1.0, 2.0])
def test_the_weight_follows_from_the_variance_of_the_prior(std):
    tau = np.linspace(0.05, 0.95, 19)
    # formula: w = (1 - tau) / (tau r^2), r^2 = (1 - tau)^2 s^2 / ((1 - tau)^2 + tau^2 s^2).
    r2 = (1 - tau) ** 2 * std**2 / ((1 - tau) ** 2 + tau**2 * std**2)
    np.testing.assert_allclose(rtc.guidance_weight(1 - tau, 1e9, std), (1 - tau) / (tau * r2), rtol=1e-4)


def guidance(method="identity", *, delay=3, num_left=6, schedule="exp", max_weight=STEPS, std=0.2, used=14, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((2, HORIZON, DIM)).astype(np.float32)
    target[:, num_left:] = 0
    target[:, :, used:] = 0
    return rtc.Guidance(
        target=jnp.asarray(target),
        num_left=jnp.full(2, num_left),
        delay=jnp.full(2, delay),
        schedule=jnp.full(2, rtc.SCHEDULES.index(schedule)),
        max_weight=jnp.full(2, float(max_weight)),
        prior_std=jnp.full(2, float(std)),
        is_used=jnp.broadcast_to(jnp.arange(DIM) < used, (2, DIM)),
        method=method,
    )


@pytest.mark.parametrize("method", ["identity", "vjp"])
def test_the_guided_velocity_is_the_formula_with_the_jacobian_written_out(method):
    rng = np.random.default_rng(1)
    g, t = guidance(method, max_weight=3.0, std=0.7), 0.3
    matrix = jnp.asarray(rng.standard_normal((HORIZON * DIM, HORIZON * DIM)) / 12, jnp.float32)
    x = jnp.asarray(rng.standard_normal((2, HORIZON, DIM)), jnp.float32)

    def predict(x):
        return jnp.tanh(x.reshape(len(x), -1) @ matrix).reshape(x.shape)

    def clean(flat):
        return flat - t * predict(flat.reshape(1, HORIZON, DIM)).reshape(-1)

    result = rtc.guide(predict, x, jnp.float32(t), g)
    weights = np.zeros((HORIZON, DIM))
    weights[:, :14] = mask(3, 6, HORIZON, "exp")[:, None]
    for b in range(2):
        error = (weights * np.asarray(g.target[b] - clean(x[b].reshape(-1)).reshape(HORIZON, DIM))).reshape(-1)
        jacobian = np.asarray(jax.jacobian(clean)(x[b].reshape(-1))) if method == "vjp" else np.eye(error.size)
        factor = min(3.0, (t**2 + (1 - t) ** 2 * 0.49) / (t * (1 - t) * 0.49))
        expected = np.asarray(predict(x)[b]) - factor * (jacobian.T @ error).reshape(HORIZON, DIM)
        np.testing.assert_allclose(result[b], expected, rtol=1e-4, atol=1e-4)


class Blind(pi0.Pi0):
    """pi0 without images: they only make the prefix longer, and the tests slower."""

    def embed_prefix(self, obs):
        tokens = self.PaliGemma.llm.embed(obs.tokenized_prompt)
        return tokens, obs.tokenized_prompt_mask, jnp.zeros(tokens.shape[1], bool)


class BlindConfig(pi0_config.Pi0Config):
    def create(self, rng):
        return Blind(self, rngs=nnx.Rngs(rng))


@functools.cache
def tiny_model(name, rtc_max_delay=MAX_DELAY):
    """Few tokens and layers; every parameter random, so that nothing is switched off as in a fresh pi0.5."""
    size = gemma_config.Config(width=32, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, vocab_size=64)
    config = BlindConfig(
        dtype="float32",
        paligemma_variant=size,
        action_expert_variant=size,
        vision_variant="mu/112",
        action_dim=DIM,
        action_horizon=HORIZON,
        max_token_len=6,
        pi05=name == "pi05",
        rtc_max_delay=rtc_max_delay,
    )
    rng = np.random.default_rng(3)
    state = nnx.state(nnx.eval_shape(config.create, jax.random.key(0)))
    shapes = nnx_utils.to_pure_dict(state)
    return config.load(jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes))


def small_observation():
    rng = np.random.default_rng(5)
    return _model.Observation(
        images={},
        image_masks=dict.fromkeys(_model.IMAGE_KEYS, jnp.zeros(2, bool)),
        state=jnp.asarray(rng.standard_normal((2, DIM)), jnp.float32),
        tokenized_prompt=jnp.asarray(rng.integers(2, 60, (2, 6)), jnp.int32),
        tokenized_prompt_mask=jnp.ones((2, 6), bool),
    )


def start_noise():
    return jnp.asarray(np.random.default_rng(6).standard_normal((2, HORIZON, DIM)), jnp.float32)


@functools.cache
def sampler(name):
    """Return the jitted sampling of a model and the list that grows with each compilation."""
    compiled = []

    def sample_actions(self, rng, observation, **kwargs):
        compiled.append(kwargs)
        return pi0.Pi0.sample_actions(self, rng, observation, **kwargs)

    method = sample_actions.__get__(tiny_model(name))
    return functools.partial(nnx_utils.module_jit(method, static_argnames=("num_steps",)), num_steps=STEPS), compiled


def sample(name, g=None):
    kwargs = {} if g is None else {"guidance": g}
    jitted, _ = sampler(name)
    return np.asarray(jitted(jax.random.key(0), small_observation(), noise=start_noise(), **kwargs))


@functools.cache
def velocity(name):
    return nnx_utils.module_jit(tiny_model(name).predict_velocity)


def written_out(name, g):
    """Integrate step by step, prompt anew in each, without anything of `Pi0.sample_actions`."""
    x, is_given = np.asarray(start_noise()), np.arange(HORIZON) < np.asarray(g.delay)[:, None]
    times = np.cumsum([1.0] + [-1.0 / STEPS] * (STEPS - 1), dtype=np.float32)
    for t in times:
        if g.method == "prefix":
            x = np.where(is_given[:, :, None], g.target, x)
            v = velocity(name)(small_observation(), jnp.asarray(x), jnp.where(is_given, 0, t))
        else:
            predict = functools.partial(_velocity_at, name, jnp.full((2, HORIZON), t))
            v = rtc.guide(predict, jnp.asarray(x), jnp.float32(t), g)
        x = x - np.asarray(v) / STEPS
    return np.where(is_given[:, :, None], g.target, x) if g.method == "prefix" else x


def _velocity_at(name, times, x):
    return velocity(name)(small_observation(), x, times)


@pytest.mark.parametrize(("name", "method"), [("pi0", "prefix"), ("pi05", "prefix"), ("pi05", "identity")])
def test_sampling_is_the_loop_written_out(name, method):
    g = guidance(method)
    np.testing.assert_allclose(sample(name, g), written_out(name, g), rtol=1e-4, atol=1e-4)


def test_with_as_large_a_weight_as_there_are_steps_fixed_rows_land_on_the_left_over():
    g = guidance(delay=4, num_left=6)
    result, plain = sample("pi05", g), sample("pi05")
    np.testing.assert_allclose(result[:, :4, :14], g.target[:, :4, :14], atol=2e-5)
    assert np.abs(plain[:, :4, :14] - g.target[:, :4, :14]).mean() > 0.5
    # Rows after the delay lie between, nearer to the left-over the earlier they come.
    off = np.abs(result - g.target)[:, :, :14].mean((0, 2))
    assert off[3] < off[4] < off[5]


@pytest.mark.parametrize("method", ["identity", "vjp"])
def test_guidance_by_nothing_is_plain_sampling(method):
    np.testing.assert_allclose(sample("pi05", guidance(method, delay=0, num_left=0)), sample("pi05"), **F32)


def test_guidance_through_the_networks_derivative_draws_the_first_rows_to_the_left_over():
    g, plain = guidance("vjp", max_weight=5.0, std=1.0), sample("pi05")
    off = np.abs(sample("pi05", g) - g.target)[:, :3, :14].mean()
    assert off < 0.5 * np.abs(plain - g.target)[:, :3, :14].mean()


def test_prefix_conditioning_on_nothing_is_plain_sampling():
    g = guidance("prefix", delay=0, num_left=0)
    np.testing.assert_allclose(sample("pi05", g), sample("pi05"), **F32)


def test_prefix_conditioning_returns_the_left_over_and_continues_it():
    g = guidance("prefix", delay=3)
    result = sample("pi05", g)
    np.testing.assert_array_equal(result[:, :3], g.target[:, :3])
    other = guidance("prefix", delay=3, seed=9)
    assert np.abs(sample("pi05", other)[:, 3:] - result[:, 3:]).max() > 1e-3


def test_delay_schedule_and_weight_change_without_a_compilation():
    _, compiled = sampler("pi05")
    sample("pi05", guidance())
    before = len(compiled)
    results = [
        sample("pi05", g)
        for g in (
            guidance(delay=1),
            guidance(num_left=9),
            guidance(schedule="linear"),
            guidance(max_weight=2.0),
            guidance(std=1.0),
            guidance(used=7),
        )
    ]
    assert len(compiled) == before
    reference = sample("pi05", guidance())
    assert all(np.abs(result - reference).max() > 1e-4 for result in results)


def test_a_sample_of_a_batch_has_its_own_delay():
    both, ones = guidance(delay=3), guidance(delay=1)
    mixed = both.replace(delay=jnp.array([3, 1]))
    expected = np.stack([sample("pi05", both)[0], sample("pi05", ones)[1]])
    np.testing.assert_allclose(sample("pi05", mixed), expected, **F32)


def test_guidance_holds_arrays_alone_beside_its_method():
    leaves = jax.tree.leaves(guidance())
    assert len(leaves) == len(dataclasses.fields(rtc.Guidance)) - 1
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


def test_training_gives_the_first_actions_clean_at_time_zero():
    actions = jnp.asarray([[[1.0], [2.0], [3.0], [4.0]]])
    x, times = rtc.training_inputs(actions, 10 * actions, jnp.array([0.25]), jnp.array([2]))
    np.testing.assert_array_equal(times, [[0, 0, 0.25, 0.25]])
    np.testing.assert_allclose(x[0, :, 0], [1, 2, 0.25 * 30 + 0.75 * 3, 0.25 * 40 + 0.75 * 4])


def test_the_loss_is_the_mean_of_the_rows_that_were_not_given():
    loss = jnp.array([[100.0, 100.0, 2.0, 4.0]]) * rtc.loss_weights(jnp.array([2]), 4)
    assert float(loss.mean()) == pytest.approx(3.0)
    np.testing.assert_array_equal(loss[0, :2], [0, 0])
    # In a batch each remaining row counts the same.
    two = jnp.array([[9.0, 1.0, 2.0], [9.0, 9.0, 6.0]]) * rtc.loss_weights(jnp.array([1, 2]), 3)
    assert float(two.mean()) == pytest.approx((1 + 2 + 6) / 3)


@pytest.mark.parametrize("name", ["pi0", "pi05"])
def test_one_time_for_all_actions_is_that_time_for_each(name):
    observation = small_observation()
    time = jnp.array([0.3, 0.8])
    one = velocity(name)(observation, start_noise(), time)
    each = velocity(name)(observation, start_noise(), jnp.tile(time[:, None], (1, HORIZON)))
    np.testing.assert_allclose(each, one, **F32)


def test_a_model_trained_with_delays_learns_from_the_other_rows_alone(monkeypatch):
    # To compile a beta distribution takes longer than all the rest.
    monkeypatch.setattr(jax.random, "beta", lambda key, a, b, shape: jax.random.uniform(key, shape))
    model = tiny_model("pi05")
    actions = 0.1 * start_noise()
    loss = np.asarray(nnx_utils.module_jit(model.compute_loss)(jax.random.key(2), small_observation(), actions))
    given = (loss == 0).sum(1)
    rng = jax.random.key(2)
    delay = np.asarray(jax.random.randint(jax.random.fold_in(rng, 3), (2,), 0, 5))
    np.testing.assert_array_equal(given, delay)
    assert all((row[:d] == 0).all() and (row[d:] > 0).all() for row, d in zip(loss, given, strict=True))
    # The errors themselves: those of a model that sees the given rows clean, at time 0.
    _, noise_rng, time_rng = jax.random.split(rng, 3)
    noise = jax.random.normal(noise_rng, actions.shape)
    time = jax.random.uniform(time_rng, (2,)) * 0.999 + 0.001
    times = np.where(np.arange(HORIZON) < delay[:, None], 0, time[:, None])
    noisy = times[:, :, None] * noise + (1 - times[:, :, None]) * actions
    errors = np.square(velocity("pi05")(small_observation(), noisy, jnp.asarray(times)) - (noise - actions)).mean(-1)
    rows = np.arange(HORIZON) >= delay[:, None]
    np.testing.assert_allclose(loss.mean(), errors[rows].mean(), rtol=1e-4)


def test_the_delays_of_training_reach_the_longest_one_evenly():
    keys = jax.random.split(jax.random.key(0), 400)
    delays = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 3), (2,), 0, 4 + 1))(keys)
    counts = np.bincount(np.asarray(delays).reshape(-1))
    assert len(counts) == 5
    assert counts.min() > 120


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'prefix' needs a model trained with rtc_max_delay"):
        tiny_model("pi0", 0).sample_actions(jax.random.key(0), small_observation(), guidance=guidance("prefix"))
    with pytest.raises(OutOfRangeError, match="rtc_max_delay: found 50, expected 0 to 49"):
        pi0_config.Pi0Config(rtc_max_delay=50)
    with pytest.raises(OutOfRangeError, match="rtc_max_delay: found -1"):
        pi0_config.Pi0Config(rtc_max_delay=-1)
