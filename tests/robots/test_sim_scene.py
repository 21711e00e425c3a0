"""Physics of the simulated cell and the scripted task."""

import dataclasses

import numpy as np
import pytest

from realman import spec
from realman.robots.sim import episode
from realman.robots.sim import task
from realman.robots.sim.scene import SPEED_LIMIT
from realman.robots.sim.scene import Scene
from realman.robots.sim.scene import camera_in_model

FPS = 50.0
JOINTS = list(spec.JOINT_DIMS)


@pytest.fixture(scope="module")
def scene():
    return Scene()


@pytest.fixture(scope="module")
def rollouts(scene):
    return [episode.simulate(scene, (7, n), FPS) for n in range(6)]


def draw(seed=0):
    return task.draw_layout(np.random.default_rng(seed))


def test_joint_ranges_of_the_model_are_the_robots(scene):
    joints = [scene.model.joint(spec.DIM_NAMES[i]) for i in JOINTS]
    ranges = np.array([joint.range for joint in joints])
    np.testing.assert_allclose(ranges, np.stack([spec.LOWER, spec.UPPER], axis=1)[JOINTS], atol=1e-9)


def test_every_camera_is_in_the_model(scene):
    names = {scene.model.camera(i).name for i in range(scene.model.ncam)}
    assert names == {camera_in_model(camera) for camera in spec.CAMERAS}


def test_right_arm_stands_on_the_robots_right(scene):
    # x points away from the robot and z up, so the robot's right is negative y.
    assert scene.arm("right").base[1, 3] < 0 < scene.arm("left").base[1, 3]


def test_reset_puts_every_number_where_the_layout_says(scene):
    layout = draw()
    scene.reset(layout)
    np.testing.assert_allclose(scene.state(), layout.start, atol=1e-12)
    np.testing.assert_array_equal(scene.velocity(), np.zeros(14))
    np.testing.assert_allclose(scene.cube_position()[:2], layout.cube_xy_m)


def test_each_commanded_number_moves_alone(scene):
    layout = draw()
    for dim in range(spec.NUM_DIMS):
        scene.reset(layout)
        target = layout.start.copy()
        target[dim] -= 0.2
        scene.command(target)
        scene.advance_to(0.6)
        np.testing.assert_allclose(scene.state(), target, atol=0.01, err_msg=spec.DIM_NAMES[dim])


def test_arms_trail_their_target_and_then_reach_it(scene):
    layout = draw()
    scene.reset(layout)
    target = layout.start.copy()
    target[0] += 0.1
    scene.command(target)
    scene.advance_to(0.02)
    assert abs(scene.state()[0] - target[0]) > 0.05
    scene.advance_to(1.0)
    np.testing.assert_allclose(scene.state(), target, atol=2e-3)


def test_motors_carry_the_weight_of_a_resting_arm(scene):
    scene.reset(draw())
    scene.advance_to(0.5)
    effort = scene.effort()
    shoulder, waist = effort[1], effort[0]
    assert abs(shoulder) > 3.0, "N m; the bent arm hangs in front of its shoulder"
    assert abs(waist) < 0.1, "the waist's axis is vertical"


def test_commands_beyond_the_joint_range_stop_at_its_end(scene):
    layout = draw()
    scene.reset(layout)
    target = layout.start.copy()
    target[5] = 100.0
    scene.command(target)
    scene.advance_to(3.0)
    assert scene.state()[5] == pytest.approx(spec.UPPER[5], abs=0.02)


def test_cube_counts_as_placed_only_inside_the_tray(scene):
    layout = draw()
    scene.reset(layout)
    scene.advance_to(0.3)
    assert not scene.is_cube_in_tray()
    scene.reset(dataclasses.replace(layout, cube_xy_m=layout.tray_xy_m))
    scene.advance_to(0.3)
    assert scene.is_cube_in_tray()


