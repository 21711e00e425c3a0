"""A trained model together with the transforms between a robot's numbers and its own."""

from collections.abc import Mapping, Sequence
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openpi import transforms as _transforms
from openpi.models import model as _model
from openpi.policies.recorder import PolicyRecorder as PolicyRecorder
from openpi.shared import array_typing as at
from openpi.shared import nnx_utils
from openpi.shared.errors import DataError
from openpi_client import base_policy as _base_policy
from openpi_client import protocol


class Policy(_base_policy.BasePolicy):
    """Turns one unbatched observation of a robot into a chunk of its actions. Not safe to call from several threads."""

    def __init__(
        self,
        model: _model.BaseModel,
        *,
        rng: at.KeyArrayLike | None = None,
        transforms: Sequence[_transforms.DataTransformFn] = (),
        output_transforms: Sequence[_transforms.DataTransformFn] = (),
        sample_kwargs: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a model; later changes of its parameters do not reach the policy.

        Args:
            model: Samples the actions.
            rng: Start of the random numbers, split once per call; key 0 by default.
            transforms: From the robot's observation to the model's, in order.
            output_transforms: From the model's state and actions to the robot's, in order.
            sample_kwargs: Fixed keyword arguments of the model's `sample_actions`, for example `num_steps`.
            metadata: What a server tells its clients.
        """
        self._sample_actions = nnx_utils.module_jit(model.sample_actions)
        self._sample_kwargs = dict(sample_kwargs or {})
        self._rng = jax.random.key(0) if rng is None else rng
        self._transform = _transforms.compose(transforms)
        self._output_transform = _transforms.compose(output_transforms)
        self._metadata = dict(metadata or {})

    @property
    def metadata(self) -> dict[str, Any]:
        """What a server tells its clients."""
        return self._metadata

    def infer(self, obs: Mapping[str, Any], *, noise: np.ndarray | None = None) -> dict[str, Any]:
        """Sample a chunk of actions.

        Args:
            obs: One observation, unbatched, as the input transforms expect it; not changed.
            noise: The starting point of the flow, [ah, ad] or [1, ah, ad]; without it random.

        Returns:
            `actions` and whatever else the output transforms leave, and `policy_timing`: durations in ms of the model
            (`infer_ms`, until its numbers are there) and of the transforms before and after it.

        Raises:
            DataError: the transforms refuse the observation, or leave something else than numbers.
        """
        start_s = time.monotonic()
        observation = self._prepare(obs)
        kwargs = dict(self._sample_kwargs)
        if noise is not None:
            noise = jnp.asarray(noise)
            kwargs["noise"] = noise[None] if noise.ndim == 2 else noise
        self._rng, sample_rng = jax.random.split(self._rng)
        prepared_s = time.monotonic()
        # Computation is asynchronous: without the wait the time would be that of the dispatch.
        actions = jax.block_until_ready(self._sample_actions(sample_rng, observation, **kwargs))
        sampled_s = time.monotonic()
        # Copies, because a view of the device's memory could not be written to.
        outputs = {"state": np.array(observation.state)[0], "actions": np.array(actions)[0]}
        outputs = self._output_transform(outputs)
        return {
            **outputs,
            protocol.POLICY_TIMING_KEY: {
                "infer_ms": 1000 * (sampled_s - prepared_s),
                "preprocess_ms": 1000 * (prepared_s - start_s),
                "postprocess_ms": 1000 * (time.monotonic() - sampled_s),
            },
        }

    def _prepare(self, obs: Mapping[str, Any]) -> _model.Observation:
        # Transforms may add and remove keys; the caller's containers must not notice.
        containers = jax.tree.map(lambda leaf: leaf, dict(obs))
        try:
            inputs = self._transform(containers)
        except ValueError as e:  # the robot's transforms refuse observations that they cannot use
            raise DataError(str(e)) from e
        return _model.Observation.from_dict(jax.tree_util.tree_map_with_path(_batch_of_one, inputs))


def _batch_of_one(path: Any, leaf: Any) -> jax.Array:
    array = np.asarray(leaf)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"observation: {jax.tree_util.keystr(path)} is {array.dtype} after the transforms, expected numbers"
        )
    return jnp.asarray(array)[None]
