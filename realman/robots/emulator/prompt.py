"""Faults typed at the running emulator, one per line. `help` lists them."""

from collections.abc import Callable
import dataclasses

from realman.errors import RobotError
from realman.robots.emulator.faults import Faults
from realman.robots.emulator.server import Emulator

HELP = """right|left error CODE           report a system error, hexadecimal: 100D is a collision
right|left joint-error N BITS   report error bits of joint N (1..6), hexadecimal: 4000 is a step alarm
right|left clear                clear all errors
right|left reset                reset the TCP connections
right|left silent COMMAND       carry the command out, but do not answer (* is every command)
right|left hang COMMAND         neither carry the command out nor answer
right|left reject COMMAND       refuse the command
right|left delay SECONDS        delay every answer
right|left push off|frozen|on   stop, freeze or restore the state push
right|left heal                 end all faults, but keep errors"""

_NUM_JOINTS = 6


def obey(emulator: Emulator, line: str) -> str:
    """Carry out one line and return what to print.

    Raises:
        RobotError: The line is not in `HELP`.
    """
    words = line.split()
    if words in ([], ["help"]):
        return HELP
    side, *rest = words
    if side not in emulator.controllers or not rest:
        raise RobotError(f"'{line}': expected 'right' or 'left' and a fault. Type 'help' to list them")
    action, *values = rest
    act = _ACTIONS.get(action)
    if act is None:
        raise RobotError(f"'{action}': unknown fault, expected one of {', '.join(_ACTIONS)}")
    try:
        act(emulator, side, *values)
    except (TypeError, ValueError, IndexError) as e:
        usage = next(text for text in HELP.splitlines() if text.split()[1] == action)
        raise RobotError(f"'{line}': expected '{usage}'") from e
    return f"{side} arm: {' '.join(rest)}"


def _error(emulator: Emulator, side: str, code: str) -> None:
    number = int(code, 16)
    emulator.call(lambda: emulator.controllers[side].fail(number))


def _joint_error(emulator: Emulator, side: str, joint: str, bits: str) -> None:
    index, number = int(joint) - 1, int(bits, 16)
    if index not in range(_NUM_JOINTS):
        raise ValueError(joint)
    emulator.call(lambda: emulator.controllers[side].fail_joint(index, number))


def _clear(emulator: Emulator, side: str) -> None:
    arm = emulator.controllers[side]

    def clear() -> None:
        arm.clear_errors()
        arm.joint_errors[:] = 0

    emulator.call(clear)


def _reset(emulator: Emulator, side: str) -> None:
    emulator.reset_connections(side)


def _set(field: str, convert: Callable[[str], object]) -> Callable[[Emulator, str, str], None]:
    def act(emulator: Emulator, side: str, value: str) -> None:
        setattr(emulator.controllers[side].faults, field, convert(value))

    return act


def _push(emulator: Emulator, side: str, state: str) -> None:
    if state not in ("on", "off", "frozen"):
        raise ValueError(state)
    faults = emulator.controllers[side].faults
    faults.is_push_silent, faults.is_push_frozen = state == "off", state == "frozen"


def _heal(emulator: Emulator, side: str) -> None:
    faults = emulator.controllers[side].faults
    for field in dataclasses.fields(Faults):
        setattr(faults, field.name, field.default)


def _command(name: str) -> frozenset[str]:
    return frozenset({name})


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


_ACTIONS: dict[str, Callable[..., None]] = {
    "error": _error,
    "joint-error": _joint_error,
    "clear": _clear,
    "reset": _reset,
    "silent": _set("silent", _command),
    "hang": _set("ignored", _command),
    "reject": _set("rejected", _command),
    "delay": _set("reply_delay_s", _seconds),
    "push": _push,
    "heal": _heal,
}
