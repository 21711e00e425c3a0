"""Limits of speed, acceleration and range, and the step that keeps them.

Pure functions. The control loop applies them to each target. A driver that sends commands between two targets applies
them once more, at the rate of its commands.
"""

import dataclasses
from typing import Annotated, NamedTuple

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.arrays import check_finite
from realman.errors import SiteError
from realman.ranges import Range
from realman.ranges import check_settings

_JOINTS = list(spec.JOINT_DIMS)
ROUNDING = 1e-9
"""Differences up to this (rad or gripper fraction) are float rounding, not clamps."""
_TINY_SHARE = 0.01
"""A target within this share of the largest change of a step is met at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class StepLimits:
    """Limits of one tick of a loop, in rad and gripper fraction."""

    lower: JointVec
    upper: JointVec
    max_step: JointVec
    """Largest change from one target to the next."""
    max_step_change: JointVec
    """Largest change from one such step to the next, above 0. It limits the acceleration."""


@dataclasses.dataclass(frozen=True)
class MotionLimits:
    """How fast two arms may move and how far, at any rate.

    The RM65's own speeds always apply as well.
    """

    max_joint_speed_rad_s: Annotated[float, Range(1e-3, 100.0, "far beyond what the arms can do")] = float(
        spec.ARM_SPEED_RAD_S.max()
    )
    """Largest joint speed. The default is what the arms can do."""
    max_joint_acceleration_rad_s2: Annotated[float, Range(1e-2, 1e5, "to rest within one command")] | None = None
    """Largest joint acceleration. None lets a joint reverse within a tick."""
    max_gripper_speed_per_s: Annotated[float, Range(0.01, 1000.0, "a full stroke per command")] | None = None
    """Largest gripper speed, full strokes per second. None lets a gripper jump."""
    joint_margin_rad: Annotated[float, Range(0.0, 2.0, "every joint must keep a range")] = 0.0
    """Distance kept from both ends of each joint's range."""

    def __post_init__(self) -> None:
        check_settings(self)

    def per_tick(self, rate_hz: float, joint_range: tuple[JointVec, JointVec] | None = None) -> StepLimits:
        """Return the limits of one tick at a rate.

        Args:
            rate_hz: Ticks per second.
            joint_range: Lower and upper ends that the controllers allow. The margin is taken from the narrower of these
                and the arms' own.

        Raises:
            SiteError: The margin leaves a joint no range.
        """
        # Positions: the range that both the arms and their controllers allow, less the margin.
        lower, upper = joint_range or (spec.LOWER, spec.UPPER)
        margin = np.zeros(spec.NUM_DIMS)
        margin[_JOINTS] = self.joint_margin_rad
        lower, upper = np.maximum(lower, spec.LOWER) + margin, np.minimum(upper, spec.UPPER) - margin
        if (lower >= upper).any():
            names = ", ".join(spec.DIM_NAMES[i] for i in np.flatnonzero(lower >= upper))
            raise SiteError(
                f"safety: 'joint_margin_deg' is {np.rad2deg(self.joint_margin_rad):g}, which leaves no range at "
                f"{names}. Choose a smaller margin, or a wider range in the arm's controller"
            )
        # Steps: what the site and the vendor allow. A full stroke per tick lets a gripper jump.
        speed = np.full(spec.NUM_DIMS, self.max_gripper_speed_per_s or rate_hz)
        vendor_speed = np.tile(spec.ARM_SPEED_RAD_S, len(spec.SIDES))
        speed[_JOINTS] = np.minimum(self.max_joint_speed_rad_s, vendor_speed)
        # A gripper may reverse within a tick, because its own controller limits the acceleration.
        step_change = 2 * speed / rate_hz
        if self.max_joint_acceleration_rad_s2 is not None:
            step_change[_JOINTS] = self.max_joint_acceleration_rad_s2 / rate_hz**2
        return StepLimits(lower=lower, upper=upper, max_step=speed / rate_hz, max_step_change=step_change)


@dataclasses.dataclass(frozen=True, eq=False)
class CommandedMotion:
    """Position and speed of the commands so far."""

    position: JointVec
    """Last command, or the measured position before the first command."""
    step: JointVec
    """Last command minus the command before it."""
    target: JointVec
    """Last target before the limits."""

    @classmethod
    def at_rest(cls, position: JointVec) -> "CommandedMotion":
        """Return the motion of arms that stand at a position."""
        return cls(position.copy(), np.zeros(spec.NUM_DIMS), position.copy())

    @property
    def is_moving(self) -> bool:
        """Whether the last command was a step."""
        return bool(np.abs(self.step).max() > ROUNDING)


