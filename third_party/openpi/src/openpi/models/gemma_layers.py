"""A Gemma layer for several experts, and its parts.

The parts are norms, rotary positions and joint attention. An expert is a set of weights with its own token stream. All
experts of a layer attend jointly over the concatenation of their tokens.

Letters in shapes, in addition to those in `model`: t query tokens, s key tokens, k kv heads, g query heads per kv head,
n = k * g query heads, h head_dim.
"""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from openpi.models import initializers
from openpi.models import lora
from openpi.models.gemma_config import Config
from openpi.shared import array_typing as at
from openpi.training import sharding

# Logit of a hidden key. It is finite, so that a row without any visible key gives uniform weights, not NaN.
MASKED_LOGIT = -2.3819763e38

ROPE_MAX_WAVELENGTH = 10_000

Streams = tuple[jax.Array | None, ...]
"""Tokens of each expert, [b, tokens, width of the expert]. None leaves the expert out."""
KVCache = tuple[jax.Array, jax.Array]
"""Keys (after rotation) and values: [b, s, k, h] in one layer, [layer, b, s, k, h] in all."""
LayerModulation = dict[str, Streams]
"""By norm of a layer: scale, shift and gate of each expert, [b, 3 d] or per token [b, s, 3 d].

None where the expert's norms are plain.
"""

_NORMS = ("pre_attention_norm", "pre_ffw_norm")


def expert_name(name: str, index: int) -> str:
    """Return the name of an expert's weight in the parameter tree.

    Expert 0 has the plain name, expert 1 the suffix `_1`.
    """
    return name if index == 0 else f"{name}_{index}"


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale.

    An adaptive norm has scale, shift and gate instead, computed from a condition.
    """

    def __init__(self, width: int, *, adaptive: bool, dtype: at.DTypeLike, rngs: nnx.Rngs):
        if adaptive:
            # Zeros, so that an untrained condition leaves the norm plain and the gates closed.
            self.Dense_0 = nnx.Linear(width, 3 * width, kernel_init=initializers.zeros, dtype=dtype, rngs=rngs)
        else:
            self.scale = nnx.Param(jnp.zeros((width,)))

    def modulate(self, cond: jax.Array) -> jax.Array:
        """Compute scale, shift and gate from a condition.

        Args:
            cond: [b, d], or one per token [b, s, d].

        Returns:
            [b, 3 d], or [b, s, 3 d].
        """
        return self.Dense_0(cond)

    def __call__(self, x: jax.Array, modulation: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Normalize [b, s, d] in float32.

        Returns:
            The result in the type of `x`, and the gate [b, 1 or s, d] if the norm is adaptive.
        """
        x32 = x.astype(jnp.float32)  # [b, s, d]
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        if modulation is None:
            return (normed * (1 + self.scale[...])).astype(x.dtype), None
        per_token = modulation[:, None, :] if modulation.ndim == 2 else modulation  # [b, 1 or s, 3 d]
        scale, shift, gate = jnp.split(per_token, 3, axis=-1)  # [b, 1 or s, d] each
        return (normed * (1 + scale) + shift).astype(x.dtype), gate


