"""The realtime loop: observe, predict, and execute through the safety layer.

A `realman.runtime.chunks.ChunkPlayer` turns the policy's chunks into one target per tick. The loop does not know how.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import signal
import time
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.pacing import Pacer
from realman.pacing import percentiles_ms
from realman.robots.robot import STOP_SIGNALS
from realman.robots.robot import LimitedRobot
from realman.robots.robot import Robot
from realman.robots.robot import RobotObservation
from realman.runtime.chunks import BlockingPlayer
from realman.runtime.chunks import ChunkPlayer
from realman.runtime.chunks import RtcPlayer
from realman.runtime.chunks import Tick
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetyLayer
from realman.runtime.steering import Steering
from realman.runtime.watchdogs import Watchdogs

_EXTRA_BRAKE_TICKS = 50
"""Ticks beyond those of braking from full speed. A driver that alters every target must not make braking endless."""


class StopRequested(KeyboardInterrupt):
    """A stop signal arrived, or the operator pressed the stop key.

    Attributes:
        number: The signal's number, for the exit code.
        is_gentle: Whether the arms may brake along their path. True for the key. After a signal they stop at once.
    """

    def __init__(self, number: int, *, is_gentle: bool = False) -> None:
        super().__init__("the stop key" if is_gentle else signal.Signals(number).name)
        self.number = number
        self.is_gentle = is_gentle


@contextlib.contextmanager
def stop_on_signals(steering: Steering | None = None) -> Iterator[None]:
    """Raise `StopRequested` in the main thread at the first stop signal.

    An exception, unlike a flag, ends a wait for a slow server at once. Later signals are ignored, so that nothing
    interrupts the way to the stop. `steering` shows whether the signal came from the stop key.
    """
    stopping = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise StopRequested(number, is_gentle=steering is not None and steering.is_stopping)

    # Under nohup a lost terminal must not stop the run. The other signals are handled even where they were ignored, as
    # they are in a process that a shell started in the background.
    nohup = {
        number for number in STOP_SIGNALS if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
    }
    handled = [number for number in STOP_SIGNALS if number not in nohup]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass(eq=False)
class RunRecord:
    """What happened in a run.

    It is filled in during the run, so that a run that breaks off can be reported too.
    """

    times_s: list[float] = dataclasses.field(default_factory=list)
    """When each target was sent, `time.monotonic()`, s."""
    targets: list[np.ndarray] = dataclasses.field(default_factory=list)
    """What the policy wanted at each tick (14,)."""
    sent: list[np.ndarray] = dataclasses.field(default_factory=list)
    """What the robot was sent at each tick (14,)."""
    states: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Position (14,) measured just before each target. NaN if the robot cannot measure."""
    prediction_ages_s: list[float] = dataclasses.field(default_factory=list)
    """How old the observation behind each target was, s."""
    seams: list[bool] = dataclasses.field(default_factory=list)
    """Whether a new chunk began at each tick."""
    stalls: list[bool] = dataclasses.field(default_factory=list)
    """Whether the last target was held at each tick because the next chunk was late."""
    braking_times_s: list[float] = dataclasses.field(default_factory=list)
    """When each target was sent that braked the arms before a wait or the end, s. It is not among those above."""
    braking: list[np.ndarray] = dataclasses.field(default_factory=list)
    """What the robot was sent to brake (14,)."""
    waits: int = 0
    """How often the arms stood still for a prediction."""
    pauses: int = 0
    """How often the operator paused the run."""
    safety: SafetyLayer | None = None

    @property
    def stalled_ticks(self) -> int:
        """Ticks that held a target because the next chunk was late."""
        return sum(self.stalls)

    def note(self, tick: Tick, state: JointVec | None, sent: JointVec) -> None:
        """Add one tick."""
        now_s = time.monotonic()
        self.times_s.append(now_s)
        self.targets.append(tick.target)
        self.states.append(np.full(spec.NUM_DIMS, np.nan) if state is None else state)
        self.prediction_ages_s.append(now_s - tick.observed_s)
        self.seams.append(tick.is_seam)
        self.stalls.append(tick.is_stall)
        # Last, because readers in other threads count these.
        self.sent.append(sent)

    def note_braking(self, sent: JointVec) -> None:
        """Add a target that braked the arms."""
        self.braking_times_s.append(time.monotonic())
        self.braking.append(sent)

    def summary(self, player: ChunkPlayer, pacer: Pacer | None) -> dict[str, Any]:
        """Return the run's figures as plain numbers.

        The key of each time ends with its unit, s or ms.
        """
        steps, safety = len(self.sent), self.safety
        duration_s = self.times_s[-1] - self.times_s[0] if steps else 0.0
        return {
            "steps": steps,
            "predictions": len(player.round_trips_s),
            # Predictions that came later than the player had announced to the policy.
            "late_predictions": player.num_late if isinstance(player, RtcPlayer) else None,
            "duration_s": duration_s,
            "rate_hz": (steps - 1) / duration_s if duration_s > 0 else None,
            "late_steps": pacer.late_ticks if pacer else None,
            "worst_late_ms": pacer.worst_late_s * 1000 if pacer else None,
            "stand_stills": self.waits,
            "pauses": self.pauses,
            "stalled_steps": self.stalled_ticks,
            "round_trip_ms": percentiles_ms(player.round_trips_s),
            "infer_ms": percentiles_ms(player.infer_s),
            "clamped_steps": safety.clamped_ticks if safety else 0,
            "range_clamps": _named_counts(safety.range_clamps) if safety else {},
            "speed_clamps": _named_counts(safety.speed_clamps) if safety else {},
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the run tick by tick.

        `time_s` (t,) counts from the first tick. `target`, `sent` and `state` are (t, 14). `observation_age_s`,
        `is_seam` and `is_stall` are (t,). `braking_time_s` and `braking_sent` have a row for each target that braked the
        arms before a wait or the end.
        """
        shape = (len(self.sent), spec.NUM_DIMS)
        return {
            "time_s": np.array(self.times_s) - np.array(self.times_s[:1]),
            "target": np.array(self.targets).reshape(shape),
            "sent": np.array(self.sent).reshape(shape),
            "state": np.array(self.states).reshape(shape),
            "observation_age_s": np.array(self.prediction_ages_s),
            "is_seam": np.array(self.seams, dtype=bool),
            "is_stall": np.array(self.stalls, dtype=bool),
            "braking_time_s": np.array(self.braking_times_s) - (self.times_s[0] if self.times_s else 0.0),
            "braking_sent": np.array(self.braking).reshape(len(self.braking), spec.NUM_DIMS),
        }


def _named_counts(counts: np.ndarray) -> dict[str, int]:
    return {name: int(n) for name, n in zip(spec.DIM_NAMES, counts, strict=True) if n}


@runtime_checkable
class TickObserver(Protocol):
    """An observer of a run's ticks, such as a recorder.

    It must never hold up the loop.
    """

    @property
    def is_watching(self) -> bool:
        """Whether it wants the next tick.

        If it does, the loop reads the cameras for it.
        """
        ...

    def see(self, observation: RobotObservation, sent: JointVec) -> None:
        """Take an observation and the target that was sent right after it.

        Nobody changes either of them later.
        """
        ...


def run(
    robot: Robot,
    player: ChunkPlayer,
    limits: Limits,
    record: RunRecord,
    *,
    max_steps: int | None = None,
    pacer: Pacer | None = None,
    watchdogs: Watchdogs | None = None,
    steering: Steering | None = None,
    renew: Callable[[], ChunkPlayer] | None = None,
    measure: Callable[[], JointVec] | None = None,
    tick_observer: TickObserver | None = None,
) -> None:
    """Drive a connected robot with a policy. The caller stops the robot.

    The run ends after `max_steps`, or by an error, a signal or the end key. The arms brake before the loop waits for a
    prediction and before it ends, so that it never leaves them at speed.

    Args:
        robot: A connected robot. Hold it with `realman.robots.robot.connected`, which stops it however this ends.
        player: Where targets come from.
        limits: Limits of one tick.
        record: Filled in tick by tick.
        max_steps: Number of control steps. None runs until the run is interrupted.
        pacer: Keeps wall-clock time. None if the robot's time is simulated and advances with each target.
        watchdogs: Limits of age and lateness. By default there are none, which suits simulated time.
        steering: What the operator asks for. None lets nobody interfere.
        renew: Returns a player with a fresh plan, for the time after a pause. Needed if `steering` may pause.
        measure: Returns the measured position, for the log. It must not wait.
        tick_observer: Sees each tick with its images, if it is watching.

    Raises:
        RejectedError: The safety layer refused a target or the start.
        RobotTimeoutError: An observation or a prediction was too old, or the loop was too late.
        ServerError: The policy failed.
    """
    loop = _Loop(robot, limits, record, pacer, watchdogs or Watchdogs(), measure, tick_observer)
    steering = steering or Steering()
    while not steering.is_ending and (max_steps is None or len(record.sent) < max_steps):
        # The operator's wishes come first, between two ticks.
        if steering.is_paused and renew:
            loop.hold_while_paused(steering)
            if not steering.is_ending:
                loop.come_to_rest()
                player = renew()
                loop.start_anew()
            continue
        # Simulated time stands still during a wait, so the arms need not stop for it.
        if pacer and isinstance(player, BlockingPlayer) and player.will_block:
            loop.come_to_rest()
        tick = player.next_tick(loop.observe)
        loop.check(tick)
        loop.play(tick)
    loop.come_to_rest(send_rest=steering.is_ending)


class _Loop:
    """The parts of one tick of a run."""

    def __init__(
        self,
        robot: Robot,
        limits: Limits,
        record: RunRecord,
        pacer: Pacer | None,
        watchdogs: Watchdogs,
        measure: Callable[[], JointVec] | None,
        tick_observer: TickObserver | None,
    ) -> None:
        self._robot = robot
        self._record = record
        self._pacer = pacer
        self._watchdogs = watchdogs
        self._measure = measure
        self._tick_observer = tick_observer
        self._safety = record.safety = SafetyLayer(limits, self.observe().state)
        if isinstance(robot, LimitedRobot):
            robot.set_limits(limits.motion)

    def observe(self) -> RobotObservation:
        """Observe the robot and refuse an observation that is too old."""
        observation = self._robot.observe()
        self._watchdogs.check_observation_age(time.monotonic() - observation.time_s)
        return observation

    def check(self, tick: Tick) -> None:
        """Refuse a plan that is too old.

        After a wait for the plan, deadlines count from now.
        """
        self._watchdogs.check_policy_age(time.monotonic() - tick.observed_s)
        if tick.has_blocked:
            self._record.waits += 1
            if self._pacer:
                self._safety.note_hold()
                self._pacer.restart()

    def play(self, tick: Tick) -> None:
        """Limit and send a target, note it, and wait."""
        state = self._measure() if self._measure else None
        sent = self._send(self._safety.check(tick.target))
        self._record.note(tick, state, sent)
        self.wait()

    def come_to_rest(self, *, send_rest: bool = False) -> None:
        """Brake until the arms may stop at the last command.

        With `send_rest` the last command is sent twice.
        """
        for _ in range(self._safety.max_brake_ticks + _EXTRA_BRAKE_TICKS):
            if not self._safety.is_moving if send_rest else self._safety.can_hold:
                return
            self._record.note_braking(self._send(self._safety.brake()))
            self.wait()

    def _send(self, target: JointVec) -> JointVec:
        observer = self._tick_observer
        # Observe right before sending, so that state and target belong together.
        seen = self._robot.observe() if observer and observer.is_watching else None
        self._watchdogs.check_awake()
        sent = self._robot.send(target)
        self._safety.note_sent(sent)
        if observer and seen is not None:
            observer.see(seen, sent)
        return sent

    def wait(self) -> None:
        """Wait for the next tick and check how late it is."""
        if self._pacer:
            self._watchdogs.check_lateness(self._pacer.wait())

    def hold_while_paused(self, steering: Steering) -> None:
        """Brake and hold until the pause ends.

        Targets are still sent, so every check of the driver stays active.
        """
        self._record.pauses += 1
        while steering.is_paused and not steering.is_ending:
            self._brake()
            if self._pacer is None:
                # Simulated time does not wait, so this loop would spin.
                time.sleep(1.0 / self._robot.fps)

    def start_anew(self) -> None:
        """Begin again from the measured state."""
        self._safety.restart(self.observe().state)
        self._restart_clock()

    def _brake(self) -> None:
        self._watchdogs.check_awake()
        self._safety.note_sent(self._robot.send(self._safety.brake()))
        self.wait()

    def _restart_clock(self) -> None:
        if self._pacer:
            self._pacer.restart()
