"""Real-time chunking: a chunk of actions that goes on where the previous chunk, still being executed, will be by then.

The first rows of a new chunk are executed before it has been computed, so they must be those of the previous chunk; the
rows after them should bend away from it smoothly. Three methods reach that:

prefix    fix the first rows and let the network continue them (arXiv 2512.05964); only for models trained so
identity  guide each integration step towards the left-over, as if the network's prediction moved one to one with its input
vjp       guide it with the network's own derivative (arXiv 2506.07339): one backward pass of the action expert per step

Times are openpi's: t = 1 is noise, t = 0 actions, x_t = t * noise + (1 - t) * actions, velocity = noise - actions. The
papers count tau = 1 - t, and their velocity points the other way: what they add to it is subtracted here.
"""

from collections.abc import Callable
from typing import Literal

from flax import struct
import jax
import jax.numpy as jnp

from openpi.shared import array_typing as at

Method = Literal["prefix", "identity", "vjp"]

METHODS: tuple[Method, ...] = ("prefix", "identity", "vjp")
"""The one to be preferred first."""

SCHEDULES = ("exp", "linear", "ones", "zeros")
"""How the weight of the left-over falls after the delay; `Guidance.schedule` is an index of it."""


@struct.dataclass
class Guidance:
    """What the new chunk must agree with. All but `method` may change from call to call without a new compilation."""

    # Normalised rows of the previous chunk, padded like training actions; row i belongs to row i of the new chunk. What
    # comes after them is not read.
    target: at.Float[at.Array, "b ah ad"]
    # Rows of `target` that there are.
    num_left: at.Int[at.Array, " b"]
    # First rows of the new chunk that will have been executed before it arrives; at most `num_left`.
    delay: at.Int[at.Array, " b"]
    # Index of SCHEDULES; not read by the method "prefix".
    schedule: at.Int[at.Array, " b"]
    # Largest factor of a correction (beta of the paper); not read by "prefix".
    max_weight: at.Float[at.Array, " b"]
    # Spread of normalised actions that the weights assume: 1 in the paper. Not read by "prefix".
    prior_std: at.Float[at.Array, " b"]
    # Numbers of an action that the robot has; padding is left alone.
    is_used: at.Bool[at.Array, "b ad"]
    # Decides the program, hence not traced.
    method: Method = struct.field(pytree_node=False, default="identity")


@at.typecheck
def soft_mask(
    delay: at.Int[at.Array, ""], end: at.Int[at.Array, ""], horizon: int, schedule: at.Int[at.Array, ""]
) -> at.Float[at.Array, " {horizon}"]:
    """Return how much each row must agree with the left-over: 1 before `delay`, 0 from `end` on, falling between.

    Args:
        delay: Rows that are executed before the chunk arrives; counts as `end` if it is more.
        end: Rows of the left-over: the horizon less the steps between two predictions.
        horizon: Rows of a chunk.
        schedule: Index of `SCHEDULES`.
    """
    row = jnp.arange(horizon)
    start = jnp.minimum(delay, end)
    # formula: c_i = (end - i) / (end - start + 1), and exp: c (e^c - 1) / (e - 1).
    falling = jnp.clip((end - row) / (end - start + 1.0), 0.0, 1.0)
    exponential = falling * jnp.expm1(falling) / jnp.expm1(1.0)
    between = jnp.stack([exponential, falling, jnp.ones(horizon), jnp.zeros(horizon)])[schedule]
    return jnp.where(row < start, 1.0, jnp.where(row < end, between, 0.0))


def guidance_weight(t: jax.Array, max_weight: jax.Array, prior_std: jax.Array | float = 1.0) -> jax.Array:
    """Return the factor of the correction at time t, at most `max_weight`, which it is at both ends.

    Formula, with s the prior's standard deviation: (t^2 + (1-t)^2 s^2) / (t (1-t) s^2). A small s keeps the weight up until
    the end: with `max_weight` n and s^2 <= 1 / (n - 1), the last of n identity steps lands on the left-over exactly.
    """
    variance = jnp.square(prior_std)
    numerator = jnp.square(t) + jnp.square(1 - t) * variance
    denominator = t * (1 - t) * variance
    is_inside = denominator > 0
    return jnp.where(is_inside, jnp.minimum(max_weight, numerator / jnp.where(is_inside, denominator, 1.0)), max_weight)


def row_weights(guidance: Guidance) -> at.Float[at.Array, "b ah ad"]:
    """Return the soft mask of each sample over its rows, 0 in padding."""
    horizon = guidance.target.shape[1]
    rows = jax.vmap(lambda delay, end, schedule: soft_mask(delay, end, horizon, schedule))(
        guidance.delay, guidance.num_left, guidance.schedule
    )
    return rows[:, :, None] * guidance.is_used[:, None, :]


def guide(
    predict: Callable[[jax.Array], jax.Array],
    x: at.Float[at.Array, "b ah ad"],
    t: jax.Array,
    guidance: Guidance,
) -> at.Float[at.Array, "b ah ad"]:
    """Return the velocity at x, bent so that the chunk will agree with the left-over.

    Args:
        predict: The network's velocity for noisy actions, at time t.
        x: Noisy actions.
        t: Time, a scalar.
        guidance: The left-over, with method "identity" or "vjp".
    """
    weights = row_weights(guidance)

    def clean(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        velocity = predict(x).astype(jnp.float32)
        return x - t * velocity, velocity

    if guidance.method == "vjp":
        predicted, pull_back, velocity = jax.vjp(clean, x, has_aux=True)
        (correction,) = pull_back(weights * (guidance.target - predicted))
    else:
        predicted, velocity = clean(x)
        correction = weights * (guidance.target - predicted)
    factor = guidance_weight(t, guidance.max_weight, guidance.prior_std)[:, None, None]
    return velocity - factor * correction


def is_fixed(delay: at.Int[at.Array, " b"], horizon: int) -> at.Bool[at.Array, "b {horizon}"]:
    """Return which rows are known beforehand."""
    return jnp.arange(horizon) < delay[:, None]


def fix_rows(x: at.Float[at.Array, "b ah ad"], guidance: Guidance) -> at.Float[at.Array, "b ah ad"]:
    """Put the left-over into the rows that are executed before the chunk arrives."""
    return jnp.where(is_fixed(guidance.delay, x.shape[1])[:, :, None], guidance.target, x)


@at.typecheck
def training_inputs(
    actions: at.Float[at.Array, "b ah ad"],
    noise: at.Float[at.Array, "b ah ad"],
    time: at.Float[at.Array, " b"],
    delay: at.Int[at.Array, " b"],
) -> tuple[at.Float[at.Array, "b ah ad"], at.Float[at.Array, "b ah"]]:
    """Return the noisy actions and the time of each row when the first `delay` rows are given, clean: at time 0."""
    times = jnp.where(is_fixed(delay, actions.shape[1]), 0.0, time[:, None])
    t = times[:, :, None]
    return t * noise + (1 - t) * actions, times


def loss_weights(delay: at.Int[at.Array, " b"], horizon: int) -> at.Float[at.Array, "b {horizon}"]:
    """Return what the loss of each row counts: given rows 0, the others so much that the mean over all is theirs alone."""
    counts = ~is_fixed(delay, horizon)
    return counts * (counts.size / jnp.sum(counts))
