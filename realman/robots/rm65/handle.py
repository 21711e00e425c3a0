"""An arm's place in the SDK's table: taken, and given back."""

from typing import Any

from realman.errors import RobotError
from realman.robots.rm65.pushes import router

_LOG_ERRORS_ONLY = 3
_CONNECT_REPLY_MS = 1000
_CONNECT_TRIES = 2
"""A machine that is busy for a moment loses one of the eleven answers of a connect; nobody should have to try again by hand."""


def open_handle(arm: Any, host: str, port: int) -> bool:
    """Connect a `RoboticArm`; False if the controller does not answer as one.

    Raises:
        RobotError: The SDK has no place for another arm.
    """
    # One limit for all arms of a process: what suits the arm before is too short for the eleven answers of this one's connect.
    arm.rm_set_timeout(_CONNECT_REPLY_MS)
    for _ in range(_CONNECT_TRIES):
        try:
            handle = arm.rm_create_robot_arm(host, port, _LOG_ERRORS_ONLY)
        except ValueError as e:
            # A null pointer: all five places are taken (1.1.6).
            raise RobotError(f"rm65: the SDK has no place for the arm at {host}; start the program again") from e
        if handle.id >= 0:
            return True
        # A failed handle keeps its place until it is deleted.
        close_handle(arm)
    return False


def close_handle(arm: Any) -> None:
    """Release a `RoboticArm`, connected or not; safe while pushes of any arm arrive."""
    with router.paused():
        arm.rm_delete_robot_arm()
