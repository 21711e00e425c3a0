"""`realman client` from flags to exit code.

The robot is a stand-in, and the server is a real one on loopback.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
import types

import numpy as np
import pytest

from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from realman import cli
from realman import spec
from realman.data.raw.episode import open_episode
from realman.errors import DatasetError
from realman.errors import FlagError
from realman.errors import RejectedError
from realman.errors import ServerError
from realman.errors import SiteError
from realman.robots.robot import RobotObservation
from realman.runtime.safety import SafetySettings
from realman.station import client_command
from realman.station.site_config import SIM_SITE
from realman.station.site_config import ServerSettings
from realman.station.site_config import Site

METADATA = {
    "robot": "realman_rm65_dual",
    "dim_names": list(spec.DIM_NAMES),
    "cameras": ["cam_high"],
    "action_chunk": 5,
    "action_horizon": 10,
    "fps": 50,
}


class FakeRobot:
    """Arms that go where they are sent.

    The task is done once they have moved.
    """

    fps = 50.0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.state = np.zeros(14)

    def connect(self) -> None:
        self.calls.append("connect")

    def observe(self) -> RobotObservation:
        self.calls.append("observe")
        return RobotObservation(self.state.copy(), {"cam_high": np.zeros((48, 64, 3), np.uint8)}, time.monotonic())

    def send(self, target: np.ndarray) -> np.ndarray:
        self.calls.append("send")
        self.state = target.copy()
        return target

    def stop(self) -> None:
        self.calls.append("stop")

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def is_task_done(self) -> bool:
        return "send" in self.calls

    @property
    def num_sent(self) -> int:
        return self.calls.count("send")


class Ramp(base_policy.BasePolicy):
    """Moves all joints slowly.

    `then` replaces its third reply. The first reply is the pre-flight's.
    """

    def __init__(self, then=None) -> None:
        self.count = 0
        self._then = then

    def infer(self, obs: dict) -> dict:
        self.count += 1
        if self._then is not None and self.count == 3:
            return {"actions": self._then()}
        return {"actions": obs["state"] + 0.001 * np.arange(1, 11)[:, None] * np.ones(14)}


@pytest.fixture(scope="module")
def example():
    """The command `realman client`."""
    return client_command


@contextlib.contextmanager
def serving(policy, **metadata):
    server = WebsocketPolicyServer(policy, "127.0.0.1", 0, {**METADATA, **metadata})
    with serve_in_thread(server):
        yield server


def start(example, server, tmp_path, robot, site: Site = SIM_SITE, **flags) -> int:
    args = example.Args(**{"port": server.port, "out_dir": tmp_path / "out", "max_steps": 12, "prompt": "go", **flags})
    return example.run_site(args, example.resolve_site(args) if site is SIM_SITE else site, robot)


def real_site(port: int) -> Site:
    """Return a real robot's site for a machine that may be late."""
    patient = SafetySettings(
        max_observation_age_ms=60_000, max_policy_age_ms=60_000, max_overrun_ms=60_000, max_late_ticks=1_000_000
    )
    site = Site(robot="emulated", server=ServerSettings(port=port), safety=patient)
    # Real arms accept no such patience, so the site becomes theirs behind the back of its check.
    object.__setattr__(site, "robot", "rm65")
    return site


def test_a_good_run_ends_with_a_summary_and_the_task_judged(example, tmp_path, capsys):
    robot = FakeRobot()
    with serving(Ramp()) as server:
        assert start(example, server, tmp_path, robot) == 0
    assert robot.num_sent == 12
    assert robot.calls[-2:] == ["stop", "disconnect"]
    summary = json.loads((tmp_path / "out/run.json").read_text())
    assert (summary["steps"], summary["predictions"], summary["task_done"]) == (12, 3, True)
    with np.load(tmp_path / "out/run.npz") as arrays:
        assert arrays["sent"].shape == (12, 14)
        np.testing.assert_array_equal(arrays["sent"][-1], robot.state)
    printed = capsys.readouterr()
    assert "12 steps done" in printed.out
    assert "Pre-flight" in printed.err


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (lambda: np.full((10, 14), np.nan), "is nan, expected finite"),
        (lambda: np.zeros((4, 14)), "shape"),
        (lambda: np.zeros((10, 13)), "shape"),
    ],
    ids=["nan", "short", "narrow"],
)
def test_a_bad_chunk_stops_the_arms_with_one_line(example, tmp_path, reply, says):
    robot = FakeRobot()
    with serving(Ramp(then=reply)) as server, pytest.raises(ServerError, match=says) as caught:
        start(example, server, tmp_path, robot)
    assert "\n" not in str(caught.value)
    assert robot.num_sent == 5
    assert robot.calls[-2:] == ["stop", "disconnect"]
    assert says in json.loads((tmp_path / "out/run.json").read_text())["ended_by"]