def test_nothing_touches_but_fingers_cube_tray_and_table(scene):
    rng = np.random.default_rng(3)
    layout = task.draw_layout(rng)
    actions = task.draw_plan(scene, layout, rng).targets(FPS)
    scene.reset(layout)
    touching = set()
    for tick, action in enumerate(actions):
        scene.command(action)
        scene.advance_to((tick + 1) / FPS)
        bodies = scene.model.geom_bodyid[scene.data.contact.geom]
        touching |= {frozenset(scene.model.body(int(b)).name for b in pair) for pair in bodies}
    assert all("cube" in pair for pair in touching)


def test_every_drawn_episode_ends_with_the_cube_in_the_tray(rollouts):
    # `simulate` keeps only successes. A working script needs no second draw.
    assert [rollout.num_failed for rollout in rollouts] == [0] * len(rollouts)


def test_commands_stay_inside_limits_and_speed_share(rollouts):
    for rollout in rollouts:
        assert (rollout.action >= spec.LOWER).all()
        assert (rollout.action <= spec.UPPER).all()
        speed = np.abs(np.diff(rollout.action, axis=0)) * FPS
        assert (speed <= task.MAX_SPEED_SHARE * SPEED_LIMIT + 1e-9).all()


def test_measured_motion_keeps_the_joint_limits_and_speeds(rollouts):
    for rollout in rollouts:
        assert (rollout.state[:, JOINTS] >= spec.LOWER[JOINTS]).all()
        assert (rollout.state[:, JOINTS] <= spec.UPPER[JOINTS]).all()
        assert (np.abs(rollout.velocity[:, JOINTS]) <= SPEED_LIMIT[JOINTS]).all()


def test_every_number_moves_in_every_episode(rollouts):
    for rollout in rollouts:
        assert np.ptp(rollout.state, axis=0).min() > 0.03


def test_action_leads_the_state(rollouts):
    rollout = rollouts[0]
    action, state = rollout.action[:, 0], rollout.state[:, 0]
    lag_error = {lag: np.abs(action[: len(action) - lag] - state[lag:]).mean() for lag in range(8)}
    assert 2 <= min(lag_error, key=lag_error.get) <= 5, "ticks of 20 ms"


def test_action_starts_at_the_measured_state(rollouts):
    for rollout in rollouts:
        np.testing.assert_allclose(rollout.action[0], rollout.state[0], atol=0.01)


def test_episodes_differ_in_scene_and_length(rollouts):
    assert len({rollout.layout.cube_xy_m for rollout in rollouts}) == len(rollouts)
    assert len({len(rollout.action) for rollout in rollouts}) > 1
    assert all(4.0 <= len(rollout.action) / FPS <= 7.0 for rollout in rollouts)


def test_same_seed_gives_the_same_episode_after_any_other(scene, rollouts):
    again = episode.simulate(scene, (7, 0), FPS)
    np.testing.assert_array_equal(again.state, rollouts[0].state)
    np.testing.assert_array_equal(again.action, rollouts[0].action)
    fresh = episode.simulate(Scene(), (7, 0), FPS)
    np.testing.assert_array_equal(fresh.configuration, rollouts[0].configuration)


def test_stretched_plan_takes_the_same_path_more_slowly(scene):
    rng = np.random.default_rng(0)
    layout = task.draw_layout(rng)
    plan = task.draw_plan(scene, layout, rng)
    slow = plan.stretched(2.0)
    np.testing.assert_allclose(slow.targets(FPS)[1::2][: len(plan.targets(FPS))], plan.targets(FPS), atol=1e-9)


def test_minimum_jerk_starts_and_ends_at_rest():
    u = np.linspace(-0.5, 1.5, 401)
    share = task.minimum_jerk(u)
    assert share[0] == 0.0
    assert share[-1] == 1.0
    speed = np.gradient(share, u)
    assert speed.max() == pytest.approx(15 / 8, abs=1e-3)
    assert (speed >= -1e-12).all()
