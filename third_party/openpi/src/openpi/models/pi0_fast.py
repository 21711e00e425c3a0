"""pi0-FAST: PaliGemma that writes actions as text tokens.

It reads images, prompt and state, and writes the tokens one after the other.
"""

import dataclasses
from typing import Annotated, Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax
import tyro

from openpi.models import gemma
from openpi.models import gemma_config
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import siglip
from openpi.models.paligemma import PaliGemma
from openpi.models.paligemma import make_attn_mask
from openpi.shared import array_typing as at
from openpi.shared import nnx_utils
from openpi.shared import ranges

# Camera slots of the specification. The model accepts any slots, in alphabetical order.
IMAGE_KEYS = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")

# Token id that ends a sequence of actions.
EOS_TOKEN = 1
# Written after the end.
PAD_TOKEN = 0


@dataclasses.dataclass(frozen=True)
class Pi0FASTConfig(_model.BaseModelConfig):
    """Sizes and switches of pi0-FAST."""

    # Type of activations. Parameters keep their own.
    dtype: str = "bfloat16"
    # Size of the language model.
    paligemma_variant: gemma_config.Variant = "gemma_2b"
    # Numbers per action.
    action_dim: _model.ActionDim = 32
    # Number of actions per prediction.
    action_horizon: _model.ActionHorizon = 32
    # Longest sequence of prompt, state and action tokens.
    max_token_len: _model.TokenLen = 250
    # Class of the tokenizer and its keyword arguments. By default FASTTokenizer.
    fast_model_tokenizer: Annotated[Any | None, tyro.conf.Suppress] = None
    fast_model_tokenizer_kwargs: Annotated[dict[str, Any] | None, tyro.conf.Suppress] = None
    # Size of the image tower: a size name of big_vision and the patch side in px.
    vision_variant: siglip.Variant = "So400m/14"
    # Decode as published models were evaluated: positions are one larger than in training and, if a camera is masked, keys
    # are counted back from the last prompt token. False: decode exactly as trained.
    published_decoding: bool = True

    def __post_init__(self) -> None:
        ranges.check(self, "model")

    @property
    def model_type(self) -> _model.ModelType:
        """PI0_FAST."""
        return _model.ModelType.PI0_FAST

    def create(self, rng: at.KeyArrayLike) -> "Pi0FAST":
        """Create a model with random parameters."""
        return Pi0FAST(self, rngs=nnx.Rngs(rng))

    def inputs_spec(self, *, batch_size: int = 1) -> tuple[_model.Observation, _model.Actions]:
        """Return shapes and dtypes of an observation and its actions."""
        tokens = jax.ShapeDtypeStruct((batch_size, self.max_token_len), jnp.int32)
        mask = jax.ShapeDtypeStruct((batch_size, self.max_token_len), jnp.bool_)
        observation: _model.Observation = _model.Observation(
            **pi0_config.image_specs(IMAGE_KEYS, batch_size),
            state=jax.ShapeDtypeStruct((batch_size, self.action_dim), jnp.float32),
            tokenized_prompt=tokens,
            tokenized_prompt_mask=mask,
            token_ar_mask=tokens,
            token_loss_mask=mask,
        )
        return observation, jax.ShapeDtypeStruct((batch_size, self.action_horizon, self.action_dim), jnp.float32)

    def get_freeze_filter(self) -> nnx.filterlib.Filter:
        """Return the parameters that LoRA replaces.

        They are the whole language model, if it has LoRA weights.
        """
        if gemma_config.uses_lora(self.paligemma_variant):
            return nnx.All(nnx_utils.PathRegex(".*llm.*"), nnx.Not(nnx_utils.PathRegex(".*lora.*")))
        return nnx.Nothing


class _Decoding(NamedTuple):
    """State of the decoding loop that writes at most n tokens."""

    rng: jax.Array
    # Index of the token written last, [].
    step: jax.Array
    # Token ids written so far, [b, n].
    tokens: jax.Array
    # True where the end was written, [b].
    finished: jax.Array
    # Keys and values of the prefix and of n tokens, each [layer, b, p + n, kv heads, head_dim].
    cache: gemma.KVCache


