"""When each tick of a control loop begins: deadlines on a monotonic clock, counted, never caught up in a burst."""

import time
from typing import Protocol, runtime_checkable

import numpy as np

_LATE_SHARE = 0.1
"""A tick counts as late when it is this share of a period behind its deadline."""


@runtime_checkable
class Clock(Protocol):
    """Where a loop's time comes from; the module `time` is one."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait."""
        ...


class Pacer:
    """Deadlines at `start + k * period`, so that errors do not add up.

    Attributes:
        late_ticks: Ticks that missed their deadline.
        worst_late_s: The largest delay, s.
    """

    def __init__(self, fps: float, clock: Clock = time) -> None:
        """Start now, at `fps` ticks a second."""
        self._period_s = 1.0 / fps
        self._clock = clock
        self.late_ticks = 0
        self.worst_late_s = 0.0
        self.restart()

    def restart(self) -> None:
        """Count deadlines from now: the start, or the end of a pause that everyone knew of."""
        self._start = self._clock.monotonic()
        self._tick = 0

    def wait(self) -> float:
        """Wait for the next deadline; return by how much it was missed, s, 0 when it was met.

        More than a period behind, time starts anew: catching up would send targets faster than the speed limit, which
        is one step per period, was computed for.
        """
        self._tick += 1
        late_s = self._clock.monotonic() - (self._start + self._tick * self._period_s)
        if late_s < 0:
            self._clock.sleep(-late_s)
            return 0.0
        if late_s > _LATE_SHARE * self._period_s:
            self.late_ticks += 1
            self.worst_late_s = max(self.worst_late_s, late_s)
        if late_s > self._period_s:
            self.restart()
        return late_s


def percentiles_ms(durations_s: list[float]) -> dict[str, float] | None:
    """Return p50, p95 and max of durations in ms; None when there are none."""
    if not durations_s:
        return None
    p50, p95 = np.percentile(durations_s, [50, 95]) * 1000
    return {"p50": float(p50), "p95": float(p95), "max": max(durations_s) * 1000}
