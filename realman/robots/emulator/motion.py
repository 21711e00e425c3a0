"""How a controller turns motion commands into joint positions, tick by tick.

No sockets, no wall clock, no physics. There are three ways to move, as the vendor describes them:

    planned      (`movej`) all joints arrive together
    low follow   an online planner chases the newest target within speed and acceleration limits, from anywhere
    high follow  the target *is* the command, and a step above 10 deg is refused
"""

import enum

import numpy as np

from realman import spec
from realman.kinematics import ArmVec
from realman.robots.emulator.settings import JOINT_ACCELERATION_RAD_S2

MAX_HIGH_FOLLOW_STEP_RAD = float(np.deg2rad(10.0))
"""Largest step between two high-follow commands (vendor's manual). A larger one raises the joint's step alarm."""

STOP_DECELERATION_FACTOR = 4.0
"""How much harder `stop` brakes than the usual acceleration. This is our assumption, as the vendor gives no figure."""

_ARRIVED = 1e-6
"""Distance that counts as arrived, rad or share of a planned path."""


class Status(str, enum.Enum):  # enum.StrEnum needs Python 3.11
    """What the arm is doing, in the words of the state push."""

    IDLE = "idle"
    MOVE_J = "move_J"
    FOLLOW = "move_through_joint"
    STOP = "stop"
    SLOW_STOP = "slow_stop"
    PAUSE = "pause"

    def __str__(self) -> str:
        return str(self.value)


def approach(
    position: np.ndarray,
    velocity: np.ndarray,
    target: np.ndarray,
    max_speed: np.ndarray,
    max_acceleration: np.ndarray,
    dt_s: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Take one step towards `target` within the limits, never past it.

    Braking starts in time to end at the target.

    Returns:
        New position and velocity. Each element moves on its own, so that joints do not wait for one another.
    """
    error = target - position
    # Largest speed from which braking by max_acceleration in whole ticks still ends at the target:
    # v^2 / 2a + v dt / 2 = |error|, solved for v.
    lag = max_acceleration * dt_s / 2
    braking = np.sqrt(lag**2 + 2 * max_acceleration * np.abs(error)) - lag
    wanted = np.sign(error) * np.minimum(np.minimum(braking, max_speed), np.abs(error) / dt_s)
    step = max_acceleration * dt_s
    velocity = np.clip(wanted, velocity - step, velocity + step)
    return position + velocity * dt_s, velocity


class JointMotion:
    """The commanded joints of one arm.

    Attributes:
        position: Commanded joints, rad.
        velocity: Commanded joint velocities, rad/s.
        status: What the arm is doing.
    """

    def __init__(self, start: ArmVec, limit: ArmVec) -> None:
        self._limit = limit
        self.max_speed = spec.ARM_SPEED_RAD_S.copy()
        self.position = start.copy()
        self.velocity = np.zeros(6)
        self.status = Status.IDLE
        self._target = start.copy()
        self._path_start = start.copy()
        self._progress = np.zeros(1)
        self._progress_rate = np.zeros(1)
        self._speed_share = 1.0
        self._brake = STOP_DECELERATION_FACTOR

    @property
    def is_standing(self) -> bool:
        """Whether nothing is commanded to move."""
        return not self.velocity.any()

    def in_limits(self, target: ArmVec) -> bool:
        """Return whether the controller's own joint limits allow a position."""
        return bool((np.abs(target) <= self._limit + _ARRIVED).all())

    def plan(self, target: ArmVec, speed_share: float) -> bool:
        """Go to `target` along a straight line in joint space.

        Args:
            target: Joints, rad.
            speed_share: Share of full speed, (0..1].

        Returns:
            Whether both are in range.
        """
        if not (self.in_limits(target) and 0 < speed_share <= 1):
            return False
        self._path_start, self._target = self.position.copy(), target.copy()
        self._progress, self._progress_rate = np.zeros(1), np.zeros(1)
        self._speed_share = speed_share
        self.status = Status.MOVE_J
        return True

    def follow(self, target: ArmVec) -> None:
        """Chase `target` from the current position (low follow).

        A target out of range is replaced by the nearest position in range.
        """
        self._target = np.clip(target, -self._limit, self._limit)
        self.status = Status.FOLLOW

    def jump(self, target: ArmVec) -> np.ndarray:
        """Make `target` the command at once (high follow).

        Returns:
            Joints (6,) bool whose step was too large or whose target was out of range. If any, nothing moves.
        """
        refused = (np.abs(target - self.position) > MAX_HIGH_FOLLOW_STEP_RAD) | (np.abs(target) > self._limit)
        if not refused.any():
            self.position, self._target = target.copy(), target.copy()
            self.velocity = np.zeros(6)
            self.status = Status.FOLLOW
        return refused

    def stop(self, *, slow: bool = False) -> None:
        """Brake to standstill and forget the target."""
        self._brake = 1.0 if slow else STOP_DECELERATION_FACTOR
        self.status = Status.SLOW_STOP if slow else Status.STOP

    def pause(self) -> bool:
        """Brake on the planned path and keep it.

        Returns:
            Whether there is a path to pause.
        """
        if self.status is Status.MOVE_J:
            self.status = Status.PAUSE
        return self.status is Status.PAUSE

    def resume(self) -> bool:
        """Resume the paused path. Return whether there was one."""
        if self.status is not Status.PAUSE:
            return False
        self.status = Status.MOVE_J
        return True

    def discard(self) -> bool:
        """Forget the paused path. Return whether there was one."""
        if self.status is not Status.PAUSE:
            return False
        self.stop()
        return True

    def advance(self, dt_s: float) -> bool:
        """Advance by `dt_s`.

        Returns:
            Whether a planned motion arrives in this tick.
        """
        if self.status in (Status.MOVE_J, Status.PAUSE):
            return self._advance_path(dt_s)
        if self.status is Status.FOLLOW:
            self.position, self.velocity = approach(
                self.position, self.velocity, self._target, self.max_speed, JOINT_ACCELERATION_RAD_S2, dt_s
            )
        elif not self.is_standing:
            slower = np.abs(self.velocity) - self._brake * JOINT_ACCELERATION_RAD_S2 * dt_s
            self.velocity = np.sign(self.velocity) * np.maximum(slower, 0.0)
            self.position = np.clip(self.position + self.velocity * dt_s, -self._limit, self._limit)
        return False

    def _advance_path(self, dt_s: float) -> bool:
        """Advance along the planned path, as fast as its slowest joint allows."""
        # One share of the path drives all joints, so that they arrive together.
        length = self._target - self._path_start
        moving = np.abs(length) > _ARRIVED
        if moving.any():
            rate = np.min(self._speed_share * self.max_speed[moving] / np.abs(length[moving]), keepdims=True)
            change = np.min(JOINT_ACCELERATION_RAD_S2[moving] / np.abs(length[moving]), keepdims=True)
            if self.status is Status.PAUSE:
                rate = np.zeros(1)
            self._progress, self._progress_rate = approach(
                self._progress, self._progress_rate, np.ones(1), rate, change, dt_s
            )
        else:
            self._progress = np.ones(1)
        self.position = self._path_start + self._progress * length
        self.velocity = self._progress_rate * length
        if self.status is Status.PAUSE or self._progress[0] < 1 - _ARRIVED:
            return False
        self.position, self.velocity = self._target.copy(), np.zeros(6)
        self.status = Status.IDLE
        return True
