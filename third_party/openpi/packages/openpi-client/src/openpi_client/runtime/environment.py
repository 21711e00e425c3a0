"""The robot, or its simulation, as the control loop sees it."""

import abc
from typing import Any


class Environment(abc.ABC):
    """Returns observations and executes actions."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Bring the robot to the start of an episode.

        It is called once before each episode and once after the last.
        """

    @abc.abstractmethod
    def is_episode_complete(self) -> bool:
        """Return whether the episode is over. It is called after each step."""

    @abc.abstractmethod
    def get_observation(self) -> dict[str, Any]:
        """Return what the robot senses now."""

    @abc.abstractmethod
    def apply_action(self, action: dict[str, Any]) -> None:
        """Execute one step."""
