"""The emulated controller's planner, grippers and kinematic world: within limits, on time, and back to rest."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from realman import spec
from realman.robots.emulator.gripper import CTAG_FULL_TRAVEL
from realman.robots.emulator.gripper import Gripper
from realman.robots.emulator.gripper import Mode
from realman.robots.emulator.gripper import Register
from realman.robots.emulator.motion import MAX_HIGH_FOLLOW_STEP_RAD
from realman.robots.emulator.motion import JointMotion
from realman.robots.emulator.motion import Status
from realman.robots.emulator.physics import ArmPosition
from realman.robots.emulator.physics import ArmTarget
from realman.robots.emulator.physics import KinematicPhysics
from realman.robots.emulator.settings import JOINT_ACCELERATION_RAD_S2

DT_S = 0.005
HOME = np.deg2rad([0.0, 20.0, 70.0, 0.0, 90.0, 0.0])

joints = st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6).map(lambda f: np.array(f) * spec.ARM_UPPER_RAD)


def new_motion() -> JointMotion:
    return JointMotion(HOME, spec.ARM_UPPER_RAD)


def advance(motion: JointMotion, seconds: float) -> tuple[np.ndarray, bool]:
    """Return the commanded joints of every tick (t, 6) and whether a planned motion arrived."""
    arrivals, path = 0, [motion.position]
    for _ in range(round(seconds / DT_S)):
        arrivals += motion.advance(DT_S)
        path.append(motion.position)
    assert arrivals <= 1
    return np.stack(path), arrivals == 1


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(target=joints)
def test_low_follow_reaches_any_target_within_speed_and_acceleration_and_never_passes_it(target):
    motion = new_motion()
    motion.follow(target)
    path, _ = advance(motion, 6.0)
    velocity = np.diff(path, axis=0) / DT_S
    assert (np.abs(velocity) <= spec.ARM_SPEED_RAD_S + 1e-9).all()
    assert (np.abs(np.diff(velocity, axis=0)) <= JOINT_ACCELERATION_RAD_S2 * DT_S + 1e-6).all()
    assert (np.minimum(HOME, target) - 1e-4 <= path).all()
    assert (path <= np.maximum(HOME, target) + 1e-4).all()
    np.testing.assert_allclose(path[-1], target, atol=1e-4)


def test_low_follow_takes_an_unreachable_target_to_the_nearest_position_in_range():
    motion = new_motion()
    motion.follow(np.deg2rad([999.0, 20, 70, 0, 90, 0]))
    path, _ = advance(motion, 4.0)
    np.testing.assert_allclose(np.rad2deg(path[-1]), [178, 20, 70, 0, 90, 0], atol=0.01)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(target=joints, share=st.floats(0.4, 1.0))
def test_a_planned_motion_moves_all_joints_along_one_line_and_says_when_it_arrives(target, share):
    motion = new_motion()
    assert motion.plan(target, share)
    path, has_arrived = advance(motion, 12.0)
    assert has_arrived
    np.testing.assert_array_equal(path[-1], target)
    assert motion.status is Status.IDLE
    assert motion.is_standing
    assert (np.abs(np.diff(path, axis=0)) / DT_S <= share * spec.ARM_SPEED_RAD_S + 1e-9).all()
    length = target - HOME
    hypothesis.assume(np.abs(length).max() > 0.01)
    progress = (path - HOME) @ length / (length @ length)
    np.testing.assert_allclose(path, HOME + progress[:, None] * length, atol=1e-9)


def test_a_planned_motion_out_of_range_is_refused_and_nothing_moves():
    motion = new_motion()
    assert not motion.plan(np.deg2rad([179.0, 20, 70, 0, 90, 0]), 0.5)
    path, _ = advance(motion, 0.1)
    assert (path == HOME).all()


def test_high_follow_takes_small_steps_at_once_and_refuses_a_step_above_ten_degrees():
    motion = new_motion()
    near = HOME + 0.9 * MAX_HIGH_FOLLOW_STEP_RAD
    assert not motion.jump(near).any()
    np.testing.assert_array_equal(motion.position, near)
    far = near.copy()
    far[2] += 1.1 * MAX_HIGH_FOLLOW_STEP_RAD
    assert motion.jump(far).tolist() == [False, False, True, False, False, False]
    np.testing.assert_array_equal(motion.position, near)


@pytest.mark.parametrize("slow", [False, True])
def test_a_stop_brakes_every_kind_of_motion_and_forgets_the_target(slow):
    for start in (lambda m: m.follow(-HOME), lambda m: m.plan(-HOME, 1.0)):
        motion = new_motion()
        start(motion)
        advance(motion, 0.2)
        before = motion.position
        assert not motion.is_standing
        motion.stop(slow=slow)
        path, has_arrived = advance(motion, 1.0)
        assert not has_arrived
        assert motion.is_standing
        # Braking from v takes v^2 / 2a: at full speed and usual acceleration 42 deg, four times less for a hard stop.
        assert np.rad2deg(np.abs(path[-1] - before).max()) < (43 if slow else 11)


def test_a_paused_motion_resumes_where_it_stood_and_a_discarded_one_does_not():
    motion = new_motion()
    motion.plan(-HOME, 0.5)
    advance(motion, 0.3)
    assert motion.pause()
    path, _ = advance(motion, 1.0)
    np.testing.assert_array_equal(path[-1], path[-50])
    assert motion.resume()
    path, has_arrived = advance(motion, 5.0)
    assert has_arrived
    np.testing.assert_array_equal(path[-1], -HOME)
    assert not motion.pause()

    motion.plan(HOME, 0.5)
    advance(motion, 0.3)
    motion.pause()
    assert motion.discard()
    assert not motion.resume()


def test_kinematic_arms_move_at_their_top_speed_at_most():
    physics = KinematicPhysics()
    physics.place("right", ArmPosition(np.zeros(6), 1.0))
    physics.set_target("right", ArmTarget(np.ones(6), 0.0, 1.0))
    physics.advance(0.1)
    joints_now, gripper = physics.position("right")
    np.testing.assert_allclose(joints_now, spec.ARM_SPEED_RAD_S * 0.1)
    assert gripper == pytest.approx(1.0 - 0.1 / 0.7)


def test_a_native_gripper_keeps_its_route_and_reports_its_mode_and_its_arrival_once():
    gripper = Gripper()
    assert gripper.set_route(100, 900)
    assert gripper.move(0, notify=True)
    assert gripper.target == 0.1
    assert gripper.mode(0.5) is Mode.CLOSING
    assert not gripper.arrived(0.5)
    assert gripper.arrived(0.1)
    assert not gripper.arrived(0.1)
    assert not gripper.move(1001)


def test_the_two_gripper_protocols_exclude_each_other():
    gripper = Gripper()
    assert not gripper.write(Register.ENABLE, [1])
    assert gripper.read(Register.POSITION_LOW, 1, 1.0) is None
    gripper.is_modbus = True
    assert not gripper.move(500)


def test_a_modbus_gripper_moves_on_its_trigger_and_not_before():
    gripper = Gripper(is_modbus=True)
    gripper.write(Register.ENABLE, [1])
    gripper.write(Register.TARGET_HIGH, [0, CTAG_FULL_TRAVEL // 2, 50, 30])
    assert gripper.target == 1.0
    gripper.write(Register.TRIGGER, [1])
    assert gripper.target == 0.5
    assert gripper.speed == 0.5
    assert gripper.read(Register.POSITION_HIGH, 2, 0.5) == [0, CTAG_FULL_TRAVEL // 2]
