"""Estimate the memory of activations by a rule of thumb.

The estimate adds what all layers keep for the backward pass and what the widest layer takes. docs/training.md compares it
with the plan of the compiled step. The constants say how many arrays of a kind exist at a time in a layer's backward pass.
"""

import jax.numpy as jnp

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import siglip
from openpi.training.configs.train_config import TrainConfig

# Copies of the images in float32: as they come, prepared, and two during augmentation.
_IMAGE_COPIES = 4
# Arrays per layer: of a token's width, of the hidden width of an MLP, and of attention (queries x keys).
_WIDTH_ARRAYS, _HIDDEN_ARRAYS, _ATTENTION_ARRAYS = 8, 4, 3


def estimate_bytes(config: TrainConfig, num_devices: int) -> int:
    """Estimate what activations take on one of `num_devices` devices, bytes."""
    model = config.model
    variants = [getattr(model, name, None) for name in ("paligemma_variant", "action_expert_variant")]
    experts = [gemma_config.get_config(variant) for variant in variants if variant is not None]
    if not experts:
        return 0

    # The images of the whole batch exist at once. Everything else exists for one part of the batch at a time.
    samples = config.batch_size / num_devices
    at_once = samples / config.grad_accumulation
    compute = jnp.dtype(getattr(model, "dtype", "bfloat16")).itemsize
    height, width = _model.IMAGE_RESOLUTION
    num_images = len(_model.IMAGE_KEYS)
    images = _IMAGE_COPIES * samples * num_images * height * width * 3 * 4

    # The image tower.
    tower = siglip.get_config(model.vision_variant)
    patches = (height // tower.patch_size) * (width // tower.patch_size)
    vision = _Layers(tower.depth, compute)
    vision.add(num_images * patches, tower.width, tower.mlp_dim)
    vision.attend(num_images * tower.num_heads * patches**2 * compute)

    # The language model and, for pi0, the action expert, which share their attention.
    language = _Layers(experts[0].depth, compute)
    prefix = num_images * patches + model.max_token_len
    suffix = model.action_horizon + 1 if len(experts) > 1 else 0
    for tokens, expert in zip((prefix, suffix), experts, strict=False):
        language.add(tokens, expert.width, 2 * expert.mlp_dim)
    language.attend(experts[0].num_heads * (prefix + suffix) ** 2 * 4)
    # A model without an action expert predicts tokens, so it has logits.
    logits = 0 if len(experts) > 1 else 3 * model.max_token_len * experts[0].vocab_size * 4

    # A frozen tower has no backward pass, so it keeps nothing.
    tower_bytes = 0 if config.freeze_image_tower else vision.remembered(config.remat)
    peak = max(0 if config.freeze_image_tower else vision.widest, language.widest)
    return int(images + at_once * (tower_bytes + language.remembered(config.remat) + peak + logits))


class _Layers:
    """A stack of equal layers.

    All sizes are those of one sample, bytes.
    """

    def __init__(self, depth: int, itemsize: int) -> None:
        self._depth = depth
        self._itemsize = itemsize
        self._carry = self._hidden = self._attention = 0.0

    def add(self, tokens: int, width: int, hidden: float) -> None:
        """Count tokens of a width that pass an MLP of width `hidden`."""
        self._carry += tokens * width * self._itemsize
        self._hidden += tokens * hidden * self._itemsize

    def attend(self, size: float) -> None:
        """Count one array of attention."""
        self._attention += size

    @property
    def widest(self) -> float:
        """What one layer takes during its backward pass."""
        return _WIDTH_ARRAYS * self._carry + _HIDDEN_ARRAYS / 2 * self._hidden + _ATTENTION_ARRAYS * self._attention

    def remembered(self, remat: str) -> float:
        """What all layers keep for the backward pass."""
        each = {"full": self._carry, "dots": 6 * self._carry + self._hidden, "none": self.widest}[remat]
        return self._depth * each
