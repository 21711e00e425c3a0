"""Lets a policy drive the robot."""

from typing import Any

from openpi_client.base_policy import BasePolicy
from openpi_client.runtime.agent import Agent


class PolicyAgent(Agent):
    """An agent that executes a policy.

    The policy is usually an `ActionChunkBroker` around a websocket client.
    """

    def __init__(self, policy: BasePolicy) -> None:
        self._policy = policy

    def get_action(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return the policy's answer."""
        return self._policy.infer(observation)

    def reset(self) -> None:
        """Reset the policy."""
        self._policy.reset()