def apply_rope(x: at.Float[at.Array, "b t n h"], positions: at.Int[at.Array, "b t"]) -> at.Float[at.Array, "b t n h"]:
    """Rotate each head by angles that grow with the position.

    Number i of a head's first half and number i of its second half are a pair. The result is float32.

    Formula: pair i of the h/2 pairs turns by position / 10000^(2i/h).
    """
    half = x.shape[-1] // 2
    timescale = ROPE_MAX_WAVELENGTH ** (jnp.arange(half, dtype=jnp.float32) / half)  # [h/2]
    angle = positions[..., None, None].astype(jnp.float32) / timescale  # [b, t, 1, h/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)  # [b, t, n, h/2] each
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)  # [b, t, n, h]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: at.Bool[at.Array, "b t s"]) -> jax.Array:
    """Apply grouped-query attention.

    Args:
        q: Queries [b, t, n, h].
        k: Keys [b, s, k, h].
        v: Values [b, s, k, h].
        mask: Which keys each query may see.

    Returns:
        [b, t, n, h] in the type of `v`. Logits and softmax are computed in float32.
    """
    b, t, n, h = q.shape
    q = q.reshape(b, t, k.shape[2], -1, h)  # [b, t, k, g, h]
    logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)  # [b, k, g, t, s]
    logits = jnp.where(mask[:, None, None], logits, MASKED_LOGIT)
    probs = jax.nn.softmax(logits, axis=-1).astype(v.dtype)  # [b, k, g, t, s]
    return jnp.einsum("bkgts,bskh->btkgh", probs, v).reshape(b, t, n, h)  # [b, t, n, h]


