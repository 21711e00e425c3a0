"""The parts of a flow model that depend only on time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from openpi.models import gemma
from openpi.shared import array_typing as at

# Periods of the time embedding's sines.
_MIN_PERIOD, _MAX_PERIOD = 4e-3, 4.0


def embed(time: at.Float[at.Array, " b"], width: int) -> at.Float[at.Array, "b {width}"]:
    """Embed the time of the flow, from 0 to 1."""
    return posemb_sincos(time, width, _MIN_PERIOD, _MAX_PERIOD)


def posemb_sincos(
    pos: at.Real[at.Array, " b"], embedding_dim: int, min_period: float, max_period: float
) -> at.Float[at.Array, "b {embedding_dim}"]:
    """Embed scalars as sines, then cosines, of geometrically spaced periods.

    The periods range from `min_period` to `max_period`.

    Raises:
        ValueError: `embedding_dim` is odd.
    """
    if embedding_dim % 2:
        raise ValueError(f"posemb_sincos: found embedding_dim {embedding_dim}, expected an even number")
    fraction = jnp.linspace(0.0, 1.0, embedding_dim // 2)  # [d/2]
    period = min_period * (max_period / min_period) ** fraction  # [d/2]
    # Full precision, because the shortest period turns a rounding error of t into a noticeable phase.
    angle = jnp.einsum("i,j->ij", pos, 1.0 / period * 2 * jnp.pi, precision=jax.lax.Precision.HIGHEST)  # [b, d/2]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)  # [b, d]


class Condition(NamedTuple):
    """Everything that depends only on the time of the flow."""

    # Result of `Pi0._embed_time` for one time, or [b, ah, d] with a time per action.
    embedding: at.Float[at.Array, "1 d"] | at.Float[at.Array, "b ah d"]
    # pi0.5 only.
    modulation: gemma.Modulation | None


def choose_by_row(is_clean: at.Bool[at.Array, "b ah"], clean: Condition, noisy: Condition) -> Condition:
    """Return a condition per action.

    Leaves [1, d] become [b, ah, d]. Those of the layers keep their leading axis.
    """
    return jax.tree.map(
        lambda ours, theirs: jnp.where(is_clean[..., None], ours[..., None, :], theirs[..., None, :]), clean, noisy
    )


def euler_times(num_steps: int) -> at.Float[at.Array, " n"]:
    """Return the time before each step.

    The times are summed step by step in float32, like in a loop over the steps. Products i * dt would differ in the last
    bit, and the shortest period of the time embedding would show it.
    """
    return jnp.asarray(np.cumsum([1.0] + [-1.0 / num_steps] * (num_steps - 1), dtype=np.float32))
