"""Faults from the keyboard while the emulator runs: one line, one fault. `help` lists them."""

from collections.abc import Callable
import dataclasses

from realman.errors import RobotError
from realman.robots.emulator.faults import Faults
from realman.robots.emulator.server import Emulator

HELP = """right|left error CODE           the controller reports a system error, hexadecimal: 100D is a collision
right|left joint-error N BITS   joint N (1..6) reports error bits, hexadecimal: 4000 is a step alarm
right|left clear                all errors end
right|left reset                the TCP connections are reset
right|left silent COMMAND       carried out, not answered; * is every command
right|left hang COMMAND         neither carried out nor answered
right|left reject COMMAND       refused
right|left delay SECONDS        answers come late
right|left push off|frozen|on   the state push
right|left heal                 all faults end, errors stay"""

_NUM_JOINTS = 6


def obey(emulator: Emulator, line: str) -> str:
    """Carry out one line; return what to tell.

    Raises:
        RobotError: The line is none of `HELP`.
    """
    words = line.split()
    if words in ([], ["help"]):
        return HELP
    side, *rest = words
    if side not in emulator.controllers or not rest:
        raise RobotError(f"'{line}': expected 'right' or 'left' and what happens to it; 'help' lists it")
    action, *values = rest
    act = _ACTIONS.get(action)
    if act is None:
        raise RobotError(f"'{action}': no such fault; one of {', '.join(_ACTIONS)}")
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
