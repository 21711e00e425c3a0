"""Helpers that treat nested dicts as flat ones.

The keys of a path are joined by "/".
"""

from collections.abc import Callable, Mapping
import re
from typing import Any, TypeVar

from openpi.shared import errors

T = TypeVar("T")
S = TypeVar("S")

SEPARATOR = "/"


class MissingKeyError(errors.DataError, KeyError):
    """Required keys are missing. The message names all of them."""

    # KeyError would print the message in quotes.
    __str__ = Exception.__str__


def flatten_dict(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return every leaf of a nested dict by its path.

    For example, `{"a": {"b": 1}}` becomes `{"a/b": 1}`. Empty dicts leave no trace. Keys may contain the separator.
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
        DataError: A path is given twice, or is both a leaf and a folder of other paths.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split(SEPARATOR)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise errors.DataError(f"path '{path}': below a leaf, expected a folder")
        if last in node:
            raise errors.DataError(f"path '{path}': two leaves, or a leaf and a folder, expected one leaf")
        node[last] = leaf
    return tree


def transform_dict(patterns: Mapping[str, str | None], tree: Mapping[str, Any]) -> dict[str, Any]:
    r"""Rename and remove leaves by regular expressions on their paths.

    Args:
        patterns: Regular expression -> new path (may use `\1`), or None to remove the leaf. An expression must match the
            whole path, and the first match counts. Leaves without a match stay.
        tree: The nested dict. It is not changed.

    Raises:
        DataError: Two leaves would get the same path, or a path would be both a leaf and a folder.
    """
    # Each leaf follows its first matching rule.
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
            raise errors.DataError(f"path '{new_path}': two leaves after renaming '{path}', expected one")
        renamed[new_path] = leaf
    return unflatten_dict(renamed)


def apply_tree(
    tree: Mapping[str, T], selector: Mapping[str, S], fn: Callable[[T, S], T], *, strict: bool = False
) -> dict[str, Any]:
    """Replace each leaf that `selector` also has by `fn(leaf, selected)`.

    Other leaves stay as they are.

    Args:
        tree: The nested dict. It is not changed.
        selector: Nested dict with leaves at some of the same paths.
        fn: Called with a leaf and the selector's leaf at the same path.
        strict: Refuse a selector with paths that the tree lacks.

    Raises:
        MissingKeyError: `strict` is set and paths are missing. The message names all of them.
    """
    flat = flatten_dict(tree)
    selected = flatten_dict(selector)
    if strict and (missing := sorted(selected.keys() - flat.keys())):
        raise MissingKeyError(f"data: found {sorted(flat)}, keys {missing} are missing")
    return unflatten_dict({path: fn(leaf, selected[path]) if path in selected else leaf for path, leaf in flat.items()})
