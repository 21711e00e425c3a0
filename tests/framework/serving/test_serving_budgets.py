"""Budgets of a request: what costs too much is refused by name, and what is read does not hold up the others."""

import base64
import contextlib
import http.client
import json
import logging
import socket
import threading
import time

import numpy as np
import pytest
from websockets.frames import Frame
from websockets.frames import Opcode
import websockets.sync.client

from openpi.serving import requests
from openpi.serving.background import serve_in_thread
from openpi.serving.observation_contract import ObservationContract
from openpi.serving.request_reader import RequestReader
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared.errors import DataError
from openpi_client import base_policy
from openpi_client import image_tools
from openpi_client import msgpack_numpy
from openpi_client import protocol

HOST = "127.0.0.1"
WAIT_S = 20.0
EXAMPLE = {"state": np.zeros(14), "images": {"cam_high": np.zeros((4, 4, 3), np.uint8)}, "prompt": "wave"}
HANDSHAKE = (
    f"GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()
CONTRACT = ObservationContract.from_example(EXAMPLE)


class EchoPolicy(base_policy.BasePolicy):
    def infer(self, obs):
        return {"actions": np.tile(obs["state"], (2, 1))}


def _read(contract=CONTRACT, **changes):
    return requests.read(msgpack_numpy.packb({**EXAMPLE, **changes}), contract)


def _jpeg(height, width):
    return image_tools.encode_jpeg(np.zeros((height, width, 3), np.uint8), 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": {"cam_high": np.zeros((3000, 3000, 3), np.uint8)}},
            "'cam_high': found 9000000 px, expected at most",
        ),
        (
            {"images": {"cam_high": np.zeros((3, 3000, 3000), np.uint8)}},
            "'cam_high': found 9000000 px, expected at most",
        ),
        (
            {"images": {"cam_high": _jpeg(3000, 3000)}},
            "'cam_high': found a JPEG of 3000x3000 px, expected at most 8388608",
        ),
        (
            {"images": {str(n): _jpeg(2800, 2800) for n in range(3)}},
            "'2': found a JPEG of 2800x2800 px, expected at most",
        ),
        ({"images": {str(n): np.zeros((2, 2, 3), np.uint8) for n in range(17)}}, "more than 16 images"),
        (
            {"images": {str(n): np.zeros((2400, 2400), np.uint8) for n in range(1)} | {"d": [0.5] * 70_000}},
            "8192 values",
        ),
        ({"state": [0.5] * 7_500}, r"'state' has shape \(7500,\), expected \(14,\)"),
        ({"state": [[0.5] * 14]}, r"'state' has shape \(1, 14\), expected \(14,\)"),
        ({"state": ["x" * 5000] + [""] * 7_000}, "'state' is a list of 7001 values, one of 20000 bytes"),
        (
            {"images": {"cam_high": [["x" * 20_000], *([""] for _ in range(3500))]}},
            "'images': 'cam_high' is a list of 3501 values",
        ),
        ({"prompt": np.array("x" * 100_000)}, "'prompt' is a ndarray, expected one text"),
        ({"prompt": "x" * (2**20 + 1)}, "a value of 1048577 bytes"),
    ],
)
def test_a_request_beyond_a_budget_is_refused_by_what_is_too_much(changes, message):
    with pytest.raises(DataError, match=message):
        _read(**changes)


def test_numbers_in_lists_are_checked_as_arrays_are():
    _read(state=[0.5] * 14)
    with pytest.raises(DataError, match=r"'state'\[3\] is nan"):
        _read(state=[0.5] * 3 + [float("nan")] + [0.5] * 10)
    with pytest.raises(DataError, match=r"'images.cam_high\[1\]'\[2\] is inf"):
        _read(images={"cam_high": [[0.0, 0.0], [0.0, 0.0, float("inf")]]})


def test_what_the_policy_never_reads_is_left_as_it_came():
    unknown = {"deep": [[[[[[[[[[float("nan")]]]]]]]]]], "jpeg": _jpeg(8, 8), "d": {b"x": None}}
    observation = _read(unknown=unknown, other=_jpeg(8, 8)).observation
    assert observation["unknown"]["jpeg"] == unknown["jpeg"]
    assert isinstance(observation["other"], bytes)
    # A policy without an example may read anything.
    with pytest.raises(DataError, match=r"levels|is nan|expected a text"):
        _read(ObservationContract(), unknown=unknown)


def test_the_memory_of_a_request_includes_its_decoded_images():
    jpeg = _jpeg(100, 200)
    size = len(msgpack_numpy.packb({**EXAMPLE, "images": {"cam_high": jpeg}}))
    assert _read(images={"cam_high": jpeg}).num_bytes == size + 3 * 100 * 200