def test_a_server_that_dies_in_the_middle_stops_the_arms_with_exit_code_1(example, tmp_path, capsys, monkeypatch):
    robot, holder = FakeRobot(), {}

    def die():
        holder["server"].stop()
        time.sleep(0.2)
        raise RuntimeError("gone")

    with serving(Ramp(then=die)) as server:
        holder["server"] = server
        monkeypatch.setattr(sys, "argv", ["main.py", "--port", str(server.port), "--out-dir", str(tmp_path)])
        monkeypatch.setattr(example.site_config, "open_robot", lambda _site: robot)
        with pytest.raises(SystemExit) as caught:
            cli.run(example.main, example.Args)
    assert caught.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert robot.num_sent == 5
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_no_server_never_touches_the_robot(example, tmp_path, monkeypatch, capsys):
    robot = FakeRobot()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    monkeypatch.setattr(sys, "argv", ["main.py", "--port", str(port), "--connect-timeout", "0.3"])
    monkeypatch.setattr(example.site_config, "open_robot", lambda _site: robot)
    with pytest.raises(SystemExit) as caught:
        cli.run(example.main, example.Args)
    assert caught.value.code == 1
    assert f"no policy server at 127.0.0.1:{port}" in capsys.readouterr().err
    assert robot.calls == []


def test_a_server_of_another_rate_never_touches_the_robot(example, tmp_path):
    robot = FakeRobot()
    with serving(Ramp(), fps=30) as server, pytest.raises(ServerError, match="'fps' is 30"):
        start(example, server, tmp_path, robot)
    assert robot.calls == []


def test_ctrl_c_stops_the_arms_and_is_not_a_failure_of_the_run(example, tmp_path, capsys):
    class Interrupting(FakeRobot):
        def send(self, target):
            if self.num_sent == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().send(target)

    robot = Interrupting()
    with serving(Ramp()) as server:
        assert start(example, server, tmp_path, robot, max_steps=None) == 130
    assert robot.calls[-2:] == ["stop", "disconnect"]
    assert json.loads((tmp_path / "out/run.json").read_text())["ended_by"] == "SIGINT"


def test_a_missing_camera_is_found_before_anything_moves(example, tmp_path):
    robot = FakeRobot()
    with (
        serving(Ramp(), cameras=["cam_high", "cam_low"]) as server,
        pytest.raises(RejectedError, match="no frame of cam_low"),
    ):
        start(example, server, tmp_path, robot)
    assert robot.num_sent == 0
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_a_dry_run_moves_nothing(example, tmp_path):
    robot = FakeRobot()
    with serving(Ramp()) as server:
        assert start(example, server, tmp_path, robot, dry_run=True) == 0
    assert robot.num_sent == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["task_done"] is None


def test_real_arms_do_not_move_without_permission(example, tmp_path, caplog):
    robot = FakeRobot()
    with serving(Ramp()) as server:
        assert start(example, server, tmp_path, robot, real_site(server.port)) == 0
    assert robot.num_sent == 0
    assert "--enable-motion" in caplog.text


@pytest.mark.parametrize(("answer", "moved"), [("yes", 12), ("y", 0), ("", 0)])
def test_real_arms_move_after_one_confirmation(example, tmp_path, monkeypatch, answer, moved, capsys):
    robot = FakeRobot()
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    with serving(Ramp()) as server:
        outcome = contextlib.nullcontext() if moved else pytest.raises(RejectedError, match="not confirmed")
        with outcome:
            start(example, server, tmp_path, robot, real_site(server.port), enable_motion=True)
    assert robot.num_sent == moved
    assert "emergency stop" in capsys.readouterr().err
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_real_arms_are_paced_by_the_clock(example, tmp_path):
    with serving(Ramp()) as server:
        start(example, server, tmp_path, FakeRobot(), real_site(server.port), enable_motion=True, yes=True)
    summary = json.loads((tmp_path / "out/run.json").read_text())
    # Twelve ticks of 20 ms, the last of which need not be waited for.
    assert summary["duration_s"] >= 0.2
    assert summary["late_steps"] is not None


