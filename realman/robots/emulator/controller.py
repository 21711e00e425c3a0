"""One emulated arm controller: its state, its errors and its motion commands.

It has no sockets and no threads. The server hands it requests (through `protocol`) and lets time pass with `tick`.
"""

from collections.abc import Sequence
import dataclasses
import logging
import time

import numpy as np

from realman import spec
from realman.kinematics import ArmVec
from realman.robots.emulator.faults import Faults
from realman.robots.emulator.gripper import Gripper
from realman.robots.emulator.motion import JointMotion
from realman.robots.emulator.physics import ArmPosition
from realman.robots.emulator.physics import ArmTarget
from realman.robots.emulator.physics import Physics
from realman.robots.emulator.settings import ArmSettings
from realman.robots.emulator.wire import Message

logger = logging.getLogger(__name__)

# Codes from the vendor's tables that the emulator itself raises.
ERR_TARGET_OUT_OF_RANGE = 0x1002
ERR_COLLISION = 0x100D
ERR_JOINT_DISABLED = 0x1010
JOINT_ERR_POSITION_STEP = 0x4000

_MAX_RECORDS = 200_000
_STOPS = ("set_arm_stop", "set_arm_slow_stop", "set_arm_pause", "set_arm_emergency_stop")


@dataclasses.dataclass(frozen=True)
class MotionRecord:
    """One motion or stop command, as received."""

    time_s: float
    """`time.monotonic()` at arrival."""
    command: str
    request: Message
    """The request as sent, joints in 0.001 deg."""
    is_accepted: bool


@dataclasses.dataclass
class PushSettings:
    """Address and period of the state push. A client may change them."""

    enable: bool
    cycle: int
    port: int
    ip: str
    force_coordinate: int = -1
    custom: dict[str, bool] = dataclasses.field(
        default_factory=lambda: {
            "aloha_state": False,
            "arm_current_status": True,
            "expand_state": False,
            "joint_speed": True,
            "lift_state": False,
        }
    )


