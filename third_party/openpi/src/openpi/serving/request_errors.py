"""Errors of requests, with the codes and messages sent to clients.

RequestError (also UserError)
  +-- TooLateError      the request's own deadline has passed
  +-- SupersededError   a newer observation of the same client replaced it
  +-- OverloadedError   too many requests are waiting
  +-- StoppingError     the server is stopping

Observations that cannot be used raise `openpi.shared.errors.DataError`.
"""

import re
from typing import ClassVar

from openpi.shared.errors import UserError
from openpi.shared.printable import printable
from openpi_client import protocol

# An absolute path: a slash or a drive at the beginning of a word. Keys like "observation/state" do not match.
_PATH = re.compile(r"(?<![\w.])(~?/|[A-Za-z]:\\)[\w.]")


class RequestError(UserError):
    """A request is not answered, and the policy is not to blame."""

    code: ClassVar[str] = protocol.BAD_REQUEST


class TooLateError(RequestError):
    """The deadline of the request has passed."""

    code = protocol.TOO_LATE


class SupersededError(RequestError):
    """A newer observation of the client replaced this one, as requested."""

    code = protocol.SUPERSEDED


class OverloadedError(RequestError):
    """The queue of the server is full."""

    code = protocol.OVERLOADED


class StoppingError(RequestError):
    """The server finishes the requests that it has and stops."""

    code = protocol.STOPPING


def describe(error: Exception) -> tuple[str, str]:
    """Return the code and one line about a failed request.

    The line says what a client can fix and reveals nothing about this machine.
    """
    # The text may repeat what the client sent.
    first_line = printable((str(error).strip().splitlines() or [""])[0])
    if isinstance(error, RequestError):
        return error.code, first_line
    # Any policy raises ValueError about its input. Errors about files concern this machine, not the client.
    is_about_values = isinstance(error, ValueError | UserError) and not isinstance(error, OSError)
    if is_about_values and not _PATH.search(first_line):
        return protocol.BAD_REQUEST, first_line
    return protocol.INTERNAL, f"internal error ({type(error).__name__}). See the server's log"
