"""A policy server among hasty, hostile, vanishing and too many clients, and a client without a server."""

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.exceptions import InvalidStatus
import websockets.sync.client

from openpi.serving import contract_metadata
from openpi.serving import endpoints
from openpi.serving import websocket_policy_server
from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from openpi_client import errors
from openpi_client import msgpack_numpy
from openpi_client import protocol
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
WAIT_S = 20.0
KEEP = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
EXAMPLE = {"state": np.zeros(14), "images": {"cam_high": np.zeros((4, 4, 3), np.uint8)}, "prompt": "wave"}


class EchoPolicy(base_policy.BasePolicy):
    """Answers with the state. While `gate` is closed, it waits inside each inference."""

    def __init__(self):
        self.states = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, obs):
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.states.append(float(obs["state"][0]))
        return {"actions": np.tile(obs["state"], (2, 1))}


@pytest.fixture
def policy():
    return EchoPolicy()


@pytest.fixture
def server(policy):
    made = WebsocketPolicyServer(policy, HOST, 0, contract_metadata.describe_server(), example=EXAMPLE)
    with serve_in_thread(made, timeout_s=WAIT_S):
        assert policy.entered.acquire(timeout=WAIT_S)  # the warm-up
        policy.states.clear()
        yield made
        policy.gate.set()


def _bare(server, headers=KEEP):
    sock = socket.create_connection((HOST, server.port), timeout=WAIT_S)
    return websockets.sync.client.connect(
        f"ws://{HOST}", sock=sock, compression=None, max_size=None, additional_headers=headers
    )


def _client(server, **kwargs):
    return WebsocketClientPolicy(
        HOST, server.port, **{"connect_timeout_s": WAIT_S, "request_timeout_s": WAIT_S, **kwargs}
    )


def _obs(value=0.0, **options):
    obs = {**EXAMPLE, "state": np.full(14, value)}
    return {**obs, protocol.REQUEST_OPTIONS_KEY: options} if options else obs


def _send(websocket, value, **options):
    websocket.send(msgpack_numpy.packb(_obs(value, **options)))


def _receive(websocket):
    """The first number of the answer, or the code of the error."""
    answer = websocket.recv(timeout=WAIT_S)
    if isinstance(answer, str):
        return json.loads(answer)["error"]["code"]
    return msgpack_numpy.unpackb(answer)["actions"][0, 0]


def _wait_for(condition):
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def _is_turned_away(server, stack):
    """Try to connect, for as long as `stack` lasts."""
    try:
        stack.enter_context(_bare(server))
    except InvalidStatus as e:
        return e.response.status_code == 503
    return False


def test_several_requests_at_once_are_answered_in_order(server):
    with _bare(server) as websocket:
        websocket.recv()
        for value in range(10):
            _send(websocket, value)
        assert [_receive(websocket) for _ in range(10)] == list(range(10))


def test_a_newer_observation_replaces_those_that_wait_when_asked(server, policy):
    policy.gate.clear()
    with _bare(server) as websocket:
        websocket.recv()
        _send(websocket, 1)
        assert policy.entered.acquire(timeout=WAIT_S)
        _send(websocket, 2)
        _send(websocket, 3, replace_older=True)
        other = threading.Thread(target=_infer_elsewhere, args=(server, 9.0))
        other.start()
        _wait_for(lambda: server.gauges()["queue_length"] == 3)
        # The second is dropped although nothing has been answered yet, but reported in its turn.
        policy.gate.set()
        assert [_receive(websocket) for _ in range(3)] == [1, "superseded", 3]
        other.join(WAIT_S)
    assert sorted(policy.states) == [1, 3, 9]


def _infer_elsewhere(server, value):
    with _client(server) as client:
        client.infer(_obs(value))


def test_a_request_is_refused_at_its_deadline_and_never_computed(server, policy):
    policy.gate.clear()
    with _bare(server) as busy, _bare(server) as hasty:
        busy.recv()
        hasty.recv()
        _send(busy, 1)
        assert policy.entered.acquire(timeout=WAIT_S)
        _send(hasty, 2, deadline_ms=30)
        assert _receive(hasty) == "too_late"
        policy.gate.set()
        assert _receive(busy) == 1
        _send(hasty, 3)
        assert _receive(hasty) == 3
    assert policy.states == [1, 3]


def test_our_client_sends_the_server_its_time_limit(server, policy):
    policy.gate.clear()
    with _client(server) as busy, _client(server, request_timeout_s=0.1) as hasty:
        thread = threading.Thread(target=busy.infer, args=(_obs(1),))
        thread.start()
        assert policy.entered.acquire(timeout=WAIT_S)
        # Whether the server's word or the client's own clock comes first, nobody computes it afterwards.
        with pytest.raises((errors.RemoteError, errors.ServerTimeoutError)):
            hasty.infer(_obs(2))
        policy.gate.set()
        thread.join(WAIT_S)
        assert busy.infer(_obs(3))["actions"][0, 0] == 3
    assert policy.states == [1, 3]


def test_errors_have_a_code_for_clients_that_stay(server):
    with _client(server) as client:
        with pytest.raises(errors.RemoteError, match="found 'x', missing 'images', 'state'") as failure:
            client.infer({"x": 1})
        assert failure.value.code == protocol.BAD_REQUEST
        assert client.infer(_obs(2))["actions"][0, 0] == 2


