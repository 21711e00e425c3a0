"""The websocket client against servers that are late, gone, restarted or of another kind."""

import contextlib
import http
import socket
import threading
import time

import numpy as np
import pytest
from websockets.server import ServerProtocol
import websockets.sync.server

from openpi_client import address
from openpi_client import base_policy
from openpi_client import errors
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOST = "127.0.0.1"
WAIT_S = 20.0


@pytest.fixture
def serve():
    """Start bare websocket servers in threads: `serve(handler, port=0)` returns the port."""
    with contextlib.ExitStack() as stack:

        def start(handler, port=0, **kwargs):
            server = websockets.sync.server.serve(handler, HOST, port, compression=None, max_size=None, **kwargs)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join, WAIT_S)
            stack.callback(server.shutdown)
            return server.socket.getsockname()[1]

        yield start


def _connect(port, **kwargs):
    return WebsocketClientPolicy(HOST, port, **{"connect_timeout_s": WAIT_S, "request_timeout_s": WAIT_S, **kwargs})


def _free_port():
    with socket.create_server((HOST, 0)) as probe:
        return probe.getsockname()[1]


def _number_server(before_reply=lambda number: None):
    """A handler like the original server's: metadata, then the request's number as the action."""

    def handle(websocket):
        websocket.send(msgpack_numpy.packb({"make": "original"}))
        for message in websocket:
            number = msgpack_numpy.unpackb(message)["number"]
            before_reply(number)
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                websocket.send(msgpack_numpy.packb({"actions": np.full((2, 1), number)}))

    return handle


def _number(reply):
    return int(reply["actions"][0, 0])


def test_the_client_is_a_policy_with_the_calls_of_the_original(serve):
    client = WebsocketClientPolicy(HOST, serve(_number_server()))
    assert isinstance(client, base_policy.BasePolicy)
    assert client.get_server_metadata() == {"make": "original"}
    assert _number(client.infer({"number": 3})) == 3
    client.reset()
    client.close()


def test_actions_may_be_changed_in_place(serve):
    with _connect(serve(_number_server())) as client:
        actions = client.infer({"number": 3})["actions"]
    actions += 1
    assert actions[0, 0] == 4


def test_a_late_reply_is_never_taken_for_the_next_one(serve):
    release = threading.Event()

    def be_late_for_the_first(number):
        if number == 1:
            assert release.wait(WAIT_S)

    with _connect(serve(_number_server(be_late_for_the_first)), request_timeout_s=0.2) as client:
        with pytest.raises(errors.ServerTimeoutError, match=r"did not answer within 0\.2 s"):
            client.infer({"number": 1})
        release.set()
        assert _number(client.infer({"number": 2})) == 2
        assert _number(client.infer({"number": 3})) == 3


