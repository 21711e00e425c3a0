"""Collect and watch the scalars of training steps.

They are read one step behind the device.
"""

import time
from typing import Any

import jax
import numpy as np

from openpi.training.reports.divergence import DivergedError
from openpi.training.reports.divergence import LossWatch
from openpi.training.step.train_step import METRICS


class StepMeter:
    """Averages the scalars since the last `flush`.

    Reading the scalars of a step waits for the device, so each step is read after the next one has been queued.
    """

    def __init__(self, batch_size: int, *, max_loss_growth: float | None = None) -> None:
        """Start the clock.

        Args:
            batch_size: Samples per step, for the rate.
            max_loss_growth: Largest allowed growth of the loss. With None, only NaN and infinity are problems.
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
        """Add a step that has been queued.

        Args:
            step: Number of the step.
            info: Scalars of the step, possibly not computed yet.
            wait_s: Time spent waiting for the batch, s.
            batch: Batch of the step, for the error.

        Raises:
            DivergedError: The step before this one has diverged.
        """
        self.settle()
        self._pending = (step, info, batch)
        self._wait_s += wait_s

    def settle(self) -> None:
        """Wait for the last step and check its scalars.

        Raises:
            DivergedError: A scalar is not finite, or the loss has grown too much.
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
        """Leave out time without steps, such as a validation."""
        self._paused_s += seconds

    def flush(self) -> dict[str, float]:
        """Return the averages since the last flush, and restart.

        `samples_per_s` and `loader_wait`, the share of time spent waiting for the loader, are added.

        Raises:
            DivergedError: The last step has diverged.
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
