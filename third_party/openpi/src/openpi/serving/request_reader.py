"""Decodes and checks requests in a thread of its own.

The event loop stays free meanwhile. There is one thread, because several would only take the interpreter from each other, and
from the event loop.
"""

from collections.abc import Hashable
import concurrent.futures
import dataclasses
import threading

from openpi.serving import requests
from openpi.serving.fair_queue import FairQueue
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.requests import Request


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    message: bytes | memoryview | str
    future: "concurrent.futures.Future[Request]" = dataclasses.field(default_factory=concurrent.futures.Future)


class RequestReader:
    """Reads the requests of all clients, who take turns."""

    def __init__(self, contract: ObservationContract) -> None:
        """Start the thread. It ends with the process, or after `stop`."""
        self._contract = contract
        self._jobs: FairQueue[_Job] = FairQueue()
        self._thread = threading.Thread(target=self._work, name="requests", daemon=True)
        self._thread.start()

    def submit(self, message: bytes | memoryview | str, client: Hashable) -> "concurrent.futures.Future[Request]":
        """Queue a message of a client.

        Returns:
            A future of what `requests.read` returns or raises.
        """
        job = _Job(message)
        self._jobs.put(client, job)
        return job.future

    def stop(self) -> None:
        """Let the thread end after what is queued."""
        self._jobs.close()

    def _work(self) -> None:
        while (job := self._jobs.take()) is not None:
            self._read(job)
            # Nothing here may keep a large request alive until the next one comes.
            del job

    def _read(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            request = requests.read(job.message, self._contract)
        except BaseException as e:
            job.future.set_exception(e)
        else:
            job.future.set_result(request)
