"""Why a policy server does not answer a request, in the words and codes that its client receives.

RequestError (also UserError)
  +-- TooLateError      the request's own deadline has passed
  +-- SupersededError   a newer observation of the same client took its place
  +-- OverloadedError   too many requests wait already
  +-- StoppingError     the server is about to end

Observations that cannot be used are `openpi.shared.errors.DataError`.
"""

import re
from typing import ClassVar

from openpi.shared.errors import UserError
from openpi_client import protocol

# An absolute path: a slash or a drive at the beginning of a word. Keys like "observation/state" are none.
_PATH = re.compile(r"(?<![\w.])(~?/|[A-Za-z]:\\)[\w.]")


class RequestError(UserError):
    """A request is not answered, through no fault of the policy."""

    code: ClassVar[str] = protocol.BAD_REQUEST


class TooLateError(RequestError):
    """The time that the request gave itself is over."""

    code = protocol.TOO_LATE


class SupersededError(RequestError):
    """The client sent a newer observation and asked to drop the waiting ones."""

    code = protocol.SUPERSEDED


class OverloadedError(RequestError):
    """More requests wait than the server keeps."""

    code = protocol.OVERLOADED


class StoppingError(RequestError):
    """The server finishes what it has begun and ends."""

    code = protocol.STOPPING


def describe(error: Exception) -> tuple[str, str]:
    """Return code and one line about a failed request: what a client can mend, and nothing about this machine."""
    first_line = (str(error).strip().splitlines() or [""])[0][:500]
    if isinstance(error, RequestError):
        return error.code, first_line
    # A policy of any make says ValueError about what it was given. Errors about files are none of a client's business.
    is_about_values = isinstance(error, ValueError | UserError) and not isinstance(error, OSError)
    if is_about_values and not _PATH.search(first_line):
        return protocol.BAD_REQUEST, first_line
    return protocol.INTERNAL, f"internal error ({type(error).__name__}); the server's log tells more"
