"""Frozen dataclasses from TOML.

Unknown keys, wrong types and wrong values are refused. The message names their place in the file.
"""

import dataclasses
import difflib
from pathlib import Path
import sys
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from realman import ranges
from realman.errors import SiteError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_T = TypeVar("_T")


def parse(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        tomllib.TOMLDecodeError: The text is not TOML. It is a ValueError.
    """
    return tomllib.loads(text)


def load(path: Path, cls: type[_T]) -> _T:
    """Read a file as one `cls`, whose fields are the keys.

    A field may be bool, int, float, str, a union of these with None, a `Literal`, a tuple of fixed length, a dataclass
    (a table), or a dict from str to a dataclass (a table of named tables).

    Raises:
        SiteError: The file is not readable, or a key, type or value is wrong. For an unknown key, the message names the
            nearest known one.
    """
    try:
        # Some editors begin a file with a mark of its encoding.
        table = parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:
        raise SiteError(f"{path}: cannot be read as TOML ({e})") from e
    try:
        return from_table(cls, table)
    except SiteError as e:
        raise SiteError(f"{path}: {e}") from e


def from_table(cls: type[_T], table: dict[str, Any], prefix: str = "") -> _T:
    """Build a dataclass from a TOML table.

    Args:
        cls: The dataclass.
        table: The parsed table.
        prefix: Its place in the file, for messages.

    Raises:
        SiteError: As for `load`.
    """
    hints = get_type_hints(cls)
    unknown = [_unknown_key(key, list(hints), prefix) for key in table if key not in hints]
    if unknown:
        raise SiteError("; ".join(unknown))
    if missing := [name for name in _required(cls) if name not in table]:
        raise SiteError(f"[{prefix[:-1]}] lacks {' and '.join(missing)}, expected a value")
    place = f"[{prefix[:-1]}] " if prefix else ""
    try:
        ranges.check_table(cls, table)
    except SiteError as e:
        raise SiteError(f"{place}{e}") from e
    values = {key: _convert(value, hints[key], prefix + key) for key, value in table.items()}
    try:
        return cls(**values)
    except SiteError as e:
        # The class knows its fields, but not where it stands in the file.
        raise SiteError(f"{place}{e}") from e


def _required(cls: type) -> list[str]:
    unset = dataclasses.MISSING
    return [
        field.name for field in dataclasses.fields(cls) if field.default is unset and field.default_factory is unset
    ]


def _unknown_key(key: str, known: list[str], prefix: str) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{prefix}{near[0]}'?" if near else f"expected one of {', '.join(known)}"
    return f"unknown key '{prefix}{key}', {hint}"


def _convert(value: Any, hint: Any, place: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return _convert_union(value, get_args(hint), place)
    if dataclasses.is_dataclass(hint):
        return from_table(hint, _table(value, place), f"{place}.")  # type: ignore[arg-type]
    if get_origin(hint) is dict:
        item = get_args(hint)[1]
        return {key: _convert(entry, item, f"{place}.{key}") for key, entry in _table(value, place).items()}
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise SiteError(f"'{place}' is {value!r}, expected one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        return _convert_tuple(value, get_args(hint), place)
    return _convert_plain(value, (hint,), place)


def _table(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SiteError(f"'{place}' is {value!r}, expected a table [{place}]")
    return value


def _convert_union(value: Any, choices: tuple[Any, ...], place: str) -> Any:
    tables = [choice for choice in choices if dataclasses.is_dataclass(choice)]
    # TOML has no null, so a value is never the None of a union.
    return _convert(value, tables[0], place) if tables else _convert_plain(value, choices, place)


def _convert_tuple(value: Any, hints: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(hints):
        raise SiteError(f"'{place}' is {value!r}, expected a list of {len(hints)} values")
    return tuple(
        _convert(entry, hint, f"{place}[{i}]") for i, (entry, hint) in enumerate(zip(value, hints, strict=True))
    )


def _convert_plain(value: Any, accepted: tuple[Any, ...], place: str) -> Any:
    if float in accepted and type(value) is int and int not in accepted:
        return float(value)
    # Compare types exactly, because a bool is an int in Python and `port = true` is a mistake.
    if type(value) not in accepted:
        names = " or ".join(t.__name__ for t in accepted if t is not type(None))
        raise SiteError(f"'{place}' is {value!r}, expected {names}")
    return value
