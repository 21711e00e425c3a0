"""Plays back a policy's chunks one action at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np

from openpi_client.base_policy import BasePolicy


class ActionChunkBroker(BasePolicy):
    """Returns one row of the inner policy's chunk per call.

    The inner policy is asked once per `action_horizon` steps, and the observations in between are ignored. A row is cut from
    every array of the result whose first axis is the time axis of `actions`, or from every array with an axis if there is no
    `actions`. Anything else is repeated as it is.
    """

    def __init__(self, policy: BasePolicy, action_horizon: int) -> None:
        """Wrap `policy` and execute `action_horizon` steps of each chunk.

        Raises:
            ValueError: `action_horizon` is below 1.
        """
        if action_horizon < 1:
            raise ValueError(f"action_horizon: found {action_horizon}, expected at least 1")
        self._policy = policy
        self._action_horizon = action_horizon
        self._chunk: dict[str, Any] | None = None
        self._step = 0

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Return the next single step.

        Raises:
            ValueError: The inner policy's chunk is shorter than `action_horizon`.
        """
        if self._chunk is None:
            chunk = self._policy.infer(obs)
            self._check_length(chunk)
            self._chunk, self._step = chunk, 0
        chunk, step = self._chunk, self._step
        self._step += 1
        if self._step >= self._action_horizon:
            self._chunk = None
        length = _chunk_length(chunk)
        return _map_arrays(chunk, lambda array: array[step] if _is_chunk(array, length) else array)

    def reset(self) -> None:
        """Drop the rest of the current chunk and reset the policy."""
        self._policy.reset()
        self._chunk = None

    def _check_length(self, chunk: dict[str, Any]) -> None:
        length = _chunk_length(chunk)

        def check(array: np.ndarray) -> np.ndarray:
            if _is_chunk(array, length) and len(array) < self._action_horizon:
                raise ValueError(
                    f"policy: returned {len(array)} steps, expected at least action_horizon = {self._action_horizon}"
                )
            return array

        _map_arrays(chunk, check)


def _chunk_length(chunk: dict[str, Any]) -> int | None:
    """Return the number of time steps of `actions`, or None without `actions`."""
    actions = chunk.get("actions")
    return len(actions) if isinstance(actions, np.ndarray) and actions.ndim else None


def _is_chunk(array: np.ndarray, length: int | None) -> bool:
    return array.ndim > 0 and (length is None or len(array) == length)


def _map_arrays(tree: Any, fn: Callable[[np.ndarray], Any]) -> Any:
    """Copy nested dicts, lists and tuples, and apply `fn` to each array."""
    if isinstance(tree, np.ndarray):
        return fn(tree)
    if isinstance(tree, dict):
        return {key: _map_arrays(value, fn) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_arrays(value, fn) for value in tree)
    return tree
