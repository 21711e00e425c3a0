"""Flatten an observation or an answer to named arrays, and restore it.

A name is the path of keys with "/" between them. Keys come from clients and may hold anything, so every character that a
file name cannot have everywhere is written as in a URL ("/" as `%2F`). Nothing here raises an error because of a value: what
cannot be an array becomes its text.
"""

from collections.abc import Iterator, Mapping
import hashlib
import re
from typing import Any
import urllib.parse

import cv2
import numpy as np

from openpi.shared import errors
from openpi.shared import lists

_IMAGE_KEY = re.compile(r"(.+)\.(hwc|chw)\.png")

# Fast rather than small. The best level takes ten times as long and saves a tenth.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1)

# Beyond these, a name and a text are cut. A file in an archive may have 65,535 bytes of name, and tools take fewer.
_MAX_NAME_CHARS = 200
_MAX_TEXT_CHARS = 100_000

# Written as in a URL, in addition to unprintable characters: they mean something in paths or in this encoding.
_SPECIAL = frozenset('/\\:%*?"<>|')

# Stands for an empty key. A percent sign itself is always written as `%25`.
_EMPTY = "%"


def flatten(tree: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Return the array of each leaf of nested dicts, by its name.

    None gives nothing. Color images become PNG.
    """
    flat: dict[str, np.ndarray] = {}
    for name, array in _leaves(tree, ""):
        # Two keys of different types may have the same text.
        while name in flat:
            name += "~"
        flat[name] = array
    return flat


def unflatten(file: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the nested dict of named arrays.

    Single values come back as Python's own.

    Raises:
        ValueError: An image is damaged.
    """
    tree: dict[str, Any] = {}
    for path, value in _decoded(file):
        *parents, name = ("" if part == _EMPTY else urllib.parse.unquote(part) for part in path.split("/"))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{_segment(key)}" if path else _segment(key))
    elif tree is not None:
        array = _array(tree)
        name = _short(path)
        png = _png(array)
        if png is not None:
            yield f"{name}.{png[0]}.png", png[1]
        else:
            # A name that only looks like an image's must not be read as one.
            yield (f"{name[:-1]}%67" if _IMAGE_KEY.fullmatch(name) else name), array


def _segment(key: Any) -> str:
    """Return a key as one part of a name."""
    text = str(key)[: 2 * _MAX_NAME_CHARS]
    if not text.strip("."):
        return "".join(f"%{ord(c):02X}" for c in text) or _EMPTY
    return "".join(
        urllib.parse.quote(c, safe="", errors="replace") if c in _SPECIAL or not c.isprintable() else c for c in text
    )


def _short(name: str) -> str:
    if len(name) <= _MAX_NAME_CHARS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:12]
    # Not in the middle of an escaped character.
    return f"{re.sub('%.?$', '', name[: _MAX_NAME_CHARS - 20])}~{digest}"


def _array(value: Any) -> np.ndarray:
    """Return a value as an array that needs no pickle."""
    try:
        lists.check_size(value, "value")
        array = np.asarray(value)
        # Types of accelerators, such as bfloat16, would be read as raw bytes.
        if array.dtype.kind == "V" and array.dtype.names is None:
            array = array.astype(np.float32)
    except (ValueError, TypeError, OverflowError, errors.DataError):
        return np.asarray(str(value)[:_MAX_TEXT_CHARS])
    return np.asarray(str(value)[:_MAX_TEXT_CHARS]) if array.dtype.hasobject else array


def _png(array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return axis order and PNG, or None if no color image."""
    if array.dtype != np.uint8 or array.ndim != 3 or not array.size or 3 not in (array.shape[0], array.shape[-1]):
        return None
    layout = "hwc" if array.shape[-1] == 3 else "chw"
    rows = array if layout == "hwc" else np.moveaxis(array, 0, -1)
    try:
        # The channels are stored in the order that the library expects, so that viewers show the right colors.
        is_encoded, png = cv2.imencode(
            ".png", cv2.cvtColor(np.ascontiguousarray(rows), cv2.COLOR_RGB2BGR), _PNG_OPTIONS
        )
    except cv2.error:  # for example, a side is longer than the format allows
        return None
    return (layout, png.reshape(-1)) if is_encoded else None


def _decoded(file: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    for key, value in file.items():
        if match := _IMAGE_KEY.fullmatch(key):
            image = cv2.imdecode(value, cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError(f"'{key}' is not a PNG")
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield match[1], image if match[2] == "hwc" else np.moveaxis(image, -1, 0)
        else:
            yield key, value.item() if value.ndim == 0 else value
