"""The websocket client against servers that are late, gone, restarted or of another kind."""

import contextlib
import http
import json
import socket
import socketserver
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


def _answer_once(metadata_of, counts):
    """A handler that closes after each reply. `metadata_of(n)` is what it says to its n-th client."""

    def handle(websocket):
        counts.append(len(counts))
        websocket.send(msgpack_numpy.packb(metadata_of(len(counts))))
        websocket.recv()
        websocket.send(msgpack_numpy.packb({"actions": np.full((2, 1), len(counts))}))

    return handle


def _wait_for_goodbye(client):
    client._connection._websocket.recv_events_thread.join(WAIT_S)


def test_the_client_reconnects_to_a_restarted_server_that_says_the_same(serve):
    with _connect(
        serve(_answer_once(lambda n: {"make": "original", "mask": np.array([True]), "fps": 50.0}, []))
    ) as client:
        for count in range(1, 4):
            assert _number(client.infer({})) == count
            _wait_for_goodbye(client)


CHANGES = {
    "another rate": ({"fps": 30}, r"'fps' was 50, is 30\. Start"),
    "another order": ({"dim_names": ["b", "a", "c"]}, r"'dim_names\[0\]' was 'a', is 'b' and 1 more"),
    "fewer numbers": ({"dim_names": ["a"]}, r"'dim_names' was \['a', 'b', 'c'\], is \['a'\]"),
    "another unit": ({"units": {"joints": "deg"}}, r"'units\.joints' was 'rad', is 'deg'"),
    "another checkpoint": ({"step": 8}, r"'step' was 7, is 8"),
    "another array": ({"mask": np.array([True, False])}, r"'mask' was array"),
    "a key that is gone": ({"fps": None, "drop": "fps"}, r"'fps' was 50, is missing"),
    "a key that is new": ({"robot": "r2"}, r"'robot' was missing, is 'r2'"),
    "true for one": ({"flag": True}, r"'flag' was 1, is True"),
}


@pytest.mark.parametrize(("changes", "message"), CHANGES.values(), ids=CHANGES)
def test_a_server_that_says_something_else_after_a_reconnection_is_refused(serve, changes, message):
    before = {
        "fps": 50,
        "dim_names": ["a", "b", "c"],
        "units": {"joints": "rad"},
        "step": 7,
        "mask": np.array([True, True]),
        "flag": 1,
    }
    after = {**before, **changes}
    if drop := after.pop("drop", None):
        del after[drop]
    with _connect(serve(_answer_once(lambda n: before if n == 1 else after, []))) as client:
        client.infer({})
        for _ in range(2):  # It stays refused.
            if client._connection is not None:
                _wait_for_goodbye(client)
            with pytest.raises(errors.ServerChangedError, match=message) as failure:
                client.infer({})
            assert "came back as another one" in str(failure.value)
            assert "\n" not in str(failure.value)
            assert client._connection is None
        assert client.get_server_metadata()["fps"] == 50


def test_a_first_server_that_returns_is_accepted_again(serve):
    with _connect(serve(_answer_once(lambda n: {"step": 8 if n == 2 else 7}, []))) as client:
        client.infer({})
        _wait_for_goodbye(client)
        with pytest.raises(errors.ServerChangedError):
            client.infer({})
        assert _number(client.infer({})) == 3


def test_many_differences_are_counted(serve):
    with _connect(serve(_answer_once(lambda n: {str(key): n for key in range(20)}, []))) as client:
        client.infer({})
        _wait_for_goodbye(client)
        with pytest.raises(errors.ServerChangedError, match="'5' was 1, is 2; and 14 more"):
            client.infer({})


def test_a_reply_that_nobody_asked_for_is_never_taken_for_an_answer(serve):
    sent = threading.Event()

    def answer_twice(websocket):
        websocket.send(msgpack_numpy.packb({}))
        for message in websocket:
            number = msgpack_numpy.unpackb(message)["number"]
            for _ in range(2 if number == 1 else 1):
                websocket.send(msgpack_numpy.packb({"actions": np.full((2, 1), number)}))
            sent.set()

    with _connect(serve(answer_twice)) as client:
        assert _number(client.infer({"number": 1})) == 1
        assert sent.wait(WAIT_S)
        client._connection._websocket.ping().wait(WAIT_S)  # until the surplus has arrived
        with pytest.raises(errors.ProtocolError, match="bytes that answers no request"):
            client.infer({"number": 2})
        # The next request has a connection of its own.
        assert [_number(client.infer({"number": n})) for n in (3, 4)] == [3, 4]


