"""Collects the scalars of training steps, one step behind the device, and watches them."""

import time
from typing import Any

import jax
import numpy as np

from openpi.training.reports.divergence import DivergedError
from openpi.training.reports.divergence import LossWatch
from openpi.training.step.train_step import METRICS


class StepMeter:
    """Averages since the last `flush`.

    Reading a step's scalars waits for the device, so each step is read when the next one has been queued.
    """

    def __init__(self, batch_size: int, *, max_loss_growth: float | None = None) -> None:
        """Start the clock.

        Args:
            batch_size: Samples a step, for the rate.
            max_loss_growth: Growth of the loss that is a divergence; None: only a loss that is no number is one.
        """
        self._batch_size = batch_size
        self._watch = LossWatch(max_loss_growth)
        self._pending: tuple[int, dict[str, jax.Array], Any] | None = None
        # The scalars of the last step that was read.
        self.last: dict[str, float] = {}
        self._restart()

    def _restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._wait_s = 0.0
        self._paused_s = 0.0
        self._start_s = time.perf_counter()

    def add(self, step: int, info: dict[str, Any], wait_s: float, batch: Any = None) -> None:
        """Take in a step that has been queued.

        Args:
            step: Its number.
            info: Its scalars, possibly not computed yet.
            wait_s: Time spent waiting for its batch.
            batch: What it was given, for the error.

        Raises:
            DivergedError: The step before this one has gone wrong.
        """
        self.settle()
        self._pending = (step, info, batch)
        self._wait_s += wait_s

    def settle(self) -> None:
        """Wait for the last step.

        Raises:
            DivergedError: Its loss or gradient is not finite, or the loss has grown too much.
        """
        if self._pending is None:
            return
        step, info, batch = self._pending
        self._pending = None
        self.last = {key: float(value) for key, value in info.items()}
        values = {key: self.last[key] for key in METRICS}
        if problem := self._watch.find_problem(values):
            raise DivergedError(step, problem, batch)
        self._values.append(values)

    def pause(self, seconds: float) -> None:
        """Leave out time in which no step was asked for (a validation)."""
        self._paused_s += seconds

    def flush(self) -> dict[str, float]:
        """Return the averages since the last flush, with `samples_per_s` and the share `loader_wait`, and restart.

        Raises:
            DivergedError: The last step has gone wrong.
        """
        self.settle()
        elapsed_s = time.perf_counter() - self._start_s - self._paused_s
        averages = {key: float(np.mean([values[key] for values in self._values])) for key in METRICS}
        rates = {
            "samples_per_s": len(self._values) * self._batch_size / elapsed_s,
            "loader_wait": self._wait_s / elapsed_s,
        }
        self._restart()
        return averages | rates
