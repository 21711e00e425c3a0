"""The state that the parts of one policy server share."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

from openpi.serving.access import KeyCheck
from openpi.serving.inference_worker import InferenceWorker
from openpi.serving.metrics import Metrics
from openpi.serving.observation_contract import ObservationContract
from openpi_client.base_policy import BasePolicy


@runtime_checkable
class PerClientPolicy(Protocol):
    """A policy with state per client, such as the next recorded step."""

    def for_client(self) -> BasePolicy:
        """Return a policy for one new client."""
        ...


@dataclasses.dataclass(eq=False)
class Service:
    """A policy, the rules of asking it, and its current state.

    It belongs to the event loop.
    """

    policy: BasePolicy
    worker: InferenceWorker
    contract: ObservationContract
    metadata: Mapping[str, Any]
    metrics: Metrics
    keys: KeyCheck
    debug: bool = False
    is_ready: bool = False
    is_draining: bool = False
    num_clients: int = 0
    num_under_way: int = 0
    """Requests received and not answered yet."""
    last_observation: Mapping[str, Any] | None = None

    def new_client_policy(self) -> BasePolicy | None:
        """Return a new client's policy, or None for the worker's own."""
        return self.policy.for_client() if isinstance(self.policy, PerClientPolicy) else None

    def gauges(self) -> dict[str, float]:
        """Return the current values, keyed by the end of their metric's name."""
        return {
            "ready": int(self.is_ready and not self.is_draining),
            "clients": self.num_clients,
            "requests_under_way": self.num_under_way,
            "queue_length": self.worker.num_waiting,
        }
