"""The client, the real driver and the vendor's own SDK against emulated controllers, with a policy server: nothing is faked
but the hardware and the policy's mind."""

import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest

from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from realman import spec
from realman.errors import ServerError

pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")
pytest.importorskip("mujoco", reason="needs the simulator: pip install realman-openpi[sim]")

from realman.emulator.controller import motion_commands
from realman.emulator.robot import EmulatedRobot
from realman.site_config import SIM_SITE

METADATA = {
    "robot": "realman_rm65_dual",
    "dim_names": list(spec.DIM_NAMES),
    "cameras": ["cam_high"],
    "action_chunk": 10,
    "action_horizon": 20,
    "fps": 50,
}


class SlowWave(base_policy.BasePolicy):
    """Moves every joint slowly away from where it is; its third reply may be no number."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.count = 0
        self._breaks = breaks

    def infer(self, obs: dict) -> dict:
        self.count += 1
        actions = obs["state"] + 0.004 * np.arange(1, 21)[:, None] * np.ones(14)
        if self._breaks and self.count == 3:
            actions[7, 2] = np.nan
        return {"actions": actions}


@pytest.fixture(scope="module")
def example(repo_root):
    """The module examples/realman/main.py."""
    module_spec = importlib.util.spec_from_file_location("emulated_example", repo_root / "examples/realman/main.py")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    return module


class Watched(EmulatedRobot):
    """Keeps what the controllers were told, which the emulator forgets when it is switched off."""

    def disconnect(self) -> None:
        if self._emulator is not None:
            self.records = {side: list(c.records) for side, c in self._emulator.controllers.items()}
        super().disconnect()

    def commands_after_the_stop(self, side: str) -> list:
        stopped_s = next(r.time_s for r in self.records[side] if r.command == "set_arm_stop")
        return motion_commands(self.records[side], stopped_s)


def play(example, tmp_path, policy, **flags) -> Watched:
    site = dataclasses.replace(SIM_SITE, robot="emulated")
    robot = Watched(3, ["cam_high"], site.rm65, (48, 64))
    server = WebsocketPolicyServer(policy, "127.0.0.1", 0, METADATA)
    with serve_in_thread(server):
        server_settings = dataclasses.replace(site.server, port=server.port)
        args = example.Args(**{"out_dir": tmp_path, "max_steps": 25, **flags})
        try:
            assert example.run_site(args, dataclasses.replace(site, server=server_settings), robot) == 0
        finally:
            policy.robot = robot
    return robot


def test_the_client_moves_emulated_arms_through_the_vendors_sdk_and_stops_them(example, tmp_path, capsys):
    robot = play(example, tmp_path, SlowWave())
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["steps"] == 25
    assert summary["late_steps"] is not None
    for side in spec.SIDES:
        streamed = [r for r in motion_commands(robot.records[side], 0.0) if r.command == "movej_canfd"]
        assert len(streamed) == 25
        assert robot.commands_after_the_stop(side) == []
    table = capsys.readouterr().err
    assert "RM_65" in table
    assert "run mode" in table


def test_a_chunk_that_is_no_number_leaves_both_emulated_arms_stopped(example, tmp_path):
    policy = SlowWave(breaks=True)
    with pytest.raises(ServerError, match="is nan, expected finite"):
        play(example, tmp_path, policy)
    for side in spec.SIDES:
        assert policy.robot.commands_after_the_stop(side) == []


def test_a_dry_run_sends_emulated_arms_nothing(example, tmp_path):
    robot = play(example, tmp_path, SlowWave(), dry_run=True)
    for side in spec.SIDES:
        assert motion_commands(robot.records[side], 0.0) == []
