"""What a transform is, how several make one, and how a sample's keys get their names."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol, TypeAlias, runtime_checkable

from openpi.transforms import tree

DataDict: TypeAlias = dict[str, Any]
"""A sample: nested dict of numpy leaves and texts, without a batch axis."""


@runtime_checkable
class DataTransformFn(Protocol):
    """A callable from sample to sample."""

    def __call__(self, data: DataDict) -> DataDict:
        """Return a new sample; leave `data` and its arrays as they are."""
        ...


@dataclasses.dataclass(frozen=True)
class Group:
    """Transforms on the way into the model, and on the way out of it."""

    inputs: Sequence[DataTransformFn] = ()
    outputs: Sequence[DataTransformFn] = ()

    def push(self, *, inputs: Sequence[DataTransformFn] = (), outputs: Sequence[DataTransformFn] = ()) -> "Group":
        """Add transforms nearer to the model: inputs go to the end, outputs to the front."""
        return Group(inputs=(*self.inputs, *inputs), outputs=(*outputs, *self.outputs))


@dataclasses.dataclass(frozen=True)
class CompositeTransform(DataTransformFn):
    """Several transforms, one after the other."""

    transforms: Sequence[DataTransformFn]

    def __call__(self, data: DataDict) -> DataDict:
        """Run all in order."""
        for transform in self.transforms:
            data = transform(data)
        return data


def compose(transforms: Sequence[DataTransformFn]) -> DataTransformFn:
    """Make one transform of several."""
    return CompositeTransform(transforms)


@dataclasses.dataclass(frozen=True)
class RepackTransform(DataTransformFn):
    """Rename a dataset's keys: keeps only what `structure` lists.

    For example `{"images": {"cam_high": "observation.images.cam_high"}, "state": "observation.state"}`. The result has the
    levels of `structure`, no more: a new key such as "observation/image" stays one key.
    """

    # New keys, nested or not; the leaves are paths ("/" between levels) in the sample.
    structure: Mapping[str, Any]

    def __call__(self, data: DataDict) -> DataDict:
        """Look up every listed path; `MissingKeyError` names all that are absent."""
        flat = tree.flatten_dict(data)
        wanted = tree.flatten_dict(self.structure).values()
        if missing := sorted(set(wanted) - flat.keys()):
            raise tree.MissingKeyError(f"sample: keys {missing} are missing; found {sorted(flat)}")
        return _look_up(self.structure, flat)


def _look_up(structure: Mapping[str, Any], flat: Mapping[str, Any]) -> DataDict:
    return {
        key: _look_up(source, flat) if isinstance(source, Mapping) else flat[source]
        for key, source in structure.items()
    }
