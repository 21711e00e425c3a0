"""The arms are never left at speed while nothing is sent, and nothing is sent after a suspend."""

import time

import numpy as np
import pytest

from realman import pacing
from realman import spec
from realman.errors import RobotTimeoutError
from realman.pacing import Pacer
from realman.pacing import SuspendWatch
from realman.robots.robot import RobotObservation
from realman.robots.robot import connected
from realman.runtime import chunks
from realman.runtime import control
from realman.runtime.client import Prediction
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetySettings
from realman.runtime.steering import Steering
from realman.runtime.watchdogs import Watchdogs


class FakeRobot:
    """Arms that go where they are sent."""

    fps = 50.0

    def __init__(self) -> None:
        self.state = np.zeros(14)
        self.sent: list[np.ndarray] = []
        self.is_stopped = False

    def connect(self) -> None: ...

    def observe(self) -> RobotObservation:
        return RobotObservation(self.state.copy(), {}, time.monotonic())

    def send(self, target: np.ndarray) -> np.ndarray:
        self.sent.append(target)
        self.state = target.copy()
        return target.copy()

    def stop(self) -> None:
        self.is_stopped = True

    def disconnect(self) -> None: ...


class RampClient:
    """A policy whose chunks move every joint by a constant step."""

    action_chunk = 4

    def __init__(self, step: float = 0.004) -> None:
        self.num_asked = 0
        self._step = step

    def infer(self, state, images, prompt=None, *_, **__) -> Prediction:
        self.num_asked += 1
        return Prediction(state + self._step * np.arange(1, 31)[:, None] * np.ones(14), 0.1, 0.08)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


SITE_LIMITS = Limits.per_tick(SafetySettings(max_first_jump_deg=90), fps=50)


class FastClient(RampClient):
    """Chunks that move every joint at the site's speed, from where the last command was."""

    def __init__(self, robot: FakeRobot) -> None:
        super().__init__(step=float(np.deg2rad(1.2)))
        self._robot = robot
        self.sent_before: list[int] = []

    action_chunk = 12

    def infer(self, state, images, prompt=None, *_, **__) -> Prediction:
        # What was not sent by now is not sent during the prediction.
        self.sent_before.append(len(self._robot.sent))
        return super().infer(state, images)


def held_at(sent: list[np.ndarray], waits: list[int]) -> np.ndarray:
    """Return what the arms do: what was sent, and a hold of some ticks at each wait and at the end."""
    rows = [np.zeros(14)]
    for k in range(len(sent) + 1):
        if k in waits or k == len(sent):
            rows += [rows[-1]] * 5
        if k < len(sent):
            rows.append(sent[k])
    return np.array(rows)


@pytest.mark.parametrize("execution", ["sync", "async", "blend"])
def test_the_arms_brake_within_the_limits_before_each_wait_and_before_the_end(execution):
    robot, record = FakeRobot(), control.RunRecord()
    client = FastClient(robot)
    player = chunks.make_player(execution, client, None)
    with connected(robot):
        control.run(robot, player, SITE_LIMITS, record, max_steps=30, pacer=Pacer(50.0, FakeClock()))
    waits = client.sent_before if execution == "sync" else client.sent_before[:1]
    steps = np.diff(held_at(robot.sent, waits), axis=0)
    changes = np.abs(np.diff(steps, axis=0))
    assert (changes <= SITE_LIMITS.max_step_change + 1e-9).all()
    assert np.abs(steps).max(axis=0)[0] > 0.9 * SITE_LIMITS.max_step[0]
    # Braking keeps the direction: all joints had the same speed and keep it.
    joints = steps[:, list(spec.JOINT_DIMS)]
    np.testing.assert_allclose(joints, joints[:, :1] * np.ones(12), atol=1e-9)
    # The log holds all that was sent: the steps of the chunks, and what braked.
    arrays = record.arrays()
    assert len(arrays["sent"]) == 30 == record.summary(player, None)["steps"]
    logged = np.concatenate([arrays["sent"], arrays["braking_sent"]])
    np.testing.assert_array_equal(np.sort(logged[:, 0]), np.sort(np.array(robot.sent)[:, 0]))
    assert len(arrays["braking_time_s"]) == len(robot.sent) - 30 > 0


def test_arms_that_need_long_to_brake_are_braked_to_the_end():
    # From 60 deg/s with 10 deg/s^2, braking takes 300 ticks.
    limits = Limits.per_tick(SafetySettings(max_joint_acceleration_deg_s2=10), fps=50)
    robot = FakeRobot()
    client = FastClient(robot)
    with connected(robot):
        player = chunks.make_player("async", client, None)
        control.run(robot, player, limits, control.RunRecord(), max_steps=290, pacer=Pacer(50.0, FakeClock()))
    steps = np.diff(robot.sent, axis=0)
    assert np.abs(steps).max() > 200 * limits.max_step_change[0]
    assert (np.abs(steps[-1]) <= limits.max_step_change + 1e-9).all()


