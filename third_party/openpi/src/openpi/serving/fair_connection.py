"""Lets many connections receive without holding up each other.

One turn of the event loop handles everything that has arrived on all connections. Large messages that end in the same turn would
therefore keep every other client waiting for the sum of their work. Here each turn has a limit, and what is beyond it waits
for the next turns.
"""

import asyncio
import collections
import secrets
import time

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame
from websockets.frames import Opcode
from websockets.protocol import State

from openpi.serving.large_frames import LargeFrames

# Work on received data in one turn. The last piece of it may exceed it.
_TURN_S = 0.001

# Connections of all kinds, the health checks among them. Beyond it, newcomers are dropped before they say anything.
MAX_CONNECTIONS = 512


class ReceiveTurns:
    """Shares the time of one event loop between its connections."""

    def __init__(self) -> None:
        self.num_connections = 0
        self._spent_s = 0.0
        self._is_turn_open = False
        self._waiting: collections.deque[FairConnection] = collections.deque()

    def has_time(self) -> bool:
        """Return whether this turn has time left, and nobody waits for it."""
        return self._spent_s < _TURN_S and not self._waiting

    def wait(self, connection: "FairConnection") -> None:
        """Let a connection continue in a later turn."""
        self._waiting.append(connection)
        self._open_turn()

    def spend(self, seconds: float) -> None:
        """Count work of this turn."""
        self._spent_s += seconds
        self._open_turn()

    def _open_turn(self) -> None:
        if not self._is_turn_open:
            self._is_turn_open = True
            # The loop runs it at the beginning of its next turn, before what arrives there.
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._is_turn_open, self._spent_s = False, 0.0
        while self._waiting and self._spent_s < _TURN_S:
            self._waiting.popleft().continue_receiving()
        if self._waiting:
            self._open_turn()


class FairConnection(ServerConnection):
    """A connection that receives in turns."""

    turns: ReceiveTurns
    """Shared by all connections of a server. Set by `of`, like the next."""
    max_bytes: int

    @classmethod
    def of(cls, turns: ReceiveTurns, max_bytes: int) -> "type[FairConnection]":
        """Return the class of the connections that share `turns`.

        Args:
            turns: Those of one server.
            max_bytes: Size of the largest message.
        """
        return type(cls.__name__, (cls,), {"turns": turns, "max_bytes": max_bytes})

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or drop a connection too many."""
        self._held: bytes | None = None
        self._is_end_held = False
        self._frames: LargeFrames | None = None
        self._large: dict[bytes, memoryview] = {}
        self.turns.num_connections += 1
        super().connection_made(transport)
        if self.turns.num_connections > MAX_CONNECTIONS:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and forget what was not handled."""
        self.turns.num_connections -= 1
        self._held = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle data now or in a later turn."""
        # A handshake is short, and a health check is nothing else.
        if self._held is None and (self.turns.has_time() or not self._is_open()):
            self._handle(data)
            return
        # The transport pauses after this piece. Resumed by the library, it may still bring another.
        self.transport.pause_reading()
        if self._held is None:
            self._held = data
            self.turns.wait(self)
        else:
            self._held += data

    def eof_received(self) -> bool:  # type: ignore[override]  # True keeps the connection open
        """End the stream after the data before it."""
        self._is_end_held = self._held is not None
        if not self._is_end_held:
            super().eof_received()
        return self._is_end_held

    def continue_receiving(self) -> None:
        """Handle what waited."""
        if self._held is None:  # the connection is lost
            return
        data, self._held = self._held, None
        # The library pauses the transport, too, while messages wait to be read.
        if not self.recv_messages.paused:
            self.transport.resume_reading()
        self._handle(data)
        if self._is_end_held:
            super().eof_received()
            self.transport.close()

    def _handle(self, data: bytes) -> None:
        start_s = time.perf_counter()
        if self._frames is None and self._is_open() and not self.protocol.reader.buffer:
            self._frames = LargeFrames(self.max_bytes, super().data_received, self._deliver)
        if self._frames is None:
            super().data_received(data)
        else:
            self._frames.receive(data)
        self.turns.spend(time.perf_counter() - start_s)

    async def receive(self) -> bytes | memoryview | str:
        """Return the next message, as `recv` does.

        A large one is not copied.
        """
        message = await self.recv()
        return self._large.pop(message, message) if isinstance(message, bytes) else message

    def _deliver(self, message: memoryview) -> None:
        if not self._is_open():
            return
        # The library keeps the order of the messages, and lets the client wait. It would copy the message itself, so it gets a
        # token that no client can guess.
        token = secrets.token_bytes(16)
        self._large[token] = message
        self.process_event(Frame(Opcode.BINARY, token))

    def _is_open(self) -> bool:
        return self.protocol.state is State.OPEN
