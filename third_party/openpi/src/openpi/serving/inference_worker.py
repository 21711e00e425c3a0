"""Runs a policy in a thread of its own.

The event loop stays free meanwhile, so handshakes, pings and health checks are answered however long an inference takes.
"""

from collections.abc import Hashable, Mapping, Sequence
import concurrent.futures
import dataclasses
import logging
import threading
import time
from typing import Any, Protocol, runtime_checkable

from openpi.serving.fair_queue import FairQueue
from openpi.serving.request_errors import OverloadedError
from openpi_client.base_policy import BasePolicy

logger = logging.getLogger(__name__)

# Several for each robot that one policy can serve in time. With four raw camera images each, they take a quarter of a GB.
_MAX_WAITING = 64


@runtime_checkable
class BatchPolicy(Protocol):
    """A policy that can answer several observations in one call."""

    def infer_batch(self, observations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the answers that `infer` would give, in the same order."""
        ...


@runtime_checkable
class MultiProgramPolicy(Protocol):
    """A policy that compiles a program for each kind of request."""

    def warm_up_requests(self, example: Mapping[str, Any], result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return one request per further program.

        Args:
            example: The request that warmed up the first program.
            result: The answer to it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Inference:
    """A policy's answer and how long it took."""

    result: dict[str, Any]
    queue_ms: float  # from submission until the policy was free
    infer_ms: float  # inside the policy
    batch_size: int = 1  # requests answered by the same call


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    policy: BasePolicy
    observation: dict[str, Any]
    submitted_s: float
    deadline_s: float | None
    future: "concurrent.futures.Future[Inference]" = dataclasses.field(default_factory=concurrent.futures.Future)

    def begin(self, now_s: float) -> bool:
        """Claim the job. Return False when nobody waits for it any more."""
        if self.deadline_s is not None and now_s >= self.deadline_s:
            self.future.cancel()
        return self.future.set_running_or_notify_cancel()


class InferenceWorker:
    """Owns a policy and serves its clients in turn.

    Nothing else may call the policy, so policies need no locks.
    """

    def __init__(self, policy: BasePolicy, *, max_batch: int = 1) -> None:
        """Keep the policy. `start` starts the thread.

        Args:
            policy: Called from the worker's thread only.
            max_batch: How many waiting requests one call may answer. Above 1, the policy must be a `BatchPolicy`.

        Raises:
            ValueError: `max_batch` is out of range for this policy.
        """
        if max_batch < 1 or (max_batch > 1 and not isinstance(policy, BatchPolicy)):
            raise ValueError(f"max_batch: found {max_batch}, expected 1, or more with a policy that has infer_batch")
        self._policy = policy
        self._max_batch = max_batch
        self._jobs: FairQueue[_Job] = FairQueue()
        self._warm: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon thread, not an executor's: a compilation of several minutes must not delay the end of the process.
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._example: Mapping[str, Any] | None = None

    def start(self, example: Mapping[str, Any] | None = None) -> "concurrent.futures.Future[None]":
        """Start the thread, which first warms up the policy.

        Args:
            example: The policy is tried on it first, in every batch size that it will see and with each of its programs.

        Returns:
            A future that is done when the policy is warm. It holds the policy's exception if the example failed.
        """
        self._example = example
        self._thread.start()
        return self._warm

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Number of requests that have not begun."""
        return len(self._jobs)

    def submit(
        self,
        observation: dict[str, Any],
        *,
        client: Hashable = None,
        policy: BasePolicy | None = None,
        deadline_s: float | None = None,
    ) -> "concurrent.futures.Future[Inference]":
        """Queue an observation.

        To remove it from the queue, cancel the future. This has no effect once the inference has begun.

        Args:
            observation: Passed to the policy as it is.
            client: The client whose turn it takes.
            policy: Policy to ask instead of the worker's own.
            deadline_s: Monotonic time after which the inference does not begin any more. The future is then canceled.

        Raises:
            OverloadedError: Too many requests are waiting.
        """
        if len(self._jobs) >= _MAX_WAITING:
            raise OverloadedError(f"server: {_MAX_WAITING} requests are waiting, expected fewer. Try again later")
        job = _Job(policy or self._policy, observation, time.monotonic(), deadline_s)
        self._jobs.put(client, job)
        return job.future

    def stop(self, timeout_s: float) -> bool:
        """Finish what is queued and end the thread.

        Returns:
            False when the policy was still busy after `timeout_s`. The thread then continues in the background.
        """
        self._jobs.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            self._warm_up()
        except BaseException as e:
            self._warm.set_exception(e)
        else:
            self._warm.set_result(None)
        while (job := self._jobs.take()) is not None:
            now_s = time.monotonic()
            jobs = [j for j in (job, *self._jobs.take_waiting(self._max_batch - 1)) if j.begin(now_s)]
            if not self._try_batch(jobs):
                for single in jobs:
                    self._answer(single)

    def _warm_up(self) -> None:
        if self._example is None:
            return
        result = self._policy.infer(dict(self._example))
        if isinstance(self._policy, MultiProgramPolicy):
            for request in self._policy.warm_up_requests(self._example, result):
                self._policy.infer(request)
        # Policies pad batches to powers of two, so one example per power covers every size.
        size = 2
        while size < 2 * self._max_batch:
            self._infer_batch([dict(self._example)] * min(size, self._max_batch))
            size *= 2

    def _try_batch(self, jobs: Sequence[_Job]) -> bool:
        """Answer several jobs in one call. Return False when that fails.

        The caller then asks one by one, because one bad observation must not fail the others.
        """
        if len(jobs) < 2 or any(job.policy is not self._policy for job in jobs):
            return False
        start_s = time.monotonic()
        try:
            results = self._infer_batch([job.observation for job in jobs])
        except Exception:
            logger.debug("a batch failed, asking one by one", exc_info=True)
            return False
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(_timed(job, result, start_s, batch_size=len(jobs)))
        return True

    def _infer_batch(self, observations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._policy.infer_batch(observations)  # type: ignore[attr-defined]  # checked when the worker was made

    @staticmethod
    def _answer(job: _Job) -> None:
        start_s = time.monotonic()
        try:
            result = job.policy.infer(job.observation)
        except BaseException as e:
            job.future.set_exception(e)
        else:
            job.future.set_result(_timed(job, result, start_s))


def _timed(job: _Job, result: dict[str, Any], start_s: float, batch_size: int = 1) -> Inference:
    return Inference(
        result,
        queue_ms=1000 * (start_s - job.submitted_s),
        infer_ms=1000 * (time.monotonic() - start_s),
        batch_size=batch_size,
    )
