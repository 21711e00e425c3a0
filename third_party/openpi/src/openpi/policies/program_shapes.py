"""Shapes of what a model is asked: few enough to be compiled beforehand, small enough that little padding is computed.

A compiled program holds for one number of prompt tokens and one set of camera images. Most prompts are much shorter than the
longest one, and a camera slot that is masked for everybody needs no tokens. Computing either less changes no result.
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
import logging
from typing import Any

import jax
import numpy as np

logger = logging.getLogger(__name__)

# Prompt lengths that may have a program of their own, tokens; the larger ones for prompts with the state in them.
_LENGTHS = (16, 96, 144)
# Such a program must save so many tokens to be worth its compilation; an image has 256.
_LEAST_SAVED = 32
# And the length be at least this part of the longest: prompts are never much shorter where the state is written into them.
_SMALLEST_PART = 4

_MASK_KEY = "tokenized_prompt_mask"
_TOKEN_KEYS = ("tokenized_prompt", _MASK_KEY, "token_ar_mask", "token_loss_mask")


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a program takes of the inputs."""

    # Prompt tokens; 0 where there is no prompt.
    length: int
    # Camera slots with an image.
    slots: frozenset[str]

    def holds(self, other: "Shape") -> bool:
        """Whether a program of this shape can do the work of one of the other."""
        return self.length >= other.length and self.slots >= other.slots


class ProgramShapes:
    """Chooses the shapes of a policy's calls and remembers which of them have been run, and so are compiled.

    The first call of a kind has two programs compiled: the smallest that holds its inputs, and the one that holds every
    input. From then on nothing has to be compiled whatever the prompt and the cameras: a robot would have to wait for that.
    A call of other inputs gets the smallest program that is there.
    """

    def __init__(self, *, may_drop_images: bool) -> None:
        """Begin without any program.

        Args:
            may_drop_images: The model takes a camera slot with a mask that is False and no image.
        """
        self._may_drop_images = may_drop_images
        self._ready: dict[Hashable, set[Shape]] = {}

    def choose(self, kind: Hashable, inputs: Sequence[Mapping[str, Any]]) -> list[Shape]:
        """Return the shapes to run for these inputs, the last of which is to give the answer.

        Args:
            kind: What else a program depends on, such as the size of the batch.
            inputs: Of each sample, the model's inputs; they agree in keys and shapes.
        """
        need, whole = self._smallest(inputs), _whole(inputs)
        ready = [shape for shape in self._ready.get(kind, ()) if shape.holds(need)]
        if ready:
            return [min(ready, key=lambda shape: (len(shape.slots), shape.length))]
        return list(dict.fromkeys([whole, need]))

    def has_run(self, kind: Hashable, shape: Shape) -> None:
        """Remember that there is a program now."""
        if shape not in (known := self._ready.setdefault(kind, set())):
            known.add(shape)
            logger.debug("a program for %d prompt tokens and %d images is ready", shape.length, len(shape.slots))

    def _smallest(self, inputs: Sequence[Mapping[str, Any]]) -> Shape:
        whole = _whole(inputs)
        used = max((_num_used(sample[_MASK_KEY]) for sample in inputs if _MASK_KEY in sample), default=0)
        length = prompt_length(whole.length, used)
        masks = [sample.get("image_mask", {}) for sample in inputs]
        if not self._may_drop_images:
            # pi0-FAST's published decoding reads the keys of masked cameras, which are means over everything, padding too.
            all_seen = all(np.all(mask.get(slot, True)) for slot in whole.slots for mask in masks)
            return Shape(length, whole.slots) if all_seen else whole
        seen = {slot for slot in whole.slots for mask in masks if np.any(mask.get(slot, True))}
        # The model needs one image at least.
        return Shape(length, frozenset(seen) or frozenset(sorted(whole.slots)[:1]))


def kind_of(batch_size: int, arguments: Mapping[str, Any]) -> Hashable:
    """Return what a program depends on besides the inputs: the batch, and form and types of further arguments."""
    leaves, structure = jax.tree.flatten(dict(arguments))
    return batch_size, structure, tuple((np.shape(leaf), str(jax.dtypes.result_type(leaf))) for leaf in leaves)


def cut(inputs: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Return one sample's inputs without the padding and the images that are not part of the shape."""
    trimmed = {key: inputs[key][: shape.length] for key in _TOKEN_KEYS if key in inputs}
    if "image" in inputs:
        trimmed["image"] = {slot: image for slot, image in inputs["image"].items() if slot in shape.slots}
    return {**inputs, **trimmed}


def _whole(inputs: Sequence[Mapping[str, Any]]) -> Shape:
    first = inputs[0]
    return Shape(len(first.get(_MASK_KEY, ())), frozenset(first.get("image", {})))


def prompt_length(longest: int, used: int) -> int:
    """Return how many of `longest` prompt tokens the smallest program computes that holds `used` ones."""
    worthwhile = [length for length in _LENGTHS if longest / _SMALLEST_PART <= length <= longest - _LEAST_SAVED]
    return min(length for length in (*worthwhile, longest) if length >= used)


def _num_used(mask: np.ndarray) -> int:
    """Return how many tokens reach to the last one that is not padding."""
    used = np.flatnonzero(mask)
    return int(used[-1]) + 1 if len(used) else 0
