"""pi0 and pi0.5: a flow-matching action expert on top of PaliGemma.

The expert attends to PaliGemma's tokens of images and text. The flow runs from noise at t = 1 to actions at t = 0 (the
papers count the other way): x_t = t * noise + (1 - t) * actions. The network predicts the velocity noise - actions. The
prefix (images, prompt) does not depend on t, so sampling computes its keys and values once.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from openpi.models import batch_shapes
from openpi.models import flow_time
from openpi.models import gemma
from openpi.models import initializers
from openpi.models import model as _model
from openpi.models import pi0_config
from openpi.models import real_time_chunking as rtc
from openpi.models import siglip
from openpi.models.paligemma import PaliGemma
from openpi.models.paligemma import make_attn_mask
from openpi.shared import array_typing as at

# Training times follow Beta(1.5, 1), which favors noise, scaled into [0.001, 1].
_TIME_ALPHA, _TIME_BETA = 1.5, 1.0
_TIME_MIN = 0.001

TokenArray = at.Float[at.Array, "b s d"]
"""Embedded tokens."""
Valid = at.Bool[at.Array, "b s"]
"""Which tokens are not padding."""
Starts = at.Bool[at.Array, " s"]
"""Where a new attention block starts. See `make_attn_mask`."""
_ConditionAt = Callable[[jax.Array, jax.Array], Callable[[jax.Array | None], flow_time.Condition]]
"""`(step, its time) -> (rows that are given, at time 0) -> condition`."""


class LossInputs(NamedTuple):
    """Everything that the loss depends on, except the parameters.

    Dimension 0 of every leaf is the sample.
    """

    # Preprocessed and, in training, augmented.
    observation: _model.Observation
    actions: at.Float[at.Array, "b ah ad"]
    # Start of the flow.
    noise: at.Float[at.Array, "b ah ad"]
    # Time of the flow, one per sample.
    time: at.Float[at.Array, " b"]
    # With `rtc_max_delay`: number of given actions, and weight of each action in the loss.
    delay: at.Int[at.Array, " b"] | None = None
    weights: at.Float[at.Array, "b ah"] | None = None


class Pi0(_model.BaseModel):
    """pi0, and with `config.pi05` pi0.5."""

    takes_slots_without_image = True

    def __init__(self, config: pi0_config.Pi0Config, rngs: nnx.Rngs):
        """Create random parameters (float32)."""
        super().__init__(config)
        self.pi05 = config.pi05
        self.rtc_max_delay = config.rtc_max_delay
        # Expert 0 is PaliGemma's language model, expert 1 reads and writes actions.
        paligemma = gemma.get_config(config.paligemma_variant)
        expert = gemma.get_config(config.action_expert_variant)
        self.PaliGemma = PaliGemma(
            (paligemma, expert),
            siglip.get_config(config.vision_variant),
            dtype=config.dtype,
            adaptive_norms=(False, config.pi05),
            rngs=rngs,
        )
        # Projections between robot numbers and tokens of the action expert. Names are those in checkpoints.
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
        """Embed images and prompt, which attend to each other in both directions."""
        # [b, s of the images, d], [b, s of the images]
        tokens, valid = self.PaliGemma.embed_images(obs.images.values(), (obs.image_masks[key] for key in obs.images))
        if obs.tokenized_prompt is not None:
            tokens = jnp.concatenate([tokens, self.PaliGemma.llm.embed(obs.tokenized_prompt)], axis=1)  # [b, s, d]
            valid = jnp.concatenate([valid, obs.tokenized_prompt_mask], axis=1)  # [b, s]
        return tokens, valid, jnp.zeros(tokens.shape[1], dtype=bool)

    @at.typecheck
    def embed_suffix(
        self,
        obs: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        timestep: at.Float[at.Array, " b"] | at.Float[at.Array, "b ah"],
    ) -> tuple[TokenArray, Valid, Starts, at.Float[at.Array, "b d"] | at.Float[at.Array, "b ah d"] | None]:
        """Embed state, noisy actions and time.

        The time is one number for all actions of a sample, or one per action.

        Returns:
            Tokens, their validity, the starts of attention blocks, and the condition of the expert's norms (pi0.5). The
            prefix does not see the suffix, and pi0's state does not see the actions.
        """
        time = self._embed_time(timestep)  # [b, d] or [b, ah, d]
        return *self._embed_suffix(obs, noisy_actions, time), time if self.pi05 else None

    def _embed_time(self, timestep: at.Float[at.Array, "*b"]) -> at.Float[at.Array, "*b d"]:
        """Embed the time for the suffix.

        The result is pi0.5's condition, or the contribution of the time to pi0's first action layer.
        """
        width = self.action_in_proj.out_features
        # [*b, d]
        time = flow_time.embed(timestep.reshape(-1), width).reshape(*timestep.shape, width)
        if self.pi05:
            return nnx.swish(self.time_mlp_out(nnx.swish(self.time_mlp_in(time))))
        return time @ self.action_time_mlp_in.kernel[...][width:]  # [*b, d]

    def _embed_suffix(
        self,
        obs: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        time: at.Float[at.Array, "#b d"] | at.Float[at.Array, "#b ah d"],
    ) -> tuple[TokenArray, Valid, Starts]:
        """Embed state and noisy actions. `time` comes from `_embed_time`."""
        tokens = self.action_in_proj(noisy_actions)  # [b, ah, d]
        num_blocks = 1
        if not self.pi05:
            # The layer reads the concatenation of actions and time. The time's part is often the same for all actions, so
            # it is computed separately and added.
            layer = self.action_time_mlp_in
            part = time[:, None, :] if time.ndim == 2 else time  # [b, 1 or ah, d]
            hidden = tokens @ layer.kernel[...][: tokens.shape[-1]] + part + layer.bias[...]  # [b, ah, d]
            state = self.state_proj(obs.state)[:, None, :]  # [b, 1, d]
            tokens = jnp.concatenate([state, self.action_time_mlp_out(nnx.swish(hidden))], axis=1)  # [b, 1 + ah, d]
            num_blocks = 2
        starts = jnp.array([True] * num_blocks + [False] * (tokens.shape[1] - num_blocks))  # [s]
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
        """Return the squared error of the velocity at a random time.

        It is averaged over the numbers of each action. With `rtc_max_delay` the model is given a random number of the first
        actions, as in the sampling method "prefix". Their loss is 0, and the loss of the others is larger in proportion, so
        that the mean is the mean over the actions to be predicted.
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
        """Prepare the images and draw noise and time.

        With `rtc_max_delay`, the number of given actions is drawn too.
        """
        preprocess_rng, noise_rng, time_rng = jax.random.split(rng, 3)
        observation = _model.preprocess_observation(preprocess_rng, observation, train=train)
        self._check_numbers(observation, "actions", actions)
        noise = jax.random.normal(noise_rng, actions.shape)  # [b, ah, ad]
        time = jax.random.beta(time_rng, _TIME_ALPHA, _TIME_BETA, actions.shape[:1])  # [b]
        time = time * (1 - _TIME_MIN) + _TIME_MIN
        if not self.rtc_max_delay:
            return LossInputs(observation, actions, noise, time)
        # A key of its own, so that the other three stay the same as without the option.
        delay = jax.random.randint(jax.random.fold_in(rng, 3), time.shape, 0, self.rtc_max_delay + 1)  # [b]
        return LossInputs(observation, actions, noise, time, delay, rtc.loss_weights(delay, self.action_horizon))

    def loss_of_inputs(self, inputs: LossInputs) -> at.Float[at.Array, "b ah"]:
        """Return the loss of the result of `draw_loss_inputs`."""
        observation, actions, noise, time, delay, weights = inputs
        if delay is not None:
            velocity = self.predict_velocity(observation, *rtc.training_inputs(actions, noise, time, delay))
            return weights * jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)  # [b, ah]
        t = time[:, None, None]  # [b, 1, 1]
        velocity = self.predict_velocity(observation, t * noise + (1 - t) * actions, time)  # [b, ah, ad]
        return jnp.mean(jnp.square(velocity - (noise - actions)), axis=-1)  # [b, ah]

    def predict_velocity(
        self,
        observation: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        time: at.Float[at.Array, " b"] | at.Float[at.Array, "b ah"],
    ) -> at.Float[at.Array, "b ah ad"]:
        """Run prefix and suffix in one pass.

        `observation` is preprocessed, and `time` is the `timestep` of `embed_suffix`.
        """
        prefix, prefix_valid, prefix_starts = self.embed_prefix(observation)  # [b, p, d], [b, p], [p]
        suffix, suffix_valid, suffix_starts, cond = self.embed_suffix(
            observation, noisy_actions, time
        )  # [b, s, d], ...
        valid = jnp.concatenate([prefix_valid, suffix_valid], axis=1)  # [b, p + s]
        mask = make_attn_mask(valid, jnp.concatenate([prefix_starts, suffix_starts]))  # [b, p + s, p + s]
        positions = jnp.cumsum(valid, axis=1) - 1  # [b, p + s]
        (_, out), _ = self.PaliGemma.llm([prefix, suffix], positions, mask, adarms_cond=[None, cond])
        return self._project_out(out)

    def _project_out(self, out: jax.Array) -> jax.Array:
        # [b, s, d] -> [b, ah, ad]. The last tokens are those of the actions.
        return self.action_out_proj(out[:, -self.action_horizon :])

    @at.typecheck
    def sample_actions(  # type: ignore[override]  # every model has its own sampling options
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
            num_steps: Number of steps. If it is a plain int, everything that depends only on the time is computed at once,
                before the first step. A traced number works too.
            noise: Start of the flow instead of random noise.
            guidance: The left-over of the previous chunk, for a chunk that continues it.

        Returns:
            Normalized actions, float32.

        Raises:
            ValueError: `num_steps` is less than 1, or the method is "prefix" and the model was not trained for it.
        """
        self._check_options(num_steps, guidance)
        observation = _model.preprocess_observation(None, observation, train=False)
        if noise is None:
            noise = jax.random.normal(rng, (observation.state.shape[0], self.action_horizon, self.action_dim))
        self._check_numbers(observation, "noise", noise)

        # Images and prompt stay the same during the flow: their keys and values are computed once.
        prefix_valid, cache = self._fill_cache(observation)

        # The flow runs from noise at t = 1 to actions at t = 0.
        dt = -1.0 / num_steps
        condition_at = self._conditions(num_steps, guidance)

        def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, t = carry  # [b, ah, ad], []
            condition = condition_at(i, t)

            def predict(x: jax.Array, is_given: jax.Array | None = None, /) -> jax.Array:
                return self._predict_cached(observation, x, condition(is_given), prefix_valid, cache)

            x, velocity = rtc.steer(predict, x, t, guidance)
            return (x + dt * velocity).astype(jnp.float32), t + dt

        start = (noise.astype(jnp.float32), jnp.float32(1.0))
        actions, _ = jax.lax.fori_loop(0, num_steps, step, start)
        return rtc.fix_rows(actions, guidance)

    def _check_options(self, num_steps: int | jax.Array, guidance: rtc.Guidance | None) -> None:
        if isinstance(num_steps, int) and num_steps < 1:
            raise ValueError(f"sample_actions: found num_steps {num_steps}, expected at least 1")
        if rtc.has_given_rows(guidance) and not self.rtc_max_delay:
            raise ValueError("sample_actions: the method 'prefix' needs a model trained with rtc_max_delay")

    def _check_numbers(self, observation: _model.Observation, name: str, rows: jax.Array) -> None:
        """Refuse actions (or their noise) and states of another size."""
        (batch, width), dim = observation.state.shape, self.action_dim
        batch_shapes.check(
            {
                name: (rows, (batch, self.action_horizon, dim), "float"),
                # pi0.5 reads the state as text.
                "state": (observation.state, (batch, width if self.pi05 else dim), ""),
            }
        )

    def _fill_cache(self, observation: _model.Observation) -> tuple[at.Bool[at.Array, "b s"], gemma.KVCache]:
        """Run the prefix alone.

        Returns:
            Which of its tokens are valid, and its keys and values.
        """
        prefix, valid, starts = self.embed_prefix(observation)  # [b, p, d], [b, p], [p]
        positions = jnp.cumsum(valid, axis=1) - 1  # [b, p]
        _, cache = self.PaliGemma.llm(
            [prefix, None], positions, make_attn_mask(valid, starts)
        )  # [layer, b, p, k, h] x 2
        return valid, cache

    def _conditions(self, num_steps: int | jax.Array, guidance: rtc.Guidance | None) -> _ConditionAt:
        """Prepare the conditions of all steps.

        If the number of steps is known, they are a table that is computed now.
        """
        table = jax.vmap(self._condition)(flow_time.euler_times(num_steps)) if isinstance(num_steps, int) else None
        clean = self._condition(jnp.float32(0.0)) if rtc.has_given_rows(guidance) else None

        def condition_at(i: jax.Array, t: jax.Array) -> Callable[[jax.Array | None], flow_time.Condition]:
            noisy = self._condition(t) if table is None else jax.tree.map(lambda rows: rows[i], table)
            return lambda is_given: noisy if clean is None else flow_time.choose_by_row(is_given, clean, noisy)

        return condition_at

    def _condition(self, time: at.Float[at.Array, ""]) -> flow_time.Condition:
        embedding = self._embed_time(time[None])  # [1, d]
        return flow_time.Condition(embedding, self.PaliGemma.llm.modulate([None, embedding]) if self.pi05 else None)

    def _predict_cached(
        self,
        observation: _model.Observation,
        noisy_actions: at.Float[at.Array, "b ah ad"],
        condition: flow_time.Condition,
        prefix_valid: at.Bool[at.Array, "b p"],
        cache: gemma.KVCache,
    ) -> at.Float[at.Array, "b ah ad"]:
        """Run the suffix with the prefix's keys and values."""
        suffix, valid, starts = self._embed_suffix(observation, noisy_actions, condition.embedding)  # [b, s, d], ...
        b, s = valid.shape
        to_prefix = jnp.broadcast_to(prefix_valid[:, None, :], (b, s, prefix_valid.shape[1]))  # [b, s, p]
        mask = jnp.concatenate([to_prefix, make_attn_mask(valid, starts)], axis=-1)  # [b, s, p + s]
        positions = jnp.sum(prefix_valid, axis=1, keepdims=True) + jnp.cumsum(valid, axis=1) - 1  # [b, s]
        (_, out), _ = self.PaliGemma.llm(
            [None, suffix], positions, mask, modulation=condition.modulation, kv_cache=cache
        )
        return self._project_out(out)
