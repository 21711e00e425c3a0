"""Nested dictionaries as flat ones: paths are keys joined by "/". Owner of these helpers for `openpi.transforms`."""

from collections.abc import Callable, Mapping
import re
from typing import Any, TypeVar

from openpi.shared import errors

T = TypeVar("T")
S = TypeVar("S")

SEPARATOR = "/"


class MissingKeyError(errors.DataError, KeyError):
    """Data lack keys that are needed; the message names all of them."""

    # KeyError would print the message in quotes.
    __str__ = Exception.__str__


def flatten_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Give every leaf of a nested dict under its path, for example `{"a": {"b": 1}}` -> `{"a/b": 1}`.

    Empty dicts leave no trace. Keys may contain the separator themselves.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}{SEPARATOR}{path}": leaf for path, leaf in flatten_dict(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten_dict(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `flatten_dict` (keys without separators come back as they were).

    Raises:
        DataError: One path is both a leaf and a folder of others.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise errors.DataError(f"path '{path}' lies below a leaf of the same name")
        if last in node:
            raise errors.DataError(f"path '{path}' names two leaves, or a leaf and a folder")
        node[last] = leaf
    return tree


def transform_dict(patterns: Mapping[str, str | None], tree: Mapping[str, Any]) -> dict[str, Any]:
    r"""Rename and remove leaves of a nested dict by regular expressions on their paths.

    Args:
        patterns: Regular expression -> new path (may use `\1`), or None to remove the leaf. An expression must match the
            whole path; the first that does wins; leaves matched by none stay.
        tree: The nested dict; it is not changed.

    Raises:
        DataError: Two leaves would get the same path, or a path would be leaf and folder at once.
    """
    compiled = [(re.compile(pattern), target) for pattern, target in patterns.items()]
    renamed: dict[str, Any] = {}
    for path, leaf in flatten_dict(tree).items():
        rule = next((rule for rule in compiled if rule[0].fullmatch(path)), None)
        if rule is None:
            new_path = path
        elif rule[1] is None:
            continue
        else:
            new_path = rule[0].sub(rule[1], path, count=1)
        if new_path in renamed:
            raise errors.DataError(f"path '{new_path}' names two leaves after renaming '{path}'")
        renamed[new_path] = leaf
    return unflatten_dict(renamed)


def apply_tree(
    tree: Mapping[str, T], selector: Mapping[str, S], fn: Callable[[T, S], T], *, strict: bool = False
) -> dict[str, Any]:
    """Replace each leaf that `selector` has too by `fn(leaf, selected)`; other leaves stay as they are.

    Args:
        tree: The nested dict; it is not changed.
        selector: Nested dict with leaves at some of the same paths.
        fn: Called with a leaf and the selector's leaf of the same path.
        strict: Refuse a selector with paths that the tree lacks.

    Raises:
        MissingKeyError: `strict`, and paths are missing; all are named.
    """
    flat = flatten_dict(tree)
    selected = flatten_dict(selector)
    if strict and (missing := sorted(selected.keys() - flat.keys())):
        raise MissingKeyError(f"data: keys {missing} are missing; found {sorted(flat)}")
    return unflatten_dict({path: fn(leaf, selected[path]) if path in selected else leaf for path, leaf in flat.items()})
