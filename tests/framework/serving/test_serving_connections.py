"""How the server receives: large messages piece by piece, connections in turns, and never too many of them."""

import contextlib
import http.client
import json
import random
import socket

import numpy as np
import pytest
from websockets.frames import Frame
from websockets.frames import Opcode
import websockets.sync.client

from openpi.serving import fair_connection
from openpi.serving.background import serve_in_thread
from openpi.serving.large_frames import LargeFrames
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from openpi_client import msgpack_numpy
from openpi_client import protocol

HOST = "127.0.0.1"
WAIT_S = 20.0
MAX_BYTES = 2**22


class SumPolicy(base_policy.BasePolicy):
    def infer(self, obs):
        return {"actions": np.full((1, 1), int(obs["x"].astype(np.int64).sum()))}


def _pixels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_large_messages_are_unmasked_and_everything_else_passes_unchanged(seed):
    rng = random.Random(seed)
    large = [rng.randbytes(2**20 + rng.randrange(5)) for _ in range(2)]
    small = [
        Frame(opcode, rng.randbytes(n)) for opcode, n in ((Opcode.BINARY, 0), (Opcode.PING, 5), (Opcode.BINARY, 70_000))
    ]
    parts = [
        *(frame.serialize(mask=True) for frame in small),
        Frame(Opcode.BINARY, large[0]).serialize(mask=True),
        Frame(Opcode.TEXT, bytes(2**20)).serialize(mask=True),
        Frame(Opcode.BINARY, bytes(2**20), fin=False).serialize(mask=True),
        Frame(Opcode.PONG, b"in between").serialize(mask=True),
        Frame(Opcode.CONT, bytes(2**20)).serialize(mask=True),
        Frame(Opcode.BINARY, bytes(2**20)).serialize(mask=False),
        Frame(Opcode.BINARY, large[1]).serialize(mask=True),
        Frame(Opcode.BINARY, bytes(MAX_BYTES + 1)).serialize(mask=True),
        Frame(Opcode.CLOSE, b"").serialize(mask=True),
    ]
    passed, delivered = bytearray(), []
    frames = LargeFrames(MAX_BYTES, passed.extend, lambda message: delivered.append(bytes(message)))
    stream = b"".join(parts)
    place = 0
    while place < len(stream):
        step = rng.choice((1, 3, 13, 100_000, 600_000))
        frames.receive(stream[place : place + step])
        place += step
    assert delivered == large
    assert passed == b"".join(part for i, part in enumerate(parts) if i not in (3, 9))


@contextlib.contextmanager
def _serving():
    server = WebsocketPolicyServer(SumPolicy(), HOST, 0, options=ServerOptions(max_message_bytes=MAX_BYTES))
    with serve_in_thread(server, timeout_s=WAIT_S):
        yield server


def _connect(server):
    headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
    return websockets.sync.client.connect(
        f"ws://{HOST}:{server.port}", compression=None, max_size=None, additional_headers=headers
    )


def test_messages_of_all_sizes_are_answered_in_their_order():
    with _serving() as server, _connect(server) as websocket:
        websocket.recv(WAIT_S)
        sizes = (10, 2**21, 10, 3 * 2**20, 2**20 - 500, 7)
        for seed, size in enumerate(sizes):
            websocket.send(msgpack_numpy.packb({"x": _pixels(size, seed)}))
        for seed, size in enumerate(sizes):
            answer = msgpack_numpy.unpackb(websocket.recv(WAIT_S))["actions"][0, 0]
            assert answer == _pixels(size, seed).astype(np.int64).sum()


def test_a_large_message_may_come_in_fragments_and_one_too_large_closes_its_connection():
    with _serving() as server:
        with _connect(server) as websocket:
            websocket.recv(WAIT_S)
            message = msgpack_numpy.packb({"x": _pixels(3 * 2**20)})
            websocket.send([message[: 2**21], message[2**21 :]])
            assert msgpack_numpy.unpackb(websocket.recv(WAIT_S))["actions"][0, 0] == _pixels(3 * 2**20).sum(dtype=int)
            websocket.send(bytes(MAX_BYTES + 1))
            with pytest.raises(websockets.exceptions.ConnectionClosedError, match="1009"):
                websocket.recv(WAIT_S)
        with _connect(server) as websocket:
            assert websocket.recv(WAIT_S)


def test_many_connections_that_send_at_once_all_get_their_answers(monkeypatch):
    monkeypatch.setattr(fair_connection, "_TURN_S", 1e-9)  # each turn has time for one piece
    with _serving() as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_connect(server)) for _ in range(8)]
        for client in clients:
            client.recv(WAIT_S)
        for seed, client in enumerate(clients):
            client.send(msgpack_numpy.packb({"x": _pixels(2**21, seed)}))
        for seed, client in enumerate(clients):
            answer = msgpack_numpy.unpackb(client.recv(WAIT_S))["actions"][0, 0]
            assert answer == _pixels(2**21, seed).astype(np.int64).sum()


def test_idle_connections_beyond_the_limit_are_dropped_and_the_server_stays(monkeypatch):
    monkeypatch.setattr(fair_connection, "MAX_CONNECTIONS", 5)
    with _serving() as server:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection((HOST, server.port))) for _ in range(8)]
            dropped = 0
            for sock in idle:
                sock.settimeout(0.5)
                with contextlib.suppress(TimeoutError):
                    try:
                        dropped += sock.recv(1) == b""
                    except ConnectionResetError:
                        dropped += 1
            assert dropped == 3
        for _ in range(100):
            with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=WAIT_S)) as connection:
                try:
                    connection.request("GET", "/healthz")
                    if connection.getresponse().status == 200:
                        return
                except (ConnectionError, http.client.HTTPException):
                    continue
        raise AssertionError("the server never had room again")


def test_an_error_of_a_large_message_is_named_like_any_other():
    with _serving() as server, _connect(server) as websocket:
        websocket.recv(WAIT_S)
        websocket.send(b"\x91" * 2**21)
        assert "more than 32 levels" in json.loads(websocket.recv(WAIT_S))["error"]["message"]
