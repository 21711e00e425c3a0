"""Check that the parts of a batch fit together.

They must fit each other and the model. The errors name the parts. Without these checks you would see a failing matrix
product instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from openpi.shared import errors

Part: TypeAlias = tuple[Any, Sequence[int | None], str]
"""An array, its expected shape (None: any size), and the kind of its numbers, a key of `_KINDS`."""

_KINDS = {"": jnp.generic, "float": jnp.floating, "integer": jnp.integer, "bool": jnp.bool_}


def check(parts: Mapping[str, Part]) -> None:
    """Compare arrays (or ShapeDtypeStructs) with their expected shapes and kinds.

    Raises:
        DataError: Some parts differ. The message names each with what was found and expected.
    """
    problems = [
        f"'{name}' is {x.dtype} {list(x.shape)}, expected {kind} {_text(shape)}".replace("  ", " ")
        for name, (x, shape, kind) in parts.items()
        if not (_has_shape(x, shape) and jnp.issubdtype(x.dtype, _KINDS[kind]))
    ]
    if problems:
        raise errors.DataError(f"batch: {'; '.join(problems)}")


def check_observation(observation: Any, image_keys: Sequence[str]) -> None:
    """Check the shapes and kinds of the parts of an `Observation`.

    All parts must have the batch size of the state.

    Args:
        observation: Every part except the state may be absent.
        image_keys: Camera slots to check.

    Raises:
        DataError: See `check`.
    """
    batch = observation.state.shape[:1]
    tokens = observation.tokenized_prompt
    prompt = (*batch, None) if tokens is None else (*batch, *tokens.shape[1:2])
    parts: dict[str, Part] = {"state": (observation.state, (*batch, None), "")}
    for key in image_keys:
        parts[f"image/{key}"] = (observation.images.get(key), (*batch, None, None, 3), "float")
        parts[f"image_mask/{key}"] = (observation.image_masks.get(key), batch, "bool")
    parts["tokenized_prompt"] = (tokens, (*batch, None), "integer")
    parts["tokenized_prompt_mask"] = (observation.tokenized_prompt_mask, prompt, "bool")
    parts["token_ar_mask"] = (observation.token_ar_mask, prompt, "")
    parts["token_loss_mask"] = (observation.token_loss_mask, prompt, "")
    check({name: part for name, part in parts.items() if part[0] is not None})


def _has_shape(x: Any, shape: Sequence[int | None]) -> bool:
    return len(x.shape) == len(shape) and all(want in (None, size) for size, want in zip(x.shape, shape, strict=True))


def _text(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('*' if size is None else str(size) for size in shape)}]"
