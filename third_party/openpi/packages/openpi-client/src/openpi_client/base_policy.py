"""The interface of every policy, in this process or behind a server."""

import abc
from typing import Any


class BasePolicy(abc.ABC):
    """Turns one observation into a chunk of actions."""

    @abc.abstractmethod
    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Return a dict with at least `actions`, whose first axis is time.

        `obs` is not changed.
        """

    def reset(self) -> None:  # noqa: B027 - most policies keep nothing between episodes, so this is optional
        """Forget everything remembered since the last episode."""
