"""PaliGemma: image tower and language model, named as in checkpoints."""

from collections.abc import Iterable, Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from openpi.models import gemma
from openpi.models import model as _model
from openpi.models import siglip
from openpi.shared import array_typing as at


class PaliGemma(nnx.Module):
    """Image tower `img` and language model `llm`, which reads the tower's tokens.

    Expert 0 of `llm` is PaliGemma's own.
    """

    def __init__(
        self,
        configs: Sequence[gemma.Config],
        vision_config: siglip.Config,
        *,
        dtype: at.DTypeLike,
        adaptive_norms: Sequence[bool],
        float32_queries: bool = False,
        rngs: nnx.Rngs,
    ):
        """Create the parameters. See `gemma.Module` for the arguments."""
        self.llm = gemma.Module(
            configs, embed_dtype=dtype, adaptive_norms=adaptive_norms, float32_queries=float32_queries, rngs=rngs
        )
        self.img = siglip.Module(
            vision_config, configs[0].width, image_size=_model.IMAGE_RESOLUTION, dtype=dtype, rngs=rngs
        )

    def embed_images(
        self, images: Iterable[at.Float[at.Array, "b h w 3"]], masks: Iterable[at.Bool[at.Array, " b"]]
    ) -> tuple[at.Float[at.Array, "b s d"], at.Bool[at.Array, "b s"]]:
        """Return the tokens of all images, and which of them are valid.

        Tokens are ordered camera by camera. Those of a missing camera are not valid.
        """
        images = tuple(images)
        # One call of the tower for all cameras: the same numbers, larger matrix products, one compiled copy.
        tokens = self.img(jnp.concatenate(images, axis=0))  # [cameras * b, s of one image, d]
        tokens = jnp.concatenate(jnp.split(tokens, len(images), axis=0), axis=1)  # [b, s, d]
        seen = jnp.stack(tuple(masks), axis=1)  # [b, cameras]
        valid = jnp.repeat(seen, tokens.shape[1] // len(images), axis=1)  # [b, s]
        return tokens, valid


def make_attn_mask(
    input_mask: at.Bool[at.Array, "*b s"], mask_ar: at.Int[at.Array, "*#b s"]
) -> at.Bool[jax.Array, "*b s s"]:
    """Return which keys (last axis) each query may see.

    `mask_ar` cuts the sequence into blocks: a 1 starts a new block. A token sees its own block and all earlier blocks, so
    1 1 1 is causal, 0 0 0 is bidirectional, and 0 0 1 1 is a bidirectional prefix followed by a causal part.

    Args:
        input_mask: False for padding, which neither sees nor is seen.
        mask_ar: 1 where a block starts (boolean or integer).
    """
    block = jnp.cumsum(jnp.broadcast_to(mask_ar, input_mask.shape), axis=-1)  # [b, s]
    may_see = block[..., None, :] <= block[..., :, None]  # [b, s queries, s keys]
    return may_see & input_mask[..., None, :] & input_mask[..., :, None]
