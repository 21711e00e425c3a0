"""The vendor's SDK: loaded late, started once, its calls bounded in time.

Its state is global. The thread mode is chosen once per process, and all arms share one state callback. After
`rm_destroy` no arm can be opened again (1.1.6), so it is called only at exit.
"""

import atexit
from collections.abc import Callable
import concurrent.futures
import contextlib
import logging
import sys
import threading
import time
from types import ModuleType
from typing import Any, TypeVar

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_GRIPPER_TIMEOUT = 1
"""Seconds, never 0: with 0 a non-blocking gripper call sleeps a whole second inside the SDK (1.0.4 .. 1.1.6)."""

_GRACE_S = 2.0
"""How long a late call of an earlier run may take before it counts as hung.

A busy machine is late, but a lost lock is lost forever.
"""

_lock = threading.Lock()
_is_started = False
_running: set[threading.Thread] = set()
"""Bounded calls that have not returned."""


def load() -> ModuleType:
    """Import the SDK.

    Raises:
        SiteError: It is not installed, or its native library does not load here.
    """
    try:
        from Robotic_Arm import rm_robot_interface
    except (ImportError, OSError) as e:
        raise SiteError(
            f"rm65: the vendor's SDK does not load ({e}). Run: pip install Robotic_Arm (Linux and Windows only)"
        ) from e
    return rm_robot_interface


def new_arm() -> Any:
    """Return a `RoboticArm` that is not connected yet.

    The first one starts the SDK's threads.

    Raises:
        SiteError: The SDK does not load. See `load`.
        RobotError: An earlier call never returned. Only a new process helps.
    """
    global _is_started
    sdk = load()
    if calls := _hung_calls(_GRACE_S):
        raise RobotError(f"rm65: the SDK hangs since an earlier run ({', '.join(calls)}). Start the program again")
    with _lock:
        if _is_started:
            return sdk.RoboticArm()
        # The constructor prints its version, but stdout is for results.
        with contextlib.redirect_stdout(sys.stderr):
            arm = sdk.RoboticArm(sdk.rm_thread_mode_e.RM_TRIPLE_MODE_E)
        _is_started = True
        atexit.register(_destroy)
        return arm


def move_gripper(arm: Any, position: int) -> int:
    """Send an EG2 opening (1..1000) and wait only for its acknowledgment.

    This takes about 2 ms.
    """
    return int(arm.rm_set_gripper_position(position, False, _GRIPPER_TIMEOUT))


def bounded(function: Callable[[], _T], timeout_s: float, what: str, undo: Callable[[], object] | None = None) -> _T:
    """Run an SDK call that may never return.

    Args:
        function: The call.
        timeout_s: How long it may take, s.
        what: Name of the call, for messages.
        undo: Called in the call's own thread if the call returns too late, when its result is no longer wanted.

    Raises:
        RobotTimeoutError: The call did not return in time. Its thread is left behind, because it cannot be ended.
    """
    done: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        # The first thread to mark the future decides whether the result is taken or undone.
        try:
            result = function()
        except BaseException as e:
            if done.set_running_or_notify_cancel():
                done.set_exception(e)
            return
        if done.set_running_or_notify_cancel():
            done.set_result(result)
        elif undo is not None:
            undo()

    # A daemon, so that a call that never returns does not keep the process alive.
    thread = threading.Thread(target=run, name=what, daemon=True)
    _running.add(thread)
    thread.start()
    try:
        return done.result(timeout_s)
    # The built-in TimeoutError is a different class before Python 3.11.
    except concurrent.futures.TimeoutError:
        if not done.cancel():
            return done.result()
        raise RobotTimeoutError(f"{what}: the SDK did not return within {timeout_s:g} s") from None
    finally:
        _forget_finished()


def _forget_finished() -> None:
    for thread in list(_running):
        if not thread.is_alive():
            _running.discard(thread)


def _hung_calls(grace_s: float = 0.0) -> list[str]:
    """Name the calls that do not return within a grace period.

    The locks they hold are lost to this process.
    """
    until_s = time.monotonic() + grace_s
    for thread in list(_running):
        thread.join(max(0.0, until_s - time.monotonic()))
    _forget_finished()
    return sorted(thread.name for thread in _running)


def _destroy() -> None:
    if not _hung_calls():
        load().RoboticArm.rm_destroy()
