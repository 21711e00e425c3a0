"""One connection to a policy server, with time limits on all waits."""

import contextlib
import inspect
import socket
import struct
import time
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
import websockets.sync.client

from openpi_client import msgpack_numpy
from openpi_client import protocol
from openpi_client.errors import ProtocolError
from openpi_client.errors import ServerTimeoutError
from openpi_client.errors import ServerUnreachableError

# Options of the installed websockets. Older releases lack some of them.
_CONNECT_PARAMETERS = inspect.signature(websockets.sync.client.connect).parameters


class Connection:
    """An open connection to a policy server.

    `open_connection` makes it and reads the server's metadata.
    """

    def __init__(self, uri: str, stack: contextlib.ExitStack, websocket: Any) -> None:
        self._uri = uri
        self._stack = stack
        self._websocket = websocket
        self.metadata: dict[str, Any] = {}

    @property
    def is_open(self) -> bool:
        """Whether both sides still hold the connection, as far as known."""
        return self._websocket.protocol.state is State.OPEN

    @property
    def survives_errors(self) -> bool:
        """Whether the server promised to keep the connection after an error reply."""
        header = self._websocket.response.headers.get(protocol.KEEP_CONNECTION_HEADER)
        return header == protocol.KEEP_CONNECTION_VALUE

    def exchange(self, request: bytes | None, timeout_s: float | None) -> bytes | str:
        """Send `request`, if it is given, and return the server's next message.

        Any exception closes the connection, because a late reply to this request would be taken for the answer to the next
        one.

        Raises:
            ServerTimeoutError: No message came within `timeout_s`.
            ServerUnreachableError: The connection broke.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            if request is not None:
                _limit_send(self._websocket.socket, timeout_s)
                self._websocket.send(request)
            # Read even if the time is up, because the reply may have come just in time.
            return self._websocket.recv(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
        except BaseException as e:
            self.drop()
            if isinstance(e, TimeoutError) or isinstance(e.__cause__, BlockingIOError):
                raise ServerTimeoutError(f"policy server at {self._uri} did not answer within {timeout_s:.3g} s") from e
            if isinstance(e, ConnectionClosed | OSError):
                raise ServerUnreachableError(f"policy server at {self._uri} closed the connection ({e})") from e
            raise

    def check_nothing_waits(self) -> None:
        """Refuse a message that came without a request.

        It would be taken for the answer to the next request, and every later answer would be one request too old.

        Raises:
            ProtocolError: There is such a message. The connection is closed.
        """
        try:
            message = self._websocket.recv(0)
        except (TimeoutError, ConnectionClosed):
            return
        except BaseException:
            # An interrupt may have lost a message on the way.
            self.drop()
            raise
        self.drop()
        raise ProtocolError(
            f"policy server at {self._uri} sent a message of {len(message)} bytes that answers no request, "
            "expected one reply to each. The connection was closed, so that no old reply is taken for a new one"
        )

    def close(self) -> None:
        """Close with the closing handshake, which takes at most a second."""
        with contextlib.suppress(ConnectionClosed, OSError):
            self._stack.close()

    def drop(self) -> None:
        """Close at once, without the closing handshake."""
        with contextlib.suppress(OSError):  # closed already
            self._websocket.socket.shutdown(socket.SHUT_RDWR)
        self.close()


def open_connection(uri: str, headers: dict[str, str], timeout_s: float | None) -> Connection:
    """Connect once and read the metadata.

    Args:
        uri: Address of the server.
        headers: Sent with the handshake.
        timeout_s: Time limit of the handshake, and again of the metadata. None waits forever.

    Raises:
        ProtocolError: The other side does not answer as a policy server does.
        ServerTimeoutError: The handshake succeeded, but no metadata came.
        ServerUnreachableError: The connection broke.
        OSError, websockets.exceptions.WebSocketException: From connecting.
    """
    options: dict[str, Any] = {}
    if "ping_interval" in _CONNECT_PARAMETERS:
        # Only the server sends pings. It may infer on its event loop and be unable to answer pings meanwhile, and the time
        # limit of each request finds a dead server anyway.
        options["ping_interval"] = None
    if "proxy" in _CONNECT_PARAMETERS:
        # A proxy set in the environment is meant for web pages. A control loop talks to the server itself.
        options["proxy"] = None
    stack = contextlib.ExitStack()
    websocket = stack.enter_context(
        websockets.sync.client.connect(
            uri,
            compression=None,
            max_size=None,
            additional_headers=headers,
            open_timeout=timeout_s,
            close_timeout=1.0,
            **options,
        )
    )
    connection = Connection(uri, stack, websocket)
    try:
        connection.metadata = read_message(connection.exchange(None, timeout_s), uri)
    except ProtocolError:
        connection.drop()
        raise
    return connection


def read_message(message: bytes | str, uri: str) -> dict[str, Any]:
    """Decode a binary message into a dict of writable arrays.

    Raises:
        ProtocolError: The message is not a packed dict.
    """
    if isinstance(message, str):
        raise ProtocolError(f"{uri} is not a policy server: it sent text {message!r:.80}, expected a packed dict")
    try:
        content = msgpack_numpy.unpackb(message, writable=True)
    except ValueError as e:
        raise ProtocolError(f"{uri} is not a policy server, or the message was damaged: {e}") from e
    if not isinstance(content, dict):
        raise ProtocolError(f"{uri} is not a policy server: it sent a {type(content).__name__}, expected a dict")
    return content


def _limit_send(sock: socket.socket, timeout_s: float | None) -> None:
    """Make a send fail with BlockingIOError when no byte leaves for `timeout_s`.

    Python's own time limit would also apply to the thread that receives. On systems without this option, only TCP notices
    a server that stops reading.
    """
    seconds, fraction = divmod(timeout_s or 0.0, 1.0)  # zero means no limit
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(fraction * 1e6)))