class Attention(nnx.Module):
    """Joint attention of all experts, each with its own projections."""

    def __init__(self, configs: Sequence[Config], *, float32_queries: bool, rngs: nnx.Rngs):
        """Create the projections.

        Args:
            configs: Sizes of the experts, with the same number of heads and the same head_dim.
            float32_queries: Keep queries in float32 after the rotation. Keys are always rounded to the stream's type.
            rngs: Source of random keys.
        """
        self.float32_queries = float32_queries
        self.head_dim = configs[0].head_dim
        self.fused = configs[0].num_heads == configs[0].num_kv_heads
        for i, c in enumerate(configs):
            # By name: the shape, and the axes that are summed over when the weight is applied.
            queries = {
                "q_einsum": ((c.num_heads, c.width, c.head_dim), (-2,)),
                "kv_einsum": ((2, c.num_kv_heads, c.width, c.head_dim), (-2,)),
            }
            fused = {"qkv_einsum": ((3, c.num_heads, c.width, c.head_dim), (-2,))}
            output = {"attn_vec_einsum": ((c.num_heads, c.head_dim, c.width), (-3, -2))}
            for name, (shape, in_axes) in ((fused if self.fused else queries) | output).items():
                init = initializers.lecun_normal(in_axes)
                einsum = lora.Einsum(shape, init=init, lora_config=c.lora_configs.get("attn"), rngs=rngs)
                setattr(self, expert_name(name, i), einsum)

    def __call__(
        self,
        xs: Streams,
        positions: at.Int[at.Array, "b t"],
        mask: at.Bool[at.Array, "b t s"],
        cache: KVCache | None,
    ) -> tuple[Streams, KVCache]:
        """Attend over the cache and the tokens of all experts.

        Args:
            xs: Normalized tokens of each expert.
            positions: Positions of the concatenated tokens.
            mask: Which keys each token may see. The s keys are the cached ones, then the new ones.
            cache: Keys and values of earlier tokens, or None.

        Returns:
            The update of each stream, and the keys and values of the new tokens alone.
        """
        # Each expert projects its own tokens. From here on they are one sequence.
        projected = [self._project(i, x) for i, x in enumerate(xs) if x is not None]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*projected, strict=True))  # [b, t, n or k, h]
        dtype = v.dtype
        q = apply_rope(q, positions)
        q = (q if self.float32_queries else q.astype(dtype)) * self.head_dim**-0.5
        k = apply_rope(k, positions).astype(dtype)
        new = (k, v)
        if cache is not None:
            k, v = (
                jnp.concatenate([old, fresh], axis=1) for old, fresh in zip(cache, new, strict=True)
            )  # [b, s, k, h]
        return self._split_output(attend(q, k, v, mask), xs), new

    def _project(self, index: int, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Project an expert's tokens [b, t, d].

        Returns:
            Queries [b, t, n, h], keys and values [b, t, k, h].
        """
        if self.fused:
            q, k, v = getattr(self, expert_name("qkv_einsum", index))("BSD,CNDH->CBSNH", x)  # [b, t, n, h] each
            return q, k, v
        k, v = getattr(self, expert_name("kv_einsum", index))("BSD,CKDH->CBSKH", x)  # [b, t, k, h] each
        return getattr(self, expert_name("q_einsum", index))("BTD,NDH->BTNH", x), k, v

    def _split_output(self, encoded: jax.Array, xs: Streams) -> Streams:
        """Project [b, t, n, h] back to the width of each expert."""
        outs: list[jax.Array | None] = []
        start = 0
        for i, x in enumerate(xs):
            if x is None:
                outs.append(None)
                continue
            end = start + x.shape[1]
            # [b, tokens, n, h] -> [b, tokens, d]
            outs.append(getattr(self, expert_name("attn_vec_einsum", i))("BTNH,NHD->BTD", encoded[:, start:end]))
            start = end
        return tuple(outs)


class Block(nnx.Module):
    """One layer: joint attention, then a feed-forward block per expert.

    Both are pre-normed and residual.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        adaptive: Sequence[bool],
        *,
        float32_queries: bool,
        dtype: at.DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attn = Attention(configs, float32_queries=float32_queries, rngs=rngs)
        for i, c in enumerate(configs):
            for name in _NORMS:
                setattr(self, expert_name(name, i), RMSNorm(c.width, adaptive=adaptive[i], dtype=dtype, rngs=rngs))
            mlp = lora.FeedForward(c.width, c.mlp_dim, lora_config=c.lora_configs.get("ffn"), rngs=rngs)
            setattr(self, expert_name("mlp", i), mlp)

    def modulate(self, cond: Streams) -> LayerModulation:
        """Compute what the adaptive norms need from each expert's condition [b, d]."""
        return {name: modulate_norms(self, name, cond) for name in _NORMS}

    def __call__(
        self,
        xs: Streams,
        positions: jax.Array,
        mask: jax.Array,
        modulation: LayerModulation,
        cache: KVCache | None,
    ) -> tuple[Streams, KVCache]:
        """Return the streams after the layer, and their keys and values."""
        xs = _constrain(xs)  # [b, tokens, d] each, from here to the end
        normed, gates = apply_norms(self, "pre_attention_norm", xs, modulation["pre_attention_norm"])
        updates, new = self.attn(normed, positions, mask, cache)  # new: [b, t, k, h] x 2
        xs = _constrain(_add(xs, updates, gates))
        normed, gates = apply_norms(self, "pre_ffw_norm", xs, modulation["pre_ffw_norm"])
        updates = tuple(None if x is None else getattr(self, expert_name("mlp", i))(x) for i, x in enumerate(normed))
        return _constrain(_add(xs, updates, gates)), new


def modulate_norms(owner: nnx.Module, name: str, cond: Streams) -> Streams:
    """Compute scale, shift and gate of each expert's norm `name`.

    Experts without a condition get None.
    """
    return tuple(None if c is None else getattr(owner, expert_name(name, i)).modulate(c) for i, c in enumerate(cond))


def apply_norms(owner: nnx.Module, name: str, xs: Streams, modulation: Streams) -> tuple[Streams, Streams]:
    """Apply each expert's norm `name`, an attribute of `owner`.

    Returns:
        Normalized streams and gates.
    """
    pairs = [
        (None, None) if x is None else getattr(owner, expert_name(name, i))(x, m)
        for i, (x, m) in enumerate(zip(xs, modulation, strict=True))
    ]
    normed, gates = zip(*pairs, strict=True)
    return normed, gates


def _add(xs: Streams, updates: Streams, gates: Streams) -> Streams:
    """Add the updates to the streams.

    Gates of adaptive norms scale the updates.
    """
    return tuple(
        None if x is None else x + (update if gate is None else update * gate)
        for x, update, gate in zip(xs, updates, gates, strict=True)
    )


def _constrain(xs: Streams) -> Streams:
    return tuple(None if x is None else sharding.activation_sharding_constraint(x) for x in xs)
