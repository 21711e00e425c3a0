"""A policy behind a websocket, on this machine or another."""

import itertools
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
from openpi_client import server_identity
from openpi_client.base_policy import BasePolicy
from openpi_client.errors import PolicyClientError
from openpi_client.errors import ProtocolError
from openpi_client.errors import RemoteError
from openpi_client.errors import ServerChangedError
from openpi_client.errors import ServerUnreachableError

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.2
_SLOWEST_RETRY_S = 5.0


class WebsocketClientPolicy(BasePolicy):
    """Sends observations to a policy server and returns its actions.

    Only one request is under way at a time, so threads that share a client wait for each other. After a timeout, an interrupt
    or the loss of the server, the connection is dropped and the next `infer` opens a new one. The server must then say the same
    about itself as the first time. A reply always belongs to its request: no message may wait when a request is sent, and a
    server that knows `protocol.FEATURE_REQUEST_ID` repeats the number of the request.
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
            PolicyClientError: The address or the key cannot be used.
        """
        self._uri = address.server_uri(host, port)
        self._headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
        if api_key is not None:
            _check_key(api_key)
            self._headers[protocol.AUTHORIZATION_HEADER] = f"Api-Key {api_key}"
        self._request_timeout_s = request_timeout_s
        self._lock = threading.Lock()
        self._request_ids = itertools.count(1)
        self._connection: _connection.Connection | None = self._wait_for_server(connect_timeout_s)
        self._metadata = self._connection.metadata

    def __enter__(self) -> "WebsocketClientPolicy":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def get_server_metadata(self) -> dict[str, Any]:
        """Return the metadata that the server sent first.

        It holds for all later connections.
        """
        return self._metadata

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        """Send one observation and return the policy's answer.

        Raises:
            RemoteError: The server answered with an error. The next request may succeed.
            ServerTimeoutError: No answer came in time.
            ServerUnreachableError: The server is gone, or the connection broke.
            ServerChangedError: After a reconnection, another server answers.
            ProtocolError: The answer is malformed or belongs to another request.
        """
        with self._lock:
            deadline_s = _deadline(self._request_timeout_s)
            connection = self._connected(deadline_s)
            request_id = next(self._request_ids) if self._announces(protocol.FEATURE_REQUEST_ID) else None
            request = msgpack_numpy.packb(self._with_options(obs, request_id, _remaining(deadline_s)))
            reply = connection.exchange(request, _remaining(deadline_s))
            try:
                if isinstance(reply, str):
                    if not connection.survives_errors:
                        self._disconnect()
                    raise _remote_error(self._uri, reply, request_id)
                result = _connection.read_message(reply, self._uri)
                if request_id is not None:
                    _check_reply_id(self._uri, result.pop(protocol.REPLY_OPTIONS_KEY, None), request_id)
            except ProtocolError:
                self._disconnect()
                raise
            return result

    def close(self) -> None:
        """Close the connection. A later `infer` opens a new one."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self, deadline_s: float | None) -> _connection.Connection:
        """Return an open connection on which no message waits.

        Reconnect if there is none. There is only one attempt, because a control loop cannot wait.
        """
        if self._connection is not None and self._connection.is_open:
            self._connection.check_nothing_waits()
        if self._connection is None or not self._connection.is_open:
            self._disconnect()
            try:
                self._connection = _connection.open_connection(self._uri, self._headers, _remaining(deadline_s))
            except PolicyClientError:
                raise
            except (OSError, WebSocketException) as e:
                raise _unreachable(self._uri, e) from e
            self._check_same_server(self._connection.metadata)
        return self._connection

    def _check_same_server(self, metadata: dict[str, Any]) -> None:
        """Refuse a server that says anything else than the first one.

        What the first one said was checked, and the robot acts on it: order and units of the numbers, rate, cameras, checkpoint.
        """
        if changes := server_identity.differences(self._metadata, metadata):
            self._disconnect()
            raise ServerChangedError(
                f"policy server at {self._uri} came back as another one: {'; '.join(changes)}. "
                "Start the client again to accept it"
            )
        logger.info("connected to the policy server at %s again", self._uri)

    def _announces(self, feature: str) -> bool:
        return feature in protocol.features(self._metadata)

    def _with_options(self, obs: dict[str, Any], request_id: int | None, remaining_s: float | None) -> dict[str, Any]:
        """Add the options of a request that the server announces.

        They are its number and its time limit. With a limit, the server computes no answer that nobody waits for.
        """
        options: dict[str, Any] = {}
        if request_id is not None:
            options[protocol.REQUEST_ID_OPTION] = request_id
        if remaining_s is not None and self._announces(protocol.FEATURE_DEADLINE):
            options[protocol.DEADLINE_OPTION] = 1000 * remaining_s
        if not options:
            return obs
        # The caller may set a limit of its own. The number is the client's.
        given = {k: v for k, v in obs.get(protocol.REQUEST_OPTIONS_KEY, {}).items() if k != protocol.REQUEST_ID_OPTION}
        return {**obs, protocol.REQUEST_OPTIONS_KEY: {**options, **given}}

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


def _check_key(api_key: str) -> None:
    """Refuse a key that no header can hold.

    The key itself must not appear in the message.

    Raises:
        PolicyClientError: It is one, for example the text of a file with its line end.
    """
    bad = [i for i, char in enumerate(api_key) if not char.isprintable() or ord(char) > 0xFF]
    if bad:
        raise PolicyClientError(
            f"API key: its character {bad[0] + 1} of {len(api_key)} is a line end or another that no header can hold, expected "
            "letters and digits. Copy the key again"
        )


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


def _check_reply_id(uri: str, options: Any, request_id: int) -> None:
    found = options.get(protocol.REQUEST_ID_OPTION) if isinstance(options, dict) else None
    if type(found) is not int or found != request_id:
        raise ProtocolError(
            f"policy server at {uri} answered request {found!r:.40}, expected the answer to request {request_id}. "
            "The connection was closed, so that no old reply is taken for a new one"
        )


def _remote_error(uri: str, text: str, request_id: int | None) -> PolicyClientError:
    """Return the error that a server's text describes.

    Raises:
        ProtocolError: It belongs to another request.
    """
    code, summary, remote_text, found = _read_error(text)
    if request_id is not None and found is not None:
        _check_reply_id(uri, {protocol.REQUEST_ID_OPTION: found}, request_id)
    message = f"error in the policy server at {uri}: {summary}"
    return RemoteError(
        message if len(remote_text.splitlines()) <= 1 else f"{message}\n{remote_text}", remote_text, code
    )


def _read_error(text: str) -> tuple[str | None, str, str, Any]:
    """Return the parts of an error reply.

    They are its code, one-line summary, whole text and request number. The reply is structured (JSON), or a message or traceback as plain text.
    """
    try:
        error = json.loads(text)[protocol.ERROR_KEY]
        code, summary = str(error["code"]), str(error["message"])
        return code, summary, str(error.get("traceback", summary)), error.get(protocol.REQUEST_ID_OPTION)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        # The last line of a traceback is its exception.
        return None, (text.strip().splitlines() or ["(no text)"])[-1], text, None