@pytest.mark.parametrize(
    ("changes", "is_light"),
    [
        ({}, True),
        ({"images": {"cam_high": np.zeros((224, 224, 3), np.uint8)}}, True),
        ({"images": {"cam_high": np.zeros((640, 640, 3), np.uint8)}}, False),
        ({"images": {"cam_high": _jpeg(8, 8)}}, False),
        ({"state": [0.5] * 2000}, False),
    ],
)
def test_only_requests_of_little_work_are_read_at_once(changes, is_light):
    assert requests.is_light(msgpack_numpy.packb({**EXAMPLE, **changes})) is is_light


def test_the_reader_takes_the_messages_of_clients_in_turn_and_passes_on_their_errors():
    reader = RequestReader(CONTRACT)
    good, bad = msgpack_numpy.packb(EXAMPLE), msgpack_numpy.packb({"state": 1})
    jobs = [reader.submit(message, client) for client, message in (("a", good), ("a", bad), ("b", good))]
    assert jobs[0].result(WAIT_S).observation["prompt"] == "wave"
    with pytest.raises(DataError, match="missing 'images'"):
        jobs[1].result(WAIT_S)
    assert jobs[2].result(WAIT_S).observation.keys() == EXAMPLE.keys()
    reader.stop()


@contextlib.contextmanager
def _serving(policy=None):
    server = WebsocketPolicyServer(policy or EchoPolicy(), HOST, 0, example=EXAMPLE)
    with serve_in_thread(server, timeout_s=WAIT_S):
        yield server


def _connect(server):
    headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
    return websockets.sync.client.connect(
        f"ws://{HOST}:{server.port}", compression=None, max_size=None, additional_headers=headers
    )


def _status_of(server, path):
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=WAIT_S)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_the_server_answers_others_while_it_reads_a_heavy_request(monkeypatch):
    entered, gate = threading.Event(), threading.Event()
    read = requests.read

    def slow_read(message, contract):
        if not requests.is_light(message):
            entered.set()
            assert gate.wait(WAIT_S)
        return read(message, contract)

    monkeypatch.setattr(requests, "read", slow_read)
    with _serving() as server, _connect(server) as heavy, _connect(server) as light:
        heavy.recv(WAIT_S)
        light.recv(WAIT_S)
        heavy.send(msgpack_numpy.packb({**EXAMPLE, "images": {"cam_high": _jpeg(8, 8)}}))
        assert entered.wait(WAIT_S)
        assert _status_of(server, "/healthz") == 200
        light.send(msgpack_numpy.packb({**EXAMPLE, "state": np.full(14, 0.5)}))
        assert msgpack_numpy.unpackb(light.recv(WAIT_S))["actions"][0, 0] == 0.5
        gate.set()
        assert msgpack_numpy.unpackb(heavy.recv(WAIT_S))["actions"].shape == (2, 14)


def test_requests_beyond_the_servers_memory_are_refused_until_there_is_room(monkeypatch):
    monkeypatch.setattr("openpi.serving.session._MAX_BYTES_UNDER_WAY", 100_000)
    with _serving() as server, _connect(server) as websocket:
        websocket.recv(WAIT_S)
        for size, is_answered in ((10, True), (200_000, False), (10, True)):
            websocket.send(msgpack_numpy.packb({**EXAMPLE, "more": np.zeros(size, np.uint8)}))
            reply = websocket.recv(WAIT_S)
            assert isinstance(reply, bytes) is is_answered
            if not is_answered:
                assert json.loads(reply)["error"]["code"] == "overloaded"
        assert server.gauges()["bytes_under_way"] < 100_000


def test_a_client_that_reads_no_replies_is_left(monkeypatch, caplog):
    monkeypatch.setattr("openpi.serving.session._UNREAD_LIMIT_S", 0.2)

    class Large(base_policy.BasePolicy):
        def infer(self, obs):
            return {"actions": np.zeros((2, 14)), "more": np.zeros(10_000_000, np.uint8)}

    with _serving(Large()) as server, caplog.at_level(logging.WARNING):
        with socket.create_connection((HOST, server.port), timeout=WAIT_S) as sock:
            sock.sendall(HANDSHAKE)
            for _ in range(3):
                sock.sendall(Frame(Opcode.BINARY, msgpack_numpy.packb(EXAMPLE)).serialize(mask=True))
            deadline_s = time.monotonic() + WAIT_S
            while "disconnected" not in caplog.text:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
        assert _status_of(server, "/healthz") == 200
    assert "has not read its replies for 0.2 s, disconnected" in caplog.text
