"""A policy behind a websocket, on this machine or another."""

import json
import logging
import socket
import threading
import time
from types import TracebackType
from typing import Any

from websockets.exceptions import InvalidStatus
from websockets.exceptions import InvalidURI
from websockets.exceptions import WebSocketException

from openpi_client import address
from openpi_client import connection as _connection
from openpi_client import msgpack_numpy
from openpi_client import protocol
from openpi_client.base_policy import BasePolicy
from openpi_client.errors import PolicyClientError
from openpi_client.errors import ProtocolError
from openpi_client.errors import RemoteError
from openpi_client.errors import ServerUnreachableError

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.2
_SLOWEST_RETRY_S = 5.0


class WebsocketClientPolicy(BasePolicy):
    """Sends observations to a policy server and returns its actions.

    Only one request is under way at a time, so threads that share a client wait for each other. After a timeout, an interrupt
    or the loss of the server, the connection is dropped and the next `infer` opens a new one. A reply therefore always belongs
    to its request.
    """

    def __init__(
        self,
        host: str = "0.0.0.0",
        port: int | None = None,
        api_key: str | None = None,
        *,
        connect_timeout_s: float | None = 60.0,
        request_timeout_s: float | None = 60.0,
    ) -> None:
        """Wait for the server, connect, and read its metadata.

        Args:
            host: Host name, address, or a whole `ws://...` or `wss://...` address. `0.0.0.0` means this machine.
            port: TCP port.
            api_key: Sent with the handshake, if given.
            connect_timeout_s: How long to wait for a server that is not up yet. None waits forever.
            request_timeout_s: Time limit of one `infer`, including a reconnection. None waits forever.

        Raises:
            ServerUnreachableError: No server came up in time.
            ProtocolError: The program at this address is not a policy server.
        """
        self._uri = address.server_uri(host, port)
        self._headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
        if api_key is not None:
            self._headers[protocol.AUTHORIZATION_HEADER] = f"Api-Key {api_key}"
        self._request_timeout_s = request_timeout_s
        self._lock = threading.Lock()
        self._connection: _connection.Connection | None = self._wait_for_server(connect_timeout_s)
        self._metadata = self._connection.metadata

    def __enter__(self) -> "WebsocketClientPolicy":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def get_server_metadata(self) -> dict[str, Any]:
        """Return the metadata that the server sent when the connection was made."""
        return self._metadata

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Send one observation and return the policy's answer.

        Raises:
            RemoteError: The server answered with an error. The next request may succeed.
            ServerTimeoutError: No answer came in time.
            ServerUnreachableError: The server is gone, or the connection broke.
            ProtocolError: The answer is malformed.
        """
        with self._lock:
            deadline_s = _deadline(self._request_timeout_s)
            connection = self._connected(deadline_s)
            request = msgpack_numpy.packb(_with_deadline(obs, self._metadata, _remaining(deadline_s)))
            reply = connection.exchange(request, _remaining(deadline_s))
            if isinstance(reply, str):
                if not connection.survives_errors:
                    self._disconnect()
                raise _remote_error(self._uri, reply)
            try:
                return _connection.read_message(reply, self._uri)
            except ProtocolError:
                self._disconnect()
                raise

    def close(self) -> None:
        """Close the connection. A later `infer` opens a new one."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self, deadline_s: float | None) -> _connection.Connection:
        """Return an open connection, and reconnect if there is none.

        There is only one attempt, because a control loop cannot wait.
        """
        if self._connection is None or not self._connection.is_open:
            self._disconnect()
            try:
                self._connection = _connection.open_connection(self._uri, self._headers, _remaining(deadline_s))
            except PolicyClientError:
                raise
            except (OSError, WebSocketException) as e:
                raise _unreachable(self._uri, e) from e
            # Bytes are compared, because metadata may hold arrays, which do not compare to a single bool.
            if msgpack_numpy.packb(self._connection.metadata) != msgpack_numpy.packb(self._metadata):
                logger.warning("policy server at %s came back with different metadata", self._uri)
                self._metadata = self._connection.metadata
        return self._connection

    def _wait_for_server(self, timeout_s: float | None) -> _connection.Connection:
        deadline_s = _deadline(timeout_s)
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                return _connection.open_connection(self._uri, self._headers, _remaining(deadline_s))
            except (OSError, WebSocketException) as e:
                if not _may_pass(e):
                    raise _unreachable(self._uri, e) from e
                remaining_s = _remaining(deadline_s)
                if remaining_s is not None and remaining_s <= delay_s:
                    raise _unreachable(self._uri, e, waited_s=timeout_s) from e
                logger.log(
                    logging.INFO if delay_s == _FIRST_RETRY_S else logging.DEBUG,
                    "waiting for a policy server at %s (%s)",
                    self._uri,
                    e,
                )
            time.sleep(delay_s)
            delay_s = min(2 * delay_s, _SLOWEST_RETRY_S)


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


def _remaining(deadline_s: float | None) -> float | None:
    # Never 0 or less, because a last attempt would then fail in ways that say nothing about the server.
    return None if deadline_s is None else max(deadline_s - time.monotonic(), 0.01)


def _may_pass(error: Exception) -> bool:
    """Return whether a later attempt may succeed.

    It may while the server is starting or the network is coming up.
    """
    if isinstance(error, InvalidStatus):
        return error.response.status_code >= 500
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return not isinstance(error, InvalidURI)


def _unreachable(uri: str, cause: Exception, waited_s: float | None = None) -> ServerUnreachableError:
    after = "" if waited_s is None else f" after {waited_s:g} s"
    reason = str(cause) or type(cause).__name__
    return ServerUnreachableError(f"no policy server at {uri}{after} ({reason}). Start it with scripts/serve_policy.py")


def _with_deadline(obs: dict[str, Any], metadata: dict[str, Any], remaining_s: float | None) -> dict[str, Any]:
    """Add the time limit to a request, if the server supports it.

    The server then computes no answer that nobody waits for.
    """
    features = (metadata.get(protocol.PROTOCOL_KEY) or {}).get("features", ())
    if remaining_s is None or protocol.FEATURE_DEADLINE not in features:
        return obs
    options = {protocol.DEADLINE_OPTION: 1000 * remaining_s, **obs.get(protocol.REQUEST_OPTIONS_KEY, {})}
    return {**obs, protocol.REQUEST_OPTIONS_KEY: options}


def _remote_error(uri: str, text: str) -> RemoteError:
    code, summary, remote_text = _read_error(text)
    message = f"error in the policy server at {uri}: {summary}"
    return RemoteError(
        message if len(remote_text.splitlines()) <= 1 else f"{message}\n{remote_text}", remote_text, code
    )


def _read_error(text: str) -> tuple[str | None, str, str]:
    """Return code, one-line summary and whole text of an error reply.

    The reply is structured (JSON), or a message or traceback as plain text.
    """
    try:
        error = json.loads(text)[protocol.ERROR_KEY]
        code, summary = str(error["code"]), str(error["message"])
        return code, summary, str(error.get("traceback", summary))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        # The last line of a traceback is its exception.
        return None, (text.strip().splitlines() or ["(no text)"])[-1], text