class Pi0FAST(_model.BaseModel):
    """pi0-FAST."""

    def __init__(self, config: Pi0FASTConfig, rngs: nnx.Rngs):
        """Create random parameters (float32)."""
        super().__init__(config)
        self.published_decoding = config.published_decoding
        self.PaliGemma = PaliGemma(
            (gemma.get_config(config.paligemma_variant),),
            siglip.get_config(config.vision_variant),
            dtype=config.dtype,
            adaptive_norms=(False,),
            float32_queries=True,
            rngs=rngs,
        )

    @at.typecheck
    def embed_inputs(
        self, obs: _model.Observation
    ) -> tuple[at.Float[at.Array, "b s d"], at.Bool[at.Array, "b s"], at.Int[at.Array, "b s"]]:
        """Embed images and tokens.

        Returns:
            The tokens, which of them are valid, and where a new attention block starts.
        """
        images, image_valid = self.PaliGemma.embed_images(
            obs.images.values(), (obs.image_masks[key] for key in obs.images)
        )  # [b, s of the images, d], [b, s of the images]
        tokens = jnp.concatenate([images, self.PaliGemma.llm.embed(obs.tokenized_prompt)], axis=1)  # [b, s, d]
        valid = jnp.concatenate([image_valid, obs.tokenized_prompt_mask], axis=1)  # [b, s]
        starts = jnp.concatenate([jnp.zeros_like(image_valid, dtype=jnp.int32), obs.token_ar_mask], axis=1)  # [b, s]
        return tokens, valid, starts

    @at.typecheck
    def compute_loss(
        self, rng: at.KeyArrayLike, observation: _model.Observation, actions: Any, *, train: bool = False
    ) -> at.Float[at.Array, " b"]:
        """Return the cross-entropy of the next token.

        It is averaged over the tokens of `token_loss_mask`. `actions` are not read, because they are part of the tokens.
        """
        return self.loss_of_inputs(self.draw_loss_inputs(rng, observation, actions, train=train))

    def draw_loss_inputs(
        self, rng: at.KeyArrayLike, observation: _model.Observation, actions: Any, *, train: bool = False
    ) -> _model.Observation:
        """Prepare the images. Nothing else is random."""
        del actions
        return self._preprocess(rng, observation, train=train)

    def loss_of_inputs(self, inputs: _model.Observation) -> at.Float[at.Array, " b"]:
        """Return the loss of the result of `draw_loss_inputs`."""
        observation = inputs
        assert observation.tokenized_prompt is not None
        assert observation.token_loss_mask is not None
        tokens, valid, starts = self.embed_inputs(observation)  # [b, s, d], [b, s], [b, s]
        # The last token predicts nothing.
        mask = make_attn_mask(valid, starts)[:, :-1, :-1]  # [b, s - 1, s - 1]
        # Positions count padding too, as the weights were trained. This is only right because padding comes last.
        positions = jnp.broadcast_to(jnp.arange(mask.shape[-1]), mask.shape[:2])  # [b, s - 1]
        (hidden,), _ = self.PaliGemma.llm([tokens[:, :-1]], positions, mask)  # [b, s - 1, d]
        # Each prompt token but the last predicts the next one.
        targets = observation.tokenized_prompt[:, 1:]  # [b, l - 1]
        assert hidden is not None
        logits = self.PaliGemma.llm.decode(hidden[:, -targets.shape[1] :])  # [b, l - 1, v]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)  # [b, l - 1]
        counted = observation.token_loss_mask[:, 1:]  # [b, l - 1]
        return jnp.sum(losses * counted, axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)  # [b]

    @at.typecheck
    def sample_actions(  # type: ignore[override]  # every model has its own sampling options
        self,
        rng: at.KeyArrayLike,
        observation: _model.Observation,
        *,
        max_decoding_steps: int = 256,
        temperature: float | at.Float[at.Array, ""] = 0.0,
    ) -> at.Float[at.Array, "b n"]:
        """Write action tokens until every sample has ended.

        Args:
            rng: Random key, used if `temperature` > 0.
            observation: Batched observation. Its tokens are the prompt without actions.
            max_decoding_steps: Maximum number of tokens to write. Determines the width of the result.
            temperature: 0 takes the most likely token, larger values draw from the softened distribution.

        Returns:
            Token ids up to and including the end token, then zeros. They are float32, like all models' actions.
        """
        observation = self._preprocess(None, observation, train=False)
        # The prompt predicts the first token.
        logits, prefix_keys, cache = self._read_prompt(observation)  # [b, v], [b, p], [layer, b, p, k, h] x 2
        rng, key = jax.random.split(rng)
        token = _choose(key, logits, temperature)  # [b]
        # Room for all tokens and their keys and values, because shapes must not change in a loop.
        tokens = (
            jnp.full((token.shape[0], max_decoding_steps), PAD_TOKEN, dtype=jnp.int32).at[:, 0].set(token)
        )  # [b, n]
        room = [(0, 0), (0, 0), (0, max_decoding_steps), (0, 0), (0, 0)]
        keys, values = (jnp.pad(part, room) for part in cache)  # [layer, b, p + n, k, h] each
        state = _Decoding(rng, jnp.int32(0), tokens, token == EOS_TOKEN, (keys, values))
        state = jax.lax.while_loop(
            lambda state: (state.step + 1 < max_decoding_steps) & ~jnp.all(state.finished),
            lambda state: self._write_token(state, prefix_keys, temperature),
            state,
        )
        return state.tokens.astype(jnp.float32)

    def _read_prompt(
        self, observation: _model.Observation
    ) -> tuple[at.Float[at.Array, "b v"], at.Bool[at.Array, "b s"], gemma.KVCache]:
        """Run the prompt alone.

        Returns:
            Scores of the first token, which prompt keys the written tokens may see, and the keys and values.
        """
        prefix, valid, starts = self.embed_inputs(observation)  # [b, p, d], [b, p], [b, p]
        positions = jnp.cumsum(valid, axis=1) - 1  # [b, p]
        (hidden,), cache = self.PaliGemma.llm([prefix], positions, make_attn_mask(valid, starts))  # [b, p, d]
        last = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)  # [b]
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)  # [b, 1, d]
        keys = valid
        if self.published_decoding:
            # The same keys unless a camera is masked. In that case its tokens displace the first ones.
            age = last[:, None] - jnp.arange(valid.shape[1])  # [b, p]
            keys = (age >= 0) & (age < jnp.sum(valid, axis=1, keepdims=True))  # [b, p]
        return self.PaliGemma.llm.decode(hidden[:, 0]), keys, cache

    def _write_token(
        self, state: _Decoding, prefix_keys: at.Bool[at.Array, "b s"], temperature: float | jax.Array
    ) -> _Decoding:
        """Read the token written last and write the next one.

        Samples that have ended get padding.
        """
        num_written = state.tokens.shape[1]
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.step, 1, axis=1)  # [b, 1]
        positions = jnp.sum(prefix_keys, axis=1, keepdims=True) + state.step + int(self.published_decoding)  # [b, 1]
        # Keys: the prefix, the tokens before this one, and this one, which gemma puts after the cache.
        earlier = jnp.broadcast_to(jnp.arange(num_written) < state.step, (token.shape[0], num_written))  # [b, n]
        visible = jnp.concatenate([prefix_keys, earlier, jnp.ones_like(token, dtype=bool)], axis=1)  # [b, p + n + 1]
        (hidden,), new = self.PaliGemma.llm(
            [self.PaliGemma.llm.embed(token)], positions, visible[:, None, :], kv_cache=state.cache
        )  # [b, 1, d], [layer, b, 1, k, h] x 2
        # Keep the keys and values of the token that was read.
        index = prefix_keys.shape[1] + state.step
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(part, fresh, index, axis=2)
            for part, fresh in zip(state.cache, new, strict=True)
        )  # [layer, b, p + n, k, h] each
        rng, key = jax.random.split(state.rng)
        assert hidden is not None
        following = _choose(key, self.PaliGemma.llm.decode(hidden[:, 0]), temperature)  # [b]
        following = jnp.where(state.finished, PAD_TOKEN, following)
        tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, following[:, None], state.step + 1, axis=1)  # [b, n]
        return _Decoding(rng, state.step + 1, tokens, state.finished | (following == EOS_TOKEN), (keys, values))

    def _preprocess(
        self, rng: at.KeyArrayLike | None, observation: _model.Observation, *, train: bool
    ) -> _model.Observation:
        # Sorted, so that the order of the cameras is the same inside jit, which sorts dicts, and outside.
        return _model.preprocess_observation(rng, observation, train=train, image_keys=sorted(observation.images))


def _choose(
    key: at.KeyArrayLike, logits: at.Float[at.Array, "b v"], temperature: float | jax.Array
) -> at.Int[at.Array, " b"]:
    """Choose the most likely token at temperature 0, a random one above."""
    greedy = jnp.argmax(logits, axis=-1)  # [b]
    # Avoid a division by zero, because jit computes the operands of both branches.
    drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1.0), axis=-1)  # [b]
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)
