"""Merge low-rank adapters (LoRA) into the weights that they change.

The model then runs without adapters.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from flax import nnx
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from openpi.models import gemma_config
from openpi.models import lora
from openpi.models import model as _model
from openpi.shared import array_typing as at
from openpi.shared import errors

_ADAPTER = re.compile(r"(.*?)(?:/|_)lora_[ab]")
"""Paths of adapters: `<weight's module>/lora_a` next to `w`, or `<weight>_lora_a` next to `<weight>`."""

_EXPERT = re.compile(r".*_(\d+)")

# Weights whose first axis, the heads, is summed over in A and in B. See `lora.lora_equations`.
_SUMMED_OVER_HEADS = re.compile(r".*/attn_vec_einsum(_\d+)?/w")

# How much outputs in float32 may differ: by rounding (relative to the largest output), and in proportion to the effect
# of the adapters. A wrong factor or axis causes a difference as large as that effect.
_ROUNDING = 1e-4
_SHARE_OF_EFFECT = 0.01


@dataclasses.dataclass(frozen=True)
class Check:
    """Largest differences between outputs on one made-up example, in float32."""

    difference: float
    """Between the model with separate adapters and with merged ones."""
    effect: float
    """Between the model with its adapters and without."""
    largest_output: float

    @property
    def is_good(self) -> bool:
        """Whether the merged model computes the same as with adapters."""
        limit = _ROUNDING * self.largest_output + _SHARE_OF_EFFECT * self.effect
        return self.difference <= limit  # also False for NaN

    def __str__(self) -> str:
        """Return a phrase for logs and messages."""
        return f"outputs differ by {self.difference:.2g} (the adapters change them by {self.effect:.2g})"


def has_adapters(params: at.Params) -> bool:
    """Return whether any parameter belongs to an adapter."""
    return any(_ADAPTER.fullmatch(path) for path in flax.traverse_util.flatten_dict(params, sep="/"))


def without_adapters(config: _model.BaseModelConfig) -> _model.BaseModelConfig:
    """Return the config of the same model with its adapters merged.

    A config without adapters is returned unchanged.
    """
    fields = {name: getattr(config, name, None) for name in ("paligemma_variant", "action_expert_variant")}
    changes: dict[str, Any] = {name: _plain_variant(variant) for name, variant in fields.items() if variant is not None}
    return dataclasses.replace(config, **changes)


def merge(params: at.Params, config: _model.BaseModelConfig) -> at.Params:
    """Add each adapter's update to its weight.

    Args:
        params: Nested dicts of numpy arrays, which stay unchanged.
        config: The model with adapters. It determines their strength.

    Returns:
        The tree without adapters. Changed weights are float32, the others keep their type.

    Raises:
        DataError: An adapter's weight is missing, half of an adapter is missing, or the config has no such adapter.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    merged = {path: leaf for path, leaf in flat.items() if not _ADAPTER.fullmatch(path)}
    for base in sorted({match[1] for path in flat if (match := _ADAPTER.fullmatch(path))}):
        weight, prefix = (f"{base}/w", f"{base}/") if f"{base}/w" in flat else (base, f"{base}_")
        parts = (weight, f"{prefix}lora_a", f"{prefix}lora_b")
        if missing := [path for path in parts if path not in flat]:
            raise errors.DataError(f"LoRA: found part of an adapter, '{missing[0]}' is missing")
        a, b = (np.asarray(flat[path], np.float32) for path in parts[1:])  # [..., in, rank], [..., rank, out]
        if _SUMMED_OVER_HEADS.fullmatch(weight):
            b = b.sum(axis=-3, keepdims=True)  # [1, rank, out]
        merged[weight] = np.asarray(flat[weight], np.float32) + _scale(weight, config) * (a @ b)
    return flax.traverse_util.unflatten_dict(merged, sep="/")


