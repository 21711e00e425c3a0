"""What the control loop asks of a robot, real or simulated, and the two wrappers every run goes through.

A robot is two RM65 arms with their grippers and cameras. Drivers know units and wires; nothing outside a driver does.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import logging
import signal
import threading
from typing import Any, NamedTuple, Protocol, runtime_checkable

from realman.arrays import Image
from realman.arrays import JointVec
from realman.errors import RealmanError
from realman.errors import RobotError

logger = logging.getLogger(__name__)

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop the arms: Ctrl-C, a service that is ended, a terminal or an ssh connection that is lost."""


@dataclasses.dataclass(frozen=True, eq=False)
class RobotObservation:
    """One look at the robot."""

    state: JointVec
    """Measured position: joints in rad, grippers 0..1 (1 = open), right arm first."""
    images: dict[str, Image]
    """Latest frame of each camera by name, RGB, at the camera's own size."""
    time_s: float
    """`time.monotonic()` at the capture."""


@runtime_checkable
class Robot(Protocol):
    """Two arms, two grippers, cameras. `connected()` opens and always stops and releases one."""

    @property
    def fps(self) -> float:
        """Rate at which `send` expects targets, Hz."""
        ...

    def connect(self) -> None:
        """Open the robot; nothing moves. A failure leaves nothing open."""
        ...

    def observe(self) -> RobotObservation:
        """Return the latest state and camera frames."""
        ...

    def send(self, target: JointVec) -> JointVec:
        """Command one tick of motion towards absolute positions; return what was sent after the driver's own limits."""
        ...

    def stop(self) -> None:
        """Stop both arms now and refuse further targets until the next `connect`; safe to call at any time."""
        ...

    def disconnect(self) -> None:
        """Release the robot; safe to call twice."""
        ...


@runtime_checkable
class RangedRobot(Robot, Protocol):
    """A robot whose controllers may allow less than the arms can do."""

    def joint_range(self) -> tuple[JointVec, JointVec]:
        """Return the lower and upper ends of the allowed range; known once connected."""
        ...


@runtime_checkable
class BrakingRobot(Robot, Protocol):
    """A robot that can come to rest more gently than `stop` does."""

    def slow_stop(self) -> None:
        """Refuse further targets and brake both arms along their path; bounded in time. `stop` must follow."""
        ...


@runtime_checkable
class MeasuringRobot(Robot, Protocol):
    """A robot that says how it is doing without taking pictures; neither call waits."""

    def measure(self) -> JointVec:
        """Return the newest measured position."""
        ...

    def ages_s(self) -> dict[str, float]:
        """Return the age of whatever grows old when something breaks, by name: arms' states, cameras; s."""
        ...


@runtime_checkable
class TaskRobot(Robot, Protocol):
    """A robot that knows whether its task succeeded, as a simulated one does."""

    def is_task_done(self) -> bool:
        """Return whether the task is done at this moment."""
        ...


class CheckResult(NamedTuple):
    """One thing that a robot looked at before it let itself be moved."""

    arm: str
    check: str
    found: str
    problem: str | None = None
    """What to do about it; None is good."""


@runtime_checkable
class InspectedRobot(Robot, Protocol):
    """A robot that looks at its own health when it connects, as the real arms do."""

    @property
    def preflight(self) -> list[CheckResult]:
        """What the last `connect` looked at."""
        ...


class ShadowRobot:
    """A robot that observes and never moves: targets end here instead of at the arms (dry run)."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot

    @property
    def fps(self) -> float:
        """Rate of the robot behind, Hz."""
        return self._robot.fps

    def connect(self) -> None:
        """Open the robot behind."""
        self._robot.connect()

    def observe(self) -> RobotObservation:
        """Return what the robot behind observes."""
        return self._robot.observe()

    def send(self, target: JointVec) -> JointVec:
        """Return the target as if it had been sent."""
        return target

    def slow_stop(self) -> None:
        """Brake the robot behind, if it can."""
        if isinstance(self._robot, BrakingRobot):
            self._robot.slow_stop()

    def stop(self) -> None:
        """Stop the robot behind: a stop is never held back."""
        self._robot.stop()

    def disconnect(self) -> None:
        """Release the robot behind."""
        self._robot.disconnect()


@contextlib.contextmanager
def connected(robot: Robot) -> Iterator[Robot]:
    """Connect a robot; however the block ends, stop the arms first and then release them, whatever signals arrive.

    After a regular end, a tripped watchdog or a lost policy the arms first brake along their path (`BrakingRobot`). After a
    signal, or an error nobody foresaw, they are stopped at once.

    Raises:
        RobotError: The arms could not be stopped, and the block itself had not failed.
    """
    robot.connect()
    failure: BaseException | None = None
    held = {}
    try:
        # Two levels, so that a signal that raises on the way out still leads to the stop.
        try:
            yield robot
        except BaseException as e:
            failure = e
            raise
        finally:
            held = _ignore_signals()
    finally:
        try:
            if failure is None or isinstance(failure, RealmanError) or getattr(failure, "is_gentle", False):
                _brake(robot)
            _stop(robot, has_failed=failure is not None)
        finally:
            robot.disconnect()
            for number, handler in held.items():
                signal.signal(number, handler)


def _brake(robot: Robot) -> None:
    """Try the gentle stop first; the one that counts follows whatever comes of this."""
    if not isinstance(robot, BrakingRobot):
        return
    try:
        robot.slow_stop()
    except Exception as e:
        logger.warning("slow stop: %s; stopping at once", e)


def _stop(robot: Robot, *, has_failed: bool) -> None:
    try:
        robot.stop()
    except Exception as e:
        # The cause of the end must stay the reported error, but nobody may miss that the arms are not stopped.
        logger.critical("the arms could not be stopped (%s): press the emergency stop", e)
        if not has_failed:
            raise RobotError(f"robot: the arms could not be stopped ({e}); press the emergency stop") from e


def _ignore_signals() -> dict[signal.Signals, Any]:
    """Ignore the signals that stop, and return what handled them. Only the main thread hears signals."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
