"""The state that the parts of one policy server share."""

import collections
from collections.abc import Mapping
import dataclasses
import logging
import time
from typing import Any, Protocol, runtime_checkable

from openpi.serving.access import KeyCheck
from openpi.serving.inference_worker import InferenceWorker
from openpi.serving.metrics import Metrics
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.request_reader import RequestReader
from openpi.shared.printable import printable
from openpi_client.base_policy import BasePolicy

logger = logging.getLogger(__name__)


@runtime_checkable
class PerClientPolicy(Protocol):
    """A policy with state per client, such as the next recorded step."""

    def for_client(self) -> BasePolicy:
        """Return a policy for one new client."""
        ...


class Recording(Protocol):
    """What became of the calls of a recorded policy."""

    @property
    def num_written(self) -> int: ...  # noqa: D102
    @property
    def num_left_out(self) -> int: ...  # noqa: D102
    @property
    def problem(self) -> str | None: ...  # noqa: D102


@runtime_checkable
class RecordingPolicy(Protocol):
    """A policy that records its calls."""

    @property
    def recording(self) -> Recording:
        """What became of the calls so far."""
        ...


_MAX_NOTICES = 20


@dataclasses.dataclass(frozen=True)
class Notice:
    """Something that a person should look at."""

    time_s: float
    """Unix time."""
    text: str


@dataclasses.dataclass(eq=False)
class Service:
    """A policy, the rules of asking it, and its current state.

    It belongs to the event loop.
    """

    policy: BasePolicy
    worker: InferenceWorker
    reader: RequestReader
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
    bytes_under_way: int = 0
    """Memory of these requests, roughly."""
    last_observation: Mapping[str, Any] | None = None
    notices: collections.deque[Notice] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=_MAX_NOTICES)
    )
    """The latest oddities of clients, oldest first."""

    def note(self, text: str) -> None:
        """Log something odd about a client, and keep it for the page."""
        text = printable(text)
        logger.warning("%s", text)
        self.metrics.num_notices += 1
        self.notices.append(Notice(time.time(), text))

    @property
    def recording(self) -> Recording | None:
        """What became of the records, or None when nothing is recorded."""
        return self.policy.recording if isinstance(self.policy, RecordingPolicy) else None

    def new_client_policy(self) -> BasePolicy | None:
        """Return a new client's policy, or None for the worker's own."""
        return self.policy.for_client() if isinstance(self.policy, PerClientPolicy) else None

    def gauges(self) -> dict[str, float]:
        """Return the current values, keyed by the end of their metric's name."""
        recording = self.recording
        recorded = (
            {}
            if recording is None
            else {
                "recording": int(recording.problem is None),
                "records_written": recording.num_written,
                "records_left_out": recording.num_left_out,
            }
        )
        return {
            "ready": int(self.is_ready and not self.is_draining),
            "clients": self.num_clients,
            "requests_under_way": self.num_under_way,
            "bytes_under_way": self.bytes_under_way,
            "queue_length": self.worker.num_waiting,
            **recorded,
        }
