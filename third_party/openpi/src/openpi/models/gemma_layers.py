"""Parts of a Gemma layer for several experts: norms, rotary positions, joint attention, the layer itself.

An expert is a set of weights with its own token stream. All experts of a layer attend jointly over the concatenation
of their tokens. Letters in shapes: b batch, t query tokens, s key tokens, k kv heads, g query heads per kv head,
n = k * g query heads, h head_dim, d width.
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

# Logit of a key that may not be seen. Finite, so that a row without any visible key gives uniform weights, not NaN.
MASKED_LOGIT = -2.3819763e38

ROPE_MAX_WAVELENGTH = 10_000

Streams = tuple[jax.Array | None, ...]
"""Tokens of each expert, [b, tokens, width of the expert]; None leaves the expert out."""
KVCache = tuple[jax.Array, jax.Array]
"""Keys (after rotation) and values; [b, s, k, h] in one layer, with a leading layer axis for all of them."""
LayerModulation = dict[str, Streams]
"""By norm of a layer: scale, shift and gate of each expert, [b, 3 d] or one for each token [b, s, 3 d]; None where the
expert's norms are plain."""

_NORMS = ("pre_attention_norm", "pre_ffw_norm")


def expert_name(name: str, index: int) -> str:
    """Name of a weight of an expert in the parameter tree: expert 0 has the plain name, expert 1 the suffix `_1`."""
    return name if index == 0 else f"{name}_{index}"


class RMSNorm(nnx.Module):
    """Root-mean-square norm with a learned scale or, if adaptive, scale, shift and gate made from a condition."""

    def __init__(self, width: int, *, adaptive: bool, dtype: at.DTypeLike, rngs: nnx.Rngs):
        self.adaptive = adaptive
        if adaptive:
            # Zeros: an untrained condition leaves the norm plain and the gates closed.
            self.Dense_0 = nnx.Linear(width, 3 * width, kernel_init=initializers.zeros, dtype=dtype, rngs=rngs)
        else:
            self.scale = nnx.Param(jnp.zeros((width,)))

    def modulate(self, cond: jax.Array) -> jax.Array:
        """Make scale, shift and gate, [b, 3 d] or [b, s, 3 d], from a condition [b, d] or one for each token [b, s, d]."""
        return self.Dense_0(cond)

    def __call__(self, x: jax.Array, modulation: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Normalise [b, s, d] in float32; return it in the type of `x`, and if adaptive the gate, [b, 1 or s, d]."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        if not self.adaptive:
            return (normed * (1 + self.scale[...])).astype(x.dtype), None
        per_token = modulation[:, None, :] if modulation.ndim == 2 else modulation
        scale, shift, gate = jnp.split(per_token, 3, axis=-1)
        return (normed * (1 + scale) + shift).astype(x.dtype), gate


def apply_rope(x: at.Float[at.Array, "b t n h"], positions: at.Int[at.Array, "b t"]) -> at.Float[at.Array, "b t n h"]:
    """Rotate the halves of each head by angles that grow with the position (half-split layout); result in float32.

    Formula: pair i of the h/2 pairs turns by position / 10000^(2i/h).
    """
    half = x.shape[-1] // 2
    timescale = ROPE_MAX_WAVELENGTH ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) / timescale  # [b, t, 1, h/2]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: at.Bool[at.Array, "b t s"]) -> jax.Array:
    """Grouped-query attention; logits and softmax in float32, result [b, t, n, h] in the type of `v`."""
    b, t, n, h = q.shape
    q = q.reshape(b, t, k.shape[2], -1, h)  # [b, t, k, g, h]
    logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask[:, None, None], logits, MASKED_LOGIT)
    probs = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", probs, v).reshape(b, t, n, h)


