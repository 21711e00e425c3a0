"""Find which arm comes first, from the names of a dataset's numbers.

Training has the same rule, in `openpi/policies/realman_policy.py` and `openpi/training/lerobot/dim_names.py`. A test
compares both.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from realman import spec
from realman.data.raw.options import ArmOrder


def flatten(names: Any) -> list[str]:
    """Return names as a plain list, from any form that info.json has.

    Known forms are a list, a list in a list, an object with a list per group, and an object of positions by name. The
    result is empty if something is not a text.
    """
    try:
        return list(_walk(names))
    except TypeError:
        return []


def _walk(names: Any) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, Mapping):
        if names and all(isinstance(value, int) for value in names.values()):
            return sorted(names, key=lambda name: names[name])
        prefixes = [f"{group}_" if len(names) > 1 else "" for group in names]
        return [prefix + name for prefix, value in zip(prefixes, names.values(), strict=True) for name in _walk(value)]
    if isinstance(names, list | tuple):
        return [name for value in names for name in _walk(value)]
    raise TypeError(f"{names!r} is not a name")


def find_arm_order(names: Sequence[str]) -> ArmOrder | None:
    """Return which arm the names put first.

    A name has its arm as a word (`left_waist`, `jointRight3`), or as a letter (`l_joint1`) if both letters occur. Any
    spelling counts if the names of both halves differ in the arm alone (`larm1` and `rarm1`).

    Returns:
        The order, or None if the names do not say.

    Raises:
        ValueError: There are 14 names, and neither half belongs to one arm.
    """
    half = len(names) // 2
    # The clearest names come first: those that the second half repeats for the other arm.
    if len(names) == 2 * half and (order := _mirrored(names[:half], names[half:])) is not None:
        return order
    sides = _sides(names)
    first, second = set(sides[:half]) - {""}, set(sides[half:]) - {""}
    if len(names) % 2 or not first | second:
        return None
    if len(first) > 1 or len(second) > 1 or first == second:
        if len(names) != spec.NUM_DIMS:
            return None
        raise ValueError(
            f"the names {list(names)} mix the arms, expected {half} of one arm and then {half} of the other"
        )
    return "left_right" if "left" in first or "right" in second else "right_left"


def _mirrored(first: Sequence[str], second: Sequence[str]) -> ArmOrder | None:
    """Return the order if both halves differ in the arm alone."""
    orders = {_order_of(a.lower(), b.lower()) for a, b in zip(first, second, strict=True)}
    return orders.pop() if len(orders) == 1 else None


def _order_of(a: str, b: str) -> ArmOrder | None:
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    for left, right in (("left", "right"), ("l", "r")):
        if a[at:].startswith(left) and b[at:] == right + a[at + len(left) :]:
            return "left_right"
        if b[at:].startswith(left) and a[at:] == right + b[at + len(left) :]:
            return "right_left"
    return None


def _sides(names: Sequence[str]) -> list[str]:
    """Return "left", "right" or nothing for each name."""
    words = [[word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[\u5de6\u53f3]", name)] for name in names]
    whole = [_side_of(of_name, ("left", "\u5de6"), ("right", "\u53f3")) for of_name in words]
    # A lone letter can be something else, such as the r of roll.
    letters = [_side_of([w for w in of_name if len(w) == 1], ("l",), ("r",)) for of_name in words]
    return whole if any(whole) or not {"left", "right"} <= set(letters) else letters


def _side_of(words: Sequence[str], left: tuple[str, ...], right: tuple[str, ...]) -> str:
    found = [side for word in words for side, marks in (("left", left), ("right", right)) if word.startswith(marks)]
    return next(iter(found), "")
