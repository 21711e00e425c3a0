"""A site's settings with random values, and whether they were understood."""

from collections.abc import Iterator, Mapping
import dataclasses
import math
from pathlib import Path
import random
from typing import Any

import tomllib

from realman.station.site_config import Site

_NUMBERS = (
    "nan", "inf", "-inf", "-1", "-0.5", "0", "-0.0", "0.001", "0.5", "1", "3", "25.0", "50", "60.0", "100", "250.0", "8001",
    "65536", "1e308", "1e-308", "4294967296",
)  # fmt: skip
_VALUES = (
    *_NUMBERS, "true", '""', '"x"', '"nan"', "[]", "[1, 2, 3]", "{}", "1979-05-27", '"rm65"', '"emulated"', '"high"', '"async"',
)  # fmt: skip
_POSITIVE = ("_s", "_ms", "_hz", "_deg_s", "_deg_s2", "_per_s", "fps", "port", "_ticks")
"""Endings of names whose value must be above 0, because 0 or less switches something off."""


def write(path: Path, rng: random.Random) -> str:
    """Write random values for one to four keys, and return them."""
    keys = dict(_keys(Site, ""))
    chosen = rng.sample(sorted(keys), rng.choice((1, 1, 2, 4)))
    # Most values have the right type, or nothing but types would be tried.
    values = {key: _NUMBERS if _is_number(keys[key]) and rng.random() < 0.8 else _VALUES for key in chosen}
    lines = [f"{key} = {rng.choice(values[key])}" for key in chosen]
    text = "\n".join(lines) + "\n"
    if rng.random() < 0.1:
        # A typing error: one character is gone, or one is too many.
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(["", "=", '"', "[", "#", "\t"]) + text[at + 1 :]
    path.write_text(text)
    return text.strip().replace("\n", ", ")


def problems(path: Path, found: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with settings that were accepted."""
    given = tomllib.loads(path.read_text())
    wrong = [
        f"{key} is {value!r}, but the file says {wanted!r}"
        for key, wanted in _leaves(given)
        if not _is_same(value := _at(found, key), wanted)
    ]
    for key, value in _leaves(found):
        if isinstance(value, float) and not math.isfinite(value):
            wrong.append(f"{key} = {value} was accepted")
        if _is_number(value) and value <= 0 and key.endswith(_POSITIVE):
            wrong.append(f"{key} = {value} was accepted")
    return wrong


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _keys(settings: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every dotted key and its default."""
    for field in dataclasses.fields(settings):
        if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
            yield from _keys(field.default_factory, f"{prefix}{field.name}.")
        elif dataclasses.is_dataclass(field.default):
            yield from _keys(type(field.default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.default


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _is_same(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(value, float) and math.isnan(value)
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
