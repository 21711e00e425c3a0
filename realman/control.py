"""The realtime loop: observe, ask the policy, execute its chunk tick by tick through the safety layer.

How a policy's chunks become one target per tick is a `ChunkPlayer`; the loop knows nothing of it. Here is the
synchronous one: the arms hold their last target while the next chunk is predicted.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import signal
import time
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from realman import spec
from realman.arrays import Image
from realman.arrays import JointVec
from realman.client import Prediction
from realman.errors import RobotTimeoutError
from realman.metrics import percentiles_ms
from realman.pacing import Pacer
from realman.robot import Robot
from realman.robot import RobotObservation
from realman.safety import Limits
from realman.safety import SafetyLayer

Observe = Callable[[], RobotObservation]


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


@runtime_checkable
class ChunkPolicy(Protocol):
    """What a player asks for chunks; `realman.client.PolicyClient` is one."""

    action_chunk: int
    """Steps to execute of each prediction."""

    def infer(self, state: JointVec, images: Mapping[str, Image], prompt: str | None = None) -> Prediction:
        """Return the next actions."""
        ...


@runtime_checkable
class ChunkPlayer(Protocol):
    """Turns a policy's chunks into one target per tick."""

    round_trips_s: list[float]
    """Duration of each prediction, from observation to checked reply, s."""
    infer_s: list[float]
    """The server's share of each, s, where it says."""

    def next_target(self, observe: Observe) -> tuple[JointVec, bool]:
        """Return this tick's target (14,), and whether the arms stood still while it was made."""
        ...


class SyncPlayer:
    """Executes the policy's `action_chunk` steps of a prediction, then observes and predicts again."""

    def __init__(self, policy: ChunkPolicy, prompt: str | None) -> None:
        """Play the predictions of `policy` for one task."""
        self._policy = policy
        self._prompt = prompt
        self._left: list[np.ndarray] = []
        self.round_trips_s: list[float] = []
        self.infer_s: list[float] = []

    def next_target(self, observe: Observe) -> tuple[JointVec, bool]:
        """Return the next step of the chunk, or of a new one when it is used up."""
        if self._left:
            return self._left.pop(0), False
        observation = observe()
        prediction = self._policy.infer(observation.state, observation.images, self._prompt)
        self.round_trips_s.append(prediction.round_trip_s)
        if prediction.infer_s is not None:
            self.infer_s.append(prediction.infer_s)
        first, *self._left = prediction.actions[: self._policy.action_chunk]
        return first, True


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
    max_observation_age_s: float | None = None,
) -> None:
    """Drive a connected robot with a policy until `max_steps`, an error or a signal. The caller stops the robot.

    Args:
        robot: A connected robot; hold it with `realman.robot.connected`, which stops it however this ends.
        player: Where targets come from.
        limits: What one tick may do.
        record: Filled in tick by tick.
        max_steps: Control steps; None goes on until interrupted.
        pacer: Keeps wall-clock time; None where the robot's time is simulated and advances with each target.
        max_observation_age_s: Oldest observation to act on, s; None where time is simulated.

    Raises:
        RejectedError: The safety layer refused a target or the start.
        RobotTimeoutError: An observation was too old.
        ServerError: The policy failed.
    """

    def observe() -> RobotObservation:
        observation = robot.observe()
        _check_age(observation, max_observation_age_s)
        return observation

    safety = record.safety = SafetyLayer(limits, observe().state)
    while max_steps is None or len(record.sent) < max_steps:
        target, stood_still = player.next_target(observe)
        if stood_still:
            record.waits += 1
            if pacer:
                pacer.restart()
        sent = robot.send(safety.check(target))
        safety.sent(sent)
        record.times_s.append(time.monotonic())
        record.targets.append(target)
        record.sent.append(sent)
        if pacer:
            pacer.wait()


def _check_age(observation: RobotObservation, max_age_s: float | None) -> None:
    if max_age_s is None:
        return
    age_s = time.monotonic() - observation.time_s
    if age_s > max_age_s:
        raise RobotTimeoutError(
            f"observation: {age_s * 1000:.0f} ms old, at most {max_age_s * 1000:.0f} ms allowed; "
            "check the cameras and the arms' state push"
        )
