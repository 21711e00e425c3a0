"""Read the names of a column's numbers from info.json."""

from collections.abc import Mapping
from typing import Any


def flatten(names: Any) -> list[str]:
    """Return names as a plain list.

    Known forms are a list, a list in a list, an object with one list, an object with a list per group, and an object of
    positions by name. With several groups, a name begins with that of its group.

    Returns:
        The names in the order of the numbers. Empty if something is not a text.
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
