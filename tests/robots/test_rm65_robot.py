"""The real driver through the vendor's own SDK against two emulated controllers on loopback, without faults."""

from collections.abc import Callable, Iterator
import dataclasses
import socket
import time

import numpy as np
import pytest

from realman import spec
from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.robots.cameras import Frame
from realman.robots.emulator import Emulator
from realman.robots.emulator.controller import motion_commands
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms
from realman.robots.rm65 import GripperSettings
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.robot import Robot
from realman.robots.robot import connected

pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")

# Generous limits: this machine may be busy, and the emulator shares its process with the driver.
PATIENT = Rm65Settings(
    "127.0.0.1",
    "127.0.0.2",
    max_state_age_s=20.0,
    reply_timeout_s=20.0,
    stop_timeout_s=20.0,
    connect_timeout_s=60.0,
    gripper=GripperSettings(max_age_s=20.0),
)
JOINTS = list(spec.JOINT_DIMS)


@dataclasses.dataclass
class Cell:
    """An emulator and settings that reach it."""

    emulator: Emulator
    settings: Rm65Settings

    def robot(self, **changes) -> Rm65Robot:
        return Rm65Robot(dataclasses.replace(self.settings, **changes))


@pytest.fixture
def make_cell() -> Iterator:
    emulators = []

    def make(generation: int = 3, **arm_changes) -> Cell:
        port, push_port = free_ports()
        arms = [dataclasses.replace(a, **arm_changes) for a in two_arms(port, push_port, generation)]
        emulators.append(Emulator(arms))
        emulators[-1].start()
        return Cell(emulators[-1], dataclasses.replace(PATIENT, tcp_port=port, push_port=push_port))

    yield make
    for emulator in emulators:
        emulator.close()


def drive(robot: Rm65Robot, goal: np.ndarray, ticks: int) -> np.ndarray:
    """Move to `goal` in a straight line, wait for the arms, and return what the robot then measures."""
    start = robot.observe().state
    for k in range(1, ticks + 1):
        robot.send(start + (goal - start) * k / ticks)
        time.sleep(1 / robot.fps)
    return settle(robot, goal)


def settle(robot: Rm65Robot, goal: np.ndarray) -> np.ndarray:
    until = time.monotonic() + 10.0
    while np.abs(robot.observe().state - goal).max() > 1e-3 and time.monotonic() < until:
        time.sleep(0.02)
    return robot.observe().state


def some_goal(state: np.ndarray) -> np.ndarray:
    goal = state + 0.1 * np.linspace(-1, 1, 14)
    goal[6], goal[13] = 0.25, 0.0
    return goal


@pytest.mark.parametrize(
    ("generation", "gripper", "follow"),
    [(3, "eg2", "low"), (3, "ctag", "high"), (4, "ctag", "low"), (4, "eg2", "high")],
)
def test_both_arms_and_grippers_reach_a_target(make_cell, generation, gripper, follow):
    cell = make_cell(generation)
    robot = cell.robot(follow=follow, gripper=GripperSettings(kind=gripper, max_age_s=20.0))
    assert isinstance(robot, Robot)
    robot.connect()
    try:
        state = robot.observe().state
        home = np.deg2rad([0, 20, 70, 0, 90, 0])
        np.testing.assert_allclose(state[JOINTS], np.tile(home, 2), atol=1e-5)
        assert state[list(spec.GRIPPER_DIMS)] == pytest.approx([1.0, 1.0])
        goal = some_goal(state)
        # The wire counts 0.001 deg and the EG2 gripper 0.001 of its stroke, never less than 1.
        np.testing.assert_allclose(drive(robot, goal, 20), goal, atol=1.1e-3)
    finally:
        robot.stop()
        robot.disconnect()
    for controller in cell.emulator.controllers.values():
        streamed = [r for r in controller.records if r.command == "movej_canfd"]
        assert all(r.is_accepted for r in streamed)
        assert {r.request["follow"] for r in streamed} == {follow == "high"}


def test_arms_can_be_given_by_name(make_cell, monkeypatch):
    """Commands go to the named machine, and its pushes are told apart by its address."""
    known = {"arm-right.lab": "127.0.0.1", "arm-left.lab": "127.0.0.2"}
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: look_up(known.get(host, host), *args, **kw))
    cell = make_cell()
    robot = cell.robot(right_host="arm-right.lab", left_host="arm-left.lab")
    with connected(robot):
        named = robot.observe().state
    with connected(cell.robot()) as robot:
        np.testing.assert_array_equal(named, robot.observe().state)


def test_the_preflight_table_covers_both_arms(make_cell):
    robot = make_cell().robot()
    robot.connect()
    try:
        assert {f.arm for f in robot.preflight} == {"right arm 127.0.0.1", "left arm 127.0.0.2"}
        found = {f.check: f.found for f in robot.preflight}
        assert found["model"] == "RM_65, 6 joints, generation 3"
        assert found["run mode"] == "real"
        assert not any(f.problem for f in robot.preflight)
    finally:
        robot.disconnect()


def test_a_target_is_cut_to_the_narrower_of_the_arms_and_the_controllers_range(make_cell):
    limits = (30.0, 130.0, 135.0, 178.0, 128.0, 360.0)
    robot = make_cell(joint_limit_deg=limits).robot()
    robot.connect()
    try:
        goal = robot.observe().state
        goal[0], goal[1], goal[6] = 1.0, 3.0, 1.7
        for _ in range(60):
            sent = robot.send(goal)
            time.sleep(1 / robot.fps)
        assert np.rad2deg(sent[0]) == pytest.approx(30.0, abs=1e-3)
        assert np.rad2deg(sent[1]) == pytest.approx(130.0, abs=1e-3)
        assert sent[6] == 1.0
    finally:
        robot.stop()
        robot.disconnect()


