"""Deadlines for the ticks of a control loop, on a monotonic clock.

Missed deadlines are counted. They are never caught up in a burst. `SuspendWatch` notices the time that this clock does
not count.
"""

from collections.abc import Callable
import time
from typing import Protocol, runtime_checkable

import numpy as np

from realman.errors import RobotTimeoutError

_LATE_SHARE = 0.1
"""A tick counts as late if it misses its deadline by more than this share of a period."""


_MAX_SUSPENDED_S = 0.05
"""A suspend takes at least some tenths of a second. This is far above the resolution of the clocks."""


def _find_boot_clock() -> int | None:
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None:
        return None
    try:
        time.clock_gettime(clock)
    except OSError:
        # Some sandboxes and emulated kernels have the name, but not the clock.
        return None
    return clock


_BOOT_CLOCK = _find_boot_clock()

MIN_PERIOD_SHARE = 0.99
"""Shortest time between two ticks, as a share of a period.

Limits are computed for one step per period, so two ticks that are closer would be faster than allowed. Lost time is made
up by the remaining hundredth."""


@runtime_checkable
class Clock(Protocol):
    """Where a loop's time comes from, for example the module `time`."""

    def monotonic(self) -> float:
        """Return seconds that never decrease."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait for a number of seconds."""
        ...


class Pacer:
    """Waits for each tick of a loop.

    The deadlines are `start + k * period`, so errors do not add up. Two ticks are never closer than `MIN_PERIOD_SHARE`.

    Attributes:
        late_ticks: Ticks that missed their deadline.
        worst_late_s: The largest delay, s.
    """

    def __init__(self, fps: float, clock: Clock = time) -> None:
        """Start now, at `fps` ticks per second."""
        self._period_s = 1.0 / fps
        self._clock = clock
        self.late_ticks = 0
        self.worst_late_s = 0.0
        self.restart()

    def restart(self) -> None:
        """Count deadlines from now, at the start or after an intended pause."""
        self._start = self._last = self._clock.monotonic()
        self._tick = 0

    def wait(self) -> float:
        """Wait for the next deadline and return the delay, s.

        The delay is 0 if the deadline was met. After a late tick the next one comes a period later, less a hundredth.
        After a delay of more than a period, deadlines count from now. To catch up faster would send targets faster than
        the speed limit allows, because that limit is computed for one step per period.
        """
        self._tick += 1
        deadline_s = self._start + self._tick * self._period_s
        deadline_s = max(deadline_s, self._last + MIN_PERIOD_SHARE * self._period_s)
        late_s = self._clock.monotonic() - deadline_s
        if late_s < 0:
            self._clock.sleep(-late_s)
            self._last = self._clock.monotonic()
            return 0.0
        self._last = deadline_s + late_s
        if late_s > _LATE_SHARE * self._period_s:
            self.late_ticks += 1
            self.worst_late_s = max(self.worst_late_s, late_s)
        if late_s > self._period_s:
            self.restart()
        return late_s


def since_boot_s() -> float:
    """Return seconds that also count while the machine is suspended.

    Only Linux has such a clock next to one that stands still (`time.monotonic`). Elsewhere both are the same.
    """
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)


class SuspendWatch:
    """Notices that this machine was suspended.

    On Linux `time.monotonic` stands still meanwhile, so every age and every deadline looks as it was before.
    """

    def __init__(
        self, awake_s: Callable[[], float] = time.monotonic, total_s: Callable[[], float] = since_boot_s
    ) -> None:
        """Start now.

        Args:
            awake_s: A clock that stands still during a suspend.
            total_s: A clock that does not.
        """
        self._awake_s = awake_s
        self._total_s = total_s
        # The clocks are read in opposite orders here and below. A pause between two reads then never looks like a
        # suspend.
        before_s = awake_s()
        self._offset_s = total_s() - before_s

    def suspended_s(self) -> float:
        """Return how long the machine was suspended since the start, s."""
        total_s = self._total_s()
        return max(0.0, total_s - self._awake_s() - self._offset_s)

    def check(self, place: str) -> None:
        """Refuse to continue after a suspend.

        Raises:
            RobotTimeoutError: The machine was suspended since the start. `place` begins the message.
        """
        if (found_s := self.suspended_s()) > _MAX_SUSPENDED_S:
            raise RobotTimeoutError(
                f"{place}: this machine was suspended for {found_s:.1f} s, expected none. Everything known of the arms "
                "is from before. Disable suspend, then start the program again"
            )


def percentiles_ms(durations_s: list[float]) -> dict[str, float] | None:
    """Return p50, p95 and max of durations, ms, or None if empty."""
    if not durations_s:
        return None
    p50, p95 = np.percentile(durations_s, [50, 95]) * 1000
    return {"p50": float(p50), "p95": float(p95), "max": max(durations_s) * 1000}
