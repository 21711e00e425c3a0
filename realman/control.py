"""The realtime loop: observe, ask the policy, execute its chunk tick by tick through the safety layer.

How a policy's chunks become one target per tick is a `realman.chunks.ChunkPlayer`; the loop knows nothing of it.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import signal
import time
from types import FrameType
from typing import Any

import numpy as np

from realman import spec
from realman.chunks import ChunkPlayer
from realman.metrics import percentiles_ms
from realman.pacing import Pacer
from realman.robot import Robot
from realman.robot import RobotObservation
from realman.safety import Limits
from realman.safety import SafetyLayer
from realman.watchdogs import Watchdogs


class StopSignal(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""

    def __init__(self, number: int) -> None:
        """Keep the signal's number, for the exit code."""
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a `StopSignal` raised wherever the main thread is.

    Raising, rather than setting a flag, ends a wait for a slow server at once. Later signals are ignored, so that
    nothing interrupts the way to the stop.
    """
    stopping = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise StopSignal(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass(eq=False)
class RunRecord:
    """What happened in a run, filled in while it goes on, so that a broken run can be reported too."""

    times_s: list[float] = dataclasses.field(default_factory=list)
    """When each target was sent, `time.monotonic()`, s."""
    targets: list[np.ndarray] = dataclasses.field(default_factory=list)
    """What the policy wanted at each tick (14,)."""
    sent: list[np.ndarray] = dataclasses.field(default_factory=list)
    """What the robot was sent at each tick (14,)."""
    waits: int = 0
    """How often the arms stood still for a prediction."""
    stalled_ticks: int = 0
    """Ticks in which a target was held because the next chunk was late."""
    safety: SafetyLayer | None = None

    def summary(self, player: ChunkPlayer, pacer: Pacer | None) -> dict[str, Any]:
        """Return the run's figures as plain numbers; times in ms."""
        steps, safety = len(self.sent), self.safety
        duration_s = self.times_s[-1] - self.times_s[0] if steps else 0.0
        return {
            "steps": steps,
            "predictions": len(player.round_trips_s),
            "duration_s": duration_s,
            "rate_hz": (steps - 1) / duration_s if duration_s > 0 else None,
            "late_steps": pacer.late_ticks if pacer else None,
            "worst_late_ms": pacer.worst_late_s * 1000 if pacer else None,
            "stand_stills": self.waits,
            "stalled_steps": self.stalled_ticks,
            "round_trip_ms": percentiles_ms(player.round_trips_s),
            "infer_ms": percentiles_ms(player.infer_s),
            "clamped_steps": safety.clamped_ticks if safety else 0,
            "range_clamps": _named_counts(safety.range_clamps) if safety else {},
            "speed_clamps": _named_counts(safety.speed_clamps) if safety else {},
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the run tick by tick: time_s (t,), target (t, 14), sent (t, 14)."""
        shape = (len(self.sent), spec.NUM_DIMS)
        return {
            "time_s": np.array(self.times_s) - np.array(self.times_s[:1]),
            "target": np.array(self.targets).reshape(shape),
            "sent": np.array(self.sent).reshape(shape),
        }


def _named_counts(counts: np.ndarray) -> dict[str, int]:
    return {name: int(n) for name, n in zip(spec.DIM_NAMES, counts, strict=True) if n}


def run(
    robot: Robot,
    player: ChunkPlayer,
    limits: Limits,
    record: RunRecord,
    *,
    max_steps: int | None = None,
    pacer: Pacer | None = None,
    watchdogs: Watchdogs | None = None,
) -> None:
    """Drive a connected robot with a policy until `max_steps`, an error or a signal. The caller stops the robot.

    Args:
        robot: A connected robot; hold it with `realman.robot.connected`, which stops it however this ends.
        player: Where targets come from.
        limits: What one tick may do.
        record: Filled in tick by tick.
        max_steps: Control steps; None goes on until interrupted.
        pacer: Keeps wall-clock time; None where the robot's time is simulated and advances with each target.
        watchdogs: Limits of age and lateness; none by default, where time is simulated.

    Raises:
        RejectedError: The safety layer refused a target or the start.
        RobotTimeoutError: An observation or a prediction was too old, or the loop too late.
        ServerError: The policy failed.
    """
    watchdogs = watchdogs or Watchdogs()

    def observe() -> RobotObservation:
        observation = robot.observe()
        watchdogs.check_observation_age(time.monotonic() - observation.time_s)
        return observation

    safety = record.safety = SafetyLayer(limits, observe().state)
    while max_steps is None or len(record.sent) < max_steps:
        tick = player.next_tick(observe)
        watchdogs.check_policy_age(time.monotonic() - tick.observed_s)
        record.stalled_ticks += tick.is_stall
        if tick.has_blocked:
            record.waits += 1
            safety.held()
            if pacer:
                pacer.restart()
        sent = robot.send(safety.check(tick.target))
        safety.sent(sent)
        record.times_s.append(time.monotonic())
        record.targets.append(tick.target)
        record.sent.append(sent)
        if pacer:
            watchdogs.check_lateness(pacer.wait())
