"""The real driver through the vendor's own SDK when something breaks: it reports what, and no arm keeps moving."""

from collections.abc import Iterator
import dataclasses
import subprocess
import sys
import time

import numpy as np
import pytest

from realman import spec
from realman.errors import RejectedError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError
from realman.pacing import SuspendWatch
from realman.robots.emulator import Emulator
from realman.robots.emulator.controller import ERR_COLLISION
from realman.robots.emulator.controller import motion_commands
from realman.robots.emulator.faults import EVERYTHING
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms
from realman.robots.rm65 import GripperSettings
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.rm65.stream import CommandStream

pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")

STEP = np.where(np.isin(np.arange(14), (6, 13)), 0.0, 0.02)


@dataclasses.dataclass
class Cell:
    """Two emulated arms, and the robot that drives them."""

    emulator: Emulator
    settings: Rm65Settings
    robot: Rm65Robot

    def arm(self, side: str = "right"):
        return self.emulator.controllers[side]

    def drive_until(self, error: type[Exception], match: str, seconds: float = 30.0) -> None:
        """Keep the arms moving until the driver raises."""
        until = time.monotonic() + seconds
        with pytest.raises(error, match=match):  # noqa: PT012 - which of the calls fails is not known
            target = self.robot.observe().state
            while time.monotonic() < until:
                target = target + STEP * (1 if target[0] < 0.5 else 0)
                self.robot.send(target)
                time.sleep(0.02)

    def assert_still_for_good(self, side: str) -> None:
        """Check that the arm was stopped, and that no motion command followed."""
        arm = self.arm(side)
        stop = next(r for r in arm.records if r.command == "set_arm_stop")
        assert motion_commands(arm.records, stop.time_s) == []
        until = time.monotonic() + 5.0
        while not arm.motion.is_standing and time.monotonic() < until:
            time.sleep(0.01)
        assert arm.motion.is_standing


@pytest.fixture
def cell() -> Iterator[Cell]:
    port, push_port = free_ports()
    settings = Rm65Settings(
        "127.0.0.1",
        "127.0.0.2",
        tcp_port=port,
        push_port=push_port,
        max_state_age_s=3.0,
        reply_timeout_s=2.0,
        stop_timeout_s=20.0,
        connect_timeout_s=60.0,
        gripper=GripperSettings(max_age_s=4.0),
    )
    with Emulator(two_arms(port, push_port)) as emulator:
        cell = Cell(emulator, settings, Rm65Robot(settings))
        yield cell
        cell.robot.disconnect()


def test_no_controller_at_the_address_is_reported_in_one_line():
    port, push_port = free_ports()
    robot = Rm65Robot(Rm65Settings("127.0.0.1", "127.0.0.2", tcp_port=port, push_port=push_port))
    with pytest.raises(RobotTimeoutError, match=f"right arm 127.0.0.1: no RealMan controller answers at port {port}"):
        robot.connect()


def test_a_hanging_controller_is_reported_and_the_other_arm_is_released(cell):
    cell.arm("left").faults.ignored = frozenset({EVERYTHING})
    with pytest.raises(RobotTimeoutError, match=r"left arm 127.0.0.2"):
        cell.robot.connect()
    until = time.monotonic() + 5.0
    while cell.emulator.num_clients("right") and time.monotonic() < until:
        time.sleep(0.01)
    assert cell.emulator.num_clients("right") == 0
    cell.arm("left").faults.ignored = frozenset()
    cell.robot.connect()
    cell.robot.observe()


def test_everything_that_keeps_an_arm_from_moving_is_reported_together(cell):
    arm = cell.arm()
    arm.is_real = arm.is_powered = False
    arm.joints_enabled[3] = False
    cell.emulator.call(lambda: (arm.fail(ERR_COLLISION), arm.fail_joint(2, 0x4000)))
    with pytest.raises(RejectedError) as caught:
        cell.robot.connect()
    message = str(caught.value)
    assert "run mode is simulated" in message
    assert "power is off" in message
    assert "joint enable is off at forearm_roll" in message
    assert "elbow error 0x4000 (step in the commanded position)" in message
    assert "error 0x100D (collision)" in message
    assert arm.records == []


def test_another_kind_of_arm_is_refused():
    port, push_port = free_ports()
    arms = [dataclasses.replace(a, product="RML63-BI") for a in two_arms(port, push_port)]
    robot = Rm65Robot(Rm65Settings("127.0.0.1", "127.0.0.2", tcp_port=port, push_port=push_port, max_state_age_s=20.0))
    with Emulator(arms), pytest.raises(RejectedError, match="expected an RM65 with 6 joints"):
        robot.connect()


