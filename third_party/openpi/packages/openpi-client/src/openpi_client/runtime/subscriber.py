"""The interface of observers of the control loop: recorders, displays, counters."""

import abc
from typing import Any


class Subscriber(abc.ABC):
    """Is called for every episode and step.

    Its methods must be quick, because the loop waits for them.
    """

    @abc.abstractmethod
    def on_episode_start(self) -> None:
        """Handle the start of an episode."""

    @abc.abstractmethod
    def on_step(self, observation: dict[str, Any], action: dict[str, Any]) -> None:
        """Handle an executed step: the observation and the action chosen for it."""

    @abc.abstractmethod
    def on_episode_end(self) -> None:
        """Handle the end of an episode, complete or aborted by an error."""
