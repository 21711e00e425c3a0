"""The newest state of each arm, delivered by the SDK's UDP thread."""

import dataclasses
import logging
import time
from typing import Any

import numpy as np

from realman import spec
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.kinematics import ArmVec
from realman.robots.rm65 import codes
from realman.robots.rm65.pushes import router

logger = logging.getLogger(__name__)

_WAIT_STEP_S = 0.002


@dataclasses.dataclass(frozen=True, eq=False)
class ArmState:
    """One state push of one arm."""

    joints: ArmVec
    """Measured joints, rad."""
    errors: tuple[int, ...]
    """System errors. Empty means none."""
    joint_errors: tuple[int, ...]
    """Error bits of each joint."""
    time_s: float
    """`time.monotonic()` at arrival."""

    def problems(self) -> list[str]:
        """Return the name of every error that the controller reports."""
        joints = zip(spec.ARM_JOINTS, self.joint_errors, strict=True)
        return [codes.describe_system_error(e) for e in self.errors] + [
            codes.describe_joint_error(name, bits) for name, bits in joints if bits
        ]


class StateFeed:
    """Receiver of one arm's pushes.

    The SDK's thread writes it. Any thread may read it.
    """

    def __init__(self, name: str, max_age_s: float) -> None:
        """Describe the feed. Call `open` to start it."""
        self._name = name
        self._address: str | None = None
        self._max_age_s = max_age_s
        self._state: ArmState | None = None
        self._num_unreadable = 0

    def open(self, address: str) -> None:
        """Start receiving what comes from an IPv4 address."""
        self._address = address
        router.add(address, self.receive)

    def close(self) -> None:
        """Stop receiving."""
        if self._address is not None:
            router.remove(self._address)
        self._state = None

    def receive(self, push: Any) -> None:
        """Take one push (`rm_realtime_arm_joint_state_t`)."""
        # -3: the SDK could not parse the push. Firmware before 1.7 spells errors differently, so they would be missed.
        if push.errCode != 0:
            self._num_unreadable += 1
            return
        status = push.joint_status
        self._state = ArmState(
            joints=np.deg2rad(np.array(status.joint_position[:6])),
            errors=tuple(code for code in push.err.err[: push.err.err_len] if code),
            joint_errors=tuple(status.joint_err_code[:6]),
            time_s=time.monotonic(),
        )

    def age_s(self) -> float:
        """Return the age of the newest state, s: infinite without one."""
        state = self._state
        return time.monotonic() - state.time_s if state else float("inf")

    def latest(self) -> ArmState:
        """Return the newest state.

        Raises:
            RobotTimeoutError: No state is new enough.
        """
        state = self._state
        age_s = time.monotonic() - state.time_s if state else float("inf")
        if state is None or not age_s <= self._max_age_s:
            limit_ms = self._max_age_s * 1000
            found = f"the state is {age_s * 1000:.0f} ms old, expected at most {limit_ms:.0f} ms"
            if state is None:
                found = "no state push arrives"
            # Pushes that arrive but cannot be read have a cause of their own.
            hint = (
                f" {self._num_unreadable} pushes could not be read: check that the firmware is 1.7 or newer."
                if self._num_unreadable
                else ""
            )
            raise RobotTimeoutError(
                f"{self._name}: {found}.{hint} "
                "Check the network, the firewall and that no other program uses the UDP port"
            )
        return state

    def healthy(self) -> ArmState:
        """Return the newest state of an arm without errors.

        Raises:
            RobotTimeoutError: See `latest`.
            RobotError: The controller reports an error.
        """
        state = self.latest()
        if problems := state.problems():
            raise RobotError(
                f"{self._name}: {', '.join(problems)}. Look at the arm, then clear the error on the teach pendant"
            )
        return state

    def wait(self, timeout_s: float) -> ArmState:
        """Wait for a state.

        Raises:
            RobotTimeoutError: No state arrived in time.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self._state is not None:
                break
            time.sleep(_WAIT_STEP_S)
        return self.latest()
