"""Configuration of pi0 and pi0.5."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp

from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import siglip
from openpi.shared import array_typing as at
from openpi.shared import errors
from openpi.shared import nnx_utils
from openpi.shared import ranges

if TYPE_CHECKING:
    from openpi.models.pi0 import Pi0

# Prompt lengths, tokens. pi0.5 writes the robot's state into the prompt.
_MAX_TOKEN_LEN_PI0 = 48
_MAX_TOKEN_LEN_PI05 = 200


@dataclasses.dataclass(frozen=True)
class Pi0Config(_model.BaseModelConfig):
    """Sizes and switches of pi0 and pi0.5."""

    # Type of activations. Parameters keep their own.
    dtype: str = "bfloat16"
    # Size of the PaliGemma expert, which reads images and text.
    paligemma_variant: gemma_config.Variant = "gemma_2b"
    # Size of the expert that reads and writes actions.
    action_expert_variant: gemma_config.Variant = "gemma_300m"
    # Numbers per action, padding included.
    action_dim: _model.ActionDim = 32
    # Number of actions per prediction.
    action_horizon: _model.ActionHorizon = 50
    # Longest prompt, tokens. By default 48 for pi0 and 200 for pi0.5.
    max_token_len: _model.TokenLen = None  # type: ignore[assignment]  # set in __post_init__
    # pi0.5: the time of the flow conditions the norms, and there is no state token.
    pi05: bool = False
    # Write the state into the prompt. By default for pi0.5 only.
    discrete_state_input: bool = None  # type: ignore[assignment]  # set in __post_init__
    # Size of the image tower: a size name of big_vision and the patch side in px.
    vision_variant: siglip.Variant = "So400m/14"
    # Real-time chunking learned in training: the largest number of first actions that are given, because the robot executes
    # them while the chunk is computed (at 50 Hz, 10 allow 200 ms). 0 trains as usual. Adds no parameters.
    rtc_max_delay: Annotated[int, ranges.Range(0, 9999, "0 trains as usual")] = 0
    # Only read by the original project's PyTorch port.
    pytorch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        "max-autotune"
    )

    def __post_init__(self) -> None:
        """Resolve the defaults that depend on `pi05`.

        Raises:
            OutOfRangeError: A number is out of its range, or `rtc_max_delay` is not less than the action horizon, so a
                whole chunk could be given.
        """
        if self.max_token_len is None:
            object.__setattr__(self, "max_token_len", _MAX_TOKEN_LEN_PI05 if self.pi05 else _MAX_TOKEN_LEN_PI0)
        if self.discrete_state_input is None:
            object.__setattr__(self, "discrete_state_input", self.pi05)
        ranges.check(self, "model")
        if self.rtc_max_delay >= self.action_horizon:
            raise errors.OutOfRangeError(
                f"model.rtc_max_delay: found {self.rtc_max_delay}, expected 0 to {self.action_horizon - 1}, less than "
                "action_horizon"
            )

    @property
    def model_type(self) -> _model.ModelType:
        """PI05 or PI0."""
        return _model.ModelType.PI05 if self.pi05 else _model.ModelType.PI0

    def create(self, rng: at.KeyArrayLike) -> "Pi0":
        """Create a model with random parameters."""
        from openpi.models.pi0 import Pi0  # a config can then be read without loading the network

        return Pi0(self, rngs=nnx.Rngs(rng))

    def inputs_spec(self, *, batch_size: int = 1) -> tuple[_model.Observation, _model.Actions]:
        """Return shapes and dtypes of an observation and its actions."""
        prompt = (batch_size, self.max_token_len)
        observation: _model.Observation = _model.Observation(
            **image_specs(_model.IMAGE_KEYS, batch_size),
            state=jax.ShapeDtypeStruct((batch_size, self.action_dim), jnp.float32),
            tokenized_prompt=jax.ShapeDtypeStruct(prompt, jnp.int32),
            tokenized_prompt_mask=jax.ShapeDtypeStruct(prompt, jnp.bool_),
        )
        actions = jax.ShapeDtypeStruct((batch_size, self.action_horizon, self.action_dim), jnp.float32)
        return observation, actions

    def get_freeze_filter(self) -> nnx.filterlib.Filter:
        """Return the parameters that LoRA replaces.

        They are the language model's parameters of each expert with LoRA weights.
        """
        llm, expert = nnx_utils.PathRegex(".*llm.*"), nnx_utils.PathRegex(".*llm.*_1.*")
        not_lora = nnx.Not(nnx_utils.PathRegex(".*lora.*"))
        paligemma_lora = gemma_config.uses_lora(self.paligemma_variant)
        expert_lora = gemma_config.uses_lora(self.action_expert_variant)
        if paligemma_lora and expert_lora:
            return nnx.All(llm, not_lora)
        if paligemma_lora:
            return nnx.All(llm, nnx.Not(expert), not_lora)
        if expert_lora:
            return nnx.All(expert, not_lora)
        return nnx.Nothing


def image_specs(keys: tuple[str, ...], batch_size: int) -> dict[str, Any]:
    """Return the image fields of an observation's specification."""
    image = jax.ShapeDtypeStruct((batch_size, *_model.IMAGE_RESOLUTION, 3), jnp.float32)
    mask = jax.ShapeDtypeStruct((batch_size,), jnp.bool_)
    return {"images": dict.fromkeys(keys, image), "image_masks": dict.fromkeys(keys, mask)}