class Attention(nnx.Module):
    """Joint attention of all experts, each with its own projections."""

    def __init__(self, configs: Sequence[Config], *, float32_queries: bool, rngs: nnx.Rngs):
        """Create the projections.

        Args:
            configs: Sizes of the experts; same number of heads and same head_dim.
            float32_queries: Keep queries in float32 after the rotation (keys are always rounded to the stream's type).
            rngs: Source of random keys.
        """
        self.float32_queries = float32_queries
        self.head_dim = configs[0].head_dim
        self.fused = configs[0].num_heads == configs[0].num_kv_heads
        for i, c in enumerate(configs):
            # Shape, and the axes that are summed over when the weight is applied.
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
        """Attend over the cache (if any) followed by the tokens of all experts.

        Args:
            xs: Normalised tokens of each expert.
            positions: Positions of the concatenated tokens.
            mask: Which key each token may see; s = cached + new keys.
            cache: Keys and values of earlier tokens.

        Returns:
            The update of each stream, and the keys and values of the new tokens alone.
        """
        projected = [self._project(i, x) for i, x in enumerate(xs) if x is not None]
        q, k, v = (jnp.concatenate(parts, axis=1) for parts in zip(*projected, strict=True))
        dtype = v.dtype
        q = apply_rope(q, positions)
        q = (q if self.float32_queries else q.astype(dtype)) * self.head_dim**-0.5
        k = apply_rope(k, positions).astype(dtype)
        new = (k, v)
        if cache is not None:
            k, v = (jnp.concatenate([old, fresh], axis=1) for old, fresh in zip(cache, new, strict=True))
        return self._split_output(attend(q, k, v, mask), xs), new

    def _project(self, index: int, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if self.fused:
            q, k, v = getattr(self, expert_name("qkv_einsum", index))("BSD,CNDH->CBSNH", x)
            return q, k, v
        k, v = getattr(self, expert_name("kv_einsum", index))("BSD,CKDH->CBSKH", x)
        return getattr(self, expert_name("q_einsum", index))("BTD,NDH->BTNH", x), k, v

    def _split_output(self, encoded: jax.Array, xs: Streams) -> Streams:
        outs: list[jax.Array | None] = []
        start = 0
        for i, x in enumerate(xs):
            if x is None:
                outs.append(None)
                continue
            end = start + x.shape[1]
            outs.append(getattr(self, expert_name("attn_vec_einsum", i))("BTNH,NHD->BTD", encoded[:, start:end]))
            start = end
        return tuple(outs)


class Block(nnx.Module):
    """One layer: joint attention and a feed-forward block per expert, both pre-normed and residual."""

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
        """Make what the adaptive norms need of each expert's condition [b, d]."""
        return {name: modulate_norms(self, name, cond) for name in _NORMS}

    def __call__(
        self,
        xs: Streams,
        positions: jax.Array,
        mask: jax.Array,
        modulation: LayerModulation,
        cache: KVCache | None,
    ) -> tuple[Streams, KVCache]:
        """Return the streams after the layer, and the keys and values of their tokens."""
        xs = _constrain(xs)
        normed, gates = apply_norms(self, "pre_attention_norm", xs, modulation["pre_attention_norm"])
        updates, new = self.attn(normed, positions, mask, cache)
        xs = _constrain(_add(xs, updates, gates))
        normed, gates = apply_norms(self, "pre_ffw_norm", xs, modulation["pre_ffw_norm"])
        updates = tuple(None if x is None else getattr(self, expert_name("mlp", i))(x) for i, x in enumerate(normed))
        return _constrain(_add(xs, updates, gates)), new


def modulate_norms(owner: nnx.Module, name: str, cond: Streams) -> Streams:
    """Make scale, shift and gate of the norm `name` of each expert that has a condition."""
    return tuple(None if c is None else getattr(owner, expert_name(name, i)).modulate(c) for i, c in enumerate(cond))


def apply_norms(owner: nnx.Module, name: str, xs: Streams, modulation: Streams) -> tuple[Streams, Streams]:
    """Apply the norm `name` of each expert, an attribute of `owner`; return normalised streams and gates."""
    pairs = [
        (None, None) if x is None else getattr(owner, expert_name(name, i))(x, m)
        for i, (x, m) in enumerate(zip(xs, modulation, strict=True))
    ]
    normed, gates = zip(*pairs, strict=True)
    return normed, gates


def _add(xs: Streams, updates: Streams, gates: Streams) -> Streams:
    """Residual connection; an adaptive norm's gate scales the update."""
    return tuple(
        None if x is None else x + (update if gate is None else update * gate)
        for x, update, gate in zip(xs, updates, gates, strict=True)
    )


def _constrain(xs: Streams) -> Streams:
    return tuple(None if x is None else sharding.activation_sharding_constraint(x) for x in xs)
