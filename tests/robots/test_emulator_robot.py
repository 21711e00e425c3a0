"""The whole robot without hardware: real driver, real SDK, emulated controllers, simulated cell and cameras."""

import dataclasses
import time

import numpy as np
import pytest

from realman import spec
from realman.errors import NotConnectedError
from realman.pacing import Pacer
from realman.robots.robot import Robot

pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")
pytest.importorskip("mujoco", reason="needs the simulator: pip install realman-openpi[sim]")

from realman.robots.emulator.controller import motion_commands
from realman.robots.emulator.robot import EmulatedRobot
from realman.robots.sim import task
from realman.robots.sim.scene import Scene
from realman.station.site_config import SIM_SITE

PATIENT = SIM_SITE.rm65


def test_the_emulated_robot_is_a_robot_whose_images_show_its_motion():
    robot = EmulatedRobot(5, ["cam_high"], PATIENT, (60, 80))
    assert isinstance(robot, Robot)
    with pytest.raises(NotConnectedError):
        robot.observe()
    robot.connect()
    try:
        before = robot.observe()
        np.testing.assert_allclose(before.state, task.draw_layout(np.random.default_rng(5)).start, atol=0.01)
        goal = before.state + np.where(np.isin(np.arange(14), spec.GRIPPER_DIMS), -0.3, 0.3)
        for k in range(1, 31):
            robot.send(before.state + (goal - before.state) * k / 30)
            time.sleep(1 / robot.fps)
        until = time.monotonic() + 10
        while np.abs(robot.observe().state - goal).max() > 0.03 and time.monotonic() < until:
            time.sleep(0.05)
        after = robot.observe()
        np.testing.assert_allclose(after.state, goal, atol=0.03)
        while robot.observe().time_s < after.time_s + 0.2 and time.monotonic() < until:
            time.sleep(0.05)
        image = robot.observe().images["cam_high"]
        assert (np.abs(image.astype(int) - before.images["cam_high"]).max(axis=2) > 30).mean() > 0.01
        robot.stop()
        records = robot.emulator.controllers["right"].records
        stopped_s = next(r.time_s for r in records if r.command == "set_arm_stop")
        assert motion_commands(records, stopped_s) == []
    finally:
        robot.disconnect()
        robot.disconnect()


class CellClock:
    """The time of the emulated cell. It does not pass while a busy machine makes the emulator wait."""

    def __init__(self, robot: EmulatedRobot) -> None:
        self._physics = robot._physics

    def monotonic(self) -> float:
        return self._physics.time_s

    def sleep(self, seconds: float, /) -> None:
        until = self.monotonic() + seconds
        while self.monotonic() < until:
            time.sleep(0.001)


@pytest.mark.parametrize("follow", ["low", "high"])
def test_a_scripted_pick_and_place_succeeds_through_the_vendors_sdk_in_real_time(follow):
    rng = np.random.default_rng(1)
    layout = task.draw_layout(rng)
    scene = Scene()
    scene.reset(layout)
    plan = task.draw_plan(scene, layout, rng)
    # A busy machine can hold up commands at the wrong moment.
    assert any(is_done_by(plan, follow) for _ in range(3))


def is_done_by(plan, follow):
    robot = EmulatedRobot(1, (), dataclasses.replace(PATIENT, follow=follow))
    robot.connect()
    try:
        clock = CellClock(robot)
        pacer = Pacer(robot.fps, clock)
        for target in plan.targets(robot.fps):
            robot.send(target)
            pacer.wait()
        clock.sleep(1.0)
        is_done = robot.is_task_done()
        robot.stop()
        return is_done
    finally:
        robot.disconnect()
