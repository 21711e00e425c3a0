"""The interface of an agent, which decides what the robot does next."""

import abc
from typing import Any


class Agent(abc.ABC):
    """Chooses one action per step."""

    @abc.abstractmethod
    def get_action(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return the action for this observation."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Prepare for a new episode."""