def test_an_arm_that_starts_beyond_its_range_is_refused():
    port, push_port = free_ports()
    narrow = (178.0, 130.0, 60.0, 178.0, 128.0, 360.0)
    arms = [dataclasses.replace(a, joint_limit_deg=narrow) for a in two_arms(port, push_port)]
    robot = Rm65Robot(Rm65Settings("127.0.0.1", "127.0.0.2", tcp_port=port, push_port=push_port, max_state_age_s=20.0))
    with Emulator(arms), pytest.raises(RejectedError, match=r"elbow at 70.0 deg \(range -60..60\)"):
        robot.connect()


def test_a_number_that_is_not_finite_never_reaches_the_wire(cell):
    cell.robot.connect()
    for bad in (np.nan, np.inf, -np.inf):
        target = cell.robot.observe().state
        target[4] = bad
        with pytest.raises(RejectedError, match=r"not finite at right_wrist_angle \[4\]"):
            cell.robot.send(target)
    assert motion_commands(cell.arm("right").records + cell.arm("left").records, 0.0) == []


# The SDK (1.1.6) reads a lost connection in a loop. Closing it in the wrong microsecond ends its thread, and no arm
# connects after that.
@pytest.mark.own_process
def test_a_connection_reset_while_driving_stops_both_arms_and_connecting_again_recovers(cell):
    cell.robot.connect()
    cell.robot.send(cell.robot.observe().state)
    cell.emulator.reset_connections("right")
    cell.drive_until(RobotError, r"right arm 127.0.0.1: (.* the connection is lost|.*state is \d+ ms old)")
    cell.robot.stop()
    for side in ("right", "left"):
        cell.assert_still_for_good(side)
    cell.robot.connect()
    state = cell.robot.observe().state
    np.testing.assert_allclose(cell.robot.send(state), state)


@pytest.mark.own_process
def test_an_arm_that_comes_back_as_another_one_is_refused_until_the_program_starts_again(cell):
    cell.robot.connect()
    cell.robot.connect()  # The same arms may come back.
    arm = cell.arm("left")
    arm.settings = dataclasses.replace(arm.settings, product="RM65-6F")
    for _ in range(2):
        with pytest.raises(
            RejectedError, match=r"left arm .*another arm: software was RM65-BI, .*, is RM65-6F, .*\. Start"
        ):
            cell.robot.connect()
    restarted = Rm65Robot(cell.settings)
    restarted.connect()
    restarted.disconnect()


def test_a_controller_error_while_driving_is_named(cell):
    cell.robot.connect()
    cell.emulator.call(lambda: cell.arm("left").fail(ERR_COLLISION))
    cell.drive_until(RobotError, r"left arm 127.0.0.2: error 0x100D \(collision\)")
    cell.robot.stop()
    cell.assert_still_for_good("right")


def test_a_state_push_that_ends_is_noticed(cell):
    robot = cell.robot = Rm65Robot(dataclasses.replace(cell.settings, max_state_age_s=0.3))
    robot.connect()
    cell.arm("left").faults.is_push_silent = True
    cell.drive_until(RobotTimeoutError, r"left arm 127.0.0.2: the state is \d+ ms old, expected at most 300 ms")


@pytest.mark.parametrize("follow", ["low", "high"])
def test_a_frozen_state_push_is_noticed(cell, follow):
    robot = cell.robot = Rm65Robot(dataclasses.replace(cell.settings, follow=follow))
    robot.connect()
    cell.arm("right").faults.is_push_frozen = True
    cell.drive_until(RejectedError, "right arm 127.0.0.1: stands still .* its state push is frozen")
    robot.stop()
    cell.assert_still_for_good("right")


def test_motion_that_the_controller_silently_refuses_is_noticed(cell):
    cell.robot.connect()
    cell.arm("left").faults.rejected = frozenset({"movej_canfd"})
    cell.drive_until(RejectedError, "left arm 127.0.0.2: stands still .* refuses motion")


def test_a_gripper_that_stops_answering_is_noticed(cell):
    cell.robot.connect()
    cell.arm("right").faults.ignored = frozenset({"get_gripper_state"})
    cell.drive_until(
        RobotTimeoutError, r"right arm 127.0.0.1: 'rm_get_gripper_state' failed \(-2\): no answer|last read"
    )


def test_an_unacknowledged_stop_is_an_error_that_names_the_emergency_stop(cell):
    robot = cell.robot = Rm65Robot(dataclasses.replace(cell.settings, reply_timeout_s=0.2, stop_timeout_s=0.2))
    robot.connect()
    cell.arm("left").faults.ignored = frozenset({"set_arm_stop"})
    with pytest.raises(
        RobotError, match=r"left arm .*'set_arm_stop' was not acknowledged over TCP.*\. Press the emergency stop"
    ):
        robot.stop()
    cell.assert_still_for_good("right")


