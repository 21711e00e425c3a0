"""A trained model with the transforms between robot and model."""

from collections.abc import Mapping, Sequence
import inspect
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openpi import transforms as _transforms
from openpi.models import model as _model
from openpi.models import real_time_chunking as rtc
from openpi.policies import program_shapes
from openpi.policies.left_over import LeftOverReader
from openpi.policies.recorder import PolicyRecorder as PolicyRecorder
from openpi.shared import array_typing as at
from openpi.shared import nnx_utils
from openpi.shared.errors import DataError
from openpi_client import base_policy as _base_policy
from openpi_client import protocol

# What transforms raise about values that they did not expect. The example of the warm-up has passed them, so the request is odd.
_ABOUT_INPUT = (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_ABOUT_MACHINE = (OSError, ImportError)


class Policy(_base_policy.BasePolicy):
    """Predicts a chunk of a robot's actions from one unbatched observation.

    Do not call it from several threads.
    """

    def __init__(
        self,
        model: _model.BaseModel,
        *,
        rng: at.KeyArrayLike | None = None,
        transforms: Sequence[_transforms.DataTransformFn] = (),
        output_transforms: Sequence[_transforms.DataTransformFn] = (),
        sample_kwargs: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        rtc_methods: Sequence[rtc.Method] | None = None,
    ) -> None:
        """Wrap a model. Later changes of its parameters have no effect.

        Args:
            model: Samples the actions.
            rng: Start of the random numbers, split once per call. Key 0 by default.
            transforms: From the robot's observation to the model's, in order.
            output_transforms: From the model's state and actions to the robot's, in order.
            sample_kwargs: Fixed keyword arguments of the model's `sample_actions`, for example `num_steps`.
            metadata: Metadata that a server sends to its clients.
            rtc_methods: Methods of real-time chunking that requests may use, the preferred one first. None: the model's
                methods that take no extra time.

        Raises:
            ConfigError: The model does not support one of `rtc_methods`.
        """
        # Known at compile time: pi0-FAST's determines a shape, pi0's lets everything that depends only on time be computed
        # once.
        static = ("max_decoding_steps", "num_steps")
        self._sample_actions = nnx_utils.module_jit(model.sample_actions, static_argnames=static)
        self._noise_shape = (1, model.action_horizon, model.action_dim)
        self._takes_noise = "noise" in inspect.signature(model.sample_actions).parameters
        self._shapes = program_shapes.ProgramShapes(may_drop_images=model.takes_slots_without_image)
        self._sample_kwargs = dict(sample_kwargs or {})
        self.left_over = LeftOverReader(model, rtc_methods, self._sample_kwargs.get("num_steps"))
        """Reads the left-over of a previous chunk, if the model supports it."""
        self._rng = jax.random.key(0) if rng is None else rng
        self._transform = _transforms.compose(transforms)
        self._output_transform = _transforms.compose(output_transforms)
        self._metadata = dict(metadata or {})

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata that a server sends to its clients."""
        return self._metadata

    def infer(self, obs: Mapping[str, Any], *, noise: np.ndarray | None = None) -> dict[str, Any]:
        """Sample a chunk of actions.

        Args:
            obs: One observation, unbatched, as the input transforms expect it, and optionally the left-over of the previous
                chunk (see `openpi.policies.left_over`). It stays unchanged.
            noise: Start of the flow, [ah, ad] or [1, ah, ad]. Random by default.

        Returns:
            `actions`, everything else that the output transforms return, and `policy_timing`: durations in ms of the model
            (`infer_ms`, until its numbers have arrived) and of the transforms before and after it.

        Raises:
            DataError: The transforms refuse the observation, or return something other than numbers.
        """
        start_s = time.monotonic()
        inputs, guidance = self._prepare_guided(obs)
        kwargs = self._sample_kwargs | guidance
        if noise is not None:
            noise = jnp.asarray(noise)
            kwargs["noise"] = noise[None] if noise.ndim == 2 else noise
        return self._sample([inputs], self._next_rng(), kwargs, 1, start_s)[0]

    def infer_batch(self, observations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer several observations with one call of the model.

        The random numbers are the same as in single calls of `infer` in this order, so results differ only by rounding.
        Batches are padded to a power of two, so that few sizes have to be compiled. The observations are answered one by one
        if the model does not take its noise as an argument, or if one of them has a left-over. Timing is that of the whole
        batch.

        Raises:
            DataError: An observation is refused. In that case no random numbers were used.
        """
        # Answer one by one where a batch is not possible.
        has_left_over = any(protocol.RTC_KEY in obs for obs in observations)
        if not self._takes_noise or "noise" in self._sample_kwargs or has_left_over:
            return [self.infer(obs) for obs in observations]
        # Prepare all observations before drawing noise, because any of them may be refused.
        start_s = time.monotonic()
        inputs = [self._prepare(obs) for obs in observations]
        count = len(inputs)
        padding = (1 << (count - 1).bit_length()) - count
        # formula: a flow model starts from normal noise of its rng.
        noise = [jax.random.normal(self._next_rng(), self._noise_shape) for _ in range(count)]  # [1, ah, ad] each
        kwargs = {**self._sample_kwargs, "noise": jnp.concatenate(noise + noise[:1] * padding)}
        return self._sample(inputs + inputs[:1] * padding, self._rng, kwargs, count, start_s)

    def warm_up_requests(self, example: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a request for each program that `example` does not use.

        Args:
            example: A request.
            result: Its answer.
        """
        return self.left_over.examples(example, result["actions"])

    def _next_rng(self) -> at.KeyArrayLike:
        self._rng, rng = jax.random.split(self._rng)
        return rng

    def _sample(
        self, inputs: list[dict[str, Any]], rng: Any, kwargs: dict[str, Any], count: int, start_s: float
    ) -> list[dict[str, Any]]:
        """Run the model and convert the first `count` results for the robot."""
        # The last shape gives the answer. One before it only runs to be compiled.
        prepared_s = time.monotonic()
        kind = program_shapes.kind_of(len(inputs), kwargs)
        for shape in self._shapes.choose(kind, inputs):
            observation = _stack([program_shapes.cut(sample, shape) for sample in inputs])
            # Computation is asynchronous. Without waiting, the measured time would be that of the dispatch.
            actions = jax.block_until_ready(self._sample_actions(rng, observation, **kwargs))
            self._shapes.has_run(kind, shape)
        sampled_s = time.monotonic()
        # Copies, because a view of the device's memory is not writable.
        states, actions = np.array(observation.state), np.array(actions)  # [b, s], [b, ah, ad]
        outputs = [self._output_transform({"state": states[i], "actions": actions[i]}) for i in range(count)]
        timing = {
            "infer_ms": 1000 * (sampled_s - prepared_s),
            "preprocess_ms": 1000 * (prepared_s - start_s),
            "postprocess_ms": 1000 * (time.monotonic() - sampled_s),
        }
        return [{**output, protocol.POLICY_TIMING_KEY: dict(timing)} for output in outputs]

    def _prepare_guided(self, obs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the model's inputs, and its arguments for a left-over."""
        obs, left_over = self.left_over.split(obs)
        if left_over is None:
            return self._prepare(obs), {}
        try:
            inputs = self._prepare({**obs, "actions": left_over.actions})
        except DataError as e:
            raise DataError(f"with the 'left_over' of 'rtc' as actions: {e}") from e
        if "actions" not in inputs:
            raise DataError("rtc: the policy's transforms accept no actions, so it cannot continue a left-over")
        return inputs, {"guidance": self.left_over.guidance(left_over, inputs.pop("actions"))}

    def _prepare(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's inputs, nested numpy arrays without a batch axis."""
        # Transforms may add and remove keys. The caller's containers must stay unchanged.
        containers = jax.tree.map(lambda leaf: leaf, dict(obs))
        try:
            inputs = self._transform(containers)
        except (ValueError, *_ABOUT_INPUT) as e:
            if isinstance(e, _ABOUT_MACHINE):
                raise
            # The robot's transforms say what they cannot use. The other errors are Python's own about a value of another kind.
            raise DataError(str(e) if isinstance(e, ValueError) else f"observation: {type(e).__name__}: {e}") from e
        return jax.tree_util.tree_map_with_path(_numbers, inputs)


def _numbers(path: Any, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"observation: {jax.tree_util.keystr(path)} is {array.dtype} after the transforms, expected numbers"
        )
    return array


def _stack(inputs: Sequence[dict[str, Any]]) -> _model.Observation:
    """Batch inputs of equal shapes."""
    if len(inputs) == 1:
        return _observation(jax.tree.map(lambda leaf: leaf[None], inputs[0]))
    return _observation(jax.tree.map(lambda *leaves: np.stack(leaves), *inputs))


# One program instead of a dozen small ones, whose dispatch would take as long as their work.
_observation = jax.jit(_model.Observation.from_dict)
