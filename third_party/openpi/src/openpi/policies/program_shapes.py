"""Choose the shapes of a model's inputs.

There should be few enough to compile them in advance, and they should be small enough to compute little padding. A compiled
program works for one number of prompt tokens and one set of camera images. Most prompts are much shorter than the longest
one, and a camera slot that is masked in all samples needs no tokens. Leaving out either changes no result.
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
import logging
from typing import Any

import jax
import numpy as np

logger = logging.getLogger(__name__)

# Prompt lengths that may have their own program, tokens. The larger ones are for prompts that contain the state.
_LENGTHS = (16, 96, 144)
# Tokens that such a program must save to be worth its compilation. An image has 256.
_LEAST_SAVED = 32
# Its length must be at least 1 / _SMALLEST_PART of the longest, because prompts that contain the state are never much shorter.
_SMALLEST_PART = 4

_MASK_KEY = "tokenized_prompt_mask"
_TOKEN_KEYS = ("tokenized_prompt", _MASK_KEY, "token_ar_mask", "token_loss_mask")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The part of the inputs that a program computes."""

    # Prompt tokens, 0 without a prompt.
    length: int
    # Camera slots with an image.
    slots: frozenset[str]

    def holds(self, other: "Shape") -> bool:
        """Return whether a program of this shape can replace the other's."""
        return self.length >= other.length and self.slots >= other.slots


class ProgramShapes:
    """Chooses the shapes of a policy's calls and remembers the compiled ones.

    The first call of a kind compiles two programs: the smallest that holds its inputs, and the one that holds all inputs.
    After that no prompt and no set of cameras needs another compilation, for which a robot would have to wait. Later calls
    get the smallest compiled program that holds their inputs.
    """

    def __init__(self, *, may_drop_images: bool) -> None:
        """Start without any program.

        Args:
            may_drop_images: The model accepts a camera slot with a False mask and no image.
        """
        self._may_drop_images = may_drop_images
        self._ready: dict[Hashable, set[Shape]] = {}

    def choose(self, kind: Hashable, inputs: Sequence[Mapping[str, Any]]) -> list[Shape]:
        """Return the shapes to run for these inputs.

        The last one gives the answer.

        Args:
            kind: Everything else that a program depends on, such as the batch size.
            inputs: The model's inputs, one dict per sample, with the same keys and shapes.
        """
        need, whole = self._smallest(inputs), _whole(inputs)
        ready = [shape for shape in self._ready.get(kind, ()) if shape.holds(need)]
        if ready:
            return [min(ready, key=lambda shape: (len(shape.slots), shape.length))]
        return list(dict.fromkeys([whole, need]))

    def has_run(self, kind: Hashable, shape: Shape) -> None:
        """Remember that this program is compiled."""
        if shape not in (known := self._ready.setdefault(kind, set())):
            known.add(shape)
            logger.debug("compiled a program for %d prompt tokens and %d images", shape.length, len(shape.slots))

    def _smallest(self, inputs: Sequence[Mapping[str, Any]]) -> Shape:
        whole = _whole(inputs)
        used = max((_num_used(sample[_MASK_KEY]) for sample in inputs if _MASK_KEY in sample), default=0)
        length = prompt_length(whole.length, used)
        masks = [sample.get("image_mask", {}) for sample in inputs]
        if not self._may_drop_images:
            # pi0-FAST's published decoding reads the keys of masked cameras. These are means over all tokens, also padding.
            all_seen = all(np.all(mask.get(slot, True)) for slot in whole.slots for mask in masks)
            return Shape(length, whole.slots) if all_seen else whole
        seen = {slot for slot in whole.slots for mask in masks if np.any(mask.get(slot, True))}
        # The model needs at least one image.
        return Shape(length, frozenset(seen) or frozenset(sorted(whole.slots)[:1]))


def kind_of(batch_size: int, arguments: Mapping[str, Any]) -> Hashable:
    """Return what a program depends on, other than the inputs.

    This is the batch size, and the structure, shapes and types of further arguments.
    """
    leaves, structure = jax.tree.flatten(dict(arguments))
    return batch_size, structure, tuple((np.shape(leaf), str(jax.dtypes.result_type(leaf))) for leaf in leaves)


def cut(inputs: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Return one sample's inputs without the padding and images outside the shape."""
    trimmed = {key: inputs[key][: shape.length] for key in _TOKEN_KEYS if key in inputs}
    if "image" in inputs:
        trimmed["image"] = {slot: image for slot, image in inputs["image"].items() if slot in shape.slots}
    return {**inputs, **trimmed}


def _whole(inputs: Sequence[Mapping[str, Any]]) -> Shape:
    first = inputs[0]
    return Shape(len(first.get(_MASK_KEY, ())), frozenset(first.get("image", {})))


def prompt_length(longest: int, used: int) -> int:
    """Return the prompt length of the smallest program for `used` tokens.

    Args:
        longest: Prompt length of the model.
        used: Number of tokens up to the last that is not padding.
    """
    worthwhile = [length for length in _LENGTHS if longest / _SMALLEST_PART <= length <= longest - _LEAST_SAVED]
    return min(length for length in (*worthwhile, longest) if length >= used)


def _num_used(mask: np.ndarray) -> int:
    """Return the number of tokens before the padding at the end."""
    used = np.flatnonzero(mask)
    return int(used[-1]) + 1 if len(used) else 0
