"""Errors between a robot and its policy server.

PolicyClientError
  +-- ServerUnreachableError (also ConnectionError)  no server answers, or the connection broke
  +-- ServerTimeoutError     (also TimeoutError)     the server did not answer in time
  +-- RemoteError            (also RuntimeError)     the server answered with an error
  +-- ProtocolError          (also ValueError)       the answer does not come from a policy server, or not to this request
  +-- ServerChangedError     (also ConnectionError)  another server answers at the address of the first one
"""


class PolicyClientError(Exception):
    """Base of all errors of a policy client.

    The first line of the message says what is wrong, where, and what to do.
    """


class ServerUnreachableError(PolicyClientError, ConnectionError):
    """No policy server answers at this address, or the connection broke."""


class ServerTimeoutError(PolicyClientError, TimeoutError):
    """The server did not answer within the time limit."""


class RemoteError(PolicyClientError, RuntimeError):
    """The server could not answer this request.

    `remote_text` holds the server's own words, possibly a traceback. `code` is one of the codes of `protocol`, or None from a
    server that sends no codes.
    """

    def __init__(self, message: str, remote_text: str, code: str | None = None) -> None:
        super().__init__(message)
        self.remote_text = remote_text
        self.code = code


class ProtocolError(PolicyClientError, ValueError):
    """The other side does not speak the protocol of a policy server.

    Or it answers what nobody asked.
    """


class ServerChangedError(PolicyClientError, ConnectionError):
    """After a reconnection, the server says other things about itself than before.

    Make a new client to accept it.
    """
