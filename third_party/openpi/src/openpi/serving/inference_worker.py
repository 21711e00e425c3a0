"""Runs a policy in a thread of its own, one request at a time, in the order of arrival.

The event loop stays free meanwhile: handshakes, pings and health checks are answered however long an inference takes.
"""

import concurrent.futures
import dataclasses
import queue
import threading
import time
from typing import Any

from openpi_client.base_policy import BasePolicy


@dataclasses.dataclass(frozen=True)
class Inference:
    """A policy's answer and how long it took."""

    result: dict[str, Any]
    queue_ms: float  # from submission until the policy was free
    infer_ms: float  # inside the policy


@dataclasses.dataclass(frozen=True)
class _Job:
    observation: dict[str, Any]
    submitted_s: float
    future: "concurrent.futures.Future[Inference]" = dataclasses.field(default_factory=concurrent.futures.Future)


class InferenceWorker:
    """Owns a policy: nothing else may call it, so that policies need no locks."""

    def __init__(self, policy: BasePolicy) -> None:
        self._policy = policy
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A daemon, and not an executor's thread: a compilation of minutes must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)

    def start(self) -> None:
        """Begin to work on submitted observations."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, observation: dict[str, Any]) -> "concurrent.futures.Future[Inference]":
        """Queue an observation; cancelling the future takes it out again, unless its inference has begun."""
        job = _Job(observation, time.monotonic())
        self._jobs.put(job)
        return job.future

    def stop(self, timeout_s: float) -> bool:
        """Finish what is queued and end the thread.

        Returns:
            False when the policy was still busy after `timeout_s`; the thread then goes on in the background.
        """
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                self._infer(job)

    def _infer(self, job: _Job) -> None:
        start_s = time.monotonic()
        try:
            result = self._policy.infer(job.observation)
        except BaseException as e:
            job.future.set_exception(e)
        else:
            job.future.set_result(
                Inference(
                    result,
                    queue_ms=1000 * (start_s - job.submitted_s),
                    infer_ms=1000 * (time.monotonic() - start_s),
                )
            )