class Limited(NamedTuple):
    """A limited target and which of its 14 numbers were changed."""

    target: np.ndarray
    over_range: np.ndarray
    """Which numbers were outside the range."""
    over_speed: np.ndarray
    """Which numbers were slowed down, by the limit of speed or acceleration."""


def limit_target(target: JointVec, motion: CommandedMotion, limits: StepLimits) -> Limited:
    """Clip a target and make one step towards it within the limits.

    A target that moves inside all limits is followed exactly. Otherwise the step is the largest one after which braking
    still ends where the target would end if it braked now, and still stops before the ends of the range. So a target
    that brakes within the limits is never passed, and one that stops at once is passed and returned to. Limits
    can contradict each other, for example after a start near the end of the range. Then the range has priority over
    speed, and speed over acceleration.

    A position outside the range (in the margin) is legal. The result then moves back towards the range, never away.

    Args:
        target: Wanted positions (14,), rad and gripper fraction. It is not changed.
        motion: The commands so far.
        limits: Limits of one tick.

    Returns:
        The target to send and two bool masks (14,).

    Raises:
        RejectedError: A number is not finite.
    """
    check_finite(target, "target")
    in_range = _clip(target, limits.lower, limits.upper)
    before = _clip(motion.target, limits.lower, limits.upper)
    pace = _clip(in_range - before, -limits.max_step, limits.max_step)
    # Head for where the target would come to rest, as fast as braking still allows.
    rest = in_range + np.sign(pace) * (_braking_distance(np.abs(pace), limits.max_step_change) - np.abs(pace))
    ahead = rest - motion.position
    step = np.sign(ahead) * brakable_step(np.abs(ahead), limits.max_step_change)
    # A tiny rest of the way is closed at once, because approaching it like that would never end.
    whole = in_range - motion.position
    step = np.where(np.abs(whole - pace) <= _TINY_SHARE * limits.max_step_change, whole, step)
    # Each limit below has priority over the ones before it: acceleration, speed, range.
    step = _clip(step, motion.step - limits.max_step_change, motion.step + limits.max_step_change)
    step = _clip(step, -limits.max_step, limits.max_step)
    sent = motion.position + _stay_in_range(step, motion.position, limits)
    return Limited(sent, np.abs(in_range - target) > ROUNDING, np.abs(sent - in_range) > ROUNDING)


def brake_step(motion: CommandedMotion, limits: StepLimits) -> JointVec:
    """Return the next step of the hardest braking that is allowed.

    All joints slow down by the same share, so that the arm keeps its direction. Only a joint near the end of its range
    stops sooner.
    """
    moving = np.maximum(np.abs(motion.step), limits.max_step_change)
    share = 1.0 - float((limits.max_step_change / moving).min())
    return _stay_in_range(share * motion.step, motion.position, limits)


def _clip(values: JointVec, lower: JointVec, upper: JointVec) -> JointVec:
    """Return what `np.clip` returns, in a third of the time.

    That counts at the rate of the wire.
    """
    return np.minimum(np.maximum(values, lower), upper)


def _stay_in_range(step: JointVec, position: JointVec, limits: StepLimits) -> JointVec:
    """Shorten a step so that braking still ends inside the range."""
    room_up = np.maximum(limits.upper - position, 0.0)
    room_down = np.maximum(position - limits.lower, 0.0)
    change = limits.max_step_change
    return _clip(step, -brakable_step(room_down, change), brakable_step(room_up, change))


def brakable_step(distance: JointVec, change: JointVec) -> JointVec:
    """Return the largest step from which braking ends within `distance`.

    Braking means that each following step is smaller by `change`. All values are >= 0.

    Formula: n steps s, s - c, s - 2c, ... cover n s - c n (n - 1) / 2. n is the least number with c n (n + 1) / 2 >= d.
    """
    count = np.maximum(np.ceil((np.sqrt(1 + 8 * distance / change) - 1) / 2), 1.0)
    return distance / count + change * (count - 1) / 2


def _braking_distance(step: JointVec, change: JointVec) -> JointVec:
    """Return the way of a step and of braking after it.

    This is the inverse of `brakable_step`.
    """
    count = np.ceil(step / change)
    return count * step - change * count * (count - 1) / 2
