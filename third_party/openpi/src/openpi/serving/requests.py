"""Decodes a client's message into a checked observation and its options."""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

import numpy as np

from openpi.serving.observation_contract import ObservationContract
from openpi.shared.errors import DataError
from openpi_client import image_tools
from openpi_client import message_budget
from openpi_client import msgpack_numpy
from openpi_client import protocol

# Far more than a robot has cameras.
_MAX_IMAGES = 16

# Pixels of one image, a little more than 4K video, and of all of a request. Every policy shrinks them to 224x224 anyway.
_MAX_IMAGE_PIXELS = 2**23
_MAX_PIXELS = 2**24

# A message up to this size with so few values is decoded faster than it can be handed to a thread.
_LIGHT_BYTES = 2**20
_LIGHT_VALUES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One observation to be answered."""

    observation: dict[str, Any]
    deadline_s: float | None = None
    """Seconds from the arrival until the answer is of no more use."""
    replaces_older: bool = False
    """Whether to drop waiting requests of the same connection."""
    request_id: int | None = None
    """Number that the reply repeats. None if the client gave none."""
    doubts: tuple[str, ...] = ()
    """What is odd about the observation, but no reason to refuse it."""
    num_bytes: int = 0
    """Memory that the message and the images decoded from it take, roughly."""


def is_light(message: bytes | memoryview | str) -> bool:
    """Return whether the event loop may `read` a message itself."""
    if isinstance(message, str):
        return True
    # These bytes may appear in pixels, too. Then the message is only handed over for nothing.
    if isinstance(message, memoryview) or len(message) > _LIGHT_BYTES or image_tools.JPEG_START in message:
        return False
    try:
        message_budget.check(message, max_values=_LIGHT_VALUES)
    except ValueError:
        return False
    return True


def read(message: bytes | memoryview | str, contract: ObservationContract) -> Request:
    """Decode and check a message.

    Raises:
        DataError: The message does not come from a policy client, or the observation violates the contract.
    """
    if isinstance(message, str):
        raise DataError("request: found a text message, expected a binary one (a packed observation)")
    try:
        content = msgpack_numpy.unpackb(message)
    except ValueError as e:
        raise DataError(f"request: {e}") from e
    if not isinstance(content, dict):
        raise DataError(f"observation: found a {type(content).__name__}, expected a dict")
    options = content.pop(protocol.REQUEST_OPTIONS_KEY, {})
    content, num_decoded_bytes = _with_pixels(content, contract)
    observation = contract.check(content)
    return dataclasses.replace(
        _with_options(observation, options),
        doubts=tuple(contract.doubts(observation)),
        num_bytes=len(message) + num_decoded_bytes,
    )


def _with_pixels(observation: dict[Any, Any], contract: ObservationContract) -> tuple[dict[Any, Any], int]:
    """Return an observation with its JPEGs decoded, and their bytes.

    Images are values of the observation itself, or of a dict directly inside it. Keys that the policy does not read stay as
    they are.
    """
    decoded = dict(observation)
    num_images = num_pixels = num_bytes = 0
    for path, value in _values(observation, contract):
        is_jpeg = isinstance(value, bytes) and value.startswith(image_tools.JPEG_START)
        if not is_jpeg and not (isinstance(value, np.ndarray) and value.ndim >= 3):
            continue
        place = "observation: " + ": ".join(f"'{key!s:.40}'" for key in path)
        pixels = _decoded(value, place, _MAX_PIXELS - num_pixels) if is_jpeg else value
        num_images += 1
        num_pixels += _num_pixels(pixels, place)
        _check_images(num_images, num_pixels)
        if not is_jpeg:
            continue
        num_bytes += pixels.nbytes
        if len(path) == 1:
            decoded[path[0]] = pixels
        else:
            decoded[path[0]] = {**decoded[path[0]], path[1]: pixels}
    return decoded, num_bytes


def _values(observation: dict[Any, Any], contract: ObservationContract) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, value in observation.items():
        if not isinstance(key, str) or not contract.reads(key):
            continue
        if isinstance(value, dict):
            yield from (((key, name), item) for name, item in value.items())
        else:
            yield (key,), value


def _decoded(jpeg: bytes, place: str, pixels_left: int) -> np.ndarray:
    try:
        return image_tools.decode_jpeg(jpeg, min(_MAX_IMAGE_PIXELS, pixels_left))
    except ValueError as e:
        raise DataError(f"{place}: {e}") from e


def _num_pixels(image: np.ndarray, place: str) -> int:
    # Both layouts have the channels at one end. Other arrays count as images of a channel.
    num_channels = 3 if 3 in (image.shape[0], image.shape[-1]) else 1
    num_pixels = image.size // num_channels
    if num_pixels > _MAX_IMAGE_PIXELS:
        raise DataError(f"{place}: found {num_pixels} px, expected at most {_MAX_IMAGE_PIXELS}. Send a smaller image")
    return num_pixels


def _check_images(num_images: int, num_pixels: int) -> None:
    if num_images > _MAX_IMAGES:
        raise DataError(f"observation: more than {_MAX_IMAGES} images, expected one of each camera")
    if num_pixels > _MAX_PIXELS:
        raise DataError(f"observation: images of more than {_MAX_PIXELS} px in all. Send smaller images")


def _with_options(observation: dict[str, Any], options: Any) -> Request:
    key = protocol.REQUEST_OPTIONS_KEY
    if not isinstance(options, dict):
        raise DataError(f"request: '{key}' is a {type(options).__name__}, expected a dict")
    known = {protocol.DEADLINE_OPTION, protocol.REPLACE_OLDER_OPTION, protocol.REQUEST_ID_OPTION}
    if unknown := sorted(str(name)[:40] for name in options.keys() - known):
        raise DataError(f"request: '{key}' has unknown options {unknown}, expected some of {sorted(known)}")
    replaces = options.get(protocol.REPLACE_OLDER_OPTION, False)
    if not isinstance(replaces, bool):
        raise DataError(f"request: '{protocol.REPLACE_OLDER_OPTION}' is {replaces!r:.40}, expected true or false")
    request_id = _request_id(options.get(protocol.REQUEST_ID_OPTION))
    return Request(observation, _deadline(options.get(protocol.DEADLINE_OPTION)), replaces, request_id)


def _request_id(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63):
        return value
    raise DataError(
        f"request: '{protocol.REQUEST_ID_OPTION}' is {value!r:.40}, expected an integer from 0 to 2**63 - 1"
    )


def _deadline(deadline_ms: Any) -> float | None:
    if deadline_ms is None:
        return None
    is_number = isinstance(deadline_ms, int | float) and not isinstance(deadline_ms, bool)
    if not is_number or not (deadline_ms > 0 and math.isfinite(deadline_ms)):
        raise DataError(
            f"request: '{protocol.DEADLINE_OPTION}' is {deadline_ms!r:.40}, expected a positive number of ms"
        )
    return deadline_ms / 1000
