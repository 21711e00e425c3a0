"""One emulated arm controller: what it is, what it is doing, what went wrong, and every motion command it was given.

No sockets and no threads: the server hands it requests (through `protocol`) and lets time pass with `tick`.
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

# Codes of the vendor's tables that the emulator raises itself.
ERR_TARGET_OUT_OF_RANGE = 0x1002
ERR_COLLISION = 0x100D
ERR_JOINT_DISABLED = 0x1010
JOINT_ERR_POSITION_STEP = 0x4000

_MAX_RECORDS = 200_000
_STOPS = ("set_arm_stop", "set_arm_slow_stop", "set_arm_pause", "set_arm_emergency_stop")


@dataclasses.dataclass(frozen=True)
class MotionRecord:
    """One motion or stop command as it arrived."""

    time_s: float
    """`time.monotonic()` at arrival."""
    command: str
    request: Message
    """The request as sent: 0.001 deg."""
    is_accepted: bool


@dataclasses.dataclass
class PushSettings:
    """Where and how often the state is pushed; a client may change it."""

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
        settings: What it is.
        faults: What is broken; assign at any time.
        motion: Its planner.
        gripper: Its tool port.
        push: Its state push.
        errors: System error codes that stand until cleared.
        joint_errors: Error bits of each joint.
        is_powered, is_real, joints_enabled: Switches that decide whether it moves.
        collision_stage: 0 (off) .. 8 (most sensitive).
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
        """Where the arm is now."""
        return self._physics.position(self.settings.side)

    def fail(self, code: int) -> None:
        """Raise a system error (vendor's code, for example 0x100D for a collision): the arm brakes and waits for a reset."""
        if code not in self.errors:
            self.errors = [*self.errors, code]
        self._end_motion(slow=False)

    def fail_joint(self, joint: int, bits: int) -> None:
        """Raise error bits of one joint (0 based); the arm brakes and waits for a reset."""
        self.joint_errors[joint] |= bits
        self._end_motion(slow=False)

    def clear_errors(self) -> bool:
        """Reset system errors."""
        self.errors = []
        return True

    def error_of_motion(self) -> int:
        """Code that a motion command is answered with: 0 if the arm would move."""
        if self.errors:
            return self.errors[0]
        if self.joint_errors.any():
            return int(self.joint_errors[self.joint_errors != 0][0])
        is_ready = self.is_powered and self.is_real and self.joints_enabled.all() and not self.is_emergency_stopped
        return 0 if is_ready else ERR_JOINT_DISABLED

    def record(self, command: str, request: Message, *, is_accepted: bool) -> None:
        """Remember a motion or stop command."""
        self.records.append(MotionRecord(time.monotonic(), command, request, is_accepted))
        del self.records[:-_MAX_RECORDS]

    def plan(self, target: ArmVec, speed_share: float) -> bool:
        """Start a planned motion; its arrival becomes an event."""
        if self.error_of_motion():
            return False
        self._abort_planned()
        self._owes_arrival = self.motion.plan(target, speed_share)
        return self._owes_arrival

    def follow(self, target: ArmVec, *, is_high: bool) -> int:
        """Take one target of a stream; returns 0 or the error that the answer names."""
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
        """Brake; a planned motion is lost."""
        self._end_motion(slow=slow)
        return True

    def tick(self, dt_s: float) -> list[Message]:
        """Let time pass for the planner, hand its command to the physics and return the events that are due."""
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
        """An arm far from where nothing would have kept it from being has met something."""
        # Not the command itself: a burst of high-follow targets, as after a pause of the network or of this process, runs ahead
        # of what any joint can do, and nothing was met.
        reach = spec.ARM_SPEED_RAD_S * dt_s
        self._expected = self._expected + np.clip(self.motion.position - self._expected, -reach, reach)
        # Our assumption, as the vendor gives no figure: 15 deg at the usual stage 4, less at more sensitive stages.
        if self.collision_stage and ERR_COLLISION not in self.errors:
            allowed = np.deg2rad(27.0 - 3.0 * self.collision_stage)
            if np.abs(joints - self._expected).max() > allowed:
                logger.warning("emulator: the %s arm met something", self.settings.side)
                self.fail(ERR_COLLISION)
                # Give way instead of pressing on: hold the pose the arm was stopped in.
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
    """Say that a motion ended; device 0 is the arm, 1 the gripper."""
    return {
        "state": "current_trajectory_state",
        "trajectory_state": is_done,
        "device": device,
        "trajectory_connect": 0,
    }


def motion_commands(records: Sequence[MotionRecord], since_s: float) -> list[MotionRecord]:
    """Return the commands after a time that may move an arm or a gripper: everything recorded but stops."""
    return [r for r in records if r.time_s > since_s and r.command not in _STOPS]