def test_a_stop_lets_what_was_asked_be_answered_and_turns_newcomers_away(policy):
    server = WebsocketPolicyServer(policy, HOST, 0, example=EXAMPLE)
    with contextlib.ExitStack() as clients, serve_in_thread(server, timeout_s=WAIT_S):
        assert policy.entered.acquire(timeout=WAIT_S)
        policy.gate.clear()
        websocket = clients.enter_context(_bare(server))
        websocket.recv()
        _send(websocket, 1)
        assert policy.entered.acquire(timeout=WAIT_S)
        server.stop()
        _wait_for(lambda: _is_turned_away(server, clients))  # the stop has to reach the server's own thread first
        _send(websocket, 2)
        _wait_for(lambda: server.gauges()["requests_under_way"] == 2)
        policy.gate.set()
        assert [_receive(websocket) for _ in range(2)] == [1, "stopping"]
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=WAIT_S)
        assert closed.value.rcvd.code == 1001


def test_a_client_that_vanishes_during_its_inference_leaves_nothing_behind(server, policy):
    policy.gate.clear()
    with _bare(server) as websocket:
        websocket.recv()
        _send(websocket, 1)
        assert policy.entered.acquire(timeout=WAIT_S)
        # As a program that crashed: no goodbye.
        websocket.socket.shutdown(socket.SHUT_RDWR)
    _wait_for(lambda: server.gauges()["clients"] == 0)
    _wait_for(lambda: server.gauges()["requests_under_way"] == 0)
    policy.gate.set()
    with _client(server) as client:
        assert client.infer(_obs(5))["actions"][0, 0] == 5


def test_handshakes_that_never_end_are_dropped_and_hold_nobody_up(policy, monkeypatch):
    monkeypatch.setattr(websocket_policy_server, "_HANDSHAKE_LIMIT_S", 0.2)
    server = WebsocketPolicyServer(policy, HOST, 0, example=EXAMPLE)
    with serve_in_thread(server, timeout_s=WAIT_S), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((HOST, server.port), timeout=WAIT_S)) for _ in range(20)]
        for sock in slow:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: ")
        with _client(server) as client:
            assert client.infer(_obs(1))["actions"][0, 0] == 1
        # Each is closed by the server, with or without a last word.
        for sock in slow:
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass


def test_two_hundred_connections_are_more_than_enough_but_no_harm(server):
    with contextlib.ExitStack() as stack:
        turned_away = sum(_is_turned_away(server, stack) for _ in range(200))
        assert turned_away == 200 - endpoints.MAX_CLIENTS
    with _client(server) as client:
        assert client.infer(_obs(1))["actions"][0, 0] == 1


def test_a_message_of_a_gigabyte_is_refused_by_its_first_bytes(policy):
    options = ServerOptions(max_message_bytes=2**20)
    with serve_in_thread(WebsocketPolicyServer(policy, HOST, 0, options=options), timeout_s=WAIT_S) as server:
        with _bare(server) as websocket:
            websocket.recv()
            # A frame header that announces 2**30 masked bytes; none of them is sent.
            websocket.socket.sendall(b"\x82\xff" + struct.pack(">Q", 2**30) + b"mask")
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=WAIT_S)
            assert closed.value.rcvd.code == 1009
        with _client(server) as client:
            assert client.infer(_obs(1))["actions"][0, 0] == 1


def _mutated(rng, message):
    """Cut, flip, insert or repeat bytes; at the front more often, where the structure is."""
    data = bytearray(message)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = min(int(rng.expovariate(1 / 60)), len(data) - 1) if data else 0
        match rng.randrange(4):
            case 0:
                del data[place : place + rng.choice((1, 4, 10_000))]
            case 1 if data:
                data[place] = rng.randrange(256)
            case 2:
                data[place:place] = rng.randbytes(rng.choice((1, 5)))
            case _:
                data[place:place] = data[place : place + rng.choice((8, 64))]
    return bytes(data)


def test_thousands_of_damaged_messages_are_answered_and_the_next_good_one_correctly(server, policy, caplog):
    caplog.set_level("CRITICAL")
    rng = random.Random(0)
    originals = [msgpack_numpy.packb(_obs(1.0)), msgpack_numpy.packb(_obs(1.0, deadline_ms=50, replace_older=True))]
    codes = set()
    with _bare(server) as websocket:
        websocket.recv()
        for round_number in range(100):
            for _ in range(30):
                websocket.send(_mutated(rng, rng.choice(originals)))
                answer = websocket.recv(timeout=WAIT_S)
                codes.add(json.loads(answer)["error"]["code"] if isinstance(answer, str) else "answered")
                assert (
                    not isinstance(answer, str) or "/" not in json.loads(answer)["error"]["message"].split("found")[0]
                )
            _send(websocket, round_number)
            assert _receive(websocket) == round_number
    assert {"bad_request", "answered"} <= codes <= {"bad_request", "answered", "internal", "superseded", "too_late"}
    _wait_for(lambda: server.gauges()["requests_under_way"] == 0)


SERVER_PROGRAM = f"""
import sys
import numpy as np
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy

class Echo(base_policy.BasePolicy):
    def infer(self, obs):
        return {{"actions": np.tile(obs["state"], (2, 1))}}

WebsocketPolicyServer(Echo(), "{HOST}", int(sys.argv[1])).serve_forever(lambda _: print("ready", flush=True))
"""


@contextlib.contextmanager
def _server_process(port):
    with subprocess.Popen([sys.executable, "-c", SERVER_PROGRAM, str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_a_client_survives_the_sudden_death_of_its_server():
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        with _server_process(port) as process:
            client = stack.enter_context(WebsocketClientPolicy(HOST, port, request_timeout_s=WAIT_S))
            assert client.infer(_obs(1))["actions"][0, 0] == 1
            os.kill(process.pid, signal.SIGKILL)
            process.wait(WAIT_S)
            for _ in range(2):
                with pytest.raises(errors.ServerUnreachableError):
                    client.infer(_obs(2))
        with _server_process(port):
            assert client.infer(_obs(3))["actions"][0, 0] == 3
