"""Drivers for the grippers, and the thread that runs one.

A gripper call waits for the controller's answer and, over Modbus, for a serial line. So it never runs in the control
loop.
"""

import logging
import threading
import time
from typing import Any, Protocol, runtime_checkable

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.robots.rm65 import codes
from realman.robots.rm65 import sdk
from realman.robots.rm65.settings import GripperSettings

logger = logging.getLogger(__name__)

_EG2_FULL = 1000

# CTAG 90D, Modbus holding registers (manufacturer's manual).
_CTAG_DEVICE = 1
_CTAG_ENABLE = 256
_CTAG_TARGET = 258
"""High word, low word, speed %, force %: four registers in a row."""
_CTAG_TRIGGER = 264
_CTAG_POSITION = 0x60D
"""High word, low word."""

_TOOL_PORT = 1
_BAUD_RATE = 115200
_MODBUS_TIMEOUT_100MS = 1
_RTU_MASTER = 0

_HALT_WAIT_S = 0.1
"""How long a stop waits for a gripper command in flight."""
_SETTLED_S = 0.5
"""A target that stays for so long is sent, however small the change."""
_CLOSE_WAIT_S = 2.0


@runtime_checkable
class Gripper(Protocol):
    """One gripper. Openings are 0 (closed) .. 1 (open).

    Calls block for milliseconds to tens of milliseconds.
    """

    def prepare(self) -> None:
        """Make the gripper ready without moving it."""
        ...

    def move(self, opening: float) -> None:
        """Start moving towards an opening."""
        ...

    def read(self) -> float:
        """Return the measured opening."""
        ...


class Eg2Gripper:
    """Inspire EG2-4C2, driven by the controller's own commands."""

    def __init__(self, name: str, arm: Any) -> None:
        self._name = name
        self._arm = arm

    def prepare(self) -> None:
        """Check that the gripper answers."""
        self.read()

    def move(self, opening: float) -> None:
        """Start moving towards an opening."""
        position = max(1, round(opening * _EG2_FULL))
        codes.check(sdk.move_gripper(self._arm, position), self._name, "rm_set_gripper_position")

    def read(self) -> float:
        """Return the measured opening, clipped to 0..1.

        A closed EG2 may report slightly less than 0.
        """
        code, state = self._arm.rm_get_gripper_state()
        codes.check(code, self._name, "rm_get_gripper_state")
        if state["error"]:
            raise RobotError(
                f"{self._name}: gripper error bits 0x{state['error']:02X} (stall, heat, current, driver, bus)"
            )
        return min(max(state["actpos"] / _EG2_FULL, 0.0), 1.0)


class CtagGripper:
    """CTAG 90D over Modbus RTU on the tool's RS485 line.

    Controllers of generations 3 and 4 have different calls for it.
    """

    def __init__(self, name: str, arm: Any, settings: GripperSettings) -> None:
        self._name = name
        self._arm = arm
        self._settings = settings
        self._sdk = sdk.load()
        self._is_generation_4 = arm.robot_controller_version == 4

    def prepare(self) -> None:
        """Open the tool port for Modbus and enable the gripper."""
        if self._is_generation_4:
            code = self._arm.rm_set_tool_rs485_mode(_RTU_MASTER, _BAUD_RATE)
        else:
            code = self._arm.rm_set_modbus_mode(_TOOL_PORT, _BAUD_RATE, _MODBUS_TIMEOUT_100MS)
        codes.check(code, self._name, "set Modbus mode")
        self._write(_CTAG_ENABLE, [1])
        self.read()

    def move(self, opening: float) -> None:
        """Start moving towards an opening."""
        s = self._settings
        register = round(s.ctag_closed_register + opening * (s.ctag_open_register - s.ctag_closed_register))
        self._write(_CTAG_TARGET, [*divmod(register, 1 << 16), s.ctag_speed_percent, s.ctag_force_percent])
        self._write(_CTAG_TRIGGER, [1])

    def read(self) -> float:
        """Return the measured opening."""
        s = self._settings
        high, low = self._read(_CTAG_POSITION, 2)
        opening = ((high << 16) + low - s.ctag_closed_register) / (s.ctag_open_register - s.ctag_closed_register)
        return min(max(opening, 0.0), 1.0)

    def _write(self, address: int, words: list[int]) -> None:
        if self._is_generation_4:
            params = self._sdk.rm_modbus_rtu_write_params_t(address, _CTAG_DEVICE, _TOOL_PORT, len(words), words)
            code = self._arm.rm_write_modbus_rtu_registers(params)
        else:
            params = self._sdk.rm_peripheral_read_write_params_t(_TOOL_PORT, address, _CTAG_DEVICE, len(words))
            code = self._arm.rm_write_registers(params, [byte for word in words for byte in divmod(word, 256)])
        codes.check(code, self._name, f"write gripper register {address}")

    def _read(self, address: int, count: int) -> list[int]:
        if self._is_generation_4:
            params = self._sdk.rm_modbus_rtu_read_params_t(address, _CTAG_DEVICE, _TOOL_PORT, count)
            code, words = self._arm.rm_read_modbus_rtu_holding_registers(params)
            codes.check(code, self._name, f"read gripper register {address}")
            return [int(word) for word in words]
        # One by one: generation 3 reads several registers only in groups of 3 to 12.
        return [self._read_one(address + i) for i in range(count)]

    def _read_one(self, address: int) -> int:
        params = self._sdk.rm_peripheral_read_write_params_t(_TOOL_PORT, address, _CTAG_DEVICE, 1)
        code, word = self._arm.rm_read_holding_registers(params)
        codes.check(code, self._name, f"read gripper register {address}")
        return int(word)


