"""Serves a policy over websockets, in the protocol of openpi's clients.

A client receives the metadata once the policy is ready, then one reply per request, in order. The policy runs in a thread of
its own, so the event loop only moves messages.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import contextlib
import dataclasses
import logging
import signal
import socket
import ssl
import threading
import time
from typing import Annotated, Any

import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from openpi.serving import endpoints
from openpi.serving import listening_socket
from openpi.serving import session
from openpi.serving.access import KeyCheck
from openpi.serving.fair_connection import FairConnection
from openpi.serving.fair_connection import ReceiveTurns
from openpi.serving.inference_worker import InferenceWorker
from openpi.serving.metrics import Metrics
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.observation_contract import RobotLimits
from openpi.serving.request_reader import RequestReader
from openpi.serving.service import Service
from openpi.shared import ranges
from openpi.shared.printable import StrangerRecords
from openpi_client.base_policy import BasePolicy

logger = logging.getLogger(__name__)

_library_logger = logging.getLogger(f"{__name__}.websockets")
_library_logger.addFilter(StrangerRecords())

# How long a stop waits for requests under way, and for a warm-up, which may be a compilation of several minutes.
_DRAIN_S = 5.0
_DRAIN_WARM_UP_S = 0.5
_DRAIN_POLL_S = 0.01

# The handshake of our clients is one packet. A slower peer would hold a connection for nothing.
_HANDSHAKE_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """Limits and access of a server.

    The defaults suit one robot on this machine.
    """

    # Send tracebacks to clients.
    debug: bool = False
    # Larger requests close their connection. Four raw 480x640 camera frames are 3.7 MB, so anything near this is a mistake.
    max_message_bytes: Annotated[int, ranges.Range(1024, 2**30, "images of a robot, uncompressed")] = 64 * 2**20
    # API keys of the clients that may connect. Without any keys, everybody may.
    api_keys: tuple[str, ...] = ()
    # Certificate and key of an encrypted server (wss://).
    tls: ssl.SSLContext | None = None
    # How many waiting requests one call of the policy may answer.
    max_batch: Annotated[int, ranges.Range(1, 64, "robots that one accelerator can serve")] = 1

    def __post_init__(self) -> None:
        ranges.check(self, "server")


class WebsocketPolicyServer:
    """Serves a policy at a port. An instance serves once."""

    def __init__(
        self,
        policy: BasePolicy,
        host: str = "0.0.0.0",
        port: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        example: Mapping[str, Any] | None = None,
        limits: RobotLimits | None = None,
        options: ServerOptions = ServerOptions(),
        sock: socket.socket | None = None,
    ) -> None:
        """Keep the settings. `run` or `serve_forever` starts the server.

        Args:
            policy: Called from one thread only. If it has `for_client`, each client gets a policy of its own.
            host: Address to listen at.
            port: TCP port. 0 or None takes any free one.
            metadata: Sent to each client when it connects.
            example: An observation as clients send it. The policy is tried on it before the server is ready, so that no
                client waits for a compilation. Requests must have its keys and vector sizes.
            limits: What the robot's numbers can be, and what the model was trained with.
            options: Limits and access.
            sock: A bound socket to listen at instead of `host` and `port`.
        """
        self._worker = InferenceWorker(policy, max_batch=options.max_batch)
        self._host = host
        self._port = port
        self._sock = sock
        self._example = example
        self.options = options
        # The parts that all connections share.
        contract = ObservationContract.from_example(example, limits)
        self._service = Service(
            policy=policy,
            worker=self._worker,
            reader=RequestReader(contract),
            contract=contract,
            metadata=dict(metadata or {}),
            metrics=Metrics(),
            keys=KeyCheck(options.api_keys),
            debug=options.debug,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self.listening = threading.Event()
        """Set once the port answers. Other threads may wait for it."""

    @property
    def port(self) -> int:
        """The port that the server listens at.

        Raises:
            RuntimeError: The server is not `listening` yet.
        """
        if self._port is None:
            raise RuntimeError("port: the server is not listening yet")
        return self._port

    @property
    def is_ready(self) -> bool:
        """Whether the policy is warmed up."""
        return self._ready.is_set()

    @property
    def is_busy(self) -> bool:
        """Whether the policy is still working.

        After `serve_forever`, it means that the policy did not finish in time.
        """
        return self._worker.is_alive

    def gauges(self) -> dict[str, float]:
        """Return the current values, as on `/metrics`."""
        return self._service.gauges()

    def serve_forever(self, on_ready: Callable[[float], None] | None = None) -> None:
        """Serve until `stop`, SIGTERM or SIGINT, as `run` does."""
        asyncio.run(self.run(on_ready))

    def stop(self) -> None:
        """End `serve_forever`. You may call this from any thread."""
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
            AddressError: The server cannot listen at the port.
            Exception: Any error that the policy raises on the example.
        """
        self._loop = asyncio.get_running_loop()
        warm = self._worker.start(self._example)
        try:
            async with await self._listen() as server:
                self._port = server.sockets[0].getsockname()[1]
                self.listening.set()
                with _set_on_signals(self._stop, self._loop):
                    if await _run_unless(self._stop.wait(), self._warm_up(warm, on_ready)):
                        await self._stop.wait()
                        await self._drain()
        finally:
            self._service.reader.stop()
            if not self._worker.stop(_DRAIN_S if self.is_ready else _DRAIN_WARM_UP_S):
                logger.warning("the policy is still busy, leaving without it")

    async def _listen(self) -> websockets.asyncio.server.Server:
        sock = self._sock or listening_socket.bind(self._host, self._port)
        try:
            return await websockets.asyncio.server.serve(
                self._handle,
                sock=sock,
                compression=None,
                max_size=self.options.max_message_bytes,
                # One message more than those under way. The default of 16 could take a gigabyte per client.
                max_queue=1,
                open_timeout=_HANDSHAKE_LIMIT_S,
                # Browsers send an Origin and robots do not. A foreign web page must not steer a robot on this network.
                origins=[None],
                ssl=self.options.tls,
                logger=_library_logger,
                create_connection=FairConnection.of(ReceiveTurns(), self.options.max_message_bytes),
                process_request=endpoints.make_request_hook(self._service),
                process_response=endpoints.promise_to_survive_errors,
            )
        except OSError as e:
            sock.close()
            raise listening_socket.explain(e, self._host, self._port) from e

    async def _warm_up(self, warm: "concurrent.futures.Future[None]", on_ready: Callable[[float], None] | None) -> bool:
        start_s = time.monotonic()
        await asyncio.wrap_future(warm)
        self._service.is_ready = True
        self._ready.set()
        if on_ready is not None:
            on_ready(time.monotonic() - start_s)
        return True

    async def _handle(self, websocket: ServerConnection) -> None:
        """Serve one client until it leaves."""
        assert isinstance(websocket, FairConnection), "made by `create_connection`"
        peer = session.peer_name(websocket)
        logger.info("%s connected", peer)
        self._service.num_clients += 1
        self._service.metrics.num_connections += 1
        try:
            if await _run_unless(websocket.wait_closed(), self._ready.wait()):
                await session.Session(websocket, self._service).run()
        except ConnectionClosed:
            pass
        finally:
            self._service.num_clients -= 1
        logger.info("%s left", peer)

    async def _drain(self) -> None:
        """Finish the requests under way, and refuse new requests and clients."""
        self._service.is_draining = True
        logger.info("stopping: %d requests to finish", self._service.num_under_way)
        deadline_s = time.monotonic() + _DRAIN_S
        while self._service.num_under_way and time.monotonic() < deadline_s:
            await asyncio.sleep(_DRAIN_POLL_S)


async def _run_unless(stopped: Any, work: Any) -> Any:
    """Return the result of `work`, or cancel it once `stopped` is done.

    A canceled `work` returns None.
    """
    stopped, work = asyncio.ensure_future(stopped), asyncio.ensure_future(work)
    try:
        await asyncio.wait({stopped, work}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        stopped.cancel()
        work.cancel()


@contextlib.contextmanager
def _set_on_signals(event: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Set an event on SIGTERM or SIGINT.

    A second signal ends the process at once. Only the main thread receives signals, so other threads get no handler.
    """
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
