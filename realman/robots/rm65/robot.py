"""Both RM65 arms, their grippers and cameras as one `realman.robots.robot.Robot`."""

from collections.abc import Callable
import concurrent.futures
import contextlib
import logging
import time

import numpy as np

from realman import spec
from realman.arrays import JointVec
from realman.arrays import check_finite
from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError
from realman.pacing import SuspendWatch
from realman.robots.cameras import Cameras
from realman.robots.cameras import Frame
from realman.robots.limits import MotionLimits
from realman.robots.rm65.arm import Arm
from realman.robots.rm65.follow import FollowWatch
from realman.robots.rm65.settings import Rm65Settings
from realman.robots.rm65.stream import CommandStream
from realman.robots.robot import CheckResult
from realman.robots.robot import RobotObservation

logger = logging.getLogger(__name__)

_STANDS_STILL_S = 0.5
"""How long an arm may stand still away from its target before the run is ended, s."""

_JOINTS = {side: slice(part.start, part.start + 6) for side, part in spec.ARM_SLICES.items()}
_GRIPPERS = dict(zip(spec.SIDES, spec.GRIPPER_DIMS, strict=True))


class Rm65Robot:
    """Two RM65 arms driven by one process.

    Call all methods from one thread. Only `stop` may be called from any thread.
    """

    def __init__(
        self, settings: Rm65Settings, cameras: Cameras | None = None, limits: MotionLimits | None = None
    ) -> None:
        """Describe the robot. `connect` opens it.

        Args:
            settings: Addresses and rates.
            cameras: The robot's cameras, opened and closed with it. None observes joints and grippers only.
            limits: What every command keeps, also those sent between two targets. None limits to what the arms can do.
        """
        self._settings = settings
        self._limits = limits or MotionLimits()
        self._cameras = cameras
        self._arms = {side: Arm(side, settings) for side in spec.SIDES}
        self._watches: dict[str, FollowWatch] = {}
        self._stream: CommandStream | None = None
        self._previous: JointVec | None = None
        self._suspend_watch = SuspendWatch()
        self._is_connected = False
        self._is_stopped = False
        # Grippers limit their own speed.
        self._max_speed = np.tile([*spec.ARM_SPEED_RAD_S, np.inf], len(spec.SIDES))

    @property
    def fps(self) -> float:
        """Rate at which `send` expects targets, Hz."""
        return self._settings.fps

    @property
    def preflight(self) -> list[CheckResult]:
        """Results of the checks made by the last `connect`, arm by arm."""
        return [result for arm in self._arms.values() for result in arm.results]

    def connect(self) -> None:
        """Open both arms, their grippers and the cameras, without moving.

        A failure leaves nothing open. Connecting also ends a stop. Call it again to recover a lost connection: it
        releases everything first.

        Raises:
            SiteError: The SDK does not load, or both arms have one address.
            RobotError: An arm, a gripper or a camera is missing or not fit to move.
        """
        # Open everything. What is open already is released if a later part fails.
        self.disconnect()
        self._locate()
        with contextlib.ExitStack() as undo:
            for arm in self._arms.values():
                arm.connect()
                undo.callback(arm.disconnect)
            if self._cameras:
                self._cameras.open()
            undo.pop_all()
        # Start without memory of an earlier run.
        speeds = [
            [*(arm.range.max_speed if arm.range else spec.ARM_SPEED_RAD_S), np.inf] for arm in self._arms.values()
        ]
        self._max_speed = np.concatenate(speeds)
        self._watches = {side: FollowWatch(arm.name, _STANDS_STILL_S) for side, arm in self._arms.items()}
        self._previous = self._stream = None
        self._suspend_watch = SuspendWatch()
        self._is_stopped = False
        self._is_connected = True

    def _locate(self) -> None:
        right, left = (self._arms[side].locate() for side in ("right", "left"))
        if right == left:
            hosts = self._settings.right_host, self._settings.left_host
            raise SiteError(
                f"right_host and left_host: '{hosts[0]}' and '{hosts[1]}' are both {right}, expected two arms"
            )

    def observe(self) -> RobotObservation:
        """Return the newest state and images without waiting.

        Raises:
            NotConnectedError: Not connected.
            RobotTimeoutError: A state, gripper position or camera image is too old, or the machine was suspended.
            RobotError: A controller reports an error.
        """
        self._require_connected()
        state, times_s = self._measure()
        frames = self._fresh_frames()
        images = {name: frame.image for name, frame in frames.items()}
        oldest_s = min([*times_s.values(), *(frame.time_s for frame in frames.values())])
        return RobotObservation(state=state, images=images, time_s=oldest_s)

    def joint_range(self) -> tuple[JointVec, JointVec]:
        """Return the ends of the range that arms and controllers allow.

        The controllers' limits are known after the first `connect`.
        """
        lower, upper = spec.LOWER.copy(), spec.UPPER.copy()
        for side, arm in self._arms.items():
            if arm.range:
                lower[_JOINTS[side]], upper[_JOINTS[side]] = arm.range.lower, arm.range.upper
        return lower, upper

    def measure(self) -> JointVec:
        """Return the newest measured position. It raises what `observe` raises."""
        self._require_connected()
        return self._measure()[0]

    def ages_s(self) -> dict[str, float]:
        """Return the ages of the arms' states and cameras' images, s."""
        now_s = time.monotonic()
        frames = self._cameras.latest() if self._cameras and self._is_connected else {}
        ages = {f"{side} arm": arm.feed.age_s() for side, arm in self._arms.items()}
        return ages | {name: now_s - frame.time_s for name, frame in frames.items()}

    def _fresh_frames(self) -> dict[str, Frame]:
        frames = self._cameras.latest() if self._cameras else {}
        now_s, limit_s = time.monotonic(), self._settings.max_camera_age_s
        for name, frame in frames.items():
            age_s = now_s - frame.time_s
            if not age_s <= limit_s:
                raise RobotTimeoutError(
                    f"camera '{name}': the newest frame is {age_s * 1000:.0f} ms old, "
                    f"expected at most {limit_s * 1000:.0f} ms. Check its cable"
                )
        return frames

    def _measure(self) -> tuple[JointVec, dict[str, float]]:
        """Return the state of both arms, and when each arm's state arrived."""
        # After a suspend the ages of states and images say nothing.
        self._suspend_watch.check("rm65")
        state = np.empty(spec.NUM_DIMS)
        times_s = {}
        for side, arm in self._arms.items():
            arm_state = arm.feed.healthy()
            state[_JOINTS[side]] = arm_state.joints
            state[_GRIPPERS[side]] = arm.gripper.opening() if arm.gripper else 0.0
            times_s[side] = arm_state.time_s
        return state, times_s

    def send(self, target: JointVec) -> JointVec:
        """Command both arms and grippers towards a target.

        Args:
            target: Absolute positions, rad and 0..1. It is not changed.

        Returns:
            What was sent: inside the joint range, and at most one tick at full speed from the previous target. In high
            follow the commands towards it follow within two periods.

        Raises:
            NotConnectedError: Not connected.
            RejectedError: The robot was stopped, the target is not finite, or an arm does not follow.
            RobotTimeoutError: A state, gripper position or camera image is too old.
            RobotError: A controller reports an error, or the connection is lost.
        """
        self._require_connected()
        if self._is_stopped:
            raise RejectedError("rm65: stopped, so no motion is accepted. Call connect() first")
        check_finite(target, "target")
        measured, times_s = self._measure()
        # At every tick, not only when a chunk is requested: the arms must not move on the last image of a dead camera.
        self._fresh_frames()
        previous = measured if self._previous is None else self._previous
        self._check_arms_follow(previous, measured, times_s)
        sent = self._limit(target, previous)
        if self._stream is None:
            self._stream = self._new_stream(measured)
        self._previous = self._stream.set_target(sent)
        return self._previous.copy()

    def _new_stream(self, start: JointVec) -> CommandStream:
        rate_hz = self._settings.high_follow_rate_hz if self._settings.follow == "high" else None
        return CommandStream(
            self._send_command,
            start,
            self._limits,
            fps=self.fps,
            rate_hz=rate_hz,
            joint_range=self.joint_range(),
        )

    def set_limits(self, limits: MotionLimits) -> None:
        """Keep these limits in every command.

        This includes those sent between two targets. The arms must be at rest. A run calls this with the site's limits.
        """
        self._limits = limits
        self._end_stream()

    def _end_stream(self) -> None:
        if self._stream:
            self._stream.halt()
            self._stream = None

    def _limit(self, target: JointVec, previous: JointVec) -> JointVec:
        step = self._max_speed / self.fps
        near = np.clip(target, previous - step, previous + step)
        limited = np.clip(near, spec.LOWER, spec.UPPER)
        for side, arm in self._arms.items():
            if arm.range:
                limited[_JOINTS[side]] = np.clip(limited[_JOINTS[side]], arm.range.lower, arm.range.upper)
        return limited

    def _check_arms_follow(self, target: JointVec, measured: JointVec, times_s: dict[str, float]) -> None:
        for side, watch in self._watches.items():
            watch.look(target[_JOINTS[side]], measured[_JOINTS[side]], times_s[side])

    def _send_command(self, command: JointVec) -> None:
        # Also here, because commands leave from a thread that knows nothing of the loop.
        self._suspend_watch.check("rm65")
        is_high = self._settings.follow == "high"
        for side, arm in self._arms.items():
            arm.send(command[_JOINTS[side]], is_high=is_high)
            if arm.gripper:
                arm.gripper.set_target(float(command[_GRIPPERS[side]]))

    def slow_stop(self) -> None:
        """Brake both arms along their path at the same time.

        No target passes until the next `connect`. You must call `stop` afterwards.

        Raises:
            RobotError: An arm did not brake.
        """
        self._close_gates()
        problems = _in_parallel([arm.slow_stop for arm in self._arms.values()])
        if problems:
            raise RobotError("; ".join(str(e) for e in problems))

    def stop(self) -> None:
        """Stop both arms now, at the same time.

        No target passes until the next `connect`. Safe to call at any time.

        Raises:
            RobotError: An arm could not be stopped, or no standstill was observed. Press the emergency stop.
        """
        # First close every gate, then stop: a target that passed after the stop would make an arm move again.
        self._close_gates()
        problems = _in_parallel([arm.stop for arm in self._arms.values()])
        if problems:
            raise RobotError(f"{'; '.join(str(e) for e in problems)}. Press the emergency stop")

    def _close_gates(self) -> None:
        self._is_stopped = True
        # Shut all gates before waiting at any: one arm's slow gripper must not let the other arm keep moving.
        if self._stream:
            self._stream.shut()
        for arm in self._arms.values():
            arm.shut()
        for arm in self._arms.values():
            arm.close_gate()

    def disconnect(self) -> None:
        """Release arms, grippers and cameras. Safe to call twice.

        This does not stop a motion. Use `stop` for that.
        """
        self._is_connected = False
        self._end_stream()
        if self._cameras:
            self._cameras.close()
        for arm in self._arms.values():
            arm.disconnect()

    def _require_connected(self) -> None:
        if not self._is_connected:
            raise NotConnectedError("rm65: not connected. Call connect() first")


def _in_parallel(calls: list[Callable[[], None]]) -> list[BaseException]:
    """Run all calls at the same time and return their errors.

    Every call runs to its end, so each must be bounded in time.
    """
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        done = [pool.submit(call) for call in calls]
    return [error for future in done if (error := future.exception())]