class NoGripper:
    """An arm without a gripper. It reports the last commanded opening."""

    def __init__(self) -> None:
        self._opening = 1.0

    def prepare(self) -> None:
        """Do nothing."""

    def move(self, opening: float) -> None:
        """Remember the opening."""
        self._opening = opening

    def read(self) -> float:
        """Return the remembered opening."""
        return self._opening


def make_gripper(name: str, arm: Any, settings: GripperSettings) -> Gripper:
    """Return the driver for the gripper in the settings."""
    if settings.kind == "eg2":
        return Eg2Gripper(name, arm)
    return CtagGripper(name, arm, settings) if settings.kind == "ctag" else NoGripper()


class GripperWorker:
    """Reads and commands one gripper from its own thread.

    The newest target wins.
    """

    def __init__(self, name: str, gripper: Gripper, settings: GripperSettings) -> None:
        self._name = name
        self._gripper = gripper
        self._settings = settings
        self._gate = threading.Lock()
        self._is_halted = False
        self._is_closing = threading.Event()
        self._target: float | None = None
        self._sent: float | None = None
        self._seen: float | None = None
        """The newest target that the thread has seen."""
        self._seen_s = 0.0
        self._measured = (0.0, float("-inf"))
        self._error: RobotError | None = None
        self._thread = threading.Thread(target=self._run, name=f"{name} gripper", daemon=True)

    def open(self) -> None:
        """Make the gripper ready, read it once and start the thread.

        Raises:
            RobotError: The gripper does not answer.
        """
        self._gripper.prepare()
        self._measured = (self._gripper.read(), time.monotonic())
        self._thread.start()

    def set_target(self, opening: float) -> None:
        """Set the wanted opening, 0..1."""
        self._target = opening

    def opening(self) -> float:
        """Return the newest measured opening.

        Raises:
            RobotError: The gripper failed.
            RobotTimeoutError: The measurement is too old.
        """
        opening, time_s = self._measured
        age_s = time.monotonic() - time_s
        if not age_s <= self._settings.max_age_s:
            limit_s = self._settings.max_age_s
            raise self._error or RobotTimeoutError(
                f"{self._name}: the gripper was last read {age_s:.1f} s ago, expected at most {limit_s:g} s"
            )
        return opening

    def shut(self) -> None:
        """Send nothing more, and return at once."""
        self._is_halted = True

    def halt(self) -> None:
        """Send nothing more, and briefly wait for a command in flight."""
        self.shut()
        if self._gate.acquire(timeout=_HALT_WAIT_S):
            self._gate.release()

    def close(self) -> None:
        """End the thread."""
        self.halt()
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_WAIT_S)

    def _run(self) -> None:
        while not self._is_closing.wait(1.0 / self._settings.rate_hz):
            try:
                self._send()
                self._measured = (self._gripper.read(), time.monotonic())
                self._error = None
            except RobotError as e:
                # One missed answer is not worth stopping two arms. If the error lasts, `opening` raises it.
                if self._error is None:
                    logger.warning("%s", e)
                self._error = e

    def _send(self) -> None:
        target, now_s = self._target, time.monotonic()
        if target != self._seen:
            self._seen, self._seen_s = target, now_s
        if target is None or not self._is_worth_sending(target, now_s - self._seen_s):
            return
        with self._gate:
            if not self._is_halted:
                self._gripper.move(target)
                self._sent = target

    def _is_worth_sending(self, target: float, unchanged_s: float) -> bool:
        if self._sent is None or abs(target - self._sent) >= self._settings.dead_band:
            return True
        # The end of a slow approach is sent, too: small changes are noise only while the target moves.
        return target != self._sent and (target in (0.0, 1.0) or unchanged_s >= _SETTLED_S)
