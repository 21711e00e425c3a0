"""The client, the real driver and the vendor's own SDK against emulated controllers, with a policy server.

Only the hardware and the policy's mind are faked.
"""

from collections.abc import Callable
import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from openpi.serving.background import serve_in_thread
from openpi.serving.websocket_policy_server import WebsocketPolicyServer
from openpi_client import base_policy
from realman import spec
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import ServerError
from realman.station import client_command

pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")
pytest.importorskip("mujoco", reason="needs the simulator: pip install realman-openpi[sim]")

from realman.robots.emulator.controller import ERR_COLLISION
from realman.robots.emulator.controller import motion_commands
from realman.robots.emulator.robot import EmulatedRobot
from realman.station.site_config import SIM_SITE

METADATA = {
    "robot": "realman_rm65_dual",
    "dim_names": list(spec.DIM_NAMES),
    "cameras": ["cam_high"],
    "action_chunk": 10,
    "action_horizon": 20,
    "fps": 50,
}


class SlowWave(base_policy.BasePolicy):
    """Moves every joint slowly away from its start.

    A fault may happen before its third reply (the first is the pre-flight's).
    """

    robot: "Watched"
    server: WebsocketPolicyServer

    def __init__(self, fault: Callable[["SlowWave", np.ndarray], np.ndarray | None] | None = None) -> None:
        self.count = 0
        self._fault = fault

    def infer(self, obs: dict) -> dict:
        self.count += 1
        actions = obs["state"] + 0.004 * np.arange(1, 21)[:, None] * np.ones(14)
        if self._fault and self.count == 3:
            changed = self._fault(self, actions)
            actions = actions if changed is None else changed
        return {"actions": actions}


@pytest.fixture(scope="module")
def example():
    """The command `realman client`."""
    return client_command


class Watched(EmulatedRobot):
    """Keeps the controllers' records, which the emulator forgets when it is switched off."""

    def disconnect(self) -> None:
        if self._emulator is not None:
            self.records = {side: list(c.records) for side, c in self._emulator.controllers.items()}
        super().disconnect()

    def commands_after_the_stop(self, side: str) -> list:
        stopped_s = next(r.time_s for r in self.records[side] if r.command == "set_arm_stop")
        return motion_commands(self.records[side], stopped_s)


def play(example, tmp_path, policy, site=SIM_SITE, **flags) -> Watched:
    site = dataclasses.replace(site, robot="emulated")
    robot = policy.robot = Watched(3, ["cam_high"], site.rm65, (48, 64))
    server = policy.server = WebsocketPolicyServer(policy, "127.0.0.1", 0, METADATA)
    with serve_in_thread(server):
        server_settings = dataclasses.replace(site.server, port=server.port)
        args = example.Args(**{"out_dir": tmp_path, "max_steps": 25, **flags})
        assert example.run_site(args, dataclasses.replace(site, server=server_settings), robot) == 0
    return robot


def test_the_client_moves_emulated_arms_through_the_vendors_sdk_and_stops_them(example, tmp_path, capsys):
    robot = play(example, tmp_path, SlowWave())
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["steps"] == 25
    assert summary["late_steps"] is not None
    for side in spec.SIDES:
        streamed = [r for r in motion_commands(robot.records[side], 0.0) if r.command == "movej_canfd"]
        # Also those that brake the arms, while they wait or a busy machine is late.
        assert len(streamed) >= 25
        assert robot.commands_after_the_stop(side) == []
    table = capsys.readouterr().err
    assert "RM_65" in table
    assert "run mode" in table


def kill_the_server(policy: SlowWave, _actions: np.ndarray) -> None:
    policy.server.stop()
    time.sleep(0.2)
    raise RuntimeError("gone")


def cut_the_network(policy: SlowWave, _actions: np.ndarray) -> None:
    # No answer comes while the previous chunk keeps playing.
    policy.is_cut = threading.Event()
    policy.is_cut.wait(10)


