"""The vendor's SDK: loaded late, started once per process, and never trusted to come back.

Its state is global: the thread mode is chosen once, the state callback is one for all arms, and after `rm_destroy` no arm
can be opened again (1.1.6), so that is called at exit only.
"""

import atexit
from collections.abc import Callable
import contextlib
import logging
import sys
import threading
from types import ModuleType
from typing import Any, TypeVar

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LOG_ERRORS_ONLY = 3
_GRIPPER_TIMEOUT = 1
"""Seconds, and never 0: with 0 a non-blocking gripper call sleeps a whole second inside the SDK (1.0.4 .. 1.1.6)."""

_lock = threading.Lock()
_is_started = False
_hung_call: str | None = None


def load() -> ModuleType:
    """Import the SDK.

    Raises:
        SiteError: It is not installed, or its native library does not load here.
    """
    try:
        from Robotic_Arm import rm_robot_interface
    except (ImportError, OSError) as e:
        raise SiteError(
            f"rm65: the vendor's SDK does not load ({e}); pip install Robotic_Arm (Linux and Windows only)"
        ) from e
    return rm_robot_interface  # type: ignore[no-any-return]


def new_arm() -> Any:
    """Return a `RoboticArm` that is not connected yet; the first one starts the SDK's threads.

    Raises:
        SiteError: See `load`.
        RobotError: An earlier call never came back; only a new process helps.
    """
    global _is_started
    sdk = load()
    if _hung_call:
        raise RobotError(f"rm65: the SDK hangs in '{_hung_call}' since an earlier run; start the program again")
    with _lock:
        if _is_started:
            return sdk.RoboticArm()
        # The constructor prints its version; stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            arm = sdk.RoboticArm(sdk.rm_thread_mode_e.RM_TRIPLE_MODE_E)
        _is_started = True
        atexit.register(_destroy)
        return arm


def open_handle(arm: Any, host: str, port: int) -> bool:
    """Connect an arm; False if the controller does not answer as one."""
    return bool(arm.rm_create_robot_arm(host, port, _LOG_ERRORS_ONLY).id >= 0)


def move_gripper(arm: Any, position: int) -> int:
    """Send an EG2 opening (1..1000) and wait for the acknowledgement only (about 2 ms)."""
    return int(arm.rm_set_gripper_position(position, False, _GRIPPER_TIMEOUT))


def bounded(function: Callable[[], _T], timeout_s: float, what: str) -> _T:
    """Run an SDK call that may never return.

    Raises:
        RobotTimeoutError: It did not return in time. Its thread stays behind, as nothing can end it.
    """
    result: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not result:
        raise RobotTimeoutError(f"{what}: the SDK did not return within {timeout_s:g} s")
    return result[0]


def mark_hung(call: str) -> None:
    """Remember that a call never came back: its locks are lost to this process."""
    global _hung_call
    _hung_call = call
    logger.critical("rm65: the SDK hangs in '%s'; start the program again before the next run", call)


def _destroy() -> None:
    if not _hung_call:
        load().RoboticArm.rm_destroy()
