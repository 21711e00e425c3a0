"""Checks observations and answers before a model or robot receives them."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from openpi.serving.value_range import ValueRange
from openpi.shared import lists
from openpi.shared.errors import DataError
from openpi_client import protocol

PROMPT_KEY = "prompt"
IMAGES_KEY = "images"

# A request may omit these, because the server can have a default.
_OPTIONAL_KEYS = frozenset({PROMPT_KEY})

# Tokenizers keep 48 to 250 tokens of a prompt, so a longer text is a mistake.
_MAX_PROMPT_CHARS = 2000

# Observations are a dict of dicts of arrays. The rest is room for other robots.
_MAX_DEPTH = 8


@dataclasses.dataclass(frozen=True)
class RobotLimits:
    """What is known about the numbers and cameras of one robot."""

    # Keys of vectors and what their numbers can be at all. Anything else is refused.
    possible: Mapping[str, ValueRange] = dataclasses.field(default_factory=dict)
    # The same for what the model was trained with and a good margin around it. Anything else is worth a warning.
    trained: Mapping[str, ValueRange] = dataclasses.field(default_factory=dict)
    # Cameras that training had, below the key "images".
    cameras: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ObservationContract:
    """The checks that hold for every robot.

    The policy itself checks its images and cameras.
    """

    # Required top-level keys.
    required_keys: tuple[str, ...] = ()
    # Number of values of each vector, such as a robot's state.
    vector_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    limits: RobotLimits = dataclasses.field(default_factory=RobotLimits)

    @classmethod
    def from_example(
        cls, example: Mapping[str, Any] | None, limits: RobotLimits | None = None
    ) -> "ObservationContract":
        """Derive the contract from an example.

        None requires nothing but a dict of finite numbers.
        """
        limits = limits or RobotLimits()
        if example is None:
            return cls(limits=limits)
        vectors = {key: np.size(value) for key, value in example.items() if _is_vector(value)}
        return cls(tuple(sorted(example.keys() - _OPTIONAL_KEYS)), vectors, limits)

    def reads(self, key: str) -> bool:
        """Return whether the policy may look at a top-level key.

        All other keys cost nothing but their bytes.
        """
        return not self.required_keys or key in self.required_keys or key in (PROMPT_KEY, protocol.RTC_KEY)

    def check(self, observation: Any) -> dict[str, Any]:
        """Return `observation` as it is.

        Raises:
            DataError: It is not a dict, keys are missing, a vector has the wrong size or holds what the robot cannot have, the
                prompt is not a text or is too long, or a number is not finite. All missing keys are named together.
        """
        if not isinstance(observation, dict):
            raise DataError(f"observation: found a {type(observation).__name__}, expected a dict")
        missing = [key for key in self.required_keys if key not in observation]
        if missing:
            found = _quoted(str(key)[:40] for key in list(observation)[:20]) or "nothing"
            raise DataError(f"observation: found {found}, missing {_quoted(missing)}")
        for key in observation:
            if not isinstance(key, str):
                raise DataError(f"observation: key {key!r:.40} is a {type(key).__name__}, expected a text")
        known = {key: value for key, value in observation.items() if self.reads(key)}
        for key, value in known.items():
            lists.check_size(value, f"observation: '{key}'")
        # Vectors first, because one step of numpy shows whether a list of many values is one at all.
        for key, size in self.vector_sizes.items():
            if key in observation:
                self._check_vector(key, observation[key], size)
        check_finite(known, "observation")
        if PROMPT_KEY in observation:
            _check_prompt(observation[PROMPT_KEY])
        return observation

    def doubts(self, observation: Mapping[str, Any]) -> list[str]:
        """Return what the model was not trained for, one sentence each.

        `observation` has been checked. What comes before the colon stays the same from request to request.
        """
        found = []
        for key, limits in self.limits.trained.items():
            if key in observation and (problem := limits.outside(np.asarray(observation[key]))):
                found.append(f"'{key}' is far outside the training data: {problem}. Check units, order and calibration")
        images = observation.get(IMAGES_KEY)
        if isinstance(images, Mapping):
            found += [
                f"camera '{camera}' is missing, the model was trained with it and sees black instead"
                for camera in self.limits.cameras
                if camera not in images
            ]
        return found

    def _check_vector(self, key: str, value: Any, size: int) -> None:
        try:
            array = np.asarray(value)
        except ValueError as e:
            raise DataError(f"observation: '{key}' is a ragged list, expected {size} numbers") from e
        if array.dtype.kind not in "iuf":
            raise DataError(f"observation: '{key}' holds {array.dtype}, expected {size} numbers")
        if array.size != size or array.ndim > 1:
            raise DataError(f"observation: '{key}' has shape {array.shape}, expected ({size},)")
        if not np.isfinite(array).all():
            check_finite({key: array}, "observation")
        if key in self.limits.possible and (problem := self.limits.possible[key].outside(array)):
            raise DataError(f"observation: '{key}' cannot be: {problem}. Check the units and the order of the numbers")


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
            # The positions of all of them could take ten times the memory of the array.
            first = np.unravel_index(np.argmin(finite), finite.shape)
            index = "".join(f"[{i}]" for i in first)
            num_bad = finite.size - np.count_nonzero(finite)
            raise DataError(f"{place}: '{path}'{index} is {values[first]}, expected finite values ({num_bad} are not)")


def _is_vector(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype.kind in "iuf"


def _check_prompt(value: Any) -> None:
    is_boxed = isinstance(value, np.ndarray) and value.size == 1 and value.dtype.itemsize <= 4 * _MAX_PROMPT_CHARS
    text = value.item() if is_boxed else value
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
        if (numbers := lists.as_numbers(tree)) is not None:
            yield path, numbers
            return
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}[{i}]", place, depth - 1)
    else:
        yield path, tree


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
