"""The plain HTTP side of the policy server's port: is it alive, is it ready?"""

from collections.abc import Callable
import http
import urllib.parse

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request
from websockets.http11 import Response

from openpi_client import protocol


def make_request_hook(is_ready: Callable[[], bool]) -> Callable[[ServerConnection, Request], Response | None]:
    """Return the `process_request` hook of a websocket server; it answers GETs of known paths and passes on the rest."""

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        path = urllib.parse.urlsplit(request.path).path
        if path == protocol.ALIVE_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == protocol.READY_PATH:
            if is_ready():
                return connection.respond(http.HTTPStatus.OK, "ready\n")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "warming up\n")
        return None

    return answer


def promise_to_survive_errors(_: ServerConnection, request: Request, response: Response) -> None:
    """Tell a client that asked for it that the connection goes on after an error; the `process_response` hook."""
    if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS and survives_errors(request):
        response.headers[protocol.KEEP_CONNECTION_HEADER] = protocol.KEEP_CONNECTION_VALUE


def survives_errors(request: Request) -> bool:
    """Whether the client of this handshake wants to go on after an error reply."""
    return request.headers.get(protocol.KEEP_CONNECTION_HEADER) == protocol.KEEP_CONNECTION_VALUE
