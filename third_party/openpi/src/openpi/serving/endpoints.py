"""The HTTP side of the policy server's port.

It answers health checks, metrics and the status page, and decides who may connect.
"""

import asyncio
from collections.abc import Awaitable, Callable
import http
import time

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request
from websockets.http11 import Response

from openpi.serving import status_page
from openpi.serving.service import Service
from openpi_client import protocol

# Far more clients than one policy has robots. The limit bounds the memory that visitors can take.
MAX_CLIENTS = 128

_SECRET_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "; ".join(
        ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", "frame-ancestors 'none'")
    ),
}

RequestHook = Callable[[ServerConnection, Request], Awaitable[Response | None]]


def make_request_hook(service: Service) -> RequestHook:
    """Return the `process_request` hook of a websocket server.

    The hook answers GETs of known paths and decides which clients may connect.
    """
    page = _Page(service)

    async def answer(connection: ServerConnection, request: Request) -> Response | None:
        # Not parsed as an address, because not every request target is one.
        path = request.path.partition("?")[0]
        # Health needs no key. Everything below does.
        if path == protocol.ALIVE_PATH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if path == protocol.READY_PATH:
            return _readiness(connection, service)
        if not service.keys.allows(_one_header(request, protocol.AUTHORIZATION_HEADER)):
            response = connection.respond(http.HTTPStatus.UNAUTHORIZED, "this server asks for an API key\n")
            response.headers["WWW-Authenticate"] = 'Basic realm="policy server: any user, the API key as password"'
            return response
        if "Upgrade" in request.headers:
            return _refusal(connection, service)
        if path == protocol.METRICS_PATH:
            return _private(connection.respond(http.HTTPStatus.OK, service.metrics.prometheus(service.gauges())))
        if path == protocol.STATUS_PATH:
            response = _private(connection.respond(http.HTTPStatus.OK, await page.current()))
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/html; charset=utf-8"
            return response
        return None

    return answer


class _Page:
    """The status page, drawn once for all visitors who wait for it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = asyncio.Lock()
        self._html = ""
        self._begun_s = 0.0

    async def current(self) -> str:
        """Return the page as HTML, not older than this call."""
        arrived_s = time.monotonic()
        async with self._lock:
            if self._begun_s <= arrived_s:
                self._begun_s = time.monotonic()
                # The page needs its images compressed, which the event loop has no time for.
                self._html = await asyncio.to_thread(status_page.render, status_page.Snapshot.of(self._service))
            return self._html


def promise_to_survive_errors(_: ServerConnection, request: Request, response: Response) -> None:
    """Promise a client that asked for it to stay connected after errors.

    This is the `process_response` hook of a websocket server.
    """
    if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS and survives_errors(request):
        response.headers[protocol.KEEP_CONNECTION_HEADER] = protocol.KEEP_CONNECTION_VALUE


def survives_errors(request: Request) -> bool:
    """Return whether this handshake asks to stay connected after an error reply."""
    return _one_header(request, protocol.KEEP_CONNECTION_HEADER) == protocol.KEEP_CONNECTION_VALUE


def _readiness(connection: ServerConnection, service: Service) -> Response:
    if service.is_draining:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
    if not service.is_ready:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "warming up\n")
    return connection.respond(http.HTTPStatus.OK, "ready\n")


def _refusal(connection: ServerConnection, service: Service) -> Response | None:
    if service.is_draining:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "stopping\n")
    if service.num_clients >= MAX_CLIENTS:
        return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_CLIENTS} clients are connected already\n")
    return None


def _private(response: Response) -> Response:
    for name, value in _SECRET_HEADERS.items():
        response.headers[name] = value
    return response


def _one_header(request: Request, name: str) -> str | None:
    """Return the value of a header, or None when it is absent.

    A header that is repeated cannot be trusted and counts as absent.
    """
    values = request.headers.get_all(name)
    return values[0] if len(values) == 1 else None
