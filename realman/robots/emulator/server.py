"""Sockets and clock of the emulator.

One thread runs all arms. Other threads may read controllers and assign faults. Anything else goes through
`Emulator.call`, which runs it between two ticks.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import contextlib
import logging
import socket
import struct
import threading
import time
from types import TracebackType
from typing import TypeVar

from realman.robots.emulator.controller import Controller
from realman.robots.emulator.physics import KinematicPhysics
from realman.robots.emulator.physics import Physics
from realman.robots.emulator.protocol import answer
from realman.robots.emulator.push import state_message
from realman.robots.emulator.settings import ArmSettings
from realman.robots.emulator.wire import LineReader
from realman.robots.emulator.wire import Message
from realman.robots.emulator.wire import encode
from realman.robots.rm65.settings import PUSH_UNIT_S

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_MAX_TICK_S = 0.1
"""Longest time that one tick covers, so that the arms do not jump after a pause of the whole process."""
_START_TIMEOUT_S = 10.0
_READ_BYTES = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""Linger for 0 s, so that closing sends RST."""


class ArmServer:
    """One controller on its sockets, in the emulator's event loop."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.address = (controller.settings.host, controller.settings.port)
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._push_socket: socket.socket | None = None
        self._ticks = 0
        self._last_push: bytes = b""

    @property
    def num_clients(self) -> int:
        """Number of connected clients."""
        return len(self._connections)

    async def open(self) -> None:
        """Start listening."""
        host, port = self.address
        self._server = await asyncio.start_server(self._serve, host, port)
        self.address = (host, self._server.sockets[0].getsockname()[1])
        # Pushes leave from the arm's address too, because a client distinguishes arms by the sender of their pushes.
        self._push_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._push_socket.setblocking(False)
        self._push_socket.bind((host, 0))

    async def close(self) -> None:
        """Stop listening and drop every client."""
        if self._server:
            self._server.close()
        self.reset_connections()
        await asyncio.gather(*self._tasks)
        if self._push_socket:
            self._push_socket.close()

    def reset_connections(self) -> None:
        """Drop every client at once with a TCP reset."""
        for writer in self._connections:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        self._connections.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._connections.add(writer)
        peer = writer.get_extra_info("peername")
        logger.info("emulator: %s arm: %s connected", self.controller.settings.side, peer)
        # A controller pushes to the client that connects until a client sets another address.
        if self.controller.push.ip == self.controller.settings.host:
            self.controller.push.ip = peer[0]
        lines = LineReader()
        try:
            while data := await reader.read(_READ_BYTES):
                for request in lines.feed(data):
                    self._handle(request, writer)
        except (OSError, ValueError) as e:
            logger.info("emulator: %s arm: %s dropped (%s)", self.controller.settings.side, peer, e)
        finally:
            self._connections.discard(writer)
            writer.close()

    def _handle(self, request: Message, writer: asyncio.StreamWriter) -> None:
        faults, command = self.controller.faults, str(request.get("command"))
        if faults.is_ignored(command):
            return
        reply = answer(self.controller, request)
        if reply is None or faults.is_silent(command):
            return
        if faults.reply_delay_s > 0:
            asyncio.get_running_loop().call_later(faults.reply_delay_s, _write, writer, reply)
        else:
            _write(writer, reply)

    def tick(self, dt_s: float) -> None:
        """Advance the controller and send its events to the clients."""
        for event in self.controller.tick(dt_s):
            for writer in self._connections:
                _write(writer, event)

    def push_state(self) -> None:
        """Push the state if it is due. Call this once per tick."""
        self._ticks += 1
        push, faults = self.controller.push, self.controller.faults
        if not push.enable or faults.is_push_silent or not self._connections or self._ticks % push.cycle:
            return
        if not (faults.is_push_frozen and self._last_push):
            self._last_push = encode(state_message(self.controller))
        if self._push_socket:
            # No listener, or a full buffer: the datagram is lost, as on any network.
            with contextlib.suppress(OSError):
                self._push_socket.sendto(self._last_push, (push.ip, push.port))


def _write(writer: asyncio.StreamWriter, message: Message) -> None:
    if not writer.is_closing():
        writer.write(encode(message))


class Emulator:
    """Emulated arms, running in a `with` block or from `start` to `close`.

    Attributes:
        controllers: Controller of each arm, by side.
    """

    def __init__(self, arms: Sequence[ArmSettings], physics: Physics | None = None) -> None:
        """Describe the arms. `start` switches them on.

        Args:
            arms: One or two arms, at different addresses.
            physics: The world they move in. None means weightless arms in empty space.
        """
        self._physics: Physics = physics or KinematicPhysics()
        self.controllers = {arm.side: Controller(arm, self._physics) for arm in arms}
        self._servers = {side: ArmServer(controller) for side, controller in self.controllers.items()}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="emulator", daemon=True)
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()

    @property
    def addresses(self) -> Mapping[str, tuple[str, int]]:
        """Host and TCP port of each arm, by side."""
        return {side: server.address for side, server in self._servers.items()}

    def start(self) -> None:
        """Switch the arms on. An emulator can be started only once.

        Raises:
            OSError: An address is taken or does not belong to this machine.
        """
        self._thread.start()
        self._started.result(_START_TIMEOUT_S)

    def close(self) -> None:
        """Drop every client and switch the arms off."""
        if self._loop and self._stopping and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def __enter__(self) -> "Emulator":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, function: Callable[[], _T]) -> _T:
        """Run a function between two ticks and return its result."""
        if self._loop is None:
            raise RuntimeError("emulator: not running. Call start() first")
        done: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as e:
                done.set_exception(e)

        self._loop.call_soon_threadsafe(run)
        return done.result(_START_TIMEOUT_S)

    def num_clients(self, side: str) -> int:
        """Return the number of an arm's TCP clients."""
        return self._servers[side].num_clients

    def reset_connections(self, side: str) -> None:
        """Drop every TCP client of one arm.

        A pulled cable or a restarted controller does the same.
        """
        self.call(self._servers[side].reset_connections)

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        try:
            for server in self._servers.values():
                await server.open()
        except OSError as e:
            await self._close()
            self._started.set_exception(e)
            return
        self._started.set_result(None)
        try:
            await self._tick_until_stopped()
        finally:
            await self._close()

    async def _close(self) -> None:
        for server in self._servers.values():
            await server.close()

    async def _advance(self, dt_s: float) -> None:
        """Let time pass in steps of about one tick.

        A late tick takes several steps, so the planner and the world stay close together.
        """
        num_steps = max(1, round(dt_s / PUSH_UNIT_S))
        for _ in range(num_steps if dt_s > 0 else 0):
            for server in self._servers.values():
                server.tick(dt_s / num_steps)
            self._physics.advance(dt_s / num_steps)
            # A request, perhaps a stop, never waits for more than one step of the world.
            await asyncio.sleep(0)

    async def _tick_until_stopped(self) -> None:
        assert self._stopping is not None
        before = start = time.monotonic()
        ticks = 0
        while not self._stopping.is_set():
            now = time.monotonic()
            dt_s = min(now - before, _MAX_TICK_S)
            before = now
            await self._advance(dt_s)
            for server in self._servers.values():
                server.push_state()
            # Deadlines count from the start, so that errors do not add up. After a long pause the count starts again.
            ticks += 1
            late_s = time.monotonic() - (start + ticks * PUSH_UNIT_S)
            if late_s > _MAX_TICK_S:
                start, ticks = time.monotonic(), 0
            await asyncio.sleep(max(0.0, -late_s))
