"""Converts and bounds the lists of a request.

A list becomes an array wherever a policy looks at it, and every entry of an array is as wide as the widest text. A list of
one long text and many short ones would fill the memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from openpi.shared.errors import DataError

_NUMBERS = frozenset((bool, int, float))

_MAX_LIST_BYTES = 64 * 2**20
_BYTES_PER_CHAR = 4


def as_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Return a flat list of numbers as an array.

    It is None for any other list. No entry is checked in Python, because there may be many.
    """
    if not set(map(type, values)) <= _NUMBERS:
        return None
    array = np.asarray(values)
    return array if array.dtype.kind in "biuf" else None


def check_size(value: Any, place: str) -> None:
    """Refuse lists whose arrays take far more memory than their message.

    Dicts are searched for such lists.

    Raises:
        DataError: `value` is or holds such a list.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            check_size(item, f"{place}: '{key!s:.40}'")
    if not isinstance(value, list | tuple):
        return
    num_leaves, widest = _measure(value)
    if num_leaves * widest > _MAX_LIST_BYTES:
        raise DataError(
            f"{place} is a list of {num_leaves} values, one of {widest} bytes. Expected texts of similar length. "
            "Send numbers as an array"
        )


def _measure(value: Any) -> tuple[int, int]:
    """Return how many entries an array has, and its widest in bytes."""
    if isinstance(value, str | bytes):
        return 1, _BYTES_PER_CHAR * len(value)
    if isinstance(value, np.ndarray):
        return value.size, value.dtype.itemsize
    if not isinstance(value, list | tuple) or not value:
        return 1, 8
    if set(map(type, value)) <= _NUMBERS:
        return len(value), 8
    measured = [_measure(item) for item in value]
    return sum(count for count, _ in measured), max(width for _, width in measured)