def unplug_the_camera(policy: SlowWave, _actions: np.ndarray) -> None:
    def broken() -> dict:
        raise OSError("no such device")

    policy.robot._robot._cameras._sources[0].grab = broken


def hang_the_camera(policy: SlowWave, _actions: np.ndarray) -> None:
    policy.robot._robot._cameras._sources[0].grab = lambda: time.sleep(4) or {}


def raise_a_controller_error(policy: SlowWave, _actions: np.ndarray) -> None:
    emulator = policy.robot.emulator
    emulator.call(lambda: emulator.controllers["left"].fail(ERR_COLLISION))


def drop_the_connection(policy: SlowWave, _actions: np.ndarray) -> None:
    policy.robot.emulator.reset_connections("right")


def silence_the_push(policy: SlowWave, _actions: np.ndarray) -> None:
    policy.robot.emulator.controllers["right"].faults.is_push_silent = True


def nan_in_the_chunk(_policy: SlowWave, actions: np.ndarray) -> np.ndarray:
    actions[7, 2] = np.nan
    return actions


OLD_PLANS = dataclasses.replace(SIM_SITE, safety=dataclasses.replace(SIM_SITE.safety, max_policy_age_ms=1500.0))
OLD_EYES = dataclasses.replace(
    SIM_SITE, rm65=dataclasses.replace(SIM_SITE.rm65, max_camera_age_s=1.5, max_state_age_s=1.5)
)
"""A busy machine may trip an age limit slightly early. The message is the same."""


@pytest.mark.parametrize(
    ("fault", "error", "says", "site"),
    [
        (kill_the_server, ServerError, "policy server|gone|connection", SIM_SITE),
        (cut_the_network, RobotTimeoutError, "prediction: .* ms old.*Check the speed of the policy server", OLD_PLANS),
        (unplug_the_camera, RobotError, "camera cam_high: failed .no such device.", SIM_SITE),
        (hang_the_camera, RobotTimeoutError, "cam_high.*ms old.*Check its cable", OLD_EYES),
        (raise_a_controller_error, RobotError, r"left arm 127.0.0.2: error 0x100D \(collision\)", SIM_SITE),
        # Afterwards the SDK may not connect any arm, see test_rm65_faults.
        pytest.param(
            drop_the_connection,
            RobotError,
            "right arm 127.0.0.1: .*(connection is lost|ms old|no answer)",
            SIM_SITE,
            marks=pytest.mark.own_process,
        ),
        (silence_the_push, RobotTimeoutError, "right arm 127.0.0.1: the state is .* ms old", OLD_EYES),
        (nan_in_the_chunk, ServerError, "is nan, expected finite", SIM_SITE),
        (lambda _policy, actions: actions[:, :13], ServerError, "shape", SIM_SITE),
        (lambda _policy, actions: actions[:4], ServerError, "shape", SIM_SITE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_while_the_arms_move_stops_both_and_says_why(example, tmp_path, fault, error, says, site):
    # The previous chunk keeps playing while the fault happens.
    policy = SlowWave(fault)
    with pytest.raises(error, match=says) as caught:
        play(example, tmp_path, policy, dataclasses.replace(site, execution="async"), max_steps=None)
    assert "\n" not in str(caught.value)
    for side in spec.SIDES:
        commands = [r.command for r in policy.robot.records[side]]
        assert "movej_canfd" in commands
        assert "set_arm_stop" in commands
        assert policy.robot.commands_after_the_stop(side) == []
    # The log also says why, and can be replayed.
    assert json.loads((tmp_path / "run.json").read_text())["ended_by"] == str(caught.value)
    with np.load(tmp_path / "run.npz") as log:
        assert len(log["sent"]) == len(log["state"]) > 0
        assert np.isfinite(log["state"]).all()


def test_a_dry_run_sends_emulated_arms_nothing(example, tmp_path):
    robot = play(example, tmp_path, SlowWave(), dry_run=True)
    for side in spec.SIDES:
        assert motion_commands(robot.records[side], 0.0) == []
