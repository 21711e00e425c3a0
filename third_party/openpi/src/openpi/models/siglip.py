"""SigLIP image tower: a pre-norm vision transformer without pooling.

It returns one token per image patch. Attribute names are those in the parameter tree of published checkpoints. Letters in
shapes, in addition to those in `model`: t query tokens, s key tokens, n heads, and in attention h head_dim.
"""

import dataclasses
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp
import tyro

from openpi.models import initializers
from openpi.models import stacking
from openpi.shared import array_typing as at
from openpi.shared import errors
from openpi.shared import ranges
from openpi.training import sharding

Size = Annotated[int, ranges.Range(1, 10_000_000, "far larger than that of any such model")]


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of a tower."""

    width: Size
    depth: Size
    mlp_dim: Size
    num_heads: Size
    # Side of a square patch, px.
    patch_size: Size

    def __post_init__(self) -> None:
        ranges.check(self, "siglip")


# Size names of big_vision: width, depth, mlp_dim, num_heads.
_SIZES: dict[str, tuple[int, int, int, int]] = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}


# On the command line a variant is a name. A Config can only be given in code.
Variant = Annotated[
    str | Config,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SIZE/PATCH",
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: isinstance(value, str | Config),
        str_from_instance=lambda value: [str(value)],
    ),
]


def get_config(variant: Variant) -> Config:
    """Return the size of a variant such as "So400m/14".

    The name consists of a size name of big_vision and the patch side in px. A `Config` is returned unchanged.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(variant, Config):
        return variant
    size, _, patch = variant.partition("/")
    if size not in _SIZES or not patch.isdecimal() or int(patch) == 0:
        raise errors.ConfigError(
            f"vision variant: found '{variant}', expected '<size>/<patch px>' with a size of {', '.join(_SIZES)}"
        )
    return Config(*_SIZES[size], patch_size=int(patch))


class Module(nnx.Module):
    """The tower, and a linear head to the language model's width."""

    def __init__(
        self,
        config: Config,
        num_features: int,
        *,
        image_size: tuple[int, int],
        dtype: at.DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Create the parameters (float32).

        Args:
            config: Size of the tower.
            num_features: Width of the returned tokens.
            image_size: Height and width of the images, px. They determine the number of position embeddings.
            dtype: Type to compute in. Patch and position embeddings are always added in float32.
            rngs: Source of random keys.
        """
        self.dtype = dtype
        # A patch becomes a token.
        patch = (config.patch_size, config.patch_size)
        num_patches = (image_size[0] // patch[0]) * (image_size[1] // patch[1])
        self.embedding = nnx.Conv(
            3,
            config.width,
            kernel_size=patch,
            strides=patch,
            padding="VALID",
            kernel_init=initializers.lecun_normal(),
            rngs=rngs,
        )
        init_position = initializers.normal(config.width**-0.5)
        self.pos_embedding = nnx.Param(init_position(rngs.params(), (1, num_patches, config.width)))
        self.Transformer = _Transformer(config, dtype=dtype, rngs=rngs)
        # The head starts at zero, so that an untrained tower adds nothing to the language model's input.
        self.head = nnx.Linear(config.width, num_features, kernel_init=initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, images: at.Float[at.Array, "b h w 3"]) -> at.Float[at.Array, "b s d"]:
        """Convert images in [-1, 1] to tokens, patches in row-major order."""
        x = self.embedding(images.astype(jnp.float32))  # [b, h / patch, w / patch, width]
        x = x.reshape(x.shape[0], -1, x.shape[-1])  # [b, s, width]
        x = (x + self.pos_embedding[...]).astype(self.dtype)  # [b, s, width]
        return self.head(self.Transformer(x))  # [b, s, d]


class _Transformer(nnx.Module):
    def __init__(self, config: Config, *, dtype: at.DTypeLike, rngs: nnx.Rngs):
        self.encoderblock = stacking.stack_layers(
            lambda rngs: _Block(config, dtype=dtype, rngs=rngs), config.depth, rngs
        )
        self.encoder_norm = _LayerNorm(config.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, _ = stacking.scan_layers(self.encoderblock, lambda block, x, _: (block(x), None), x)  # [b, s, width]
        return self.encoder_norm(x)


class _Block(nnx.Module):
    def __init__(self, config: Config, *, dtype: at.DTypeLike, rngs: nnx.Rngs):
        self.LayerNorm_0 = _LayerNorm(config.width)
        self.MultiHeadDotProductAttention_0 = _Attention(config, dtype=dtype, rngs=rngs)
        self.LayerNorm_1 = _LayerNorm(config.width)
        self.MlpBlock_0 = _Mlp(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = sharding.activation_sharding_constraint(x)  # [b, s, width], from here to the end
        x = x + self.MultiHeadDotProductAttention_0(self.LayerNorm_0(x))
        x = sharding.activation_sharding_constraint(x)
        x = x + self.MlpBlock_0(self.LayerNorm_1(x))
        return sharding.activation_sharding_constraint(x)


class _LayerNorm(nnx.Module):
    """Layer norm in float32, rounded once to the type of its input.

    Newer releases of flax apply scale and bias in the tower's dtype. In bfloat16 this would move a third of the numbers
    by one rounding step or more from those that the weights were trained with.
    """

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)  # [b, s, width]
        mean = jnp.mean(x32, axis=-1, keepdims=True)  # [b, s, 1]
        # The weights were trained with E[x^2] - E[x]^2 and with this order of the products.
        variance = jnp.maximum(0.0, jnp.mean(jnp.square(x32), axis=-1, keepdims=True) - jnp.square(mean))
        normed = (x32 - mean) * (jax.lax.rsqrt(variance + 1e-6) * self.scale[...].astype(jnp.float32))
        return (normed + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class _Attention(nnx.Module):
    """Full self-attention.

    Everything is computed in the tower's dtype, as the weights were trained.
    """

    def __init__(self, config: Config, *, dtype: at.DTypeLike, rngs: nnx.Rngs):
        heads = (config.num_heads, config.width // config.num_heads)
        init = initializers.xavier_uniform()
        for name in ("query", "key", "value"):
            setattr(self, name, nnx.LinearGeneral(config.width, heads, kernel_init=init, dtype=dtype, rngs=rngs))
        self.out = nnx.LinearGeneral(heads, config.width, axis=(-2, -1), kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = self.query(x), self.key(x), self.value(x)  # [b, s, n, h] each
        # The divisor is rounded to the dtype (sqrt(72) is 8.5 in bfloat16), and so is the softmax.
        q = q / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        probs = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k), axis=-1)  # [b, n, t, s]
        return self.out(jnp.einsum("bnts,bsnh->btnh", probs, v))  # [b, t, n, h] -> [b, t, width]


class _Mlp(nnx.Module):
    def __init__(self, config: Config, *, dtype: at.DTypeLike, rngs: nnx.Rngs):
        init = {"kernel_init": initializers.xavier_uniform(), "bias_init": initializers.normal(1e-6)}
        self.Dense_0 = nnx.Linear(config.width, config.mlp_dim, **init, dtype=dtype, rngs=rngs)
        self.Dense_1 = nnx.Linear(config.mlp_dim, config.width, **init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.Dense_1(nnx.gelu(self.Dense_0(x), approximate=True))  # [b, s, mlp_dim] -> [b, s, width]
