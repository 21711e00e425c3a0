"""Collects the scalars of training steps, one step behind the device, and watches that they stay finite."""

import math
import time
from typing import Any

import jax
import numpy as np

from openpi.shared import errors
from openpi.training.train_step import METRICS


class DivergedError(errors.UserError, ArithmeticError):
    """The loss is no longer a number."""


class StepMeter:
    """Averages since the last `flush`.

    Reading a step's scalars waits for the device, so each step is read when the next one has been queued.
    """

    def __init__(self, batch_size: int) -> None:
        """Start the clock.

        Args:
            batch_size: Samples a step, for the rate.
        """
        self._batch_size = batch_size
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._restart()

    def _restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self._wait_s = 0.0
        self._start_s = time.perf_counter()

    def add(self, step: int, info: dict[str, Any], wait_s: float) -> None:
        """Take in a step that has been queued.

        Args:
            step: Its number.
            info: Its scalars, possibly not computed yet.
            wait_s: Time spent waiting for its batch.

        Raises:
            DivergedError: The step before this one has a loss that is not finite.
        """
        self.settle()
        self._pending = (step, info)
        self._wait_s += wait_s

    def settle(self) -> None:
        """Wait for the last step.

        Raises:
            DivergedError: Its loss or gradient is not finite.
        """
        if self._pending is None:
            return
        step, info = self._pending
        self._pending = None
        values = {key: float(info[key]) for key in METRICS}
        broken = [f"{key} {value}" for key, value in values.items() if not math.isfinite(value)]
        if broken:
            raise DivergedError(
                f"step {step}: {', '.join(broken)}; nothing was saved after it. Look for extreme values in the "
                "normalisation statistics (make norm-stats), lower --lr-schedule.peak-lr, and go on with --resume"
            )
        self._values.append(values)

    def flush(self) -> dict[str, float]:
        """Return the averages since the last flush, with `samples_per_s` and the share `loader_wait`, and restart.

        Raises:
            DivergedError: The last step's loss is not finite.
        """
        self.settle()
        elapsed_s = time.perf_counter() - self._start_s
        averages = {key: float(np.mean([values[key] for values in self._values])) for key in METRICS}
        rates = {
            "samples_per_s": len(self._values) * self._batch_size / elapsed_s,
            "loader_wait": self._wait_s / elapsed_s,
        }
        self._restart()
        return averages | rates