def check(params: at.Params, merged: at.Params, config: _model.BaseModelConfig) -> Check:
    """Compare a model's outputs with its adapters and after merging them.

    Both run on one made-up example.

    Args:
        params: Parameters with adapters.
        merged: Result of `merge`, not rounded.
        config: The model with adapters.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    base = {path: leaf for path, leaf in flat.items() if not _ADAPTER.fullmatch(path)}
    plain = without_adapters(config)
    with jax.default_matmul_precision("highest"):
        (with_adapters,) = _outputs(config, params)
        after, without = _outputs(plain, merged, flax.traverse_util.unflatten_dict(base, sep="/"))
    return Check(
        difference=float(np.abs(after - with_adapters).max()),
        effect=float(np.abs(without - with_adapters).max()),
        largest_output=float(np.abs(with_adapters).max()),
    )


def _plain_variant(variant: str | gemma_config.Config) -> str | gemma_config.Config:
    if not gemma_config.uses_lora(variant):
        return variant
    plain = dataclasses.replace(gemma_config.get_config(variant), lora_configs={})
    return next((name for name, size in gemma_config.VARIANTS.items() if size == plain), plain)


def _scale(weight: str, config: _model.BaseModelConfig) -> float:
    """Return the strength of a weight's adapter.

    It depends on the expert and on the kind of weight.
    """
    module = weight.removesuffix("/w")
    experts = [getattr(config, name, None) for name in ("paligemma_variant", "action_expert_variant")]
    numbered = next((match for part in module.split("/") if (match := _EXPERT.fullmatch(part))), None)
    variant = experts[0 if numbered is None else int(numbered[1])]
    kind = "attn" if "/attn/" in module else "ffn"
    adapters: Mapping[str, lora.LoRAConfig] = {} if variant is None else gemma_config.get_config(variant).lora_configs
    if kind not in adapters:
        raise errors.DataError(f"LoRA: found an adapter of '{weight}', but the config has no adapter for it")
    return adapters[kind].scale


def _outputs(config: _model.BaseModelConfig, *trees: at.Params) -> list[np.ndarray]:
    """Return numbers that depend on every weight, for each tree.

    They are a flow model's actions, or the loss of pi0-FAST's tokens.
    """
    config = dataclasses.replace(config, dtype="float32")  # type: ignore[call-arg]  # every model with adapters has it
    is_flow = config.model_type != _model.ModelType.PI0_FAST

    def compute(
        graphdef: nnx.GraphDef, state: nnx.State, observation: _model.Observation, actions: jax.Array
    ) -> jax.Array:
        model: Any = nnx.merge(graphdef, state)
        if is_flow:
            return model.sample_actions(jax.random.key(0), observation, num_steps=1, noise=actions)
        return model.compute_loss(jax.random.key(0), observation, actions)

    # Inputs are arguments. If they were constants, the compiler would spend minutes computing with them.
    jitted, inputs = jax.jit(compute, static_argnums=0), _made_up_inputs(config)
    return [np.asarray(jitted(*nnx.split(config.load(params)), *inputs), np.float64) for params in trees]


def _made_up_inputs(config: _model.BaseModelConfig) -> tuple[_model.Observation, jax.Array]:
    vocab_size = gemma_config.get_config(config.paligemma_variant).vocab_size  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)

    def fill(spec: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(spec.dtype, jnp.floating):
            return jnp.asarray(np.tanh(rng.standard_normal(spec.shape)), spec.dtype)
        if spec.dtype == jnp.bool_:
            return jnp.ones(spec.shape, jnp.bool_)
        return jnp.asarray(rng.integers(2, vocab_size, spec.shape), spec.dtype)

    observation, actions = jax.tree.map(fill, config.inputs_spec())
    if observation.token_ar_mask is not None:
        # The tokens of pi0-FAST see only earlier tokens, like those of an answer.
        observation = observation.replace(token_ar_mask=jnp.ones_like(observation.token_ar_mask))
    return observation, actions
