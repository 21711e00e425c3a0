"""Real-time chunking: a chunk of actions that continues the previous chunk.

The robot still executes the previous chunk while the new one is computed. The first rows of the new chunk must therefore
equal its left-over, and the rows after them should depart from it smoothly. There are three methods:

prefix    Fix the first rows and let the network continue them (arXiv 2512.05964). Only for models trained for it.
identity  Guide each integration step toward the left-over, as if the network's prediction moved one to one with its input.
vjp       Guide it with the network's own derivative (arXiv 2506.07339): one backward pass of the action expert per step.

Times are openpi's: t = 1 is noise, t = 0 actions, x_t = t * noise + (1 - t) * actions, velocity = noise - actions. The
papers count tau = 1 - t and their velocity has the opposite sign, so corrections that they add are subtracted here.
"""

from collections.abc import Callable
from typing import Literal, Protocol

from flax import struct
import jax
import jax.numpy as jnp

from openpi.models.pytrees import pytree_dataclass
from openpi.shared import array_typing as at

Method = Literal["prefix", "identity", "vjp"]

METHODS: tuple[Method, ...] = ("prefix", "identity", "vjp")
"""All methods, the preferred one first."""

SCHEDULES = ("exp", "linear", "ones", "zeros")
"""How the weight of the left-over falls after the delay. `Guidance.schedule` is an index of it."""


@pytree_dataclass
class Guidance:
    """What the new chunk must agree with.

    All fields except `method` may change between calls without a new compilation.
    """

    # Normalized rows of the previous chunk, padded like training actions. Row i belongs to row i of the new chunk. Rows
    # from `num_left` on are not read.
    target: at.Float[at.Array, "b ah ad"]
    # Number of valid rows in `target`.
    num_left: at.Int[at.Array, " b"]
    # Number of first rows that will have been executed before the new chunk arrives, at most `num_left`.
    delay: at.Int[at.Array, " b"]
    # Index of SCHEDULES. Not read by the method "prefix".
    schedule: at.Int[at.Array, " b"]
    # Largest factor of a correction (beta of the paper). Not read by "prefix".
    max_weight: at.Float[at.Array, " b"]
    # Spread of normalized actions that the weights assume, 1 in the paper. Not read by "prefix".
    prior_std: at.Float[at.Array, " b"]
    # Which numbers of an action the robot has. Padding is not guided.
    is_used: at.Bool[at.Array, "b ad"]
    # Determines the compiled program, so it is not traced.
    method: Method = struct.field(pytree_node=False, default="identity")


class Predict(Protocol):
    """The network's velocity at the time of an integration step."""

    def __call__(
        self, noisy_actions: at.Float[at.Array, "b ah ad"], is_given: at.Bool[at.Array, "b ah"] | None = None, /
    ) -> at.Float[at.Array, "b ah ad"]:
        """Return the velocity. Rows marked by `is_given` are clean."""


def has_given_rows(guidance: Guidance | None) -> bool:
    """Return whether the first rows are fixed, by the method "prefix"."""
    return guidance is not None and guidance.method == "prefix"


def steer(
    predict: Predict, x: at.Float[at.Array, "b ah ad"], t: jax.Array, guidance: Guidance | None
) -> tuple[at.Float[at.Array, "b ah ad"], at.Float[at.Array, "b ah ad"]]:
    """Return noisy actions and their velocity, steered toward the left-over.

    Without guidance these are `x` and `predict(x)`. The method "prefix" changes the first rows of `x` and the other
    methods change the velocity.

    Args:
        predict: The network's velocity at time t.
        x: Noisy actions.
        t: Time, a scalar.
        guidance: The left-over of the previous chunk, if there is one.
    """
    if guidance is None:
        return x, predict(x)
    if guidance.method == "prefix":
        x = fix_rows(x, guidance)
        return x, predict(x, is_given(guidance.delay, x.shape[1]))
    return x, guide(predict, x, t, guidance)


@at.typecheck
def soft_mask(
    delay: at.Int[at.Array, ""], end: at.Int[at.Array, ""], horizon: int, schedule: at.Int[at.Array, ""]
) -> at.Float[at.Array, " {horizon}"]:
    """Return how much each row must agree with the left-over.

    The weight is 1 before `delay`, 0 from `end` on, and falls in between.

    Args:
        delay: Rows that are executed before the chunk arrives. Counts as `end` if it is larger.
        end: Rows of the left-over: the horizon minus the steps between two predictions.
        horizon: Rows of a chunk.
        schedule: Index of `SCHEDULES`.
    """
    row = jnp.arange(horizon)  # [ah]
    start = jnp.minimum(delay, end)
    # formula: c_i = (end - i) / (end - start + 1), and exp: c (e^c - 1) / (e - 1).
    falling = jnp.clip((end - row) / (end - start + 1.0), 0.0, 1.0)  # [ah]
    exponential = falling * jnp.expm1(falling) / jnp.expm1(1.0)  # [ah]
    between = jnp.stack([exponential, falling, jnp.ones(horizon), jnp.zeros(horizon)])[schedule]
    return jnp.where(row < start, 1.0, jnp.where(row < end, between, 0.0))