def test_an_interrupted_request_leaves_no_reply_behind(serve, monkeypatch):
    with _connect(serve(_number_server())) as client:
        websocket = client._connection._websocket

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(websocket, "recv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.infer({"number": 1})
        assert _number(client.infer({"number": 2})) == 2


def _shake_hands_and_read_no_more(listener):
    """Serve one client like a machine that freezes after it has sent its metadata."""
    connection, _ = listener.accept()
    protocol = ServerProtocol(max_size=None)
    protocol.receive_data(connection.recv(65536))
    protocol.send_response(protocol.accept(protocol.events_received()[0]))
    protocol.send_binary(msgpack_numpy.packb({}))
    connection.sendall(b"".join(protocol.data_to_send()))
    return connection


def test_a_server_that_stops_reading_cannot_block_the_client():
    big = {"image": np.zeros(50_000_000, np.uint8)}
    with contextlib.ExitStack() as stack, socket.create_server((HOST, 0)) as listener:
        frozen = threading.Thread(target=lambda: stack.enter_context(_shake_hands_and_read_no_more(listener)))
        frozen.start()
        with _connect(listener.getsockname()[1], request_timeout_s=0.5) as client:
            with pytest.raises(errors.ServerTimeoutError):
                client.infer(big)
            frozen.join(WAIT_S)


def test_the_client_reconnects_to_a_restarted_server(serve, caplog):
    counts = []

    def answer_once(websocket):
        counts.append(len(counts))
        websocket.send(msgpack_numpy.packb({"make": "original", "mask": np.array([True, len(counts) < 3])}))
        websocket.recv()
        websocket.send(msgpack_numpy.packb({"actions": np.zeros((2, 1))}))

    with _connect(serve(answer_once)) as client:
        for count in range(3):
            client.infer({})
            assert ("came back with different metadata" in caplog.text) == (count == 2)
            client._connection._websocket.recv_events_thread.join(WAIT_S)  # until the goodbye has arrived


def test_a_server_lost_in_the_middle_of_a_request_is_named(serve):
    def vanish(websocket):
        websocket.send(msgpack_numpy.packb({}))
        websocket.recv()
        websocket.socket.shutdown(socket.SHUT_RDWR)

    port = serve(vanish)
    with _connect(port) as client, pytest.raises(errors.ServerUnreachableError, match=f"{HOST}:{port} closed the conn"):
        client.infer({})


def test_the_client_waits_for_a_server_that_is_not_up_yet(serve):
    port = _free_port()
    connected = []
    thread = threading.Thread(target=lambda: connected.append(_connect(port)))
    thread.start()
    time.sleep(0.05)  # most likely the client is refused once meanwhile, but the outcome does not depend on it
    serve(_number_server(), port)
    thread.join(WAIT_S)
    assert _number(connected[0].infer({"number": 5})) == 5
    connected[0].close()


def test_a_missing_server_is_reported_in_one_line():
    port = _free_port()
    with pytest.raises(errors.ServerUnreachableError) as failure:
        _connect(port, connect_timeout_s=0.3)
    message = str(failure.value)
    assert message.startswith(f"no policy server at ws://{HOST}:{port} after 0.3 s (")
    assert "refused" in message
    assert "\n" not in message
    assert isinstance(failure.value, ConnectionError)


def test_an_unknown_host_is_reported_at_once(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(errors.ServerUnreachableError, match="Name or service not known"):
        WebsocketClientPolicy("no-such-robot", 8000, connect_timeout_s=None)


@pytest.mark.parametrize("status", [http.HTTPStatus.FORBIDDEN, http.HTTPStatus.NOT_FOUND])
def test_a_refused_handshake_is_reported_at_once(serve, status):
    port = serve(_number_server(), process_request=lambda websocket, request: websocket.respond(status, "no\n"))
    with pytest.raises(errors.ServerUnreachableError, match=str(status.value)):
        _connect(port, connect_timeout_s=None)


def test_a_server_of_another_kind_is_recognized(serve):
    with pytest.raises(errors.ProtocolError, match="is not a policy server: it sent text 'hello'"):
        _connect(serve(lambda websocket: websocket.send("hello")))
    with pytest.raises(errors.ProtocolError, match="it sent a list, expected a dict"):
        _connect(serve(lambda websocket: websocket.send(msgpack_numpy.packb([1]))))


def test_the_original_servers_error_is_summarized_and_the_connection_renewed(serve):
    traceback = "Traceback (most recent call last):\n  File \"policy.py\", line 1, in infer\nKeyError: 'state'\n"
    connections = []

    def fail(websocket):
        connections.append(websocket)
        websocket.send(msgpack_numpy.packb({}))
        websocket.recv()
        websocket.send(traceback)
        websocket.close(1011, "Internal server error. Traceback included in previous frame.")

    with _connect(serve(fail)) as client:
        for _ in range(2):
            with pytest.raises(errors.RemoteError) as failure:
                client.infer({})
            assert str(failure.value).splitlines()[0].endswith("KeyError: 'state'")
            assert failure.value.remote_text == traceback
            assert isinstance(failure.value, RuntimeError)
    assert len(connections) == 2


def test_a_damaged_reply_is_an_error_and_the_next_one_is_good(serve):
    def damage_the_first(websocket):
        websocket.send(msgpack_numpy.packb({}))
        for message in websocket:
            good = msgpack_numpy.packb({"actions": np.zeros((1, 1))})
            websocket.send(b"\xc1" if msgpack_numpy.unpackb(message)["number"] == 1 else good)

    with _connect(serve(damage_the_first)) as client:
        with pytest.raises(errors.ProtocolError, match="malformed message"):
            client.infer({"number": 1})
        assert client.infer({"number": 2})["actions"].shape == (1, 1)


def test_the_key_travels_in_the_handshake_and_only_when_given(serve):
    seen = []

    def note_key(websocket):
        seen.append(websocket.request.headers.get("Authorization"))
        websocket.send(msgpack_numpy.packb({}))

    port = serve(note_key)
    WebsocketClientPolicy(HOST, port, "secret").close()
    WebsocketClientPolicy(HOST, port).close()
    assert seen == ["Api-Key secret", None]


def test_threads_that_share_a_client_get_their_own_replies(serve):
    wrong = []
    with _connect(serve(_number_server())) as client:

        def drive(first):
            wrong.extend(n for n in range(first, first + 20) if _number(client.infer({"number": n})) != n)

        threads = [threading.Thread(target=drive, args=(100 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert wrong == []


def test_an_observation_that_cannot_be_packed_is_refused_before_anything_is_sent(serve):
    with _connect(serve(_number_server())) as client:
        with pytest.raises(TypeError, match="cannot pack"):
            client.infer({"number": object()})
        assert _number(client.infer({"number": 2})) == 2


@pytest.mark.parametrize(
    ("host", "port", "uri"),
    [
        ("robot", 8000, "ws://robot:8000"),
        ("ws-robot.local", 8000, "ws://ws-robot.local:8000"),
        ("0.0.0.0", 8000, "ws://127.0.0.1:8000"),
        ("fe80::1", 8000, "ws://[fe80::1]:8000"),
        ("ws://robot", 8000, "ws://robot:8000"),
        ("wss://cloud.example/policy", None, "wss://cloud.example/policy"),
        ("wss://cloud.example/policy", 443, "wss://cloud.example:443/policy"),
    ],
)
def test_addresses_are_read_as_users_write_them(host, port, uri):
    assert address.server_uri(host, port) == uri


def test_only_private_addresses_bypass_a_proxy():
    assert all(address.is_private(f"ws://{host}:1") for host in ("localhost", "127.0.0.1", "192.168.1.18", "[::1]"))
    assert not any(address.is_private(f"ws://{host}:1") for host in ("cloud.example", "8.8.8.8"))
