"""A policy without a model, which replays a recorded episode.

Use it to prove a robot's control loop before you trust a model.
"""

import pathlib
from typing import Any

import numpy as np

from openpi.shared.errors import DataError
from openpi.training.lerobot.dataset import LeRobotDataset
from openpi_client import base_policy as _base_policy

ACTION_KEY = "action"


class ReplayPolicy(_base_policy.BasePolicy):
    """Answers each client's k-th request with actions from step k * action_chunk.

    A client that executes `action_chunk` steps of each answer therefore repeats the recording. After the end, the last
    action is held. The content of the observations does not matter.
    """

    def __init__(self, actions: np.ndarray, *, action_horizon: int, action_chunk: int) -> None:
        """Replay `actions` [t, d] in answers of `action_horizon` steps.

        Raises:
            ValueError: There are no actions, or the chunk is longer than the horizon.
        """
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"actions: found shape {actions.shape}, expected (steps, numbers) with at least one step")
        if not 1 <= action_chunk <= action_horizon:
            raise ValueError(f"action_chunk: found {action_chunk}, expected 1 to action_horizon = {action_horizon}")
        self._actions = actions
        self._horizon = action_horizon
        self._chunk = action_chunk
        self._step = 0

    def for_client(self) -> "ReplayPolicy":
        """Return a policy that starts at the first step."""
        return ReplayPolicy(self._actions, action_horizon=self._horizon, action_chunk=self._chunk)

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Return the next `action_horizon` recorded actions [action_horizon, d]."""
        steps = np.minimum(np.arange(self._step, self._step + self._horizon), len(self._actions) - 1)
        self._step += self._chunk
        return {"actions": self._actions[steps]}

    def reset(self) -> None:
        """Return to the first step."""
        self._step = 0


def read_actions(
    repo_id: str, episode: int, root: pathlib.Path | str | None = None, key: str = ACTION_KEY
) -> np.ndarray:
    """Read the actions [t, d] of one episode of a LeRobot dataset.

    The images are not read.

    Raises:
        DataError: There is no such episode or column, or the dataset is damaged.
        MissingFileError: There is no such dataset.
    """
    dataset = LeRobotDataset(repo_id, root=root, action_sequence_keys=(key,), image_keys=(), column_keys=())
    episodes = dataset.meta.episodes
    if not 0 <= episode < len(episodes):
        raise DataError(f"dataset '{repo_id}': no episode {episode}, found {len(episodes)}, counted from 0")
    start, length = episodes[episode].first_frame, episodes[episode].length
    # Each item is a window of one step, [1, d].
    return np.concatenate([dataset[start + t][key] for t in range(length)])
