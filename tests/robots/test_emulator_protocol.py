"""The emulated controller's answers, without sockets: the vendor's keys, units, refusals and silences."""

import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from realman import spec
from realman.robots.emulator.controller import ERR_COLLISION
from realman.robots.emulator.controller import ERR_JOINT_DISABLED
from realman.robots.emulator.controller import ERR_TARGET_OUT_OF_RANGE
from realman.robots.emulator.controller import JOINT_ERR_POSITION_STEP
from realman.robots.emulator.controller import Controller
from realman.robots.emulator.faults import EVERYTHING
from realman.robots.emulator.physics import KinematicPhysics
from realman.robots.emulator.protocol import answer
from realman.robots.emulator.push import state_message
from realman.robots.emulator.settings import ArmSettings
from realman.robots.emulator.wire import LineReader
from realman.robots.emulator.wire import encode
from realman.robots.emulator.wire import joints_from_wire
from realman.robots.emulator.wire import joints_to_wire

HOME_MDEG = [0, 20000, 70000, 0, 90000, 0]


class Arm:
    """A controller with its world and a clock that the test advances."""

    def __init__(self, **settings) -> None:
        self.physics = KinematicPhysics()
        self.controller = Controller(ArmSettings("right", **settings), self.physics)

    def ask(self, command: str, **fields):
        return answer(self.controller, {"command": command, **fields})

    def run(self, seconds: float) -> list[dict]:
        events = []
        for _ in range(round(seconds / 0.005)):
            events += self.controller.tick(0.005)
            self.physics.advance(0.005)
        return events

    @property
    def joints_mdeg(self) -> list[int]:
        return joints_to_wire(self.controller.position.joints)


@pytest.fixture
def arm() -> Arm:
    return Arm()


@hypothesis.given(st.lists(st.integers(-360_000, 360_000), min_size=6, max_size=6))
def test_joints_survive_the_way_from_wire_to_rad_and_back(values):
    assert joints_to_wire(joints_from_wire(values)) == values


@hypothesis.given(st.lists(st.dictionaries(st.text(max_size=5), st.integers()), max_size=5), st.integers(1, 7))
def test_messages_are_found_however_the_stream_is_cut(messages, size):
    stream = b"".join(encode(m) for m in messages)
    reader = LineReader()
    found = [m for i in range(0, len(stream), size) for m in reader.feed(stream[i : i + size])]
    assert found == messages


def test_lines_without_an_object_are_dropped_and_a_stream_without_lines_is_an_error():
    reader = LineReader()
    assert list(reader.feed(b'\xff\r\n[1]\r\n\r\n{"command":"x"}\r\n')) == [{"command": "x"}]
    with pytest.raises(ValueError, match="no end of line"):
        list(reader.feed(b"x" * 70_000))


def test_the_pose_at_the_vendors_check_point_is_the_vendors():
    state = Arm().ask("get_current_arm_state")["arm_state"]
    assert state["joint"] == HOME_MDEG
    assert state["err"] == [0]
    # Vendor's forward kinematics at this pose: (-0.2976, 0, 0.3371) m.
    assert state["pose"][:3] == pytest.approx([-297_600, 0, 337_100], abs=100)


def test_limits_and_speeds_are_the_arms_own(arm):
    assert arm.ask("get_joint_max_pos")["max_pos"] == [178_000, 130_000, 135_000, 178_000, 128_000, 360_000]
    assert arm.ask("get_joint_min_pos")["min_pos"] == [-178_000, -130_000, -135_000, -178_000, -128_000, -360_000]
    assert arm.ask("get_joint_max_speed")["joint_speed"] == [30_000, 30_000, 37_500, 37_500, 37_500, 37_500]
    assert arm.ask("set_joint_max_speed", joint_max_speed=[1, 13_333]) == {
        "command": "set_joint_max_speed",
        "joint_max_speed": True,
    }
    assert arm.ask("get_joint_max_speed")["joint_speed"][0] == 13_333


