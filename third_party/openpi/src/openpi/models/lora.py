"""Low-rank adaptation (LoRA) of the weights of a Gemma layer.

There are two kinds of weights: einsums and the feed-forward block.
"""

import dataclasses
import math
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from openpi.models import initializers
from openpi.shared import array_typing as at
from openpi.shared import ranges


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Rank and strength of the update of one weight."""

    rank: Annotated[int, ranges.Range(1, 10_000, "at least one, and more would be no low rank")]
    # The update is multiplied by alpha / rank.
    alpha: Annotated[float, ranges.Range(1e-6, 1e6, "with 0 the update has no effect")] = 1.0
    # Rank-stabilized LoRA: multiply by alpha / sqrt(rank) instead.
    rslora: bool = False

    def __post_init__(self) -> None:
        ranges.check(self, "lora")

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / math.sqrt(self.rank) if self.rslora else self.alpha / self.rank


# B starts at zero, so that a model with new LoRA weights computes exactly the same as the base model.
_init_a = initializers.normal(0.01)
_init_b = initializers.zeros


def _low_rank_shapes(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of A and B.

    For a weight of shape (..., in, out) they are (..., in, rank) and (..., rank, out).
    """
    return (*shape[:-1], rank), (*shape[:-2], rank, shape[-1])


class Einsum(nnx.Module):
    """An einsum with a weight.

    The weight's last two axes may have a low-rank update.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        init: initializers.Initializer,
        lora_config: LoRAConfig | None = None,
        rngs: nnx.Rngs,
    ):
        self.w = nnx.Param(init(rngs.params(), shape))
        self.lora_config = lora_config
        if lora_config is not None:
            shape_a, shape_b = _low_rank_shapes(shape, lora_config.rank)
            self.lora_a = nnx.Param(_init_a(rngs.params(), shape_a))
            self.lora_b = nnx.Param(_init_b(rngs.params(), shape_b))

    def __call__(self, eqn: str, x: jax.Array) -> jax.Array:
        """Compute `einsum(eqn, x, w)` in the type of `x`.

        `eqn` may not use the label `L`.
        """
        out = jnp.einsum(eqn, x, self.w[...].astype(x.dtype))
        if self.lora_config is None:
            return out
        eqn_a, eqn_b = lora_equations(eqn)
        low = jnp.einsum(eqn_a, x, self.lora_a[...].astype(x.dtype))  # as `out`, but the last axis is the rank
        return out + self.lora_config.scale * jnp.einsum(eqn_b, low, self.lora_b[...].astype(x.dtype))


def lora_equations(eqn: str) -> tuple[str, str]:
    """Return the einsum equations that replace the weight in `eqn`.

    The first applies A, the second B. The rank `L` replaces the weight's last label in A and its second-last label in B. If the weight has a further axis
    that `eqn` contracts (the heads in "BTNH,NHD->BTD"), A and B are each summed over it, because existing weights were
    trained this way.
    """
    inputs, out = eqn.split("->")
    x, weight = inputs.split(",")
    low = out.replace(weight[-1], "L")
    return f"{x},{weight[:-1]}L->{low}", f"{low},{weight[:-2]}L{weight[-1]}->{out}"


class FeedForward(nnx.Module):
    """GeGLU: `(gelu(x W0) * (x W1)) W`.

    Every matrix may have a low-rank update.
    """

    def __init__(self, features: int, hidden_dim: int, *, lora_config: LoRAConfig | None = None, rngs: nnx.Rngs):
        self.lora_config = lora_config
        init = initializers.lecun_normal(in_axes=(-2,))
        for name, shape in (("gating_einsum", (2, features, hidden_dim)), ("linear", (hidden_dim, features))):
            setattr(self, name, nnx.Param(init(rngs.params(), shape)))
            if lora_config is not None:
                shape_a, shape_b = _low_rank_shapes(shape, lora_config.rank)
                setattr(self, f"{name}_lora_a", nnx.Param(_init_a(rngs.params(), shape_a)))
                setattr(self, f"{name}_lora_b", nnx.Param(_init_b(rngs.params(), shape_b)))

    def __call__(self, x: at.Float[at.Array, "b s d"]) -> at.Float[at.Array, "b s d"]:
        """Apply the block in the type of `x`."""
        gate = nnx.gelu(self._matmul("gating_einsum", x, 0), approximate=True)  # [b, s, hidden]
        return self._matmul("linear", gate * self._matmul("gating_einsum", x, 1))  # [b, s, d]

    def _matmul(self, name: str, x: jax.Array, *index: int) -> jax.Array:
        """Multiply [..., in] with a matrix of a parameter to [..., out]."""

        def weight(suffix: str = "") -> jax.Array:
            return getattr(self, name + suffix)[(*index, ...)].astype(x.dtype)

        out = x @ weight()
        if self.lora_config is None:
            return out
        return out + self.lora_config.scale * ((x @ weight("_lora_a")) @ weight("_lora_b"))  # [..., rank] -> [..., out]
