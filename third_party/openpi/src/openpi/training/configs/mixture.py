"""Train on several datasets at once, with shares and prompts."""

from collections.abc import Sequence
import dataclasses
from typing import Annotated

import tyro

from openpi.shared import errors
from openpi.shared import ranges

# Smallest share of a dataset, so that each block of the sample order holds a few of its samples.
_LEAST_SHARE = 0.002
_FORM = "REPO_ID[:WEIGHT[:PROMPT]]"


@dataclasses.dataclass(frozen=True)
class MixedDataset:
    """One dataset of a mixture."""

    # Name of the dataset.
    repo_id: str
    # Share of the samples, relative to the other weights. The default is the dataset's number of frames.
    weight: Annotated[float, ranges.Range(1e-9, 1e12, "a share above 0, relative to the others")] | None = None
    # Prompt of all its samples. The default is the task of each sample.
    prompt: str | None = None

    def __post_init__(self) -> None:
        if not self.repo_id:
            raise errors.OutOfRangeError(f"mixture: found '{self}', expected {_FORM}")
        ranges.check(self, f"mixture '{self}'")

    def __str__(self) -> str:
        weight = "" if self.weight is None else f"{self.weight:g}"
        parts = [self.repo_id, weight, self.prompt or ""]
        return ":".join(parts).rstrip(":")

    @classmethod
    def parse(cls, text: str) -> "MixedDataset":
        """Read `REPO_ID[:WEIGHT[:PROMPT]]`.

        Examples are "realman/towels:2" and "realman/cubes::pick up the cube".

        Raises:
            UserError: The weight is not a number above 0, or there is no name.
        """
        repo_id, _, rest = text.partition(":")
        weight, _, prompt = rest.partition(":")
        try:
            share = float(weight) if weight else None
        except ValueError as e:
            raise errors.OutOfRangeError(f"mixture: found '{text}', expected {_FORM} with a number as weight") from e
        return cls(repo_id, share, prompt or None)


MixedDatasetFlag = Annotated[
    MixedDataset,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=_FORM,
        instance_from_str=lambda texts: MixedDataset.parse(texts[0]),
        is_instance=lambda value: isinstance(value, MixedDataset),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A dataset of a mixture as one word of the command line."""


def shares(members: Sequence[MixedDataset], num_frames: Sequence[int]) -> list[float]:
    """Return each dataset's share of the samples. The shares sum to 1.

    Raises:
        ConfigError: Only some datasets have a weight, one is named twice, or a share is tiny.
    """
    names = [member.repo_id for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise errors.ConfigError(f"mixture: {twice} are named twice. Name each once, with the sum of its weights")
    if len({member.weight is None for member in members}) > 1:
        raise errors.ConfigError(
            f"mixture: found weights for some of {names} only. Give one to each, or none (shares by number of frames)"
        )
    weights = [
        float(count if member.weight is None else member.weight)
        for member, count in zip(members, num_frames, strict=True)
    ]
    found = [weight / sum(weights) for weight in weights]
    if rare := [name for name, share in zip(names, found, strict=True) if share < _LEAST_SHARE]:
        raise errors.ConfigError(
            f"mixture: {rare} would be less than {_LEAST_SHARE:.1%} of the samples. Raise the weight"
        )
    return found


def check_rates(members: Sequence[MixedDataset], fps: Sequence[float]) -> None:
    """Refuse datasets of several rates.

    A step of an action would last longer in one dataset than in another, and a robot plays all steps at one rate.

    Raises:
        ConfigError: The rates differ.
    """
    if len(set(fps)) > 1:
        found = ", ".join(f"'{member.repo_id}' has {rate:g}" for member, rate in zip(members, fps, strict=True))
        raise errors.ConfigError(f"mixture: {found} frames per second. Mix only datasets of one rate")