def test_an_arm_that_keeps_moving_after_an_acknowledged_stop_is_an_error(cell):
    robot = cell.robot = Rm65Robot(dataclasses.replace(cell.settings, stop_timeout_s=2.0))
    robot.connect()
    arm = cell.arm("left")
    arm.stop = lambda *, slow=False: True
    assert cell.emulator.call(lambda: arm.motion.plan(-arm.position.joints, 0.02))
    with pytest.raises(RobotError, match=r"left arm 127.0.0.2: still moving"):
        robot.stop()


def test_a_missing_sdk_is_reported_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "Robotic_Arm", None)
    with pytest.raises(SiteError, match="pip install Robotic_Arm"):
        Rm65Robot(Rm65Settings()).connect()


HUNG_SDK = """
import sys, time
import numpy as np
from realman.pacing import SuspendWatch
from realman.robots.emulator import Emulator
from realman.robots.emulator.controller import motion_commands
from realman.robots.emulator.settings import free_ports, two_arms
from realman.errors import RobotError
from realman.robots.rm65 import Rm65Robot, Rm65Settings

port, push_port = free_ports()
settings = Rm65Settings("127.0.0.1", "127.0.0.2", tcp_port=port, push_port=push_port, max_state_age_s=20.0)
with Emulator(two_arms(port, push_port, generation=3)) as emulator:
    robot = Rm65Robot(settings)
    robot.connect()
    robot.send(robot.observe().state)
    # Never do this on generation 3: it leaves the SDK's lock taken forever.
    assert robot._arms["right"]._sdk_arm.rm_set_arm_emergency_stop(True) == -4
    start = time.monotonic()
    robot.stop()
    print("stopped", time.monotonic() - start < 5)
    robot.disconnect()
    for side, arm in emulator.controllers.items():
        stop = [r for r in arm.records if r.command == "set_arm_stop"]
        print(side, bool(stop), motion_commands(arm.records, stop[0].time_s))
    try:
        robot.connect()
    except RobotError as e:
        print(e)
sys.stdout.flush()
"""


def test_a_hung_sdk_does_not_keep_the_arms_from_stopping():
    done = subprocess.run([sys.executable, "-c", HUNG_SDK], capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["stopped True", "right True []", "left True []"], done.stderr
    assert "the SDK hangs since an earlier run (left arm 127.0.0.2: release" in lines[3]
    assert "Start the program again" in lines[3]
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("follow", ["low", "high"])
def test_after_a_suspend_nothing_is_sent_or_observed_until_the_robot_is_connected_again(cell, follow):
    slept_s = [0.0]
    robot = cell.robot = Rm65Robot(dataclasses.replace(cell.settings, follow=follow))
    robot.connect()
    robot._suspend_watch = SuspendWatch(time.monotonic, lambda: time.monotonic() + slept_s[0])
    # At speed, so that commands leave from the driver's own thread.
    goal = robot.observe().state + np.where(np.isin(np.arange(14), spec.JOINT_DIMS), 0.02, 0.0)
    robot.send(goal)
    slept_s[0] = 12.0
    time.sleep(0.05)
    # A gripper has its own rate, and may still be sent the target from before.
    records = cell.arm("right").records
    num_sent = sum(r.command == "movej_canfd" for r in records)
    for call in (robot.observe, robot.measure, lambda: robot.send(goal)):
        with pytest.raises(RobotTimeoutError, match=r"rm65: this machine was suspended for 12\.0 s"):
            call()
    time.sleep(0.1)
    assert sum(r.command == "movej_canfd" for r in records) == num_sent
    robot.stop()
    robot.connect()
    robot.observe()


def test_a_command_that_hangs_in_the_driver_does_not_delay_the_stop(cell, monkeypatch):
    robot = cell.robot = Rm65Robot(dataclasses.replace(cell.settings, follow="high"))
    robot.connect()
    robot.send(robot.observe().state)
    calls: list[str] = []
    halt = CommandStream.halt
    monkeypatch.setattr(CommandStream, "halt", lambda stream: calls.append("halt") or halt(stream))
    for arm in robot._arms.values():
        stop = arm.stop
        monkeypatch.setattr(arm, "stop", lambda stop=stop: calls.append("stop") or stop())
    robot.stop()
    # To wait for the thread that sends takes a second if it hangs, and the other arm would move on meanwhile.
    assert calls == ["stop", "stop"]
    robot.disconnect()
    assert "halt" in calls
