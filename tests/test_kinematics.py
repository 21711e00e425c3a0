"""Kinematics against the vendor's numbers, MuJoCo, and itself."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import mujoco
import numpy as np
import pytest

from realman import kinematics
from realman import spec
from realman.robots.sim.scene import Scene
from realman.robots.sim.task import HOME_ARM

# Positions that the vendor's SDK returns, m. They are accurate to the last digit.
SDK_POSITIONS = {
    (0, 0, 0, 0, 0, 0): (0.0, 0.0, 0.8505),
    (0, 20, 70, 0, 90, 0): (-0.2976, 0.0, 0.3371),
}

near_home = st.lists(st.floats(-0.5, 0.5, width=32), min_size=6, max_size=6).map(lambda d: HOME_ARM + np.array(d))


@pytest.fixture(scope="module")
def scene():
    return Scene()


@pytest.mark.parametrize(("degrees", "position"), SDK_POSITIONS.items())
def test_flange_is_where_the_vendors_library_puts_it(degrees, position):
    flange = kinematics.forward(np.deg2rad(np.array(degrees, float)))
    np.testing.assert_allclose(flange[:3, 3], position, atol=5e-5)


def test_straight_arm_is_turned_half_about_the_vertical():
    np.testing.assert_allclose(kinematics.forward(np.zeros(6))[:3, :3], np.diag([-1.0, -1.0, 1.0]), atol=1e-12)


@pytest.mark.parametrize("side", spec.SIDES)
def test_mujoco_chain_agrees_with_the_dh_table(scene, side):
    rng = np.random.default_rng(0)
    base = scene.arm(side).base
    joints = [scene.model.joint(f"{side}_{name}").qposadr[0] for name in spec.ARM_JOINTS]
    for _ in range(50):
        q = rng.uniform(spec.ARM_LOWER_RAD, spec.ARM_UPPER_RAD)
        scene.data.qpos[joints] = q
        mujoco.mj_kinematics(scene.model, scene.data)
        site = scene.data.site(f"{side}_flange")
        expected = base @ kinematics.forward(q)
        np.testing.assert_allclose(site.xpos, expected[:3, 3], atol=1e-6)
        np.testing.assert_allclose(site.xmat.reshape(3, 3), expected[:3, :3], atol=1e-6)


@given(q=near_home)
@settings(deadline=None, max_examples=50)
def test_inverse_finds_joints_that_reach_the_pose_of_any_reachable_joints(q):
    target = kinematics.forward(q)
    solution = kinematics.inverse(target, HOME_ARM)
    np.testing.assert_allclose(kinematics.forward(solution), target, atol=2e-5)
    assert (solution >= spec.ARM_LOWER_RAD).all()
    assert (solution <= spec.ARM_UPPER_RAD).all()


def test_inverse_with_a_tool_reaches_with_the_tip_and_keeps_its_arguments():
    tool = np.eye(4)
    tool[:3, 3] = [0.0, 0.02, 0.142]
    seed = HOME_ARM.copy()
    target = kinematics.forward(HOME_ARM + 0.2) @ tool
    before = target.copy()
    solution = kinematics.inverse(target, seed, tool)
    np.testing.assert_allclose(solution, HOME_ARM + 0.2, atol=1e-4)
    np.testing.assert_array_equal(seed, HOME_ARM)
    np.testing.assert_array_equal(target, before)


def test_pose_out_of_reach_is_refused_with_what_is_left_over():
    target = kinematics.forward(HOME_ARM)
    target[:3, 3] = [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="out of reach"):
        kinematics.inverse(target, HOME_ARM)


def test_rotation_vector_is_axis_times_angle():
    angle = 0.3
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
    np.testing.assert_allclose(kinematics.rotation_vector(about_z), [0, 0, angle], atol=1e-12)
    np.testing.assert_allclose(kinematics.rotation_vector(np.eye(3)), np.zeros(3), atol=1e-12)