@pytest.mark.parametrize("generation", [3, 4])
def test_each_generation_says_what_it_is(generation):
    info = Arm(generation=generation).ask("get_arm_software_info")
    assert info["Product_version"] == "RM65-BI"
    assert ("robot_controller_version" in info) == (generation == 4)


def test_a_planned_motion_is_acknowledged_moves_and_ends_with_an_event(arm):
    target = [10_000, 30_000, 60_000, 0, 80_000, 0]
    assert arm.ask("movej", v=50, joint=target, r=0, trajectory_connect=0) == {
        "command": "movej",
        "receive_state": True,
    }
    events = arm.run(2.0)
    assert events == [
        {"state": "current_trajectory_state", "trajectory_state": True, "device": 0, "trajectory_connect": 0}
    ]
    assert arm.joints_mdeg == target


def test_a_stop_ends_a_planned_motion_with_a_failed_event(arm):
    arm.ask("movej", v=10, joint=[90_000, *HOME_MDEG[1:]], r=0, trajectory_connect=0)
    arm.run(0.3)
    assert arm.ask("set_arm_stop") == {"command": "set_arm_stop", "arm_stop": True}
    assert [e["trajectory_state"] for e in arm.run(0.5)] == [False]
    before = arm.joints_mdeg
    arm.run(0.5)
    assert arm.joints_mdeg == before
    assert state_message(arm.controller)["arm_current_status"] == "stop"


def test_a_high_follow_step_that_is_too_large_raises_the_joints_alarm_until_it_is_cleared(arm):
    step = {"follow": True, "expand": 0, "trajectory_mode": 0, "radio": 0}
    assert arm.ask("movej_canfd", joint=[5_000, *HOME_MDEG[1:]], **step)["arm_err"] == 0
    assert arm.ask("movej_canfd", joint=[25_000, *HOME_MDEG[1:]], **step)["arm_err"] == JOINT_ERR_POSITION_STEP
    assert state_message(arm.controller)["joint_status"]["joint_err_code"] == [JOINT_ERR_POSITION_STEP, 0, 0, 0, 0, 0]
    assert arm.ask("movej_canfd", joint=[6_000, *HOME_MDEG[1:]], **step)["arm_err"] == JOINT_ERR_POSITION_STEP
    assert arm.ask("set_joint_clear_err", joint_clear_err=1)["joint_clear_err"] is True
    assert arm.ask("movej_canfd", joint=[6_000, *HOME_MDEG[1:]], **step)["arm_err"] == 0
    assert [r.is_accepted for r in arm.controller.records] == [True, False, False, True]


def test_high_follow_out_of_range_is_refused_but_raises_no_alarm():
    arm = Arm(joint_limit_deg=(5.0, 130.0, 135.0, 178.0, 128.0, 360.0))
    reply = arm.ask("movej_canfd", joint=[6_000, *HOME_MDEG[1:]], follow=True)
    assert reply["arm_err"] == ERR_TARGET_OUT_OF_RANGE
    assert not arm.controller.errors
    assert arm.ask("movej", v=50, joint=[6_000, *HOME_MDEG[1:]])["receive_state"] is False


@pytest.mark.parametrize(
    "switch",
    [{"is_powered": False}, {"is_real": False}, {"joints_enabled": np.zeros(6, dtype=bool)}],
    ids=["power off", "simulated", "disabled"],
)
def test_an_arm_that_is_not_ready_refuses_motion(arm, switch):
    for name, value in switch.items():
        setattr(arm.controller, name, value)
    assert arm.ask("movej", v=50, joint=HOME_MDEG)["receive_state"] is False
    assert arm.ask("movej_canfd", joint=HOME_MDEG, follow=False)["arm_err"] == ERR_JOINT_DISABLED


