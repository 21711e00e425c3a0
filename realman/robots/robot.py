"""The robot interface, `connected()`, and the wrapper for dry runs.

A robot is two RM65 arms with their grippers and cameras, real or simulated. Only its driver knows native units and wire
formats.
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
from realman.robots.limits import MotionLimits

logger = logging.getLogger(__name__)

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that stop the arms: Ctrl-C, a service being stopped, or a lost terminal or ssh connection."""


@dataclasses.dataclass(frozen=True, eq=False)
class RobotObservation:
    """State and camera images at one moment."""

    state: JointVec
    """Measured position: joints in rad, grippers 0..1 (1 = open), right arm first."""
    images: dict[str, Image]
    """Latest image of each camera by name, RGB, at the camera's own size."""
    time_s: float
    """`time.monotonic()` at the capture."""


@runtime_checkable
class Robot(Protocol):
    """Two arms, two grippers and cameras.

    Use `connected()` to open one: it always stops the arms and releases the robot.
    """

    @property
    def fps(self) -> float:
        """Rate at which `send` expects targets, Hz."""
        ...

    def connect(self) -> None:
        """Open the robot without moving it. A failure leaves nothing open."""
        ...

    def observe(self) -> RobotObservation:
        """Return the latest state and camera images."""
        ...

    def send(self, target: JointVec) -> JointVec:
        """Command one tick of motion towards absolute positions.

        Returns:
            What was sent, after the driver's own limits.
        """
        ...

    def stop(self) -> None:
        """Stop both arms now and refuse targets until the next `connect`.

        Safe to call at any time.
        """
        ...

    def disconnect(self) -> None:
        """Release the robot. Safe to call twice."""
        ...


@runtime_checkable
class RangedRobot(Robot, Protocol):
    """A robot whose controllers may allow less than the arms' full range."""

    def joint_range(self) -> tuple[JointVec, JointVec]:
        """Return the lower and upper ends of the allowed range.

        They are known once connected.
        """
        ...


@runtime_checkable
class BrakingRobot(Robot, Protocol):
    """A robot that can come to rest more gently than `stop` does."""

    def slow_stop(self) -> None:
        """Refuse further targets and brake both arms along their path.

        The call is bounded in time. You must call `stop` afterwards.
        """
        ...


@runtime_checkable
class LimitedRobot(Robot, Protocol):
    """A robot that sends commands between two targets.

    A run hands it the site's limits, because nobody else sees those commands.
    """

    def set_limits(self, limits: MotionLimits) -> None:
        """Keep these limits in every command. The arms must be at rest."""
        ...


@runtime_checkable
class MeasuringRobot(Robot, Protocol):
    """A robot that reports its state without fetching images. Neither call waits."""

    def measure(self) -> JointVec:
        """Return the newest measured position."""
        ...

    def ages_s(self) -> dict[str, float]:
        """Return the ages of the arms' states and cameras' images, s.

        The keys name the arms and cameras. An age grows when the part behind it breaks.
        """
        ...


@runtime_checkable
class TaskRobot(Robot, Protocol):
    """A robot that knows whether its task is done, like a simulation."""

    def is_task_done(self) -> bool:
        """Return whether the task is done now."""
        ...


class CheckResult(NamedTuple):
    """Result of one pre-flight check of one arm."""

    arm: str
    check: str
    found: str
    problem: str | None = None
    """What is wrong and what to do about it. None means the check passed."""


@runtime_checkable
class InspectedRobot(Robot, Protocol):
    """A robot, such as the real arms, that checks itself on `connect`."""

    @property
    def preflight(self) -> list[CheckResult]:
        """Results of the checks made by the last `connect`."""
        ...


class ShadowRobot:
    """A robot that observes but never moves: targets never reach the arms.

    It wraps a real robot for a dry run.
    """

    def __init__(self, robot: Robot) -> None:
        self._robot = robot

    @property
    def fps(self) -> float:
        """Rate of the wrapped robot, Hz."""
        return self._robot.fps

    def connect(self) -> None:
        """Open the wrapped robot."""
        self._robot.connect()

    def observe(self) -> RobotObservation:
        """Return what the wrapped robot observes."""
        return self._robot.observe()

    def send(self, target: JointVec) -> JointVec:
        """Return the target as if it had been sent."""
        return target

    def slow_stop(self) -> None:
        """Brake the wrapped robot, if it can brake."""
        if isinstance(self._robot, BrakingRobot):
            self._robot.slow_stop()

    def stop(self) -> None:
        """Stop the wrapped robot: a stop is never held back."""
        self._robot.stop()

    def disconnect(self) -> None:
        """Release the wrapped robot."""
        self._robot.disconnect()


@contextlib.contextmanager
def connected(robot: Robot) -> Iterator[Robot]:
    """Connect a robot. When the block ends, stop and release it.

    The arms are always stopped first and released second, even if signals arrive meanwhile. After a normal end, a
    tripped watchdog or a lost policy, they brake along their path before the stop (`BrakingRobot`). After a signal or
    an unexpected error, they are stopped at once.

    Raises:
        RobotError: The arms could not be stopped, and the block itself had not failed.
    """
    robot.connect()
    failure: BaseException | None = None
    held = {}
    try:
        # Two levels, so that a signal that raises on the way out still reaches the stop below.
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
    """Try the gentle stop. The caller always stops the arms afterwards."""
    if not isinstance(robot, BrakingRobot):
        return
    try:
        robot.slow_stop()
    except Exception as e:
        logger.warning("slow stop: failed (%s). Stopping at once", e)


def _stop(robot: Robot, *, has_failed: bool) -> None:
    try:
        robot.stop()
    except Exception as e:
        # The error that ended the block stays the one reported, but the user must see that the arms are not stopped.
        logger.critical("robot: the arms could not be stopped (%s). Press the emergency stop", e)
        if not has_failed:
            raise RobotError(f"robot: the arms could not be stopped ({e}). Press the emergency stop") from e


def _ignore_signals() -> dict[signal.Signals, Any]:
    """Ignore `STOP_SIGNALS` and return their previous handlers.

    Only the main thread can set handlers. In any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
