"""Sizes of the Gemma transformers, by name or as a `Config`."""

from collections.abc import Mapping
import dataclasses
import difflib
from typing import Annotated

import tyro

from openpi.models import lora
from openpi.models.prompt_text import PALIGEMMA_VOCAB_SIZE
from openpi.shared import errors
from openpi.shared import ranges

Size = Annotated[int, ranges.Range(1, 10_000_000, "far larger than that of any such model")]


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of one expert."""

    width: Size
    depth: Size
    mlp_dim: Size
    num_heads: Size
    num_kv_heads: Size
    head_dim: Size
    vocab_size: Size = PALIGEMMA_VOCAB_SIZE
    # Low-rank updates of the attention ("attn") and feed-forward ("ffn") weights.
    lora_configs: Mapping[str, lora.LoRAConfig] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check what the types cannot express.

        Raises:
            ConfigError: The sizes do not fit together.
        """
        ranges.check(self, "gemma")
        if self.num_heads % self.num_kv_heads:
            raise errors.ConfigError(f"gemma: {self.num_heads} heads cannot share {self.num_kv_heads} kv heads evenly")
        if self.head_dim % 2:
            raise errors.ConfigError(f"gemma: found head_dim {self.head_dim}, expected an even number")
        unknown = set(self.lora_configs) - {"attn", "ffn"}
        if unknown:
            raise errors.ConfigError(f"gemma: lora_configs has {sorted(unknown)}, expected 'attn' or 'ffn'")


def _lora(rank: int, alpha: float) -> dict[str, lora.LoRAConfig]:
    return {"attn": lora.LoRAConfig(rank=rank, alpha=alpha), "ffn": lora.LoRAConfig(rank=rank, alpha=alpha)}


_GEMMA_2B = Config(width=2048, depth=18, mlp_dim=16_384, num_heads=8, num_kv_heads=1, head_dim=256)
_GEMMA_300M = Config(width=1024, depth=18, mlp_dim=4096, num_heads=8, num_kv_heads=1, head_dim=256)

VARIANTS: dict[str, Config] = {
    "dummy": Config(width=64, depth=4, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=16),
    "gemma_300m": _GEMMA_300M,
    "gemma_300m_lora": dataclasses.replace(_GEMMA_300M, lora_configs=_lora(rank=32, alpha=32.0)),
    "gemma_2b": _GEMMA_2B,
    "gemma_2b_lora": dataclasses.replace(_GEMMA_2B, lora_configs=_lora(rank=16, alpha=16.0)),
}


def get_config(variant: str | Config) -> Config:
    """Return the size of a registered variant.

    A `Config` is returned unchanged.

    Raises:
        ConfigError: The name is unknown.
    """
    if isinstance(variant, Config):
        return variant
    if variant not in VARIANTS:
        near = difflib.get_close_matches(variant, VARIANTS, n=1, cutoff=0.0)[0]
        raise errors.ConfigError(f"gemma variant '{variant}' not found. Did you mean '{near}'?")
    return VARIANTS[variant]


def uses_lora(variant: str | Config) -> bool:
    """Return whether any weight of the variant has a low-rank update."""
    return bool(get_config(variant).lora_configs)


# On the command line a variant is one of the registered names. A Config can only be given in code.
Variant = Annotated[
    str | Config,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(VARIANTS) + "}",
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: isinstance(value, str | Config),
        str_from_instance=lambda value: [str(value)],
        choices=tuple(VARIANTS),
    ),
]