def _numbering_server(reply_id, seen):
    """A handler that knows request numbers. `reply_id(n)` is the number in the answer to request n."""

    def handle(websocket):
        websocket.send(msgpack_numpy.packb({"protocol": {"features": ["request_id"]}}))
        for message in websocket:
            request = msgpack_numpy.unpackb(message)
            seen.append(request["openpi_request"]["request_id"])
            reply = {"actions": np.full((2, 1), request["number"])}
            if (found := reply_id(seen[-1])) is not None:
                reply["openpi_reply"] = {"request_id": found}
            websocket.send(msgpack_numpy.packb(reply))

    return handle


def test_replies_are_tied_to_requests_by_a_number_that_never_comes_twice(serve):
    seen = []
    with _connect(serve(_numbering_server(lambda n: n, seen))) as client:
        for number in range(3):
            reply = client.infer({"number": number, "openpi_request": {"request_id": 99}})
            assert _number(reply) == number
            assert set(reply) == {"actions"}
        client.close()
        client.infer({"number": 4})
    assert len(set(seen)) == 4
    assert 99 not in seen


OTHER_IDS = {
    "older": lambda n: n - 1,
    "none": lambda n: None,
    "text": str,
    "true": lambda n: True,
    "array": lambda n: np.array([n, n]),
}


@pytest.mark.parametrize("reply_id", OTHER_IDS.values(), ids=OTHER_IDS)
def test_the_answer_to_another_request_is_refused(serve, reply_id):
    with _connect(serve(_numbering_server(reply_id, []))) as client:
        with pytest.raises(errors.ProtocolError, match="expected the answer to request 1"):
            client.infer({"number": 1})
        assert client._connection is None


def test_an_error_for_another_request_is_not_this_requests_error(serve):
    def fail(websocket):
        websocket.send(msgpack_numpy.packb({"protocol": {"features": ["request_id"]}}))
        for number, message in enumerate(websocket):
            own = msgpack_numpy.unpackb(message)["openpi_request"]["request_id"]
            websocket.send(json.dumps({"error": {"code": "internal", "message": "broken", "request_id": own + number}}))

    process_request = {"process_response": _promise_to_keep}
    with _connect(serve(fail, **process_request)) as client:
        with pytest.raises(errors.RemoteError, match="broken"):
            client.infer({})
        with pytest.raises(errors.ProtocolError, match="answered request 3, expected the answer to request 2"):
            client.infer({})


def _promise_to_keep(_websocket, _request, response):
    response.headers["X-OpenPI-Keep-Connection"] = "1"


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


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("robot:8000", 8000),
        ("http://robot", 8000),
        ("ws://robot:99999", None),
        ("[::1", 8000),
        ("ws://", 8000),
        ("", 8000),
        ("two words", 8000),
        ("robot\n", 8000),
        ("x" * 64, 8000),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_in_one_line(host, port):
    with pytest.raises(errors.PolicyClientError, match="expected a name or an address") as failure:
        WebsocketClientPolicy(host, port, connect_timeout_s=0.1)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("end", ["\n", "\r", "\0", "\u65e5"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(end):
    with pytest.raises(errors.PolicyClientError, match="API key: its character 7 of 7") as failure:
        WebsocketClientPolicy(HOST, 1, f"secret{end}", connect_timeout_s=0.1)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("name", ["policy-server", "policy.example.org", "policy-server.local", HOST])
@pytest.mark.parametrize("proxy", ["http://", "socks5://", "not an address"])
def test_a_proxy_in_the_environment_is_never_asked(serve, monkeypatch, name, proxy):
    """The proxy refuses, as a company's does for machines inside."""
    asked = []
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *args, **kwargs: resolve(HOST if host == name else host, *args, **kwargs)
    )
    with socketserver.TCPServer((HOST, 0), lambda *args: asked.append(args)) as refusing:
        threading.Thread(target=refusing.serve_forever, args=(0.01,)).start()
        url = f"{proxy}{HOST}:{refusing.server_address[1]}" if proxy.endswith("//") else proxy
        for variable in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "socks_proxy"):
            monkeypatch.setenv(variable, url)
            monkeypatch.setenv(variable.upper(), url)
        monkeypatch.setenv("no_proxy", "elsewhere.example")
        try:
            with WebsocketClientPolicy(name, serve(_number_server()), connect_timeout_s=WAIT_S) as client:
                assert client.infer({"number": 3})["actions"].tolist() == [[3.0], [3.0]]
        finally:
            refusing.shutdown()
    assert not asked
