"""One RM65 through the SDK: connect, check, stream targets, stop, release."""

from collections.abc import Callable
import logging
import socket
import threading
import time
from typing import Any

import numpy as np

from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.kinematics import ArmVec
from realman.robots.rm65 import addresses
from realman.robots.rm65 import codes
from realman.robots.rm65 import preflight
from realman.robots.rm65 import sdk
from realman.robots.rm65.feed import StateFeed
from realman.robots.rm65.gripper import GripperWorker
from realman.robots.rm65.gripper import make_gripper
from realman.robots.rm65.handle import close_handle
from realman.robots.rm65.handle import open_handle
from realman.robots.rm65.raw import RawArm
from realman.robots.rm65.settings import Rm65Settings
from realman.robots.robot import CheckResult

logger = logging.getLogger(__name__)

_NO_FORCE_SENSOR = -1
_GATE_WAIT_S = 0.1
"""How long a stop waits for a command in flight."""
_UNIT_MIDDLE = 0.3
"""Added to a whole number of units, so that both cutting and rounding give this number."""
_RELEASE_TIMEOUT_S = 1.0
_STANDSTILL_TIMEOUT_S = 1.0
"""How long an arm may take to come to rest after an acknowledged stop. A longer `stop_timeout_s` replaces it."""
_STANDSTILL_WINDOW_S = 0.05
_STANDSTILL_RAD = float(np.deg2rad(0.05))


