"""The policy server, over real websockets on loopback, with the project's client and with a bare websocket."""

import asyncio
import contextlib
import http.client
import json
import logging
import re
import signal
import socket
import threading

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.exceptions import ConnectionClosedError
import websockets.sync.client

from openpi.serving import contract_metadata
from openpi.serving import listening_socket
from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared.errors import UserError
from openpi_client import base_policy
from openpi_client import errors
from openpi_client import msgpack_numpy
from openpi_client import protocol
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
WAIT_S = 20.0
EXAMPLE = {
    "state": np.zeros(14),
    "images": {"cam_high": np.zeros((4, 4, 3), np.uint8)},
    "prompt": "wave",
}


class EchoPolicy(base_policy.BasePolicy):
    """Answers with the state it was given, so that a reply shows which request it belongs to."""

    def __init__(self):
        self.calls = []

    def infer(self, obs):
        self.calls.append(obs)
        if obs.get("prompt") == "fail":
            raise RuntimeError("the model broke\nin two lines")
        if obs.get("prompt") == "secret":
            raise FileNotFoundError(2, "No such file", "/home/user/secret")
        if obs.get("prompt") == "nan":
            return {"actions": np.full((2, 14), np.nan)}
        return {"actions": np.tile(obs["state"], (2, 1)), "policy_timing": {"infer_ms": 1.0}}


class GatedPolicy(EchoPolicy):
    """Waits inside each inference until the test opens the gate."""

    def __init__(self):
        super().__init__()
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def infer(self, obs):
        self.entered.release()
        assert self.gate.acquire(timeout=WAIT_S)
        return super().infer(obs)


@pytest.fixture
def serve():
    """Start servers that are stopped at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(policy, *, wait_until_ready=True, **kwargs):
            server = WebsocketPolicyServer(policy, HOST, 0, **kwargs)
            return stack.enter_context(serve_in_thread(server, wait_until_ready=wait_until_ready, timeout_s=WAIT_S))

        yield start


def _client(server, **kwargs):
    return WebsocketClientPolicy(
        HOST, server.port, **{"connect_timeout_s": WAIT_S, "request_timeout_s": WAIT_S, **kwargs}
    )


def _bare_client(server, **kwargs):
    """Connect as the original's client does: no header of ours."""
    sock = socket.create_connection((HOST, server.port), timeout=WAIT_S)
    return websockets.sync.client.connect(f"ws://{HOST}", sock=sock, compression=None, max_size=None, **kwargs)