def test_without_the_vendors_sdk_the_real_robot_says_how_to_get_it(example, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "Robotic_Arm", None)
    path = tmp_path / "site.toml"
    path.write_text('robot = "rm65"\n[cameras.cam_high]\nkind = "opencv"\ndevice = "/dev/nowhere"\n')
    with serving(Ramp()) as server, pytest.raises(SiteError, match="pip install Robotic_Arm") as caught:
        example.main(example.Args(site=path, port=server.port, out_dir=tmp_path))
    assert "\n" not in str(caught.value)


def test_real_arms_named_by_a_flag_never_get_the_limits_of_the_simulation(example):
    assert example.resolve_site(example.Args(robot="rm65")).safety == Site().safety
    assert example.resolve_site(example.Args(robot="emulated")).safety == SIM_SITE.safety


def test_flags_override_the_sites_file(example, tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('prompt = "fold"\n[server]\nhost = "robot-server"\nport = 9000\n')
    site = example.resolve_site(example.Args(site=path, port=9001))
    assert (site.server.host, site.server.port, site.prompt) == ("robot-server", 9001, "fold")
    assert example.resolve_site(example.Args(site=path, prompt="tidy")).prompt == "tidy"


def test_a_run_is_recorded_with_its_prompt_and_what_was_really_sent(example, tmp_path, caplog):
    robot = FakeRobot()
    with serving(Ramp()) as server, caplog.at_level(logging.INFO):
        assert start(example, server, tmp_path, robot, record=tmp_path / "rollouts") == 0
    assert "make convert DATA=" in caplog.text
    with open_episode(tmp_path / "rollouts/episode_0.hdf5") as episode:
        assert (episode.num_frames, episode.fps, episode.task, episode.cameras) == (12, 50, "go", ("cam_high",))
        with np.load(tmp_path / "out/run.npz") as log:
            np.testing.assert_allclose(episode.action, log["sent"], atol=1e-6)


def test_a_run_without_a_prompt_is_recorded_with_the_servers_default(example, tmp_path):
    with serving(Ramp(), prompt="fold the towel") as server:
        silent = dataclasses.replace(SIM_SITE, prompt=None, server=ServerSettings(port=server.port))
        assert start(example, server, tmp_path, FakeRobot(), silent, record=tmp_path / "rollouts") == 0
    with open_episode(tmp_path / "rollouts/episode_0.hdf5") as episode:
        assert episode.task == "fold the towel"


def test_a_dry_run_is_not_recorded(example, tmp_path):
    with serving(Ramp()) as server:
        assert start(example, server, tmp_path, FakeRobot(), dry_run=True, record=tmp_path / "rollouts") == 0
    assert not (tmp_path / "rollouts").exists()


def test_recording_needs_a_task_and_a_place_before_the_robot_is_touched(example, tmp_path):
    robot = FakeRobot()
    (tmp_path / "file").touch()
    site = dataclasses.replace(SIM_SITE, prompt=None)
    with serving(Ramp()) as server:
        local = dataclasses.replace(site, server=ServerSettings(port=server.port))
        with pytest.raises(RejectedError, match=r"no task text is known\. Pass --prompt"):
            start(example, server, tmp_path, robot, local, record=tmp_path / "rollouts")
        with pytest.raises(
            FlagError, match=r"rollouts: cannot be written \(.*\)\. Choose another folder with --record$"
        ):
            start(example, server, tmp_path, robot, record=tmp_path / "file/rollouts")
    assert robot.calls == []


def test_a_dataset_that_exists_is_not_recorded_over(example, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    (tmp_path / "a/b/meta").mkdir(parents=True)
    (tmp_path / "a/b/meta/info.json").touch()
    robot = FakeRobot()
    with serving(Ramp()) as server, pytest.raises(DatasetError, match="dataset already exists"):
        start(example, server, tmp_path, robot, record=tmp_path / "rollouts", record_repo_id="a/b")
    assert robot.calls == []


def test_keys_steer_a_run_in_a_terminal_which_is_restored(example, tmp_path, monkeypatch):
    master, slave = pty.openpty()
    monkeypatch.setattr(os, "tcgetpgrp", lambda _fd: os.getpgrp())
    pressed = []

    class Slow(FakeRobot):
        def send(self, target):
            time.sleep(0.002)
            if self.num_sent == 5 and not pressed:
                pressed.append(os.write(master, b"q"))
            return super().send(target)

    robot = Slow()
    with os.fdopen(slave) as file:
        monkeypatch.setattr(sys, "stdin", file)
        before = termios.tcgetattr(slave)
        with serving(Ramp()) as server:
            assert start(example, server, tmp_path, robot, max_steps=None) == 0
        assert termios.tcgetattr(slave) == before
    os.close(master)
    assert json.loads((tmp_path / "out/run.json").read_text())["ended_by"] == "the end key"
    assert robot.calls[-2:] == ["stop", "disconnect"]


IMPORTED = """
import importlib.metadata, importlib.util, sys
before = set(sys.modules)  # what every Python of this environment loads
spec = importlib.util.spec_from_file_location("client", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["client"] = module
spec.loader.exec_module(module)
owners = importlib.metadata.packages_distributions()
new = {name: m for name, m in sys.modules.items() if name not in before}
loaded = {name.partition(".")[0] for name, m in new.items() if "site-packages" in (getattr(m, "__file__", None) or "")}
print(*sorted({owner.lower().replace("_", "-") for name in loaded for owner in owners.get(name, [name])}))
"""


def test_the_client_needs_nothing_that_the_robot_pcs_lock_lacks(repo_root):
    lock = (repo_root / "requirements/robot-pc.lock").read_text()
    locked = set(re.findall(r"^([a-z0-9.-]+)==", lock, flags=re.MULTILINE))
    command = [sys.executable, "-c", IMPORTED, str(repo_root / "examples/realman/main.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=repo_root)
    assert {"numpy", "h5py", "websockets", "rich"} <= set(done.stdout.split())
    assert set(done.stdout.split()) - locked - {"realman-openpi"} == set()


@pytest.mark.parametrize("place", ["/proc/run", "file/run", "file"])
def test_a_place_for_the_report_is_tried_before_the_robot_is_touched(example, tmp_path, place):
    robot = FakeRobot()
    (tmp_path / "file").touch()
    folder = tmp_path / place
    with serving(Ramp()) as server:
        with pytest.raises(
            FlagError, match=rf"^{folder}: cannot be written \(.*\)\. Choose another folder with --out-dir$"
        ):
            start(example, server, tmp_path, robot, out_dir=folder)
        assert robot.calls == []
        assert start(example, server, tmp_path, robot, out_dir=tmp_path / "other/run") == 0
    assert (tmp_path / "other/run/run.json").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_run_says_why_it_ended_also_when_its_report_cannot_be_written(
    example, tmp_path, monkeypatch, capsys, caplog, number
):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "savez_compressed", refuse)
    with serving(Ramp()) as server:
        assert start(example, server, tmp_path, FakeRobot()) == 1
    assert re.search(r"ended by +. 12 steps done", capsys.readouterr().out)
    assert f"the report could not be written ({os.strerror(number)})" in caplog.text


def test_the_error_of_a_run_is_not_replaced_by_that_of_its_report(example, tmp_path, monkeypatch, capsys, caplog):
    def refuse(*args, **kwargs):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    class Broken(FakeRobot):
        def send(self, target):
            if len(self.calls) > 5:
                raise RejectedError("left arm: collision")
            return super().send(target)

    monkeypatch.setattr(np, "savez_compressed", refuse)
    with serving(Ramp()) as server, pytest.raises(RejectedError, match="left arm: collision"):
        start(example, server, tmp_path, Broken())
    assert re.search(r"ended by +. left arm: collision", capsys.readouterr().out)
    # A terminal that is gone leaves the log.
    monkeypatch.setattr("realman.station.report.Console", lambda: types.SimpleNamespace(print=refuse))
    with serving(Ramp()) as server, pytest.raises(RejectedError, match="left arm: collision"):
        start(example, server, tmp_path, Broken())
    assert "could not be printed (Broken pipe). The run ended by: left arm: collision" in caplog.text
