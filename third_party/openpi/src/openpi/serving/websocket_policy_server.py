"""Serves a policy over websockets, in the protocol of openpi's clients.

A client receives the metadata once the policy is ready, then one reply per request, in order. The policy runs in a thread of
its own; the event loop only moves messages.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
import contextlib
import logging
import signal
import socket
import threading
import time
import traceback
from typing import Any

import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from openpi.serving import endpoints
from openpi.serving import listening_socket
from openpi.serving.inference_worker import InferenceWorker
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.observation_contract import check_finite
from openpi.shared.errors import DataError
from openpi.shared.errors import UserError
from openpi_client import msgpack_numpy
from openpi_client import protocol
from openpi_client.base_policy import BasePolicy

logger = logging.getLogger(__name__)

# Four raw 480x640 camera frames are 3.7 MB; anything near this limit is a mistake.
DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20

# How long a stop waits for an inference that has begun, and for a warm-up, which may be a compilation of minutes.
_DRAIN_S = 5.0
_DRAIN_WARM_UP_S = 0.5


class WebsocketPolicyServer:
    """A policy at a port. An instance serves once."""

    def __init__(
        self,
        policy: BasePolicy,
        host: str = "0.0.0.0",
        port: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        example: Mapping[str, Any] | None = None,
        debug: bool = False,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        sock: socket.socket | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            policy: Called from one thread only.
            host: Address to listen at.
            port: TCP port; 0 or None takes any free one.
            metadata: Sent to each client when it connects.
            example: An observation as clients send it. The policy is tried on it before the server is ready, so that no
                client pays for compilation, and requests must have its keys and vector sizes.
            debug: Send tracebacks to clients.
            max_message_bytes: Larger requests close the connection.
            sock: A bound socket to listen at instead of `host` and `port`.
        """
        self._worker = InferenceWorker(policy)
        self._host = host
        self._port = port
        self._sock = sock
        self._metadata = dict(metadata or {})
        self._example = None if example is None else dict(example)
        self._contract = ObservationContract.from_example(example)
        self._debug = debug
        self._max_message_bytes = max_message_bytes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self.listening = threading.Event()
        """Set, for other threads, once the port answers."""

    @property
    def port(self) -> int:
        """The port that the server listens at; known once it is `listening`."""
        if self._port is None:
            raise RuntimeError("the server does not listen yet")
        return self._port

    @property
    def is_ready(self) -> bool:
        """Whether the policy is warmed up."""
        return self._ready.is_set()

    @property
    def is_busy(self) -> bool:
        """Whether the policy still works, which after `serve_forever` means that it could not be waited for."""
        return self._worker.is_alive

    def serve_forever(self, on_ready: Callable[[float], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT; see `run`."""
        asyncio.run(self.run(on_ready))

    def stop(self) -> None:
        """End `serve_forever`; may be called from any thread."""
        if self._loop is None:
            self._stop.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)

    async def run(self, on_ready: Callable[[float], None] | None = None) -> None:
        """Listen, warm up, and serve until stopped.

        Args:
            on_ready: Called once with the seconds that the warm-up took.

        Raises:
            AddressError: the port cannot be had.
            Exception: whatever the policy raises on the example.
        """
        self._loop = asyncio.get_running_loop()
        self._worker.start()
        try:
            async with await self._listen() as server:
                self._port = server.sockets[0].getsockname()[1]
                self.listening.set()
                with _signals_set(self._stop, self._loop):
                    if await _unless(self._stop.wait(), self._warm_up(on_ready)):
                        await self._stop.wait()
                logger.info("stopping")
        finally:
            if not self._worker.stop(_DRAIN_S if self.is_ready else _DRAIN_WARM_UP_S):
                logger.warning("the policy is still busy; leaving without it")

    async def _listen(self) -> websockets.asyncio.server.Server:
        sock = self._sock or listening_socket.bind(self._host, self._port)
        try:
            return await websockets.asyncio.server.serve(
                self._handle,
                sock=sock,
                compression=None,
                max_size=self._max_message_bytes,
                process_request=endpoints.make_request_hook(self._ready.is_set),
                process_response=endpoints.promise_to_survive_errors,
            )
        except OSError as e:
            sock.close()
            raise listening_socket.explain(e, self._host, self._port) from e

    async def _warm_up(self, on_ready: Callable[[float], None] | None) -> bool:
        start_s = time.monotonic()
        if self._example is not None:
            await asyncio.wrap_future(self._worker.submit(self._example))
        self._ready.set()
        if on_ready is not None:
            on_ready(time.monotonic() - start_s)
        return True

    async def _handle(self, websocket: ServerConnection) -> None:
        """Serve one client until it leaves."""
        peer = _peer(websocket)
        logger.info("%s connected", peer)
        try:
            if await _unless(websocket.wait_closed(), self._ready.wait()):
                await websocket.send(msgpack_numpy.packb(self._metadata))
                await self._answer_requests(websocket)
        except ConnectionClosed:
            pass
        logger.info("%s left", peer)

    async def _answer_requests(self, websocket: ServerConnection) -> None:
        prev_total_ms: float | None = None
        while True:
            start_s = time.monotonic()
            message = await websocket.recv()
            try:
                reply = await self._reply(websocket, message, prev_total_ms)
            except Exception as e:
                await self._send_error(websocket, e)
                if not endpoints.survives_errors(websocket.request):
                    await websocket.close(CloseCode.INTERNAL_ERROR, "the error is in the previous message")
                    return
            else:
                if reply is None:
                    return
                await websocket.send(reply)
                # As openpi counts it, waiting for the request included.
                prev_total_ms = 1000 * (time.monotonic() - start_s)

    async def _reply(
        self, websocket: ServerConnection, message: bytes | str, prev_total_ms: float | None
    ) -> bytes | None:
        if isinstance(message, str):
            raise DataError("request: found a text message, expected a binary one (a packed observation)")
        try:
            observation = msgpack_numpy.unpackb(message)
        except ValueError as e:
            raise DataError(f"request: {e}") from e
        job = self._worker.submit(self._contract.check(observation))
        inference = await _unless(websocket.wait_closed(), asyncio.wrap_future(job))
        if inference is None:
            job.cancel()  # nobody is left to answer
            return None
        check_finite({"actions": inference.result.get("actions")}, "policy")
        timing = {"infer_ms": inference.infer_ms, "queue_ms": inference.queue_ms}
        if prev_total_ms is not None:
            timing["prev_total_ms"] = prev_total_ms
        return msgpack_numpy.packb({**inference.result, protocol.SERVER_TIMING_KEY: timing})

    async def _send_error(self, websocket: ServerConnection, error: Exception) -> None:
        summary = _summary(error)
        if isinstance(error, UserError):
            logger.warning("%s: request refused: %s", _peer(websocket), summary)
        else:
            logger.error("%s: request failed", _peer(websocket), exc_info=error)
        await websocket.send("".join(traceback.format_exception(error)) if self._debug else summary)


def _summary(error: Exception) -> str:
    """One line about a failed request that tells a client what to mend and nothing about this machine."""
    if isinstance(error, OSError) and not isinstance(error, UserError):
        return f"internal error ({type(error).__name__}); the server's log tells more"
    first_line = (str(error).strip().splitlines() or [""])[0][:500]
    return first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}"


def _peer(websocket: ServerConnection) -> str:
    host, port = (websocket.remote_address or ("unknown client", "?"))[:2]
    return f"{host}:{port}"


async def _unless(stopped: Any, work: Any) -> Any:
    """Wait for `work`, but no longer than until `stopped`; then cancel it and return None."""
    stopped, work = asyncio.ensure_future(stopped), asyncio.ensure_future(work)
    try:
        await asyncio.wait({stopped, work}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        stopped.cancel()
        work.cancel()


@contextlib.contextmanager
def _signals_set(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let SIGTERM and SIGINT set an event; a second signal ends the process at once. Only the main thread hears signals."""
    handled = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()

    def stop() -> None:
        release()
        event.set()

    def release() -> None:
        for number in handled:
            loop.remove_signal_handler(number)

    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        release()
