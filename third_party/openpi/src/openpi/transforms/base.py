"""The interface of a transform, its composition, and the renaming of keys."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol, TypeAlias, runtime_checkable

from openpi.transforms import tree

DataDict: TypeAlias = dict[str, Any]
"""A sample: a nested dict of numpy leaves and texts, without a batch axis."""


@runtime_checkable
class DataTransformFn(Protocol):
    """A callable from sample to sample."""

    def __call__(self, data: DataDict) -> DataDict:
        """Return a new sample and leave `data` and its arrays unchanged."""
        ...


@dataclasses.dataclass(frozen=True)
class Group:
    """Transforms of a model's inputs and of its outputs."""

    inputs: Sequence[DataTransformFn] = ()
    outputs: Sequence[DataTransformFn] = ()

    def push(self, *, inputs: Sequence[DataTransformFn] = (), outputs: Sequence[DataTransformFn] = ()) -> "Group":
        """Add transforms next to the model.

        Inputs go to the end, and outputs to the front.
        """
        return Group(inputs=(*self.inputs, *inputs), outputs=(*outputs, *self.outputs))


@dataclasses.dataclass(frozen=True)
class CompositeTransform(DataTransformFn):
    """Runs several transforms in order."""

    transforms: Sequence[DataTransformFn]

    def __call__(self, data: DataDict) -> DataDict:
        """Run all transforms."""
        for transform in self.transforms:
            data = transform(data)
        return data


def compose(transforms: Sequence[DataTransformFn]) -> DataTransformFn:
    """Combine several transforms into one."""
    return CompositeTransform(transforms)


@dataclasses.dataclass(frozen=True)
class RepackTransform(DataTransformFn):
    """Rename a dataset's keys, and keep only those that `structure` lists.

    For example `{"images": {"cam_high": "observation.images.cam_high"}, "state": "observation.state"}`. The result has
    exactly the levels of `structure`, so a new key such as "observation/image" stays one key.
    """

    # New keys, nested or not. The leaves are paths ("/" between levels) in the sample.
    structure: Mapping[str, Any]

    def __call__(self, data: DataDict) -> DataDict:
        """Look up every listed path.

        Raises:
            MissingKeyError: Paths are missing. The message names all of them.
        """
        flat = tree.flatten_dict(data)
        wanted = tree.flatten_dict(self.structure).values()
        if missing := sorted(set(wanted) - flat.keys()):
            raise tree.MissingKeyError(f"sample: found {sorted(flat)}, keys {missing} are missing")
        return _look_up(self.structure, flat)


def _look_up(structure: Mapping[str, Any], flat: Mapping[str, Any]) -> DataDict:
    return {
        key: _look_up(source, flat) if isinstance(source, Mapping) else flat[source]
        for key, source in structure.items()
    }
