"""Checks observations and answers before a model or robot receives them."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from openpi.shared.errors import DataError

PROMPT_KEY = "prompt"

# A request may omit these, because the server can have a default.
_OPTIONAL_KEYS = frozenset({PROMPT_KEY})

# Tokenizers keep 48 to 250 tokens of a prompt, so a longer text is a mistake.
_MAX_PROMPT_CHARS = 2000

# Observations are a dict of dicts of arrays. The rest is room for other robots.
_MAX_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class ObservationContract:
    """The checks that hold for every robot.

    The policy itself checks its images and cameras.
    """

    # Required top-level keys.
    required_keys: tuple[str, ...] = ()
    # Number of values of each vector, such as a robot's state.
    vector_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_example(cls, example: Mapping[str, Any] | None) -> "ObservationContract":
        """Derive the contract from an example.

        None requires nothing but a dict of finite numbers.
        """
        if example is None:
            return cls()
        vectors = {key: np.size(value) for key, value in example.items() if _is_vector(value)}
        return cls(tuple(sorted(example.keys() - _OPTIONAL_KEYS)), vectors)

    def check(self, observation: Any) -> dict[str, Any]:
        """Return `observation` as it is.

        Raises:
            DataError: It is not a dict, keys are missing, a vector has the wrong size, the prompt is not a text or is too
                long, or a number is not finite. All missing keys are named together.
        """
        if not isinstance(observation, dict):
            raise DataError(f"observation: found a {type(observation).__name__}, expected a dict")
        missing = [key for key in self.required_keys if key not in observation]
        if missing:
            found = _quoted(str(key)[:40] for key in list(observation)[:20]) or "nothing"
            raise DataError(f"observation: found {found}, missing {_quoted(missing)}")
        check_finite(observation, "observation")
        for key, size in self.vector_sizes.items():
            if key in observation:
                _check_vector(key, observation[key], size)
        if PROMPT_KEY in observation:
            _check_prompt(observation[PROMPT_KEY])
        return observation


def check_finite(tree: Any, place: str) -> None:
    """Refuse NaN and infinity in any float of nested dicts and lists.

    Raises:
        DataError: A number is not finite, the tree is nested too deeply, or a key is not a text. For numbers, the message
            names the first one and how many there are in its array.
    """
    for path, leaf in _leaves(tree, "", place, _MAX_DEPTH):
        values = np.asarray(leaf) if isinstance(leaf, float | np.ndarray | np.floating) else None
        if values is None or values.dtype.kind != "f":
            continue
        finite = np.isfinite(values)
        if not finite.all():
            bad = np.argwhere(~finite)
            index = "".join(f"[{i}]" for i in bad[0])
            raise DataError(
                f"{place}: '{path}'{index} is {values[tuple(bad[0])]}, expected finite values ({len(bad)} are not)"
            )


def _is_vector(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype.kind in "iuf"


def _check_vector(key: str, value: Any, size: int) -> None:
    try:
        array = np.asarray(value)
    except ValueError as e:
        raise DataError(f"observation: '{key}' is a ragged list, expected {size} numbers") from e
    if array.dtype.kind not in "iuf":
        raise DataError(f"observation: '{key}' holds {array.dtype}, expected {size} numbers")
    if array.size != size or array.ndim > 1:
        raise DataError(f"observation: '{key}' has shape {array.shape}, expected ({size},)")


def _check_prompt(value: Any) -> None:
    text = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    if not isinstance(text, str | bytes):
        raise DataError(f"observation: '{PROMPT_KEY}' is a {type(value).__name__}, expected one text")
    if len(text) > _MAX_PROMPT_CHARS:
        raise DataError(f"observation: '{PROMPT_KEY}' has {len(text)} characters, expected at most {_MAX_PROMPT_CHARS}")


def _leaves(tree: Any, path: str, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple) and not depth:
        raise DataError(f"{place}: found more than {_MAX_DEPTH} levels, expected at most {_MAX_DEPTH}")
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise DataError(f"{place}: key {key!r:.40} is a {type(key).__name__}, expected a text")
            yield from _leaves(value, f"{path}.{key}" if path else key, place, depth - 1)
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{i}]", place, depth - 1)
    else:
        yield path, tree


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