def guidance_weight(t: jax.Array, max_weight: jax.Array, prior_std: jax.Array | float = 1.0) -> jax.Array:
    """Return the factor of the correction at time t, at most `max_weight`.

    At both ends it is `max_weight`. Formula, with s the prior's standard deviation:
    (t^2 + (1-t)^2 s^2) / (t (1-t) s^2). A small s keeps the weight large until the end: with `max_weight` n and
    s^2 <= 1 / (n - 1), the last of n identity steps reaches the left-over exactly.
    """
    variance = jnp.square(prior_std)
    numerator = jnp.square(t) + jnp.square(1 - t) * variance
    denominator = t * (1 - t) * variance
    is_inside = denominator > 0
    return jnp.where(is_inside, jnp.minimum(max_weight, numerator / jnp.where(is_inside, denominator, 1.0)), max_weight)


def row_weights(guidance: Guidance) -> at.Float[at.Array, "b ah ad"]:
    """Return the weight of each number of the left-over, 0 in padding."""
    horizon = guidance.target.shape[1]
    rows = jax.vmap(lambda delay, end, schedule: soft_mask(delay, end, horizon, schedule))(
        guidance.delay, guidance.num_left, guidance.schedule
    )  # [b, ah]
    return rows[:, :, None] * guidance.is_used[:, None, :]


def guide(
    predict: Callable[[jax.Array], jax.Array],
    x: at.Float[at.Array, "b ah ad"],
    t: jax.Array,
    guidance: Guidance,
) -> at.Float[at.Array, "b ah ad"]:
    """Return the velocity at x, corrected toward the left-over.

    Args:
        predict: The network's velocity for noisy actions at time t.
        x: Noisy actions.
        t: Time, a scalar.
        guidance: The left-over, with method "identity" or "vjp".
    """
    weights = row_weights(guidance)  # [b, ah, ad]

    def clean(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The actions that the flow would reach if its velocity stayed the same. All arrays are [b, ah, ad].
        velocity = predict(x).astype(jnp.float32)
        return x - t * velocity, velocity

    if guidance.method == "vjp":
        predicted, pull_back, velocity = jax.vjp(clean, x, has_aux=True)
        (correction,) = pull_back(weights * (guidance.target - predicted))
    else:
        predicted, velocity = clean(x)
        correction = weights * (guidance.target - predicted)
    factor = guidance_weight(t, guidance.max_weight, guidance.prior_std)[:, None, None]  # [b, 1, 1]
    return velocity - factor * correction


def is_given(delay: at.Int[at.Array, " b"], horizon: int) -> at.Bool[at.Array, "b {horizon}"]:
    """Return which rows are executed before the chunk arrives."""
    return jnp.arange(horizon) < delay[:, None]


def fix_rows(x: at.Float[at.Array, "b ah ad"], guidance: Guidance | None) -> at.Float[at.Array, "b ah ad"]:
    """Replace the given rows with those of the left-over.

    Only the method "prefix" has given rows. Otherwise `x` is returned unchanged.
    """
    if guidance is None or guidance.method != "prefix":
        return x
    return jnp.where(is_given(guidance.delay, x.shape[1])[:, :, None], guidance.target, x)


@at.typecheck
def training_inputs(
    actions: at.Float[at.Array, "b ah ad"],
    noise: at.Float[at.Array, "b ah ad"],
    time: at.Float[at.Array, " b"],
    delay: at.Int[at.Array, " b"],
) -> tuple[at.Float[at.Array, "b ah ad"], at.Float[at.Array, "b ah"]]:
    """Return the noisy actions and the time of each row.

    The first `delay` rows are given: clean, at time 0.
    """
    times = jnp.where(is_given(delay, actions.shape[1]), 0.0, time[:, None])  # [b, ah]
    t = times[:, :, None]  # [b, ah, 1]
    return t * noise + (1 - t) * actions, times


def loss_weights(delay: at.Int[at.Array, " b"], horizon: int) -> at.Float[at.Array, "b {horizon}"]:
    """Return the weight of each row in the loss.

    Given rows have weight 0. The weights of the others make the mean over all rows equal to their own mean.
    """
    counts = ~is_given(delay, horizon)  # [b, ah]
    return counts * (counts.size / jnp.sum(counts))
