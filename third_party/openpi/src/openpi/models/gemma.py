"""Gemma: a decoder with one or several experts.

pi0, pi0.5 and pi0-FAST share it. Attribute names are those in the parameter tree of published checkpoints.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from openpi.models import gemma_layers
from openpi.models import initializers
from openpi.models import stacking
from openpi.models.gemma_config import VARIANTS as VARIANTS
from openpi.models.gemma_config import Config as Config
from openpi.models.gemma_config import Variant as Variant
from openpi.models.gemma_config import get_config as get_config
from openpi.models.gemma_config import uses_lora as uses_lora
from openpi.models.gemma_layers import KVCache as KVCache
from openpi.models.gemma_layers import Streams as Streams
from openpi.models.prompt_text import PALIGEMMA_VOCAB_SIZE as PALIGEMMA_VOCAB_SIZE
from openpi.shared import array_typing as at
from openpi.shared import errors


class Embedder(nnx.Module):
    """Token table, used both to embed tokens and to score them."""

    def __init__(self, vocab_size: int, width: int, *, rngs: nnx.Rngs):
        init = initializers.normal(0.01)
        self.input_embedding = nnx.Param(init(rngs.params(), (vocab_size, width)))

    def encode(self, tokens: at.Int[at.Array, "*b"]) -> at.Float[at.Array, "*b d"]:
        """Look up tokens and multiply by sqrt(width).

        The result has the type of the table.
        """
        table = self.input_embedding[...]  # [v, d]
        return table[tokens] * jnp.sqrt(table.shape[-1]).astype(table.dtype)  # [*b, d]

    def decode(self, x: at.Float[at.Array, "*b d"]) -> at.Float[at.Array, "*b v"]:
        """Score every token of the vocabulary in float32.

        In bfloat16 different logits would become equal, and the argmax coarse.
        """
        return jnp.einsum("...d,vd->...v", x, self.input_embedding[...], preferred_element_type=jnp.float32)


class Modulation(NamedTuple):
    """Scale, shift and gate of all adaptive norms, made from one condition."""

    # Every leaf has a leading layer axis.
    layers: gemma_layers.LayerModulation
    final: Streams


class Module(nnx.Module):
    """The transformer.

    Expert 0 embeds text. The other experts only have layers.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        *,
        embed_dtype: at.DTypeLike,
        adaptive_norms: Sequence[bool],
        float32_queries: bool = False,
        rngs: nnx.Rngs,
    ):
        """Create the parameters (float32).

        Args:
            configs: Size of each expert. Depth, heads and head_dim must agree.
            embed_dtype: Type of the token streams, and so of all products with weights.
            adaptive_norms: For each expert, whether its norms take a condition.
            float32_queries: Do not round rotated queries to the streams' type (pi0-FAST was trained this way).
            rngs: Source of random keys.

        Raises:
            ConfigError: The sizes of the experts do not agree.
        """
        _check_experts_agree(configs)
        self.dtype = embed_dtype
        self.embedder = Embedder(configs[0].vocab_size, configs[0].width, rngs=rngs)
        self.layers = stacking.stack_layers(
            lambda rngs: gemma_layers.Block(
                configs, adaptive_norms, float32_queries=float32_queries, dtype=embed_dtype, rngs=rngs
            ),
            configs[0].depth,
            rngs,
        )
        for i, (config, adaptive) in enumerate(zip(configs, adaptive_norms, strict=True)):
            norm = gemma_layers.RMSNorm(config.width, adaptive=adaptive, dtype=embed_dtype, rngs=rngs)
            setattr(self, gemma_layers.expert_name("final_norm", i), norm)

    def embed(self, tokens: at.Int[at.Array, "*b"]) -> at.Float[at.Array, "*b d"]:
        """Embed text tokens for expert 0."""
        return self.embedder.encode(tokens).astype(self.dtype)  # [*b, d]

    def decode(self, x: at.Float[at.Array, "*b d"]) -> at.Float[at.Array, "*b v"]:
        """Score the vocabulary for outputs of expert 0 (float32)."""
        return self.embedder.decode(x)  # [*b, v]

    def modulate(self, adarms_cond: Sequence[at.Float[at.Array, "b _"] | None]) -> Modulation:
        """Compute scale, shift and gate of all norms from their condition.

        Calls that share a condition then share this work. `__call__` does the same with its `adarms_cond`.
        """
        cond = tuple(adarms_cond)
        # Leaves [layer, b, 3 d].
        _, layers = stacking.scan_layers(self.layers, lambda block, carry, _: (carry, block.modulate(cond)), None)
        return Modulation(layers, gemma_layers.modulate_norms(self, "final_norm", cond))

    def __call__(
        self,
        embedded: Sequence[jax.Array | None],
        positions: at.Int[at.Array, "b t"],
        mask: at.Bool[at.Array, "b t s"],
        *,
        adarms_cond: Sequence[at.Float[at.Array, "b _"] | None] | None = None,
        modulation: Modulation | None = None,
        kv_cache: KVCache | None = None,
    ) -> tuple[Streams, KVCache]:
        """Run all layers.

        Args:
            embedded: Tokens of each expert, [b, tokens, width]. None leaves an expert out.
            positions: Positions of the tokens of all experts, concatenated in order.
            mask: Which keys each token may see. The s keys are the cached ones, then the new ones.
            adarms_cond: Condition of each expert's norms. None for experts with plain norms.
            modulation: Result of `modulate`, instead of `adarms_cond`. Its batch may be 1.
            kv_cache: Keys and values of earlier tokens, each [layer, b, s, kv heads, head_dim].

        Returns:
            Outputs of each expert after its final norm, and the keys and values of the new tokens. The given cache is
            not part of them: the caller knows whether to append, store or drop them.
        """
        cond = tuple(adarms_cond) if adarms_cond is not None else (None,) * len(embedded)
        streams = tuple(None if x is None else x.astype(self.dtype) for x in embedded)  # [b, tokens, width] each

        def step(block: gemma_layers.Block, xs: Streams, inputs: tuple) -> tuple[Streams, KVCache]:
            cache, given = inputs  # without the layer axis
            # Computed inside the layer unless given, so that training holds the weights of one layer at a time.
            return block(xs, positions, mask, block.modulate(cond) if given is None else given, cache)

        given, final = (
            (None, gemma_layers.modulate_norms(self, "final_norm", cond)) if modulation is None else modulation
        )
        streams, new = stacking.scan_layers(
            self.layers, step, streams, (kv_cache, given)
        )  # new: [layer, b, t, k, h] x 2
        outputs, _ = gemma_layers.apply_norms(self, "final_norm", streams, final)
        return outputs, new


def _check_experts_agree(configs: Sequence[Config]) -> None:
    for field in ("depth", "num_heads", "num_kv_heads", "head_dim"):
        values = [getattr(config, field) for config in configs]
        if len(set(values)) > 1:
            raise errors.ConfigError(f"gemma: experts must share '{field}', found {values}")
