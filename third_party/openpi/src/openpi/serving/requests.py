"""Decodes a client's message into a checked observation and its options."""

import dataclasses
import math
from typing import Any

from openpi.serving.observation_contract import ObservationContract
from openpi.shared.errors import DataError
from openpi_client import image_tools
from openpi_client import msgpack_numpy
from openpi_client import protocol


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


def read(message: bytes | str, contract: ObservationContract) -> Request:
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
    options = content.pop(protocol.REQUEST_OPTIONS_KEY, {}) if isinstance(content, dict) else {}
    return _with_options(contract.check(_with_pixels(content, "observation")), options)


def _with_pixels(tree: Any, place: str, depth: int = 2) -> Any:
    """Return an observation with its JPEGs decoded.

    Images are values of the observation itself, or of a dict directly inside it.
    """
    if isinstance(tree, dict) and depth:
        return {key: _with_pixels(value, f"{place}: '{key!s:.40}'", depth - 1) for key, value in tree.items()}
    if not (isinstance(tree, bytes) and tree.startswith(image_tools.JPEG_START)):
        return tree
    try:
        return image_tools.decode_jpeg(tree)
    except ValueError as e:
        raise DataError(f"{place}: {e}") from e


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
