"""The stages as a user runs them: convert, norm stats, train, resume, serve, offline evaluation, client.

Everything is real but small: HDF5 files, parquet, the pi0 network of `debug_realman`, orbax, websockets on loopback. The
recordings are 48x64 pixels, and the robot is the simulated one.
"""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import ProxyHandler
from urllib.request import build_opener

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "third_party/openpi/scripts"
EXAMPLES = ROOT / "examples/realman"
CONFIG = "debug_realman"
REPO_ID = "realman/e2e"


def run(folder: Path, *command: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` and require its exit code."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_LEROBOT_HOME": str(folder / "lerobot"), "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == code, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_recordings) -> Path:
    """A folder in which convert, norm-stats and three training steps have run."""
    folder = tmp_path_factory.mktemp("e2e")
    run(folder, EXAMPLES / "convert_realman_data_to_lerobot.py", "--raw-dir", tiny_recordings, "--repo-id", REPO_ID)
    run(folder, SCRIPTS / "compute_norm_stats.py", "--config-name", CONFIG, "--repo-id", REPO_ID)
    train(folder, "--num-train-steps", "3")
    return folder


def train(folder: Path, *flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    common = ("--exp-name", "e2e", "--data.repo-id", REPO_ID, "--batch-size", "2", "--log-interval", "1")
    return run(folder, SCRIPTS / "train.py", CONFIG, *common, *flags, code=code)


@pytest.fixture(scope="module")
def server(workplace):
    """Serve the trained checkpoint on a free port and yield the port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [
        sys.executable,
        SCRIPTS / "serve_policy.py",
        "--port",
        port,
        "policy:checkpoint",
        "--policy.config",
        CONFIG,
    ]
    command += ["--policy.dir", workplace / "checkpoints" / CONFIG / "e2e"]
    log_path = workplace / "server.log"
    with log_path.open("wb") as log:
        env = {**os.environ, "JAX_PLATFORMS": "cpu"}
        process = subprocess.Popen(
            list(map(str, command)), cwd=workplace, env=env, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_ready(process, port, log_path)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code == 0, log_path.read_text()[-2000:]


def wait_until_ready(process: subprocess.Popen, port: int, log_path: Path) -> None:
    direct = build_opener(ProxyHandler({}))
    for _ in range(600):
        assert process.poll() is None, log_path.read_text()[-3000:]
        try:
            with direct.open(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (URLError, OSError):
            pass
        time.sleep(0.2)
    pytest.fail(f"server not ready: {log_path.read_text()[-3000:]}")


def test_training_leaves_a_checkpoint_that_carries_its_norm_stats(workplace):
    run_dir = workplace / "checkpoints" / CONFIG / "e2e"
    steps = [p for p in run_dir.iterdir() if p.name.isdigit()]
    assert [p.name for p in steps] == ["2"]
    assert (steps[0] / "params").is_dir()
    assert (steps[0] / "train_state").is_dir()
    stats = list((steps[0] / "assets").rglob("norm_stats.json"))
    assert len(stats) == 1
    trained_with = json.loads(stats[0].read_text())["norm_stats"]
    computed = json.loads(next((workplace / "assets" / CONFIG).rglob("norm_stats.json")).read_text())["norm_stats"]
    assert trained_with == computed
    assert len(trained_with["state"]["mean"]) == 14
    # What the model was trained for travels with the step.
    settings = json.loads((steps[0] / "assets/settings.json").read_text())
    assert (settings["config"], settings["fps"], settings["asset_id"]) == (CONFIG, 50, REPO_ID)
    assert settings["contract"]["dim_names"][0] == "right_waist"


def test_a_run_is_neither_overwritten_nor_restarted_without_a_flag(workplace):
    result = train(workplace, "--num-train-steps", "4", code=1)
    assert "--resume" in result.stderr
    assert "--overwrite" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_client_evaluates_a_recording_offline_through_the_server(workplace, server, tiny_recordings):
    out = workplace / "offline"
    recording = sorted(Path(tiny_recordings).glob("*.hdf5"))[0]
    result = run(workplace, EXAMPLES / "offline.py", "--port", server, "--data", recording, "--out-dir", out)
    assert "right_waist" in result.stdout
    assert len(list(out.glob("*.png"))) == 1
    report = json.loads(next(out.glob("*.json")).read_text())
    assert len(report["per_dim"]) == 14


def test_the_realtime_client_drives_the_simulated_robot(workplace, server):
    out = workplace / "client"
    flags = ("--max-steps", "50", "--prompt", "pick up the cube", "--out-dir", out)
    result = run(workplace, EXAMPLES / "main.py", "--port", server, *flags)
    assert "50" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("compute_norm_stats.py", "--config-name", "debug_realmann"), "debug_realman"),
        (("train.py", CONFIG, "--exp-name", "x", "--data.repo-id", "realman/absent"), "realman/absent"),
        (("serve_policy.py", "policy:checkpoint", "--policy.config", CONFIG, "--policy.dir", "lerobot"), "params"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_1(workplace, command, says):
    before = sorted(p.as_posix() for p in workplace.rglob("*"))
    result = run(workplace, SCRIPTS / command[0], *command[1:], code=1)
    errors = [line for line in result.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in result.stderr
    assert sorted(p.as_posix() for p in workplace.rglob("*")) == before


def test_training_without_norm_stats_names_the_command_that_makes_them(workplace):
    result = train(workplace, "--assets-base-dir", "elsewhere", "--exp-name", "nostats", code=1)
    assert "make norm-stats" in result.stderr
    assert not (workplace / "checkpoints" / CONFIG / "nostats").exists()


def test_a_client_without_a_server_says_how_to_start_one(workplace):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    result = run(workplace, EXAMPLES / "main.py", "--port", port, "--connect-timeout", "1", "--max-steps", "5", code=1)
    assert f"127.0.0.1:{port}" in result.stderr
    assert "make serve" in result.stderr
    assert "Traceback" not in result.stderr
