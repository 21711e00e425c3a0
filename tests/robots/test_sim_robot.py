"""The simulated cell behind the robot protocol."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from realman import spec
from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.robots.robot import Robot
from realman.robots.sim import task
from realman.robots.sim.robot import SimRobot
from realman.robots.sim.scene import SPEED_LIMIT
from realman.robots.sim.scene import Scene

targets = st.lists(st.floats(-8, 8, width=32), min_size=14, max_size=14).map(np.array)


@pytest.fixture
def robot():
    robot = SimRobot(cameras=())
    robot.connect()
    yield robot
    robot.disconnect()


def test_simulated_robot_is_a_robot():
    assert isinstance(SimRobot(), Robot)
    assert SimRobot(fps=30).fps == 30.0


@pytest.mark.parametrize("call", [SimRobot.observe, SimRobot.is_task_done, lambda r: r.send(np.zeros(14))])
def test_calls_before_connect_are_refused(call):
    with pytest.raises(NotConnectedError, match=r"Call connect\(\) first"):
        call(SimRobot())


def test_stop_and_disconnect_are_harmless_without_connection():
    robot = SimRobot()
    robot.stop()
    robot.disconnect()
    robot.disconnect()
    with pytest.raises(NotConnectedError):
        robot.observe()


def test_observation_has_state_and_the_wanted_cameras():
    robot = SimRobot(cameras=("cam_low", "cam_right_wrist"), height_px=48, width_px=64)
    robot.connect()
    observation = robot.observe()
    robot.disconnect()
    assert list(observation.images) == ["cam_low", "cam_right_wrist"]
    assert all(image.shape == (48, 64, 3) and image.dtype == np.uint8 for image in observation.images.values())
    assert (observation.state >= spec.LOWER).all()
    assert (observation.state <= spec.UPPER).all()


def test_unknown_camera_is_refused_at_once():
    with pytest.raises(ValueError, match="cam_top"):
        SimRobot(cameras=("cam_top",))


def test_same_seed_is_the_same_scene_and_another_is_not():
    states = []
    for seed in (1, 1, 2):
        robot = SimRobot(seed, cameras=())
        robot.connect()
        states.append(robot.observe().state)
    np.testing.assert_array_equal(states[0], states[1])
    assert not np.array_equal(states[0], states[2])


def test_send_advances_simulated_time_by_one_tick(robot):
    target = robot.observe().state
    for _ in range(5):
        robot.send(target)
    assert robot.sim_time_s == pytest.approx(5 / 50)


@given(commands=st.lists(targets, min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_send_returns_a_target_inside_limits_and_speed(commands):
    robot = SimRobot(cameras=())
    robot.connect()
    before = robot.observe().state
    for target in commands:
        wanted = target.copy()
        sent = robot.send(target)
        np.testing.assert_array_equal(target, wanted)
        assert (sent >= spec.LOWER).all()
        assert (sent <= spec.UPPER).all()
        assert (np.abs(sent - before) <= SPEED_LIMIT / 50 + 1e-9).all()
        before = sent


def test_a_target_within_reach_is_sent_unchanged(robot):
    target = robot.observe().state + 0.005
    np.testing.assert_array_equal(robot.send(target), target)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_target_that_is_not_finite_is_rejected_and_nothing_moves(robot, bad):
    target = robot.observe().state
    target[8] = bad
    with pytest.raises(RejectedError, match="not finite at left_shoulder"):
        robot.send(target)
    assert robot.sim_time_s == 0.0


def test_stop_holds_and_refuses_motion_until_the_next_connect(robot):
    target = robot.observe().state
    robot.send(target + 0.02)
    robot.stop()
    with pytest.raises(RejectedError, match="stopped, so no motion is accepted"):
        robot.send(target)
    robot.connect()
    robot.send(robot.observe().state)


def test_scripted_targets_sent_by_a_client_do_the_task():
    robot = SimRobot(task_seed=4, cameras=())
    robot.connect()
    layout = task.draw_layout(np.random.default_rng(4))
    plan = task.draw_plan(Scene(), layout, np.random.default_rng(0))
    assert not robot.is_task_done()
    for target in plan.targets(robot.fps):
        np.testing.assert_array_equal(robot.send(target), target)
    assert robot.is_task_done()
    robot.disconnect()