class Arm:
    """One arm.

    Commands pass a gate that a stop closes, so no command can follow a stop.

    Attributes:
        name: Name for messages, such as 'right arm 192.168.1.19'.
        results: Pre-flight results of the last `connect`.
        range: Range of the joints, known after `connect`.
        address: IPv4 address, known after `locate`.
    """

    def __init__(self, side: str, settings: Rm65Settings) -> None:
        self._settings = settings
        self._host = settings.host(side)
        self.name = f"{side} arm {self._host}"
        self.results: list[CheckResult] = []
        self.range: preflight.JointRange | None = None
        self._identity: dict[str, str] = {}
        self.address = ""
        self.feed = StateFeed(self.name, settings.max_state_age_s)
        self.gripper: GripperWorker | None = None
        self._sdk_arm: Any = None
        self._gate = threading.Lock()
        self._is_open = False

    def locate(self) -> str:
        """Look up the arm's address and return it.

        Raises:
            RobotError: Its name is unknown, or not looked up in time.
        """
        self.address = addresses.resolve(self.name, self._host, self._settings.connect_timeout_s)
        return self.address

    def connect(self) -> None:
        """Connect, check everything and open the gate.

        Call `locate` first. A failure leaves nothing open.

        Raises:
            SiteError: The SDK does not load.
            RobotTimeoutError: No controller answers, or its state does not arrive.
            RejectedError: The arm is not fit to move.
            RobotError: Anything else went wrong.
        """
        try:
            self._open_handle()
            self._open_feed()
            self.feed.wait(self._settings.connect_timeout_s)
            self.results, self.range = preflight.inspect(self.name, self._sdk_arm, self.feed.latest)
            for result in self.results:
                logger.info("%s: %s: %s", result.arm, result.check, result.found)
            preflight.refuse_if_any(self.results)
            now = preflight.identity(self.address, self.results, self.range)
            preflight.refuse_another(self.name, self._identity, now)
            self._identity = now
            self._set_collision_stage()
            self._open_gripper()
        except BaseException:
            self.disconnect()
            raise
        self._is_open = True

    def _open_handle(self) -> None:
        settings, arm = self._settings, sdk.new_arm()
        call = f"{self.name}: connect"
        if not sdk.bounded(
            lambda: open_handle(arm, self.address, settings.tcp_port),
            settings.connect_timeout_s,
            call,
            # A handle that comes too late would occupy one of the SDK's few slots forever.
            undo=lambda: close_handle(arm),
        ):
            raise RobotTimeoutError(
                f"{self.name}: no RealMan controller answers at port {settings.tcp_port}. "
                "Check power, network and address. If it was connected a moment ago, start the program again"
            )
        self._sdk_arm = arm
        arm.rm_set_timeout(round(settings.reply_timeout_s * 1000))

    def _open_feed(self) -> None:
        self.feed.open(self.address)
        module, settings = sdk.load(), self._settings
        if settings.push_host:
            here = addresses.resolve("push_host", settings.push_host, settings.connect_timeout_s)
        else:
            here = _address_towards(self.address, settings.tcp_port)
        config = module.rm_realtime_push_config_t(settings.push_cycle, True, settings.push_port, _NO_FORCE_SENSOR, here)
        codes.check(self._sdk_arm.rm_set_realtime_push(config), self.name, "rm_set_realtime_push")

    def _set_collision_stage(self) -> None:
        stage = self._settings.collision_stage
        if stage is not None:
            codes.check(self._sdk_arm.rm_set_collision_state(stage), self.name, "rm_set_collision_state")

    def _open_gripper(self) -> None:
        settings = self._settings.gripper
        self.gripper = GripperWorker(self.name, make_gripper(self.name, self._sdk_arm, settings), settings)
        self.gripper.open()

    def send(self, joints: ArmVec, *, is_high: bool) -> None:
        """Send one target, rad. This takes about 0.1 ms.

        Only the arm's state shows whether it follows.

        Raises:
            NotConnectedError: The gate is closed.
            RejectedError: A number is not finite. The SDK would send -2147483 deg.
            RobotError: The target could not be sent.
        """
        thousandths = np.round(np.rad2deg(joints) * 1000)
        # The SDK cuts single-precision degrees to thousandths. The middle of a unit keeps them as they are.
        degrees = ((thousandths + np.sign(thousandths) * _UNIT_MIDDLE) / 1000).tolist()
        if not np.isfinite(joints).all():
            raise RejectedError(f"{self.name}: target is not finite, so nothing was sent: {degrees} deg")
        with self._gate:
            if not self._is_open:
                raise NotConnectedError(f"{self.name}: not connected, or stopped")
            code = self._sdk_arm.rm_movej_canfd(degrees, is_high)
        codes.check(code, self.name, "rm_movej_canfd")

    def shut(self) -> None:
        """Let no further command pass, and return at once."""
        self._is_open = False
        if self.gripper:
            self.gripper.shut()

    def close_gate(self) -> None:
        """Let no further command pass, and briefly wait for one in flight."""
        self.shut()
        if self.gripper:
            self.gripper.halt()
        if self._gate.acquire(timeout=_GATE_WAIT_S):
            self._gate.release()

    def slow_stop(self) -> None:
        """Let no further command pass, brake along the path and await standstill.

        The wait is bounded.

        Raises:
            RobotError: The SDK did not stop the arm, or no standstill was observed.
        """
        if self._sdk_arm is None:
            return
        self.close_gate()
        timeout_s = self._settings.stop_timeout_s
        code = sdk.bounded(self._sdk_arm.rm_set_arm_slow_stop, timeout_s, f"{self.name}: slow stop")
        codes.check(code, self.name, "rm_set_arm_slow_stop")
        _wait_for_standstill(self.name, self._ask_joints, self._settings.stop_timeout_s)

    def stop(self) -> None:
        """Stop at once and wait for the standstill.

        The stop goes through the SDK, or around it if it hangs or lost its connection. It never uses
        `rm_set_arm_emergency_stop`: on a generation 3 controller this leaves the SDK locked forever (1.1.1 .. 1.1.6).

        Raises:
            RobotError: The stop was not acknowledged, or no standstill was observed.
        """
        if self._sdk_arm is None:
            return
        self.close_gate()
        try:
            code = sdk.bounded(self._sdk_arm.rm_set_arm_stop, self._settings.stop_timeout_s, f"{self.name}: stop")
            codes.check(code, self.name, "rm_set_arm_stop")
            _wait_for_standstill(self.name, self._ask_joints, self._settings.stop_timeout_s)
        except RobotError as e:
            logger.warning("%s. Stopping over a separate connection", e)
            settings = self._settings
            with RawArm(self.name, self.address, settings.tcp_port, settings.reply_timeout_s) as raw:
                raw.stop()
                _wait_for_standstill(self.name, raw.joints, settings.stop_timeout_s)

    def _ask_joints(self) -> ArmVec:
        """Query the joints. Unlike a state push, an answer cannot be stale."""
        timeout_s = self._settings.stop_timeout_s
        code, degrees = sdk.bounded(self._sdk_arm.rm_get_joint_degree, timeout_s, f"{self.name}: joints")
        codes.check(code, self.name, "rm_get_joint_degree")
        return np.deg2rad(np.array(degrees[:6]))

    def disconnect(self) -> None:
        """Release the arm without stopping its motion. Safe to call twice."""
        self.close_gate()
        if self.gripper:
            self.gripper.close()
            self.gripper = None
        self.feed.close()
        arm, self._sdk_arm = self._sdk_arm, None
        if arm is None:
            return
        try:
            timeout_s = max(_RELEASE_TIMEOUT_S, self._settings.stop_timeout_s)
            sdk.bounded(lambda: close_handle(arm), timeout_s, f"{self.name}: release")
        except RobotTimeoutError as e:
            logger.critical("%s. Start the program again before the next run", e)


def _wait_for_standstill(name: str, measure: Callable[[], ArmVec], stop_timeout_s: float) -> None:
    timeout_s = max(_STANDSTILL_TIMEOUT_S, stop_timeout_s)
    until = time.monotonic() + timeout_s
    before = measure()
    while time.monotonic() < until:
        time.sleep(_STANDSTILL_WINDOW_S)
        now = measure()
        if np.abs(now - before).max() < _STANDSTILL_RAD:
            return
        before = now
    raise RobotError(f"{name}: still moving {timeout_s:g} s after the stop was acknowledged")


def _address_towards(host: str, port: int) -> str:
    """Return this machine's address as `host` sees it.

    No packet is sent.

    Raises:
        RobotError: There is no route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError as e:
        raise RobotError(f"arm {host}: no network route to it ({e}). Set 'push_host'") from e