def _get(server, path):
    connection = http.client.HTTPConnection(HOST, server.port, timeout=WAIT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def _obs(value=0.0, **kwargs):
    return {**EXAMPLE, "state": np.full(14, value), **kwargs}


def test_client_and_server_exchange_metadata_and_actions(serve):
    metadata = {"robot": "test", "reset_pose": [0.0, 1.0]}
    with _client(serve(EchoPolicy(), metadata=metadata)) as client:
        assert client.get_server_metadata() == metadata
        first, second = client.infer(_obs(0.5)), client.infer(_obs(0.25))
    np.testing.assert_array_equal(first["actions"], np.full((2, 14), 0.5))
    np.testing.assert_array_equal(second["actions"], np.full((2, 14), 0.25))
    assert first["policy_timing"] == {"infer_ms": 1.0}
    phases = {"infer_ms", "queue_ms", "preprocess_ms", "model_ms", "postprocess_ms", "total_ms"}
    assert set(first["server_timing"]) == phases
    assert set(second["server_timing"]) == phases | {"prev_total_ms"}
    assert all(isinstance(value, float) and value >= 0 for value in second["server_timing"].values())


def test_images_and_prompt_reach_the_policy_unchanged(serve):
    policy = EchoPolicy()
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    with _client(serve(policy)) as client:
        client.infer(_obs(images={"cam_low": image.transpose(2, 0, 1)}, prompt="drücke"))
    (seen,) = policy.calls
    np.testing.assert_array_equal(seen["images"]["cam_low"], image.transpose(2, 0, 1))
    assert seen["prompt"] == "drücke"


def test_the_bytes_on_the_wire_are_those_of_the_original_protocol(serve):
    with _bare_client(serve(EchoPolicy())) as websocket:
        assert websocket.recv() == b"\x80"
        websocket.send(msgpack_numpy.packb({"state": np.zeros(2, np.float32)}))
        reply = msgpack_numpy.unpackb(websocket.recv())
    assert list(reply) == ["actions", "policy_timing", "server_timing"]


def test_the_example_warms_the_policy_up_before_the_server_is_ready(serve):
    policy = GatedPolicy()
    server = serve(policy, example=EXAMPLE, wait_until_ready=False)
    assert policy.entered.acquire(timeout=WAIT_S)
    assert _get(server, protocol.READY_PATH)[0] == 503
    assert _get(server, protocol.ALIVE_PATH) == (200, "text/plain; charset=utf-8", "OK\n")
    with _bare_client(server) as websocket:
        with pytest.raises(TimeoutError):
            websocket.recv(timeout=0.05)  # connected, but the metadata waits for the policy
        policy.gate.release()
        assert websocket.recv(timeout=WAIT_S) == b"\x80"
    assert _get(server, protocol.READY_PATH) == (200, "text/plain; charset=utf-8", "ready\n")
    assert policy.calls == [EXAMPLE]


def test_a_client_waits_for_the_warm_up(serve):
    policy = GatedPolicy()
    server = serve(policy, metadata={"n": 1}, example=EXAMPLE, wait_until_ready=False)
    with pytest.raises(errors.ServerUnreachableError, match=r"no policy server at .* after 0\.1 s"):
        _client(server, connect_timeout_s=0.1)
    policy.gate.release()
    with _client(server) as client:
        assert client.get_server_metadata() == {"n": 1}


def test_a_policy_that_fails_on_its_example_ends_the_server():
    server = WebsocketPolicyServer(EchoPolicy(), HOST, 0, example={**EXAMPLE, "prompt": "fail"})
    with pytest.raises(RuntimeError, match="the model broke"), serve_in_thread(server, timeout_s=WAIT_S):
        pass
    assert not server.is_busy


def test_health_pings_and_handshakes_are_answered_during_an_inference(serve):
    policy = GatedPolicy()
    server = serve(policy)
    with _client(server) as client, _bare_client(server) as other:
        other.recv()
        inference = threading.Thread(target=client.infer, args=(_obs(),))
        inference.start()
        assert policy.entered.acquire(timeout=WAIT_S)
        assert _get(server, "/healthz?verbose=1")[0] == 200
        assert _get(server, protocol.READY_PATH)[0] == 200
        assert other.ping().wait(WAIT_S)
        with _bare_client(server) as newcomer:
            assert newcomer.recv(timeout=WAIT_S) == b"\x80"
        assert not policy.calls  # the inference is still under way
        policy.gate.release()
        inference.join(WAIT_S)
    assert len(policy.calls) == 1


def test_other_paths_are_refused_without_an_upgrade(serve):
    assert _get(serve(EchoPolicy()), "/favicon.ico")[0] == 426


def test_each_of_many_clients_gets_its_own_answers(serve):
    server = serve(EchoPolicy())
    failures = []

    def drive(number):
        try:
            with _client(server) as client:
                for step in range(10):
                    value = number + step / 100
                    np.testing.assert_array_equal(client.infer(_obs(value))["actions"], np.full((2, 14), value))
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert failures == []


BAD_REQUESTS = {
    "text": ("hello", "found a text message"),
    "garbage": (b"\xc1\x00garbage", "request: malformed message"),
    "truncated": (msgpack_numpy.packb(EXAMPLE)[:-4], "request: malformed message"),
    "no dict": (msgpack_numpy.packb([1, 2]), "found a list, expected a dict"),
    "missing keys": (msgpack_numpy.packb({"qpos": 1}), "found 'qpos', missing 'images', 'state'"),
    "13 numbers": (msgpack_numpy.packb(_obs(state=np.zeros(13))), r"'state' has shape \(13,\), expected \(14,\)"),
    "a table": (msgpack_numpy.packb(_obs(state=np.zeros((1, 14)))), r"'state' has shape \(1, 14\), expected \(14,\)"),
    "words": (msgpack_numpy.packb(_obs(state="zero")), "'state' holds .*, expected 14 numbers"),
    "NaN": (msgpack_numpy.packb(_obs(np.nan)), r"'state'\[0\] is nan, expected finite values \(14 are not\)"),
    "infinite image": (
        msgpack_numpy.packb(_obs(images={"cam_high": np.full((2, 2, 3), np.inf, np.float32)})),
        r"'images\.cam_high'\[0\]\[0\]\[0\] is inf",
    ),
    "failing policy": (
        msgpack_numpy.packb(_obs(prompt="fail")),
        r"^internal error \(RuntimeError\)\. See the server's log$",
    ),
    "failing file": (msgpack_numpy.packb(_obs(prompt="secret")), r"internal error \(FileNotFoundError\)"),
    "NaN from the policy": (msgpack_numpy.packb(_obs(prompt="nan")), r"policy: 'actions'\[0\]\[0\] is nan"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_answered_by_one_line_and_closes_as_the_original_does(serve, name):
    request, message = BAD_REQUESTS[name]
    server = serve(EchoPolicy(), example=EXAMPLE)
    with _bare_client(server) as websocket:
        websocket.recv()
        websocket.send(request)
        answer = websocket.recv(timeout=WAIT_S)
        assert isinstance(answer, str)
        assert len(answer.splitlines()) == 1
        assert "/home" not in answer
        assert re.search(message, answer)
        with pytest.raises(ConnectionClosedError) as closed:
            websocket.recv(timeout=WAIT_S)
        assert closed.value.rcvd.code == 1011


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_client_that_asks_for_it_stays_connected_after_a_bad_request(serve, name):
    request, _ = BAD_REQUESTS[name]
    headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
    with _bare_client(serve(EchoPolicy(), example=EXAMPLE), additional_headers=headers) as websocket:
        websocket.recv()
        websocket.send(request)
        assert isinstance(websocket.recv(timeout=WAIT_S), str)
        websocket.send(msgpack_numpy.packb(_obs(0.5)))
        reply = msgpack_numpy.unpackb(websocket.recv(timeout=WAIT_S))
    np.testing.assert_array_equal(reply["actions"], np.full((2, 14), 0.5))


def test_tracebacks_are_sent_only_when_debugging(serve):
    with _client(serve(EchoPolicy(), options=ServerOptions(debug=True))) as client:
        with pytest.raises(errors.RemoteError, match="in two lines") as failure:
            client.infer(_obs(prompt="fail"))
        assert "Traceback (most recent call last)" in failure.value.remote_text
        np.testing.assert_array_equal(client.infer(_obs(1.0))["actions"], np.ones((2, 14)))


def test_a_request_beyond_the_size_limit_closes_only_its_own_connection(serve):
    server = serve(EchoPolicy(), options=ServerOptions(max_message_bytes=10_000))
    with _client(server) as other:
        with _client(server) as client, pytest.raises(errors.ServerUnreachableError, match="1009"):
            client.infer(_obs(images={"cam_high": np.zeros((100, 100, 3), np.uint8)}))
        other.infer(_obs())


class _Departures(logging.Handler):
    """Counts the clients that the server says have left."""

    def __init__(self):
        super().__init__()
        self.count = threading.Semaphore(0)

    def emit(self, record):
        if record.getMessage().endswith(" left"):
            self.count.release()


@pytest.fixture
def departures(caplog):
    handler = _Departures()
    server_logger = logging.getLogger("openpi.serving.websocket_policy_server")
    caplog.set_level(logging.INFO, logger=server_logger.name)
    server_logger.addHandler(handler)
    yield handler
    server_logger.removeHandler(handler)


def test_requests_of_a_client_that_left_are_not_computed(serve, departures):
    policy = GatedPolicy()
    server = serve(policy)
    with _bare_client(server) as busy, _client(server) as patient:
        busy.send(msgpack_numpy.packb(_obs(1.0)))
        assert policy.entered.acquire(timeout=WAIT_S)
        with _bare_client(server) as leaving:
            leaving.recv()
            leaving.send(msgpack_numpy.packb(_obs(2.0)))
        assert departures.count.acquire(timeout=WAIT_S)
        last = threading.Thread(target=patient.infer, args=(_obs(3.0),))
        last.start()
        policy.gate.release(3)
        last.join(WAIT_S)
    assert [call["state"][0] for call in policy.calls] == [1.0, 3.0]


def test_stopping_says_goodbye_to_clients():
    server = WebsocketPolicyServer(EchoPolicy(), HOST, 0)
    clients = contextlib.ExitStack()
    with clients, serve_in_thread(server, timeout_s=WAIT_S):
        websocket = clients.enter_context(_bare_client(server))
        websocket.recv()
    with pytest.raises(ConnectionClosed) as closed:
        websocket.recv(timeout=WAIT_S)
    assert closed.value.rcvd.code == 1001
    assert not server.is_busy
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port), timeout=WAIT_S)


def test_sigterm_stops_a_server_in_the_main_thread():
    server = WebsocketPolicyServer(EchoPolicy(), HOST, 0, example=EXAMPLE)
    before = signal.getsignal(signal.SIGTERM)
    server.serve_forever(on_ready=lambda _: signal.raise_signal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_stopped_before_it_starts_ends_at_once():
    server = WebsocketPolicyServer(EchoPolicy(), HOST, 0)
    server.stop()
    asyncio.run(server.run())
    assert not server.is_busy


def test_a_taken_port_is_reported_in_one_line(serve):
    server = serve(EchoPolicy())
    with pytest.raises(UserError, match=rf"^port {server.port} of 127.0.0.1 is taken by another program\. .* --port$"):
        listening_socket.bind(HOST, server.port)


def test_an_address_of_another_machine_is_reported_in_one_line():
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1:0 \(.*\)\. See --host"):
        listening_socket.bind("192.0.2.1", 0)


def test_refused_requests_are_logged_without_and_failures_with_a_traceback(serve, caplog):
    with _client(serve(EchoPolicy(), example=EXAMPLE)) as client, caplog.at_level(logging.INFO):
        for obs in ({"state": 1}, _obs(prompt="fail")):
            with pytest.raises(errors.RemoteError):
                client.infer(obs)
    refused, failed = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "request refused: observation: found 'state', missing 'images'" in refused.message
    assert refused.exc_info is None
    assert failed.exc_info is not None


def _ask(websocket, **options):
    request = {**EXAMPLE, **options.pop("obs", {})}
    websocket.send(msgpack_numpy.packb({**request, **({"openpi_request": options} if options else {})}))
    return websocket.recv(WAIT_S)


def test_the_server_repeats_the_number_of_a_request_and_only_where_one_was_given(serve):
    server = serve(EchoPolicy(), metadata=contract_metadata.describe_server())
    headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
    with websockets.sync.client.connect(f"ws://{HOST}:{server.port}", additional_headers=headers) as websocket:
        assert protocol.FEATURE_REQUEST_ID in msgpack_numpy.unpackb(websocket.recv())["protocol"]["features"]
        for number in (0, 2**63 - 1):
            assert msgpack_numpy.unpackb(_ask(websocket, request_id=number))["openpi_reply"] == {"request_id": number}
        assert set(msgpack_numpy.unpackb(_ask(websocket))) == {"actions", "policy_timing", "server_timing"}
        assert json.loads(_ask(websocket, request_id=5, obs={"prompt": "fail"}))["error"]["request_id"] == 5
        assert "request_id" not in json.loads(_ask(websocket, obs={"prompt": "fail"}))["error"]


@pytest.mark.parametrize("number", [-1, 2**63, True, 1.0, "1", [1], {}])
def test_a_request_number_of_another_kind_is_refused(serve, number):
    server = serve(EchoPolicy())
    headers = {protocol.KEEP_CONNECTION_HEADER: protocol.KEEP_CONNECTION_VALUE}
    with websockets.sync.client.connect(f"ws://{HOST}:{server.port}", additional_headers=headers) as websocket:
        websocket.recv()
        error = json.loads(_ask(websocket, request_id=number))["error"]
    assert error["code"] == "bad_request"
    assert "'request_id' is" in error["message"]


def test_client_and_server_agree_on_request_numbers(serve):
    server = serve(EchoPolicy(), metadata=contract_metadata.describe_server())
    with WebsocketClientPolicy(HOST, server.port) as client:
        for value in range(3):
            reply = client.infer({**EXAMPLE, "state": np.full(14, float(value))})
            assert reply["actions"][0, 0] == value
            assert "openpi_reply" not in reply
        with pytest.raises(errors.RemoteError) as failure:
            client.infer({**EXAMPLE, "prompt": "fail"})
        assert failure.value.code == "internal"
        assert client.infer(EXAMPLE)["actions"][0, 0] == 0
