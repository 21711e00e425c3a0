"""Error codes of the SDK and the controllers (vendor's manual, API 1.1.6)."""

from realman.errors import RejectedError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError

_RETURN_CODES = {
    1: "the controller refused it",
    -1: "it could not be sent, the connection is lost",
    -2: "no answer",
    -3: "the answer was not understood. Check that the SDK and the controller's firmware match",
    -4: "this controller does not support it",
    -5: "it did not finish in time",
    -6: "the motion was stopped from elsewhere",
}

_SYSTEM_ERRORS = {
    0x1001: "joint communication",
    0x1002: "target beyond a joint limit",
    0x1003: "singular or unreachable pose",
    0x1004: "realtime kernel",
    0x1005: "joint bus",
    0x1006: "planner",
    0x1007: "joint overspeed",
    0x1008: "tool board",
    0x1009: "speed limit",
    0x100A: "acceleration limit",
    0x100B: "brake",
    0x100C: "overspeed while dragging",
    0x100D: "collision",
    0x100E: "no such work frame",
    0x100F: "no such tool frame",
    0x1010: "joint disabled",
    0x1011: "arc planning",
    0x1012: "self collision",
    0x1013: "electronic fence",
    0x1014: "soft limit",
    0x2001: "gripper",
    0x5003: "controller too hot",
    0x5005: "overcurrent",
    0x5006: "undercurrent",
    0x5007: "overvoltage",
    0x5008: "undervoltage",
    0x5009: "realtime communication",
}

_JOINT_ERRORS = {
    0x0001: "motor control",
    0x0002: "overvoltage",
    0x0004: "undervoltage",
    0x0008: "too hot",
    0x0010: "start",
    0x0020: "encoder",
    0x0040: "overcurrent",
    0x0080: "software",
    0x0100: "temperature sensor",
    0x0200: "position limit",
    0x0400: "joint id",
    0x0800: "tracking",
    0x1000: "current sensor",
    0x2000: "brake",
    0x4000: "step in the commanded position",
    0x8000: "lost turns",
}

JOINT_FRAME_LOSS = 0xF000
"""A single code, not a set of bits."""


def check(code: int, arm: str, call: str) -> None:
    """Raise the error for an SDK return code.

    Args:
        code: What the call returned. 0 means success.
        arm: Name of the arm, for the message.
        call: Name of the SDK call, for the message.

    Raises:
        RejectedError: The controller refused the call.
        RobotTimeoutError: The controller did not answer.
        RobotError: Anything else went wrong.
    """
    if code == 0:
        return
    kind = {1: RejectedError, -2: RobotTimeoutError, -5: RobotTimeoutError}.get(code, RobotError)
    raise kind(f"{arm}: '{call}' failed ({code}): {_RETURN_CODES.get(code, 'unknown code')}")


def describe_system_error(code: int) -> str:
    """Return the name of a system error."""
    return f"error 0x{code:04X} ({_SYSTEM_ERRORS.get(code, 'unknown')})"


def describe_joint_error(joint: str, bits: int) -> str:
    """Return the names of all error bits of one joint."""
    if bits == JOINT_FRAME_LOSS:
        causes = "lost frames"
    else:
        causes = ", ".join(cause for bit, cause in _JOINT_ERRORS.items() if bits & bit) or "unknown"
    return f"{joint} error 0x{bits:04X} ({causes})"