def test_a_pause_that_ends_while_the_arms_still_brake_does_not_stop_them_at_once():
    robot, record, steering = FakeRobot(), control.RunRecord(), Steering()
    client = FastClient(robot)

    def pause_for_one_tick(sent: int) -> None:
        steering.is_paused = sent == 10

    class Watched(FakeRobot):
        def send(self, target: np.ndarray) -> np.ndarray:
            pause_for_one_tick(len(self.sent) + 1)
            return super().send(target)

    robot = client._robot = Watched()
    with connected(robot):
        control.run(
            robot,
            chunks.SyncPlayer(client, None),
            SITE_LIMITS,
            record,
            max_steps=20,
            pacer=Pacer(50.0, FakeClock()),
            steering=steering,
            renew=lambda: chunks.SyncPlayer(client, None),
        )
    assert record.pauses == 1
    changes = np.abs(np.diff(np.diff(held_at(robot.sent, client.sent_before), axis=0), axis=0))
    assert (changes <= SITE_LIMITS.max_step_change + 1e-9).all()


def test_simulated_time_stands_still_during_a_wait_so_the_motion_goes_on():
    robot, record = FakeRobot(), control.RunRecord()
    client = FastClient(robot)
    with connected(robot):
        control.run(robot, chunks.SyncPlayer(client, None), SITE_LIMITS, record, max_steps=30)
    steps = np.diff(held_at(robot.sent, []), axis=0)
    assert (np.abs(np.diff(steps, axis=0)) <= SITE_LIMITS.max_step_change + 1e-9).all()
    # No stop between the first chunk and the end.
    assert np.abs(steps[8:30, 0]).min() > 0.5 * SITE_LIMITS.max_step[0]
    assert client.sent_before == [0, 12, 24]


class SleepyClocks:
    """Two clocks of a machine. Only one counts the time of a suspend."""

    def __init__(self) -> None:
        self.awake = FakeClock()
        self.slept_s = 0.0

    def total_s(self) -> float:
        return self.awake.now + self.slept_s

    def watch(self) -> SuspendWatch:
        return SuspendWatch(self.awake.monotonic, self.total_s)


def test_a_suspend_is_measured_by_the_clock_that_counts_it_and_a_busy_machine_is_none():
    clocks = SleepyClocks()
    clocks.slept_s = 1e6  # before the start
    watch = clocks.watch()
    clocks.awake.now += 3600.0
    assert watch.suspended_s() == pytest.approx(0.0, abs=1e-6)
    watch.check("control loop")
    clocks.slept_s += 7.25
    assert watch.suspended_s() == pytest.approx(7.25)
    with pytest.raises(RobotTimeoutError, match=r"^control loop: this machine was suspended for 7\.2 s, expected none"):
        watch.check("control loop")


@pytest.mark.parametrize("pause_s", [0.1, 30.0])
def test_a_pause_between_reading_the_two_clocks_is_not_taken_for_a_suspend(pause_s):
    now = [0.0]

    def slow_clock() -> float:
        now[0] += pause_s
        return now[0]

    watch = SuspendWatch(slow_clock, slow_clock)
    for _ in range(5):
        assert watch.suspended_s() == 0.0


def test_a_clock_that_has_a_name_only_is_not_used(monkeypatch):
    def refuse(_: int) -> float:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(pacing.time, "clock_gettime", refuse)
    assert pacing._find_boot_clock() is None


def test_the_real_clocks_do_not_differ_while_this_machine_is_awake():
    watch = SuspendWatch()
    time.sleep(0.01)
    assert watch.suspended_s() < 0.05


@pytest.mark.parametrize("where", ["a tick", "a prediction", "a pause"])
def test_a_suspended_machine_ends_the_run_before_another_target(where):
    clocks, steering = SleepyClocks(), Steering()

    class Slept(RampClient):
        def infer(self, state, images, prompt=None):
            if where == "a prediction" and self.num_asked == 2:
                clocks.slept_s = 60.0
            return super().infer(state, images, prompt)

    class Arms(FakeRobot):
        def send(self, target: np.ndarray) -> np.ndarray:
            assert clocks.slept_s == 0, "a target from before the suspend was sent"
            if len(self.sent) == 6:
                steering.is_paused = where == "a pause"
                clocks.slept_s = 60.0 if where == "a tick" else 0.0
            if len(self.sent) == 7 and where == "a pause":
                clocks.slept_s = 60.0
            return super().send(target)

    robot = Arms()
    with pytest.raises(RobotTimeoutError, match="suspended for 60"), connected(robot):
        control.run(
            robot,
            chunks.SyncPlayer(Slept(), None),
            SITE_LIMITS,
            control.RunRecord(),
            max_steps=20,
            pacer=Pacer(50.0, clocks.awake),
            watchdogs=Watchdogs(suspend_watch=clocks.watch()),
            steering=steering,
            renew=lambda: chunks.SyncPlayer(Slept(), None),
        )
    assert 7 <= len(robot.sent) <= 8
    assert robot.is_stopped