def test_one_tick_moves_no_joint_faster_than_the_arm_can(make_cell):
    robot = make_cell().robot()
    robot.connect()
    try:
        state = robot.observe().state
        first = robot.send(state + 0.5)
        second = robot.send(state + 0.5)
        max_step = np.tile(spec.ARM_SPEED_RAD_S, 2) / robot.fps
        np.testing.assert_allclose((first - state)[JOINTS], max_step, rtol=1e-4)
        np.testing.assert_allclose((second - first)[JOINTS], max_step, rtol=1e-4)
    finally:
        robot.stop()
        robot.disconnect()


@pytest.mark.parametrize("follow", ["low", "high"])
def test_a_stop_ends_the_motion_of_both_arms_and_nothing_is_sent_after_it(make_cell, follow):
    cell = make_cell()
    robot = cell.robot(follow=follow)
    robot.connect()
    try:
        goal = robot.observe().state + np.where(np.isin(np.arange(14), JOINTS), 1.0, -1.0)
        for _ in range(10):
            robot.send(goal)
            time.sleep(1 / robot.fps)
        robot.stop()
        # Read from the controllers, because a busy machine may deliver older state pushes after the stop.
        arms = cell.emulator.controllers.values()
        stopped = np.concatenate([arm.position.joints for arm in arms])
        with pytest.raises(RejectedError, match="stopped"):
            robot.send(goal)
        time.sleep(0.3)
        np.testing.assert_allclose(np.concatenate([arm.position.joints for arm in arms]), stopped, atol=1e-3)
        assert np.abs(stopped - goal[JOINTS]).min() > 0.05
    finally:
        robot.disconnect()
    for controller in cell.emulator.controllers.values():
        stop = next(r for r in controller.records if r.command == "set_arm_stop")
        assert stop.is_accepted
        assert motion_commands(controller.records, stop.time_s) == []


def test_a_slow_stop_brakes_along_the_path_and_closes_the_gate_like_a_stop(make_cell):
    cell = make_cell()
    robot = cell.robot()
    robot.connect()
    try:
        goal = robot.observe().state + 1.0
        for _ in range(10):
            robot.send(goal)
            time.sleep(1 / robot.fps)
        robot.slow_stop()
        for controller in cell.emulator.controllers.values():
            slow = next(r for r in controller.records if r.command == "set_arm_slow_stop")
            assert motion_commands(controller.records, slow.time_s) == []
            assert controller.motion.is_standing
        with pytest.raises(RejectedError, match="stopped"):
            robot.send(goal)
        robot.stop()
    finally:
        robot.disconnect()


def test_a_stopped_robot_moves_again_after_it_is_connected_again(make_cell):
    robot = make_cell().robot()
    robot.connect()
    robot.stop()
    robot.stop()
    robot.connect()
    try:
        goal = some_goal(robot.observe().state)
        np.testing.assert_allclose(drive(robot, goal, 20), goal, atol=1.1e-3)
    finally:
        robot.stop()
        robot.disconnect()
        robot.disconnect()
    robot.stop()


def test_a_robot_that_is_not_connected_says_so(make_cell):
    robot = make_cell().robot()
    for call in (robot.observe, lambda: robot.send(np.zeros(14))):
        with pytest.raises(NotConnectedError, match="not connected"):
            call()


def test_small_gripper_changes_are_not_worth_a_command_but_fully_closed_is(make_cell):
    cell = make_cell()
    robot = cell.robot(gripper=GripperSettings(rate_hz=50.0, max_age_s=20.0))

    def positions() -> list[int]:
        records = cell.emulator.controllers["right"].records
        return [r.request["position"] for r in records if r.command == "set_gripper_position"]

    robot.connect()
    try:
        state = robot.observe().state
        for opening, expected in [(0.5, [500]), *((0.5 + 0.001 * k, [500]) for k in range(15)), (0.01, [500, 10])]:
            state[6] = opening
            robot.send(state)
            time.sleep(0.03)
            wait_for(positions, expected)
        state[6] = 0.0
        robot.send(state)
        wait_for(positions, [500, 10, 1])
    finally:
        robot.stop()
        robot.disconnect()


def wait_for(found: Callable[[], list[int]], expected: list[int]) -> None:
    until = time.monotonic() + 10.0
    while found() != expected and time.monotonic() < until:
        time.sleep(0.01)
    assert found() == expected


class FakeCameras:
    """A full set of cameras whose clock the test controls."""

    def __init__(self) -> None:
        self.age_s = 0.0
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def latest(self) -> dict[str, Frame]:
        return {"cam_high": Frame(np.full((2, 2, 3), 7, np.uint8), time.monotonic() - self.age_s)}

    def close(self) -> None:
        self.is_open = False


def test_camera_frames_come_with_the_state_and_an_old_one_is_an_error(make_cell):
    cell, cameras = make_cell(), FakeCameras()
    robot = Rm65Robot(dataclasses.replace(cell.settings, max_camera_age_s=2.0), cameras)
    robot.connect()
    try:
        cameras.age_s = 0.05
        observation = robot.observe()
        assert (observation.images["cam_high"] == 7).all()
        assert time.monotonic() - observation.time_s >= 0.05
        cameras.age_s = 3.0
        with pytest.raises(
            TimeoutError, match=r"camera 'cam_high': the newest frame is 30\d\d ms old, expected at most 2000 ms"
        ):
            robot.observe()
        # A chunk predicted from the last image of a broken camera must not be played on.
        with pytest.raises(TimeoutError, match="camera 'cam_high'"):
            robot.send(observation.state)
    finally:
        robot.disconnect()
    assert not cameras.is_open
