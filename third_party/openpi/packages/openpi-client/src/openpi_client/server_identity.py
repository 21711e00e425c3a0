"""Compare what a server said about itself with what it says now."""

from collections.abc import Mapping, Sequence
from typing import Any

from openpi_client import msgpack_numpy

_MAX_CHARS = 60
_MAX_NAMED = 6


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List every difference between two metadata messages, in words.

    Numbers compare by value: 50 and 50.0 are the same. The list is empty if nothing differs. At most six differences are spelled
    out, and the last entry counts the others.
    """
    found = _compare("", before, now)
    if len(found) > _MAX_NAMED:
        found[_MAX_NAMED:] = [f"and {len(found) - _MAX_NAMED} more"]
    return found


def _compare(place: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line for key in keys for line in _compare_entry(f"{place}.{key}" if place else str(key), key, before, now)
        ]
    if _is_same(before, now):
        return []
    if _is_list(before) and _is_list(now) and len(before) == len(now):
        unequal = [i for i, pair in enumerate(zip(before, now, strict=True)) if not _is_same(*pair)]
        i = unequal[0]
        more = f" and {len(unequal) - 1} more" if len(unequal) > 1 else ""
        return [f"'{place}[{i}]' was {_short(before[i])}, is {_short(now[i])}{more}"]
    return [f"'{place}' was {_short(before)}, is {_short(now)}"]


def _compare_entry(place: str, key: Any, before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[str]:
    if key not in now:
        return [f"'{place}' was {_short(before[key])}, is missing"]
    if key not in before:
        return [f"'{place}' was missing, is {_short(now[key])}"]
    return _compare(place, before[key], now[key])


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_same(before: Any, now: Any) -> bool:
    # Numbers by value. Everything else by its bytes on the wire, because arrays do not compare to a single bool.
    if isinstance(before, int | float) and isinstance(now, int | float):
        return isinstance(before, bool) == isinstance(now, bool) and (
            before == now or (before != before and now != now)
        )
    if _is_list(before) and _is_list(now):
        return len(before) == len(now) and all(map(_is_same, before, now))
    return msgpack_numpy.packb(before) == msgpack_numpy.packb(now)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 3]}..."
