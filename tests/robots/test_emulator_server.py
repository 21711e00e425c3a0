"""The emulator on its sockets without any SDK: lines, pushes, faults, and the command that starts it."""

import contextlib
import json
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from realman.robots.emulator import Emulator
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms


class Client:
    """A client that exchanges plain lines with a controller."""

    def __init__(self, address) -> None:
        self.socket = socket.create_connection(address, 10)
        self.file = self.socket.makefile("rb")

    def ask(self, command: str, **fields) -> dict:
        self.socket.sendall(json.dumps({"command": command, **fields}).encode() + b"\r\n")
        return json.loads(self.file.readline())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def pushes():
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.bind(("127.0.0.1", 0))
        yield udp


@pytest.fixture
def ports(pushes) -> tuple[int, int]:
    return free_ports()[0], pushes.getsockname()[1]


@pytest.fixture
def emulator(ports):
    with Emulator(two_arms(*ports)) as running:
        yield running


def test_each_arm_pushes_from_its_own_address_once_someone_is_connected(emulator, pushes):
    with Client(emulator.addresses["right"]), Client(emulator.addresses["left"]):
        senders = {}
        until = time.monotonic() + 10
        while len(senders) < 2 and time.monotonic() < until:
            data, (host, _) = pushes.recvfrom(4096)
            senders[host] = json.loads(data)
    assert set(senders) == {"127.0.0.1", "127.0.0.2"}
    assert all(s["joint_status"]["joint_position"] == [0, 20000, 70000, 0, 90000, 0] for s in senders.values())


def test_push_settings_take_effect(emulator, pushes):
    with socket.socket(type=socket.SOCK_DGRAM) as other, Client(emulator.addresses["right"]) as client:
        other.settimeout(10)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        request = {"enable": True, "cycle": 2, "port": port, "ip": "127.0.0.1", "custom": {"joint_speed": True}}
        assert client.ask("set_realtime_push", **request) == {"command": "set_realtime_push", "state": True}
        assert client.ask("get_realtime_push")["port"] == port
        assert json.loads(other.recv(4096))["state"] == "realtime_arm_joint_state"
        assert client.ask("set_realtime_push", **{**request, "cycle": 0})["state"] is False


def test_requests_in_one_segment_are_answered_one_by_one_and_garbage_is_survived(emulator):
    with Client(emulator.addresses["left"]) as client:
        line = b'{"command":"get_joint_degree"}\r\n'
        client.socket.sendall(line + b"rubbish\r\n" + line[:10])
        assert json.loads(client.file.readline())["state"] == "joint_degree"
        client.socket.sendall(line[10:])
        assert json.loads(client.file.readline())["state"] == "joint_degree"


def test_a_late_answer_is_late_and_a_silent_command_has_none(emulator):
    faults = emulator.controllers["right"].faults
    with Client(emulator.addresses["right"]) as client:
        faults.reply_delay_s = 0.2
        start = time.monotonic()
        client.ask("get_joint_degree")
        assert time.monotonic() - start >= 0.2
        faults.reply_delay_s = 0.0
        faults.silent = frozenset({"get_joint_degree"})
        client.socket.sendall(b'{"command":"get_joint_degree"}\r\n')
        assert client.ask("get_arm_power_state")["power_state"] == 1


def test_a_reset_drops_the_connection_and_a_new_one_works(emulator):
    with Client(emulator.addresses["right"]) as client:
        client.ask("get_joint_degree")
        emulator.reset_connections("right")
        with pytest.raises((ConnectionResetError, json.JSONDecodeError)):
            client.ask("get_joint_degree")
    with Client(emulator.addresses["right"]) as client:
        assert client.ask("get_joint_degree")["state"] == "joint_degree"


def test_an_address_in_use_is_reported_when_the_emulator_starts(emulator, ports):
    with pytest.raises(OSError, match="in use"), Emulator(two_arms(*ports)):
        pass


def test_arms_move_in_real_time(emulator):
    with Client(emulator.addresses["right"]) as client:
        joint = [30_000, 20_000, 70_000, 0, 90_000, 0]
        assert client.ask("movej", v=100, joint=joint, r=0, trajectory_connect=0)["receive_state"] is True
        event = json.loads(client.file.readline())
        assert (event["state"], event["trajectory_state"]) == ("current_trajectory_state", True)
        assert client.ask("get_joint_degree")["joint"] == joint


def test_the_command_runs_two_arms_until_it_is_interrupted(repo_root: Path, tmp_path: Path):
    command = [sys.executable, "-m", "realman", "emulator", "--port", "0", "--push-port", str(free_ports()[1])]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        command,
        cwd=repo_root,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ,
        # Tests that a shell runs in the background ignore SIGINT, and so would this child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        for line, side, host in zip(lines, ("right", "left"), ("127.0.0.1", "127.0.0.2"), strict=True):
            found = re.match(rf"{side} arm: ({re.escape(host)}):(\d+)", line)
            assert found, line
            with Client((found[1], int(found[2]))) as client:
                assert client.ask("get_arm_run_mode")["mode"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.stdout.close()
        log.close()


def test_the_simulated_cell_moves_and_shows_what_the_controllers_command():
    pytest.importorskip("mujoco", reason="needs the simulator: pip install realman-openpi[sim]")
    from realman.robots.emulator.physics import ArmTarget
    from realman.robots.emulator.scene import SceneCameras
    from realman.robots.emulator.scene import ScenePhysics

    physics = ScenePhysics(task_seed=3)
    cameras = SceneCameras(physics, ["cam_high"], (60, 80))
    cameras.open()
    before = cameras.grab()["cam_high"]
    goal = physics.position("left").joints + np.array([0.4, 0.1, -0.2, 0.3, 0.2, 0.5])
    physics.set_target("left", ArmTarget(goal, 0.5, 1.0))
    for _ in range(300):
        physics.advance(0.005)
    after = cameras.grab()["cam_high"]
    cameras.close()
    np.testing.assert_allclose(physics.position("left").joints, goal, atol=0.02)
    assert physics.position("left").gripper == pytest.approx(0.5, abs=0.05)
    assert physics.position("right").gripper == pytest.approx(physics.start[6], abs=0.05)
    assert (np.abs(after.astype(int) - before).max(axis=2) > 30).mean() > 0.01
