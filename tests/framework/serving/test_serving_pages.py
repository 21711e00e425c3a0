"""The policy server's HTTP answers, its access control, its metadata, and the replay policy."""

import base64
import contextlib
import hashlib
import http.client
import json
import logging
import pathlib
import re
import shutil
import socket
import subprocess

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
import websockets.sync.client

from openpi.policies import checkpoint_folder
from openpi.policies import realman_policy
from openpi.policies.recorder import PolicyRecorder
from openpi.serving import access
from openpi.serving import contract_metadata
from openpi.serving.background import serve_in_thread
from openpi.serving.replay_policy import ReplayPolicy
from openpi.serving.replay_policy import read_actions
from openpi.serving.websocket_policy_server import ServerOptions
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi.shared.errors import UserError
from openpi.training import config as _config
from openpi_client import base_policy
from openpi_client import errors
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
HOST = "127.0.0.1"
WAIT_S = 20.0
KEY = "a key of some length"


class EchoPolicy(base_policy.BasePolicy):
    def infer(self, obs):
        return {"actions": np.tile(obs["state"], (2, 1)), "policy_timing": {"infer_ms": 1.0, "preprocess_ms": 0.5}}


@contextlib.contextmanager
def _serving(policy=None, metadata=None, **options):
    server = WebsocketPolicyServer(policy or EchoPolicy(), HOST, 0, metadata, options=ServerOptions(**options))
    with serve_in_thread(server, timeout_s=WAIT_S):
        yield server


def _client(server, **kwargs):
    return WebsocketClientPolicy(HOST, server.port, connect_timeout_s=WAIT_S, request_timeout_s=WAIT_S, **kwargs)


def _get(server, path, headers=None):
    with contextlib.closing(http.client.HTTPConnection(HOST, server.port, timeout=WAIT_S)) as connection:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


def _obs(**kwargs):
    image = np.full((48, 64, 3), 200, np.uint8)
    return {"state": np.arange(14.0), "images": {"cam_high": image, "cam_low": np.moveaxis(image, -1, 0)}, **kwargs}


