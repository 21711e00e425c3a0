"""Opening and closing an arm's handle, its slot in the SDK."""

from typing import Any

from realman.errors import RobotError
from realman.robots.rm65.pushes import router

_LOG_ERRORS_ONLY = 3
_CONNECT_REPLY_MS = 1000
_CONNECT_TRIES = 2
"""A briefly busy machine may lose one of the eleven answers of a connect. The second try saves you a retry by hand."""


def open_handle(arm: Any, host: str, port: int) -> bool:
    """Connect a `RoboticArm`.

    Returns:
        Whether a RealMan controller answered.

    Raises:
        RobotError: The SDK has no slot for another arm.
    """
    # The SDK has one timeout for all arms. The previous arm's is too short for the eleven answers of a connect.
    arm.rm_set_timeout(_CONNECT_REPLY_MS)
    for _ in range(_CONNECT_TRIES):
        try:
            handle = arm.rm_create_robot_arm(host, port, _LOG_ERRORS_ONLY)
        except ValueError as e:
            # A null pointer: all five slots are taken (1.1.6).
            raise RobotError(f"rm65: the SDK has no slot for the arm at {host}. Start the program again") from e
        if handle.id >= 0:
            return True
        # A failed handle keeps its slot until it is deleted.
        close_handle(arm)
    return False


def close_handle(arm: Any) -> None:
    """Release a `RoboticArm`, connected or not.

    This is safe while pushes of any arm arrive.
    """
    with router.paused():
        arm.rm_delete_robot_arm()
