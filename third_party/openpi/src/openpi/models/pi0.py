"""pi0 and pi0.5: a flow-matching action expert that attends to PaliGemma's view of images and text.

The flow runs from noise at t = 1 to actions at t = 0 (the papers count the other way round): x_t = t * noise +
(1 - t) * actions, and the network predicts the velocity noise - actions. The prefix (images, prompt) does not
depend on t, so sampling computes its keys and values once.
"""

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from openpi.models import batch_shapes
from openpi.models import gemma
from openpi.models import initializers
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import real_time_chunking as rtc
from openpi.models import siglip
from openpi.models.paligemma import PaliGemma
from openpi.models.paligemma import make_attn_mask
from openpi.shared import array_typing as at

# Training times follow Beta(1.5, 1), which favours noise, scaled into [0.001, 1].
_TIME_ALPHA, _TIME_BETA = 1.5, 1.0
_TIME_MIN = 0.001
# Periods of the time embedding's sines.
_MIN_PERIOD, _MAX_PERIOD = 4e-3, 4.0

TokenArray = at.Float[at.Array, "b s d"]
"""Embedded tokens."""
Valid = at.Bool[at.Array, "b s"]
"""Which tokens are not padding."""
Starts = at.Bool[at.Array, " s"]
"""Where a new attention block starts; see `make_attn_mask`."""


