"""The limits between a policy and the arms.

Every target passes through this layer, and none leaves it faster or further than allowed. `limit_target` and the checks
are pure functions. `SafetyLayer` adds the memory of one run: the last command and counters.

This layer knows nothing of other arms, the table and people. Only the hardware emergency stop is a real emergency stop.
"""

from collections.abc import Mapping
import dataclasses
from typing import Annotated

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.arrays import check_finite
from realman.errors import RejectedError
from realman.ranges import OnRealArms
from realman.ranges import Range
from realman.ranges import check_settings
from realman.robots.limits import ROUNDING
from realman.robots.limits import CommandedMotion
from realman.robots.limits import Limited
from realman.robots.limits import MotionLimits
from realman.robots.limits import StepLimits
from realman.robots.limits import brake_step
from realman.robots.limits import limit_target
from realman.runtime.workspace import Box

_JOINTS = list(spec.JOINT_DIMS)
_FASTEST_DEG_S = float(np.rad2deg(spec.ARM_SPEED_RAD_S).max().round())


@dataclasses.dataclass(frozen=True)
class SafetySettings:
    """What a site allows its arms.

    The RM65's own limits always apply as well.
    """

    joint_margin_deg: Annotated[float, Range(0.0, 90.0, "every joint must keep a range")] = 2.0
    """Distance kept from both ends of each joint's range, deg."""
    max_joint_speed_deg_s: Annotated[float, Range(0.1, _FASTEST_DEG_S, "the vendor's maximum")] = 60.0
    """Largest joint speed, deg/s. Vendor maximum: 180 (waist, shoulder) and 225 (others)."""
    max_joint_acceleration_deg_s2: Annotated[
        float,
        Range(1.0, 1e6, "from full speed to rest within one control step"),
        OnRealArms(1.0, 600.0, "the controllers' own limit"),
    ] = 600.0
    """Largest joint acceleration, deg/s^2."""
    max_gripper_speed_per_s: Annotated[float, Range(0.01, 50.0, "a full stroke per control step")] = 4.0
    """Largest gripper speed, full strokes per second."""
    max_first_jump_deg: Annotated[
        float, Range(0.1, 360.0, "a full turn"), OnRealArms(0.1, 90.0, "the first target must be near the arms")
    ] = 15.0
    """Largest distance of the first target from the measured joints, deg. A further one is refused, not approached."""
    max_limit_ticks: Annotated[
        int,
        Range(1, 1_000_000, "hours of a simulation"),
        OnRealArms(1, 1000, "a policy is lost after 20 s at 50 steps per second"),
    ] = 50
    """Targets outside the joint range in a row before the run is stopped, because the policy is lost."""
    max_observation_age_ms: Annotated[
        float,
        Range(10.0, 60_000.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(10.0, 2000.0, "the policy must see where the arms are"),
    ] = 500.0
    """Largest age of an observation to predict from, ms."""
    max_policy_age_ms: Annotated[
        float,
        Range(20.0, 60_000.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(20.0, 10_000.0, "the arms move without looking for this long"),
    ] = 2000.0
    """Largest age of the observation behind a target, ms. It bounds how long the arms move without a new prediction."""
    max_overrun_ms: Annotated[
        float,
        Range(1.0, 60_000.0, "a slow computer takes its time, but a minute is a fault"),
        OnRealArms(1.0, 1000.0, "the arms get no target for this long"),
    ] = 200.0
    """Largest delay of one control step, ms."""
    max_late_ticks: Annotated[
        int,
        Range(1, 1_000_000, "hours of a simulation"),
        OnRealArms(1, 1000, "a computer that is late for 20 s is too slow"),
    ] = 50
    """Late control steps in a row before the run is stopped."""
    right_box: Box | None = None
    """Where the right arm's tool may be. None allows every position."""
    left_box: Box | None = None
    """Where the left arm's tool may be. None allows every position."""

    def __post_init__(self) -> None:
        check_settings(self)

    def motion(self) -> MotionLimits:
        """Return the limits of motion, which hold at any rate."""
        return MotionLimits(
            max_joint_speed_rad_s=float(np.deg2rad(self.max_joint_speed_deg_s)),
            max_joint_acceleration_rad_s2=float(np.deg2rad(self.max_joint_acceleration_deg_s2)),
            max_gripper_speed_per_s=self.max_gripper_speed_per_s,
            joint_margin_rad=float(np.deg2rad(self.joint_margin_deg)),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Limits(StepLimits):
    """Limits of one control tick, in rad and gripper fraction."""

    max_first_jump: float
    """Largest distance of the first target from the measured joints, rad. Grippers may start anywhere."""
    max_limit_ticks: int
    """Targets outside the joint range in a row before the run is stopped."""
    boxes: Mapping[str, Box]
    """Workspace of each arm that has one."""
    motion: MotionLimits
    """The same limits of motion at any rate, for a driver that sends commands between two ticks."""

    @classmethod
    def per_tick(
        cls, settings: SafetySettings, fps: float, joint_range: tuple[JointVec, JointVec] | None = None
    ) -> "Limits":
        """Return a site's limits for a loop at `fps` Hz.

        Args:
            settings: The site's settings.
            fps: Ticks per second.
            joint_range: Lower and upper ends that the controllers allow. The margin is taken from the narrower of these
                and the arms' own.

        Raises:
            SiteError: The margin leaves a joint no range.
        """
        motion = settings.motion()
        step = motion.per_tick(fps, joint_range)
        boxes = {"right": settings.right_box, "left": settings.left_box}
        return cls(
            lower=step.lower,
            upper=step.upper,
            max_step=step.max_step,
            max_step_change=step.max_step_change,
            max_first_jump=float(np.deg2rad(settings.max_first_jump_deg)),
            max_limit_ticks=settings.max_limit_ticks,
            boxes={side: box for side, box in boxes.items() if box is not None},
            motion=motion,
        )


def check_start(state: JointVec) -> None:
    """Refuse a start position that is outside the arms' own range.

    Raises:
        RejectedError: A number is not finite or a joint is outside. The message names each with its position and range.
    """
    check_finite(state, "measured state")
    outside = [i for i in _JOINTS if not spec.LOWER[i] <= state[i] <= spec.UPPER[i]]
    if outside:
        found = ", ".join(
            f"{spec.DIM_NAMES[i]} at {np.rad2deg(state[i]):.1f} deg "
            f"(range {np.rad2deg(spec.LOWER[i]):.0f}..{np.rad2deg(spec.UPPER[i]):.0f})"
            for i in outside
        )
        raise RejectedError(f"measured state: {found}. Check the units or move the arm back by hand")


def check_boxes(position: JointVec, limits: Limits) -> None:
    """Refuse a position whose tool is outside its arm's workspace box.

    Raises:
        RejectedError: A tool is outside. The message names the arm and every axis.
    """
    for side, box in limits.boxes.items():
        start = spec.ARM_SLICES[side].start
        box.check(position[start : start + len(spec.ARM_JOINTS)], f"{side} arm")


def check_first_jump(target: JointVec, state: JointVec, limits: Limits) -> None:
    """Refuse a first target that is far from the measured position.

    Typical causes are a wrong start pose, wrong units and a wrong arm order.

    Raises:
        RejectedError: A number is not finite or a joint would jump. The message names every such joint and how far.
    """
    check_finite(target, "first target")
    jump = np.abs(target - state)
    far = [i for i in _JOINTS if jump[i] > limits.max_first_jump]
    if far:
        found = ", ".join(f"{spec.DIM_NAMES[i]} {np.rad2deg(jump[i]):.1f} deg" for i in far)
        allowed = np.rad2deg(limits.max_first_jump)
        raise RejectedError(
            f"first target: too far from the measured position: {found} (at most {allowed:.1f} deg). "
            "Move the arms to the pose from which the recordings start"
        )


class SafetyLayer:
    """Applies the limits with the memory of one run.

    Attributes:
        range_clamps: Ticks in which each of the 14 numbers was pulled into its range.
        speed_clamps: Ticks in which each of the 14 numbers was slowed down, by speed or acceleration.
        clamped_ticks: Ticks in which anything was changed.
    """

    def __init__(self, limits: Limits, state: JointVec) -> None:
        """Start from a measured state.

        Raises:
            RejectedError: The arms must not start from this state.
        """
        self._limits = limits
        self._motion = CommandedMotion.at_rest(np.array(state, dtype=np.float64))
        self._wanted = self._motion.target
        self._is_first = True
        self._limit_ticks_in_a_row = 0
        self.restart(state)
        self.range_clamps = np.zeros(spec.NUM_DIMS, dtype=np.int64)
        self.speed_clamps = np.zeros(spec.NUM_DIMS, dtype=np.int64)
        self.clamped_ticks = 0

    def check(self, target: JointVec) -> JointVec:
        """Return what may be sent for this target.

        Raises:
            RejectedError: The target is not finite, too far for a first target, outside a workspace box, or was outside
                the joint range for too long.
        """
        if self._is_first:
            check_first_jump(target, self._motion.position, self._limits)
            self._is_first = False
        limited = limit_target(target, self._motion, self._limits)
        check_boxes(limited.target, self._limits)
        self._count(limited)
        self._wanted = np.array(target, dtype=np.float64)
        return limited.target

    @property
    def is_moving(self) -> bool:
        """Whether the last command was a step."""
        return self._motion.is_moving

    @property
    def max_brake_ticks(self) -> int:
        """Ticks of braking from the largest speed, with the limit of acceleration."""
        return int(np.ceil(self._limits.max_step / self._limits.max_step_change).max())

    @property
    def can_hold(self) -> bool:
        """Whether the limit of acceleration allows a stop at the last command."""
        return bool((np.abs(self._motion.step) <= self._limits.max_step_change + ROUNDING).all())

    def note_sent(self, target: JointVec) -> None:
        """Remember what the robot really sent.

        The next step is measured from it.
        """
        check_finite(target, "target sent by the robot")
        position = np.array(target, dtype=np.float64)
        self._motion = CommandedMotion(position, position - self._motion.position, self._wanted)

    def brake(self) -> JointVec:
        """Return the next target of braking along the path.

        It keeps the limit of acceleration. At rest the target stays the same. A target that stopped at once would be one step of any size, and high follow
        would try to make that step.

        Raises:
            RejectedError: Braking would lead out of a workspace box.
        """
        # A start outside the range is legal, so braking must not become a jump into the range.
        self._wanted = self._motion.position + brake_step(self._motion, self._limits)
        check_boxes(self._wanted, self._limits)
        return self._wanted.copy()

    def restart(self, state: JointVec) -> None:
        """Continue from a measured state as if the run began.

        The first-jump check applies to the next target.

        Raises:
            RejectedError: The arms must not start from this state.
        """
        check_start(state)
        check_boxes(state, self._limits)
        self._motion = CommandedMotion.at_rest(np.array(state, dtype=np.float64))
        self._wanted = self._motion.target
        self._is_first = True
        self._limit_ticks_in_a_row = 0

    def note_hold(self) -> None:
        """Remember that the arms came to rest at the last target.

        This happens if no target was sent for a while.
        """
        self._motion = CommandedMotion.at_rest(self._motion.position)

    def _count(self, limited: Limited) -> None:
        self.range_clamps += limited.over_range
        self.speed_clamps += limited.over_speed
        self.clamped_ticks += bool(limited.over_range.any() or limited.over_speed.any())
        joints_over = [i for i in _JOINTS if limited.over_range[i]]
        self._limit_ticks_in_a_row = self._limit_ticks_in_a_row + 1 if joints_over else 0
        if self._limit_ticks_in_a_row > self._limits.max_limit_ticks:
            names = ", ".join(spec.DIM_NAMES[i] for i in joints_over)
            raise RejectedError(
                f"target: outside the joint range for {self._limit_ticks_in_a_row} steps in a row ({names}), "
                f"expected at most {self._limits.max_limit_ticks}. The policy does not fit this scene"
            )