class Controller:
    """One arm's controller.

    Attributes:
        settings: Address, identity and limits.
        faults: What is broken. Assign its fields at any time.
        motion: The planner of the joints.
        gripper: The gripper on the tool port.
        push: Settings of the state push.
        errors: System error codes, kept until cleared.
        joint_errors: Error bits of each joint.
        is_powered, is_real, joints_enabled: Switches that decide whether the arm moves.
        collision_stage: Sensitivity of the collision detection, 0 (off) .. 8 (most sensitive).
        records: Every motion and stop command so far.
    """

    def __init__(self, settings: ArmSettings, physics: Physics) -> None:
        self.settings = settings
        self.faults = Faults()
        self.motion = JointMotion(settings.home, settings.joint_limit)
        self.gripper = Gripper(target=settings.home_gripper)
        self.push = PushSettings(enable=True, cycle=settings.push_cycle, port=settings.push_port, ip=settings.host)
        self.errors: list[int] = []
        self.joint_errors = np.zeros(6, dtype=np.int64)
        self.is_powered = True
        self.is_real = True
        self.is_emergency_stopped = False
        self.joints_enabled = np.ones(6, dtype=bool)
        self.collision_stage = 4
        self.self_collision = True
        self.records: list[MotionRecord] = []
        self._physics = physics
        self._expected = settings.home.copy()
        self._owes_arrival = False
        self._events: list[Message] = []
        physics.place(settings.side, ArmPosition(settings.home, self.gripper.target))

    @property
    def position(self) -> ArmPosition:
        """Current position of the arm."""
        return self._physics.position(self.settings.side)

    def fail(self, code: int) -> None:
        """Raise a system error: the arm brakes and waits for a reset.

        Args:
            code: The vendor's code, for example 0x100D for a collision.
        """
        if code not in self.errors:
            self.errors = [*self.errors, code]
        self._end_motion(slow=False)

    def fail_joint(self, joint: int, bits: int) -> None:
        """Raise error bits of one joint (counted from 0).

        The arm brakes and waits for a reset.
        """
        self.joint_errors[joint] |= bits
        self._end_motion(slow=False)

    def clear_errors(self) -> bool:
        """Clear all system errors."""
        self.errors = []
        return True

    def error_of_motion(self) -> int:
        """Return the error code of a motion command, 0 if none."""
        if self.errors:
            return self.errors[0]
        if self.joint_errors.any():
            return int(self.joint_errors[self.joint_errors != 0][0])
        is_ready = self.is_powered and self.is_real and self.joints_enabled.all() and not self.is_emergency_stopped
        return 0 if is_ready else ERR_JOINT_DISABLED

    def record(self, command: str, request: Message, *, is_accepted: bool) -> None:
        """Record a motion or stop command."""
        self.records.append(MotionRecord(time.monotonic(), command, request, is_accepted))
        del self.records[:-_MAX_RECORDS]

    def plan(self, target: ArmVec, speed_share: float) -> bool:
        """Start a planned motion. Its arrival becomes an event."""
        if self.error_of_motion():
            return False
        self._abort_planned()
        self._owes_arrival = self.motion.plan(target, speed_share)
        return self._owes_arrival

    def follow(self, target: ArmVec, *, is_high: bool) -> int:
        """Take one target of a stream.

        Returns:
            0, or the error that the reply names.
        """
        error = self.error_of_motion()
        if error:
            return error
        self._abort_planned()
        if not is_high:
            self.motion.follow(target)
            return 0
        refused = self.motion.jump(target)
        if not refused.any():
            return 0
        if not self.motion.in_limits(target):
            return ERR_TARGET_OUT_OF_RANGE
        for joint in np.flatnonzero(refused):
            self.fail_joint(int(joint), JOINT_ERR_POSITION_STEP)
        return JOINT_ERR_POSITION_STEP

    def stop(self, *, slow: bool = False) -> bool:
        """Brake and forget a planned motion."""
        self._end_motion(slow=slow)
        return True

    def tick(self, dt_s: float) -> list[Message]:
        """Advance the planner and return the events that are due.

        The planner's command goes to the physics.
        """
        if self.motion.advance(dt_s) and self._owes_arrival:
            self._owes_arrival = False
            self._events.append(_trajectory_event(device=0, is_done=True))
        target = ArmTarget(self.motion.position.copy(), self.gripper.target, self.gripper.speed)
        self._physics.set_target(self.settings.side, target)
        here = self.position
        if self.gripper.arrived(here.gripper):
            self._events.append(_trajectory_event(device=1, is_done=True))
        self._watch_collision(here.joints, dt_s)
        events, self._events = self._events, []
        return events

    def _watch_collision(self, joints: ArmVec, dt_s: float) -> None:
        """Raise a collision if the arm is far from its expected position."""
        # The expected position is not the command itself: after a pause of the network or of this process, a burst of
        # high-follow targets runs ahead of what any joint can do, without a collision.
        reach = spec.ARM_SPEED_RAD_S * dt_s
        self._expected = self._expected + np.clip(self.motion.position - self._expected, -reach, reach)
        # Our assumption, as the vendor gives no figure: 15 deg at the usual stage 4, less at more sensitive stages.
        if self.collision_stage and ERR_COLLISION not in self.errors:
            allowed = np.deg2rad(27.0 - 3.0 * self.collision_stage)
            if np.abs(joints - self._expected).max() > allowed:
                logger.warning("emulator: the %s arm collided with something", self.settings.side)
                self.fail(ERR_COLLISION)
                # Yield instead of pressing on: hold the pose in which the arm was stopped.
                self.motion.position, self.motion.velocity = joints.copy(), np.zeros(6)
                self._expected = joints.copy()

    def _end_motion(self, *, slow: bool) -> None:
        self._abort_planned()
        self.motion.stop(slow=slow)

    def _abort_planned(self) -> None:
        if self._owes_arrival:
            self._owes_arrival = False
            self._events.append(_trajectory_event(device=0, is_done=False))


def _trajectory_event(*, device: int, is_done: bool) -> Message:
    """Return the event of a motion's end (device 0: arm, 1: gripper)."""
    return {
        "state": "current_trajectory_state",
        "trajectory_state": is_done,
        "device": device,
        "trajectory_connect": 0,
    }


def motion_commands(records: Sequence[MotionRecord], since_s: float) -> list[MotionRecord]:
    """Return later commands that may move an arm or a gripper.

    These are all recorded commands except stops.
    """
    return [r for r in records if r.time_s > since_s and r.command not in _STOPS]