def posemb_sincos(
    pos: at.Real[at.Array, " b"], embedding_dim: int, min_period: float, max_period: float
) -> at.Float[at.Array, "b {embedding_dim}"]:
    """Embed scalars as sines, then cosines, of geometrically spaced periods from `min_period` to `max_period`.

    Raises:
        ValueError: `embedding_dim` is odd.
    """
    if embedding_dim % 2:
        raise ValueError(f"posemb_sincos: found embedding_dim {embedding_dim}, expected an even number")
    fraction = jnp.linspace(0.0, 1.0, embedding_dim // 2)
    period = min_period * (max_period / min_period) ** fraction
    # Full precision: the shortest period turns a rounding error of t into a visible phase.
    angle = jnp.einsum("i,j->ij", pos, 1.0 / period * 2 * jnp.pi, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class LossInputs(NamedTuple):
    """All that the loss depends on but the parameters; dimension 0 of every leaf is the sample."""

    # Preprocessed and, in training, augmented.
    observation: _model.Observation
    actions: at.Float[at.Array, "b ah ad"]
    # Where the flow begins, [b, ah, ad].
    noise: at.Float[at.Array, "b ah ad"]
    # Time of the flow, one for each sample.
    time: at.Float[at.Array, " b"]
    # With `rtc_max_delay`: number of given actions, and what the loss of each action counts.
    delay: at.Int[at.Array, " b"] | None = None
    weights: at.Float[at.Array, "b ah"] | None = None


class _Condition(NamedTuple):
    """All that depends on the time of the flow alone."""

    # Result of `Pi0._embed_time` for one time; with a time for each action [b, ah, d].
    embedding: at.Float[at.Array, "1 d"] | at.Float[at.Array, "b ah d"]
    # pi0.5 only.
    modulation: gemma.Modulation | None


def _choose_by_row(is_clean: at.Bool[at.Array, "b ah"], clean: _Condition, noisy: _Condition) -> _Condition:
    """Return a condition for each action, [b, ah, d] where there was [1, d] (layers keep their leading axis)."""
    return jax.tree.map(
        lambda ours, theirs: jnp.where(is_clean[..., None], ours[..., None, :], theirs[..., None, :]), clean, noisy
    )


def _euler_times(num_steps: int) -> at.Float[at.Array, " n"]:
    """Return the time before each step, summed up step by step in float32 as a loop over the steps does it.

    Products i * dt would differ in the last bit, which the shortest period of the time embedding shows.
    """
    return jnp.asarray(np.cumsum([1.0] + [-1.0 / num_steps] * (num_steps - 1), dtype=np.float32))


class Pi0(_model.BaseModel):
    """pi0, and with `config.pi05` pi0.5."""

    takes_slots_without_image = True

    def __init__(self, config: pi0_config.Pi0Config, rngs: nnx.Rngs):
        """Create random parameters (float32)."""
        super().__init__(config)
        self.pi05 = config.pi05
        self.rtc_max_delay = config.rtc_max_delay
        paligemma = gemma.get_config(config.paligemma_variant)
        expert = gemma.get_config(config.action_expert_variant)
        self.PaliGemma = PaliGemma(
            (paligemma, expert),
            siglip.get_config(config.vision_variant),
            dtype=config.dtype,
            adaptive_norms=(False, config.pi05),
            rngs=rngs,
        )
        width = expert.width
        linear = functools.partial(nnx.Linear, kernel_init=initializers.lecun_normal(), rngs=rngs)
        self.action_in_proj = linear(config.action_dim, width)
        if config.pi05:
            self.time_mlp_in = linear(width, width)
            self.time_mlp_out = linear(width, width)
        else:
            self.state_proj = linear(config.action_dim, width)
            self.action_time_mlp_in = linear(2 * width, width)
            self.action_time_mlp_out = linear(width, width)
        self.action_out_proj = linear(width, config.action_dim)

    @at.typecheck
    def embed_prefix(self, obs: _model.Observation) -> tuple[TokenArray, Valid, Starts]:
        """Embed images and prompt; they attend to each other in both directions."""
        tokens, valid = self.PaliGemma.embed_images(obs.images.values(), (obs.image_masks[key] for key in obs.images))
        if obs.tokenized_prompt is not None:
            tokens = jnp.concatenate([tokens, self.PaliGemma.llm.embed(obs.tokenized_prompt)], axis=1)
            valid = jnp.concatenate([valid, obs.tokenized_prompt_mask], axis=1)
        return tokens, valid, jnp.zeros(tokens.shape[1], dtype=bool)

    @at.typecheck
    def embed_suffix(
        self,
        obs: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        timestep: at.Float[at.Array, " b"] | at.Float[at.Array, "b ah"],
    ) -> tuple[TokenArray, Valid, Starts, at.Float[at.Array, "b d"] | at.Float[at.Array, "b ah d"] | None]:
        """Embed state, noisy actions and time, one for all actions of a sample or one for each.

        Returns:
            Tokens, their validity, the starts of attention blocks (the prefix sees no suffix; pi0's state sees no
            action), and the condition of the expert's norms (pi0.5).
        """
        time = self._embed_time(timestep)
        return *self._embed_suffix(obs, noisy_actions, time), time if self.pi05 else None

    def _embed_time(self, timestep: at.Float[at.Array, "*b"]) -> at.Float[at.Array, "*b d"]:
        """Return what the suffix takes of the time: pi0.5's condition, or its share of pi0's first action layer."""
        width = self.action_in_proj.out_features
        time = posemb_sincos(timestep.reshape(-1), width, _MIN_PERIOD, _MAX_PERIOD).reshape(*timestep.shape, width)
        if self.pi05:
            return nnx.swish(self.time_mlp_out(nnx.swish(self.time_mlp_in(time))))
        return time @ self.action_time_mlp_in.kernel[...][width:]

    def _embed_suffix(
        self,
        obs: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        time: at.Float[at.Array, "#b d"] | at.Float[at.Array, "#b ah d"],
    ) -> tuple[TokenArray, Valid, Starts]:
        """Embed state and noisy actions; `time` comes from `_embed_time`."""
        tokens = self.action_in_proj(noisy_actions)
        starts = [True]
        if not self.pi05:
            # The layer reads [actions, time]. The time's share is often the same for all actions and joins as a sum.
            layer = self.action_time_mlp_in
            share = time[:, None, :] if time.ndim == 2 else time
            hidden = tokens @ layer.kernel[...][: tokens.shape[-1]] + share + layer.bias[...]
            state = self.state_proj(obs.state)[:, None, :]
            tokens = jnp.concatenate([state, self.action_time_mlp_out(nnx.swish(hidden))], axis=1)
            starts = [True, True]
        starts = jnp.array(starts + [False] * (tokens.shape[1] - len(starts)))
        return tokens, jnp.ones(tokens.shape[:2], dtype=bool), starts

    @at.typecheck
    def compute_loss(
        self,
        rng: at.KeyArrayLike,
        observation: _model.Observation,
        actions: at.Float[at.Array, "b ah ad"],
        *,
        train: bool = False,
    ) -> at.Float[at.Array, "b ah"]:
        """Return the squared error of the velocity at a random time, averaged over the numbers of each action.

        With `rtc_max_delay` the model is given a random number of the first actions, as it will be by the sampling method
        "prefix". Their loss is 0, that of the others larger in proportion: the mean is that of the actions to be predicted.
        """
        return self.loss_of_inputs(self.draw_loss_inputs(rng, observation, actions, train=train))

    @at.typecheck
    def draw_loss_inputs(
        self,
        rng: at.KeyArrayLike,
        observation: _model.Observation,
        actions: at.Float[at.Array, "b ah ad"],
        *,
        train: bool = False,
    ) -> LossInputs:
        """Prepare the images and draw noise and time, and with `rtc_max_delay` the number of given actions."""
        preprocess_rng, noise_rng, time_rng = jax.random.split(rng, 3)
        observation = _model.preprocess_observation(preprocess_rng, observation, train=train)
        self._check_numbers(observation, "actions", actions)
        noise = jax.random.normal(noise_rng, actions.shape)
        time = jax.random.beta(time_rng, _TIME_ALPHA, _TIME_BETA, actions.shape[:1]) * (1 - _TIME_MIN) + _TIME_MIN
        if not self.rtc_max_delay:
            return LossInputs(observation, actions, noise, time)
        # A key beside the three, which stay what they are without the option.
        delay = jax.random.randint(jax.random.fold_in(rng, 3), time.shape, 0, self.rtc_max_delay + 1)
        return LossInputs(observation, actions, noise, time, delay, rtc.loss_weights(delay, self.action_horizon))

    def loss_of_inputs(self, inputs: LossInputs) -> at.Float[at.Array, "b ah"]:
        """Return the loss of what `draw_loss_inputs` made."""
        observation, actions, noise, time, delay, weights = inputs
        if delay is not None:
            velocity = self.predict_velocity(observation, *rtc.training_inputs(actions, noise, time, delay))
            return weights * jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)
        t = time[:, None, None]
        velocity = self.predict_velocity(observation, t * noise + (1 - t) * actions, time)
        return jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)

    def predict_velocity(
        self,
        observation: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        time: at.Float[at.Array, " b"] | at.Float[at.Array, "b ah"],
    ) -> at.Float[at.Array, "b ah ad"]:
        """Run prefix and suffix in one pass; `observation` is preprocessed, `time` as in `embed_suffix`."""
        prefix, prefix_valid, prefix_starts = self.embed_prefix(observation)
        suffix, suffix_valid, suffix_starts, cond = self.embed_suffix(observation, noisy_actions, time)
        valid = jnp.concatenate([prefix_valid, suffix_valid], axis=1)
        mask = make_attn_mask(valid, jnp.concatenate([prefix_starts, suffix_starts]))
        positions = jnp.cumsum(valid, axis=1) - 1
        (_, out), _ = self.PaliGemma.llm([prefix, suffix], positions, mask, adarms_cond=[None, cond])
        return self._project_out(out)

    def _project_out(self, out: jax.Array) -> jax.Array:
        return self.action_out_proj(out[:, -self.action_horizon :])

    @at.typecheck
    def sample_actions(
        self,
        rng: at.KeyArrayLike,
        observation: _model.Observation,
        *,
        num_steps: int | at.Int[at.Array, ""] = 10,
        noise: at.Float[at.Array, "b ah ad"] | None = None,
        guidance: rtc.Guidance | None = None,
    ) -> at.Float[at.Array, "b ah ad"]:
        """Integrate the flow from noise to actions with Euler steps.

        Args:
            rng: Random key of the noise.
            observation: Batched observation.
            num_steps: Number of steps. A plain int lets all that depends on the time alone be computed at once, before
                the first step; a traced number is taken too.
            noise: Start of the flow instead of random noise.
            guidance: What is left over of the previous chunk, for a chunk that goes on from it.

        Returns:
            Normalised actions, float32.

        Raises:
            ValueError: `num_steps` is less than 1, or the method "prefix" is asked of a model that was not trained for it.
        """
        if isinstance(num_steps, int) and num_steps < 1:
            raise ValueError(f"sample_actions: found num_steps {num_steps}, expected at least 1")
        if guidance is not None and guidance.method == "prefix" and not self.rtc_max_delay:
            raise ValueError("sample_actions: the method 'prefix' needs a model trained with rtc_max_delay")
        observation = _model.preprocess_observation(None, observation, train=False)
        if noise is None:
            noise = jax.random.normal(rng, (observation.state.shape[0], self.action_horizon, self.action_dim))
        self._check_numbers(observation, "noise", noise)
        prefix_valid, cache = self._fill_cache(observation)
        dt = -1.0 / num_steps
        table = jax.vmap(self._condition)(_euler_times(num_steps)) if isinstance(num_steps, int) else None

        has_fixed_rows = guidance is not None and guidance.method == "prefix"
        clean = self._condition(jnp.float32(0.0)) if has_fixed_rows else None

        def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, t = carry
            condition = self._condition(t) if table is None else jax.tree.map(lambda rows: rows[i], table)
            if has_fixed_rows:
                x = rtc.fix_rows(x, guidance)
                condition = _choose_by_row(rtc.is_fixed(guidance.delay, self.action_horizon), clean, condition)

            def predict(x: jax.Array) -> jax.Array:
                return self._predict_cached(observation, x, condition, prefix_valid, cache)

            is_guided = guidance is not None and not has_fixed_rows
            velocity = rtc.guide(predict, x, t, guidance) if is_guided else predict(x)
            return (x + dt * velocity).astype(jnp.float32), t + dt

        start = (noise.astype(jnp.float32), jnp.float32(1.0))
        actions, _ = jax.lax.fori_loop(0, num_steps, step, start)
        return rtc.fix_rows(actions, guidance) if has_fixed_rows else actions

    def _check_numbers(self, observation: _model.Observation, name: str, rows: jax.Array) -> None:
        """Refuse actions (or their noise) and a state that are not those of this model."""
        (batch, width), dim = observation.state.shape, self.action_dim
        batch_shapes.check(
            {
                name: (rows, (batch, self.action_horizon, dim), "float"),
                # pi0.5 reads the state as text.
                "state": (observation.state, (batch, width if self.pi05 else dim), ""),
            }
        )

    def _fill_cache(self, observation: _model.Observation) -> tuple[at.Bool[at.Array, "b s"], gemma.KVCache]:
        """Run the prefix alone; return which of its tokens are valid, and its keys and values."""
        prefix, valid, starts = self.embed_prefix(observation)
        positions = jnp.cumsum(valid, axis=1) - 1
        _, cache = self.PaliGemma.llm([prefix, None], positions, make_attn_mask(valid, starts))
        return valid, cache

    def _condition(self, time: at.Float[at.Array, ""]) -> _Condition:
        embedding = self._embed_time(time[None])
        return _Condition(embedding, self.PaliGemma.llm.modulate([None, embedding]) if self.pi05 else None)

    def _predict_cached(
        self,
        observation: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        condition: _Condition,
        prefix_valid: at.Bool[at.Array, "b p"],
        cache: gemma.KVCache,
    ) -> at.Float[at.Array, "b ah ad"]:
        """Run the suffix on top of the prefix's keys and values."""
        suffix, valid, starts = self._embed_suffix(observation, noisy_actions, condition.embedding)
        b, s = valid.shape
        to_prefix = jnp.broadcast_to(prefix_valid[:, None, :], (b, s, prefix_valid.shape[1]))
        mask = jnp.concatenate([to_prefix, make_attn_mask(valid, starts)], axis=-1)
        positions = jnp.sum(prefix_valid, axis=1, keepdims=True) + jnp.cumsum(valid, axis=1) - 1
        (_, out), _ = self.PaliGemma.llm(
            [None, suffix], positions, mask, modulation=condition.modulation, kv_cache=cache
        )
        return self._project_out(out)