def test_metrics_count_what_happened():
    with _serving() as server, _client(server) as client:
        client.infer(_obs())
        with pytest.raises(errors.RemoteError):
            client.infer(_obs(state=np.full(14, np.nan)))
        status, headers, text = _get(server, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    for line in (
        "openpi_requests_total 2",
        'openpi_errors_total{code="bad_request"} 1',
        "openpi_clients 1",
        "openpi_requests_under_way 0",
        "openpi_ready 1",
        'openpi_phase_seconds_count{phase="model"} 1',
    ):
        assert line in text.splitlines()


def test_the_page_shows_model_latency_and_the_last_images():
    metadata = {"robot": "test", "config": "pi0_x", "checkpoint": "run/7", "step": 7, "prompt": "fold it"}
    with _serving(metadata=metadata) as server:
        assert "No request has been answered yet" in _get(server, "/")[2]
        with _client(server) as client:
            client.infer(_obs(prompt="wave"))
        status, headers, page = _get(server, "/")
    assert (status, headers.get_all("Content-Type")) == (200, ["text/html; charset=utf-8"])
    for text in ("ready", "pi0_x", "run/7", "fold it", "wave", "cam_high, 64 x 48", "Median", "13.000"):
        assert text in page
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [base64.b64decode(image)[:3] for image in images] == [b"\xff\xd8\xff"] * 2
    assert not re.search(r"<script|https?://", page)


def test_nothing_that_a_client_sends_becomes_part_of_the_page():
    hostile = '<script>alert("x")</script>'
    with _serving(metadata={"robot": hostile}) as server, _client(server) as client:
        client.infer(
            {"state": np.zeros(2), "prompt": hostile, hostile: 1.0, "images": {hostile: _obs()["images"]["cam_low"]}}
        )
        status, headers, page = _get(server, "/")
    assert status == 200
    assert "<script" not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_without_the_key_only_the_health_of_the_server_is_shown():
    with _serving(api_keys=(KEY,)) as server:
        assert [_get(server, path)[0] for path in ("/healthz", "/readyz", "/metrics", "/", "/x")] == [
            200,
            200,
            401,
            401,
            401,
        ]
        assert "Basic" in _get(server, "/")[1]["WWW-Authenticate"]
        assert (
            _get(server, "/", {"Authorization": "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()})[0] == 200
        )
        assert _get(server, "/metrics", {"Authorization": f"Api-Key {KEY}"})[0] == 200
        for wrong in (None, "another key altogether"):
            with pytest.raises(errors.ServerUnreachableError, match="401"):
                _client(server, api_key=wrong)
        with _client(server, api_key=KEY) as client:
            assert client.infer(_obs())["actions"].shape == (2, 14)


def test_pages_of_other_sites_cannot_connect():
    with _serving() as server, pytest.raises(InvalidStatus, match="403"):
        websockets.sync.client.connect(f"ws://{HOST}:{server.port}", origin="http://evil.example").__enter__()


def test_a_connection_can_be_encrypted(tmp_path, monkeypatch):
    cert, key = _self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with _serving(tls=access.tls_context(cert, key)) as server:
        with WebsocketClientPolicy(f"wss://{HOST}", server.port, connect_timeout_s=WAIT_S) as client:
            assert client.infer(_obs())["actions"].shape == (2, 14)
        with socket.create_connection((HOST, server.port), timeout=WAIT_S) as sock, contextlib.suppress(OSError):
            sock.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert b"OK" not in sock.recv(4096)


def _self_signed(folder):
    openssl = shutil.which("openssl") or pytest.skip("the program 'openssl' makes the certificate of this test")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test -keyout {key} -out {cert}"
    subprocess.run(
        [openssl, *command.split(), "-addext", f"subjectAltName=IP:{HOST}"],
        check=True,
        capture_output=True,
        timeout=WAIT_S,
    )
    return cert, key


def test_the_metadata_says_all_that_a_client_must_agree_with():
    step_dir = GOLDEN / "pi0_checkpoint" / "7"
    config = _config.get_config("pi0_realman")
    data_config = config.data.create(None, config.model)
    metadata = contract_metadata.describe_checkpoint(
        config, data_config, step_dir, example=realman_policy.make_realman_example(), default_prompt="wave"
    )
    stats = checkpoint_folder.find_norm_stats(step_dir, None) / "norm_stats.json"
    assert metadata == {
        **config.policy_metadata,
        "config": "pi0_realman",
        "checkpoint": "pi0_checkpoint/7",
        "step": 7,
        "model": "pi0",
        "state_dim": 14,
        "image_size": [224, 224],
        "delta_mask": [True] * 6 + [False] + [True] * 6 + [False],
        "norm_stats_sha256": hashlib.sha256(stats.read_bytes()).hexdigest(),
        "prompt": "wave",
        "protocol": {"features": list(contract_metadata.FEATURES)},
    }
    assert {"robot", "dim_names", "units", "cameras", "fps", "action_chunk", "action_horizon"} <= metadata.keys()
    assert msgpack_numpy.unpackb(msgpack_numpy.packb(metadata)) == metadata
    assert str(GOLDEN) not in json.dumps(metadata)


def test_each_client_is_served_the_recording_from_its_beginning_to_its_held_end():
    actions = np.arange(5.0)[:, None]
    policy = ReplayPolicy(actions, action_horizon=4, action_chunk=2)
    with _serving(policy) as server:
        for _ in range(2):
            with _client(server) as client:
                chunks = [client.infer({"state": np.zeros(1)})["actions"][:, 0].tolist() for _ in range(4)]
            assert chunks == [[0, 1, 2, 3], [2, 3, 4, 4], [4, 4, 4, 4], [4, 4, 4, 4]]


def test_a_replay_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        ReplayPolicy(np.zeros((0, 14)), action_horizon=4, action_chunk=2)
    with pytest.raises(ValueError, match="expected 1 to action_horizon"):
        ReplayPolicy(np.zeros((3, 14)), action_horizon=4, action_chunk=5)


def test_recorded_actions_are_those_of_the_dataset():
    root = GOLDEN / "lerobot_v21_image"
    for episode in (0, 1):
        actions = read_actions("golden", episode, root)
        assert actions.ndim == 2
        assert len(actions) == json.loads((root / "meta/episodes.jsonl").read_text().splitlines()[episode])["length"]
    with pytest.raises(UserError, match="no episode 99"):
        read_actions("golden", 99, root)
    with pytest.raises(UserError, match="no column 'x'"):
        read_actions("golden", 0, root, key="x")


def test_a_recorder_that_cannot_write_is_shown_on_the_page_and_in_the_metrics(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with contextlib.closing(PolicyRecorder(EchoPolicy(), tmp_path / "file")) as recorded, _serving(recorded) as server:
        with _client(server) as client:
            client.infer(_obs())
        page, metrics = _get(server, "/")[2], _get(server, "/metrics")[2]
    assert "the latest record was not written (FileExistsError" in page
    assert "openpi_recording 0" in metrics.splitlines()
    assert "openpi_records_written 0" in metrics.splitlines()
    with (
        contextlib.closing(PolicyRecorder(EchoPolicy(), tmp_path / "folder")) as recorded,
        _serving(recorded) as server,
    ):
        page, metrics = _get(server, "/")[2], _get(server, "/metrics")[2]
    assert "was not written" not in page
    assert "openpi_recording 1" in metrics.splitlines()


def test_request_targets_of_any_form_get_an_answer_and_no_traceback(caplog):
    with _serving() as server:
        for target in ("//[", "http://[::1", "/%00", "/" + "x" * 5000, "*", "/x?\x7f"):
            with socket.create_connection((HOST, server.port), timeout=WAIT_S) as sock:
                sock.sendall(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
                reply = sock.recv(4096)
            assert reply.startswith((b"HTTP/1.1 426", b"HTTP/1.1 400", b"HTTP/1.1 404")), (target, reply)
        assert _get(server, "/healthz")[0] == 200


def test_what_a_stranger_sends_reaches_the_log_as_visible_text_only(caplog):
    with _serving() as server, caplog.at_level("INFO"):
        for line in (b"\x1b[2J\x1b[31mGET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nX: \x1b]0;title\x07\r\n\r\n"):
            with socket.create_connection((HOST, server.port), timeout=WAIT_S) as sock:
                sock.sendall(line)
                sock.recv(4096)
        with _client(server) as client, pytest.raises(errors.RemoteError):
            client.infer({"\x1b[31mred\nforged line": float("nan")})
        with _client(server) as client, pytest.raises(errors.RemoteError):
            client.infer({"state": np.zeros((2, 2, 2, 2)), "images": {"\x1b[31m\nx": b"\xff\xd8\xff\x1b"}})
    formatter = logging.Formatter("%(message)s")
    for record in caplog.records:
        text = formatter.format(record)
        assert all(line.isprintable() for line in text.splitlines())
        assert not any(line.startswith("forged") for line in text.splitlines())
