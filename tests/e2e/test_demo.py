"""The demo keeps a server alive only as long as it must, and says what went wrong."""

import io
import json
import sys
import time

import psutil
import pytest
from rich.console import Console

from realman import demo
from realman.errors import RealmanError
from realman.errors import ServerError

READY_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def quiet() -> Console:
    return Console(file=io.StringIO())


def server(tmp_path, results, port):
    return demo.policy_server([sys.executable, "-c", READY_SERVER, str(port)], port, tmp_path / "log", results)


def test_a_failing_stage_stops_the_demo_and_is_named():
    with pytest.raises(RealmanError, match=r"stage 'train' ended with exit code 3"):
        demo.run_stage("train", [sys.executable, "-c", "raise SystemExit(3)"], quiet())


def test_a_stage_is_measured():
    result = demo.run_stage("busy", [sys.executable, "-c", "import time; x = b'1' * 2**26; time.sleep(1.5)"], quiet())
    assert result.seconds > 1
    assert result.peak_mib > 64


def test_the_server_is_stopped_when_the_block_fails(tmp_path):
    results, servers = [], []
    before = psutil.Process().children()

    def fail_inside():
        with server(tmp_path, results, demo.free_port()):
            servers.extend(child for child in psutil.Process().children() if child not in before)
            raise RealmanError("offline went wrong")

    with pytest.raises(RealmanError, match="offline went wrong"):
        fail_inside()
    assert len(servers) == 1
    assert not servers[0].is_running()
    assert [r.name for r in results] == ["serve"]


def test_a_server_that_ends_early_is_reported_with_its_log(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    start = time.monotonic()
    with (
        pytest.raises(ServerError, match=r"exit code 1 .*\. See .*log"),
        demo.policy_server(command, demo.free_port(), tmp_path / "log", []),
    ):
        pass
    assert time.monotonic() - start < demo.SERVER_START_S


def test_the_outcome_is_read_from_what_the_stages_left(tmp_path):
    (tmp_path / "train_log.jsonl").write_text('{"loss": 2.0}\n{"loss": 0.5}\n')
    report = {"overall_ratio": 0.4, "joints": {"mae": 1.5}}
    (tmp_path / "episode_0.json").write_text(json.dumps(report))
    outcome = demo.read_outcome(tmp_path, tmp_path)
    assert outcome == {"first_loss": 2.0, "last_loss": 0.5, "error_ratios": [0.4], "joint_errors_deg": [1.5]}


def test_the_server_is_asked_without_the_proxy_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(demo, "SERVER_START_S", 20)
    results = []
    with server(tmp_path, results, demo.free_port()):
        pass
    assert [result.name for result in results] == ["serve"]
