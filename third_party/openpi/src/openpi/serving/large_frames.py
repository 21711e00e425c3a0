"""Takes large frames out of a websocket's stream, piece by piece.

The library collects a whole frame, copies it and removes its mask in steps that hold up everything else for as long as the
frame is large. Here every piece is unmasked into its place as it arrives (RFC 6455, section 5.2). Everything that is not one
large binary message passes through unchanged.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

_BINARY = 2
_FIRST_CONTROL = 8

# The library takes smaller frames in no time, and they are read at once.
_MIN_BYTES = 2**20

_SLICE_BYTES = 2**18


@dataclasses.dataclass(eq=False)
class _Payload:
    """A large frame that is arriving."""

    data: np.ndarray
    # The mask, as often as it fits into a slice, and once more.
    mask: np.ndarray
    num_received: int = 0

    def receive(self, piece: memoryview) -> None:
        """Unmask the next bytes, at most as many as are missing."""
        for begin in range(0, len(piece), _SLICE_BYTES):
            part = np.frombuffer(piece[begin : begin + _SLICE_BYTES], np.uint8)
            phase, end = self.num_received % 4, self.num_received + len(part)
            np.bitwise_xor(part, self.mask[phase : phase + len(part)], out=self.data[self.num_received : end])
            self.num_received = end

    @property
    def num_missing(self) -> int:
        return len(self.data) - self.num_received


class LargeFrames:
    """Splits a stream into large binary messages and everything else."""

    def __init__(self, max_bytes: int, pass_on: Callable[[bytes], None], deliver: Callable[[memoryview], None]) -> None:
        """Begin at a boundary of two frames.

        Args:
            max_bytes: Longer frames are passed on, so that the library refuses them.
            pass_on: Receives everything else, in order.
            deliver: Receives each large message.
        """
        self._max_bytes = max_bytes
        self._pass_on = pass_on
        self._deliver = deliver
        self._header = b""
        self._num_passing = 0  # bytes of a frame that is passed on
        self._payload: _Payload | None = None
        self._is_in_fragments = False

    def receive(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        rest = memoryview(data)
        while rest:
            if self._payload is not None:
                rest = self._fill(self._payload, rest)
            elif self._num_passing:
                piece, rest = rest[: self._num_passing], rest[self._num_passing :]
                self._num_passing -= len(piece)
                self._pass_on(bytes(piece))
            else:
                rest = self._begin(rest)

    def _fill(self, payload: _Payload, rest: memoryview) -> memoryview:
        piece, rest = rest[: payload.num_missing], rest[payload.num_missing :]
        payload.receive(piece)
        if not payload.num_missing:
            self._payload = None
            self._deliver(payload.data.data)
        return rest

    def _begin(self, rest: memoryview) -> memoryview:
        """Read the header of the next frame once it is complete."""
        head = self._header + bytes(rest[:14])
        size = _header_size(head)
        if len(head) < size:
            self._header = head
            return rest[len(rest) :]
        rest = rest[size - len(self._header) :]
        self._header = b""
        opcode, is_last, has_extensions = head[0] & 0x0F, bool(head[0] & 0x80), bool(head[0] & 0x70)
        num_bytes = _num_bytes(head)
        is_large = _MIN_BYTES <= num_bytes <= self._max_bytes
        is_plain = opcode == _BINARY and is_last and not has_extensions and head[1] & 0x80 and not self._is_in_fragments
        if is_large and is_plain:
            mask = np.frombuffer(head[size - 4 : size], np.uint8)
            self._payload = _Payload(np.empty(num_bytes, np.uint8), np.tile(mask, _SLICE_BYTES // 4 + 1))
            return rest
        if opcode < _FIRST_CONTROL:
            self._is_in_fragments = not is_last
        self._num_passing = num_bytes
        self._pass_on(head[:size])
        return rest


def _header_size(head: bytes) -> int:
    """Return the size of a frame's header.

    It is more than is there while that is unknown.
    """
    if len(head) < 2:
        return 2
    return 2 + {126: 2, 127: 8}.get(head[1] & 0x7F, 0) + (4 if head[1] & 0x80 else 0)


def _num_bytes(head: bytes) -> int:
    """Return the size of a frame's payload."""
    short = head[1] & 0x7F
    if short < 126:
        return short
    return int.from_bytes(head[2:4] if short == 126 else head[2:10], "big")
