"""What a policy server demands of observations and of its own answers, before anything reaches a model or a robot."""

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import numpy as np

from openpi.shared.errors import DataError

# A request may leave these out: the server can have a default.
_OPTIONAL_KEYS = frozenset({"prompt"})


@dataclasses.dataclass(frozen=True)
class ObservationContract:
    """The checks that hold for every robot; what an image or a camera must look like is the policy's own business."""

    # Top-level keys that must be there.
    required_keys: tuple[str, ...] = ()
    # Number of values of each vector, such as a robot's state.
    vector_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_example(cls, example: Mapping[str, Any] | None) -> "ObservationContract":
        """Read the contract off an example; None demands nothing but a dict of finite numbers."""
        if example is None:
            return cls()
        vectors = {key: np.size(value) for key, value in example.items() if _is_vector(value)}
        return cls(tuple(sorted(example.keys() - _OPTIONAL_KEYS)), vectors)

    def check(self, observation: Any) -> dict[str, Any]:
        """Return `observation` as it is.

        Raises:
            DataError: it is no dict, keys are missing, a vector has the wrong size, or a number is not finite. All missing
                keys are named at once.
        """
        if not isinstance(observation, dict):
            raise DataError(f"observation: found a {type(observation).__name__}, expected a dict")
        missing = [key for key in self.required_keys if key not in observation]
        if missing:
            raise DataError(
                f"observation: missing {_quoted(missing)}; found {_quoted(map(str, observation)) or 'nothing'}"
            )
        for key, size in self.vector_sizes.items():
            if key in observation:
                _check_vector(key, observation[key], size)
        check_finite(observation, "observation")
        return observation


def check_finite(tree: Any, place: str) -> None:
    """Refuse NaN and infinity in any float of nested dicts and lists.

    Raises:
        DataError: names the first such entry and how many there are beside it.
    """
    for path, values in _float_leaves(tree, ""):
        finite = np.isfinite(values)
        if not finite.all():
            bad = np.argwhere(~finite)
            index = "".join(f"[{i}]" for i in bad[0])
            raise DataError(
                f"{place}: '{path}'{index} is {values[tuple(bad[0])]}, expected finite values ({len(bad)} such)"
            )


def _is_vector(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim <= 1 and value.dtype.kind in "iuf"


def _check_vector(key: str, value: Any, size: int) -> None:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise DataError(f"observation: '{key}' holds {array.dtype}, expected {size} numbers")
    if array.size != size or array.ndim > 1:
        raise DataError(f"observation: '{key}' has shape {array.shape}, expected ({size},)")


def _float_leaves(tree: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _float_leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _float_leaves(value, f"{path}[{i}]")
    elif isinstance(tree, float | np.ndarray | np.floating):
        array = np.asarray(tree)
        if array.dtype.kind == "f":
            yield path, array


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