def test_an_arm_held_back_by_the_world_stops_with_a_collision(arm):
    arm.physics.advance = lambda dt_s: None
    arm.ask("movej_canfd", joint=[60_000, *HOME_MDEG[1:]], follow=False)
    arm.run(1.0)
    assert arm.controller.errors == [ERR_COLLISION]
    assert arm.ask("get_controller_state")["err_flag"] == ERR_COLLISION
    assert arm.ask("movej", v=50, joint=HOME_MDEG)["receive_state"] is False
    assert arm.ask("clear_system_err")["clear_state"] is True
    assert arm.ask("movej", v=50, joint=HOME_MDEG)["receive_state"] is True


def test_a_burst_of_high_follow_targets_is_not_a_collision(arm):
    # Targets that waited in the network while this process was paused: three steps of 9 deg at once, faster than any
    # joint.
    for k in (1, 2, 3):
        arm.ask("movej_canfd", joint=[9_000 * k, *HOME_MDEG[1:]], follow=True)
    arm.run(1.0)
    assert arm.controller.errors == []
    np.testing.assert_allclose(arm.controller.position.joints[0], np.deg2rad(27), atol=1e-6)


def test_grippers_answer_in_their_units(arm):
    assert arm.ask("set_gripper_position", position=500, block=True) == {"command": "set_gripper", "state": True}
    assert [e["device"] for e in arm.run(1.0)] == [1]
    state = arm.ask("get_gripper_state")
    assert state["actpos"] == 500
    assert arm.ask("set_modbus_mode", port=1, baudrate=115200, timeout=1)["set_state"] is True
    assert arm.ask("get_gripper_state") is None
    assert arm.ask("set_gripper_position", position=100, block=False)["state"] is False
    assert arm.ask("write_registers", port=1, address=258, num=2, device=1, data=[0, 0, 17, 148])["write_state"] is True
    assert arm.ask("read_holding_registers", port=1, address=259, device=1)["data"] == 4500
    bytes_read = arm.ask("read_multiple_holding_registers", port=1, address=258, num=3, device=1)["data"]
    assert bytes_read == [0, 0, 17, 148, 0, 0]


def test_a_rejected_command_changes_nothing_and_is_answered_false(arm):
    arm.controller.faults.rejected = frozenset({EVERYTHING})
    assert arm.ask("movej", v=50, joint=[10_000, *HOME_MDEG[1:]])["receive_state"] is False
    assert arm.ask("set_collision_stage", collision_stage=1)["collision_state"] is False
    assert arm.controller.collision_stage == 4
    assert arm.ask("movej_canfd", joint=[1_000, *HOME_MDEG[1:]], follow=False)["arm_err"] != 0
    arm.run(0.5)
    assert arm.joints_mdeg == HOME_MDEG


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"command": 3},
        {"command": "no_such_command"},
        {"command": "movej"},
        {"command": "movej", "v": 20, "joint": [1, 2]},
        {"command": "movej_canfd", "joint": None},
        {"command": "movej_canfd", "joint": [float("nan"), 0, 0, 0, 0, 0]},
        {"command": "set_joint_en_state", "joint_en_state": [9, 1]},
    ],
)
def test_a_malformed_request_is_not_answered(arm, request_):
    assert answer(arm.controller, request_) is None
    assert arm.controller.records == []


def test_a_push_holds_what_the_sdk_reads(arm):
    arm.ask("movej_canfd", joint=[30_000, *HOME_MDEG[1:]], follow=False)
    arm.run(0.1)
    message = json.loads(json.dumps(state_message(arm.controller)))
    assert message["state"] == "realtime_arm_joint_state"
    assert message["arm_current_status"] == "move_through_joint"
    assert message["joint_status"]["joint_position"][1:] == HOME_MDEG[1:]
    assert 0 < message["joint_status"]["joint_speed"][0] <= np.rad2deg(spec.ARM_SPEED_RAD_S[0]) * 100
    quaternion = np.array(message["waypoint"]["quat"]) * 1e-6
    assert np.linalg.norm(quaternion) == pytest.approx(1.0, abs=1e-5)
