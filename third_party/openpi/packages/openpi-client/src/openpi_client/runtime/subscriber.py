"""Whoever watches the control loop: recorders, displays, counters."""

import abc
from typing import Any


class Subscriber(abc.ABC):
    """Hears of every episode and step; must be quick, since the loop waits for it."""

    @abc.abstractmethod
    def on_episode_start(self) -> None:
        """An episode begins."""

    @abc.abstractmethod
    def on_step(self, observation: dict[str, Any], action: dict[str, Any]) -> None:
        """A step was executed: the observation it was chosen for, and the action."""

    @abc.abstractmethod
    def on_episode_end(self) -> None:
        """The episode ended, completed or broken off by an error."""
