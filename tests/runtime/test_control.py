import os
import re
import signal
import time

import numpy as np
import pytest

from realman import spec
from realman.errors import RejectedError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import ServerError
from realman.pacing import Pacer
from realman.robots.robot import Robot
from realman.robots.robot import RobotObservation
from realman.robots.robot import ShadowRobot
from realman.robots.robot import connected
from realman.runtime import chunks
from realman.runtime import control
from realman.runtime.client import Prediction
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetySettings
from realman.runtime.watchdogs import Watchdogs

LIMITS = Limits.per_tick(SafetySettings(max_joint_speed_deg_s=225, max_joint_acceleration_deg_s2=1e6), fps=50)


class FakeRobot:
    """Arms that go where they are sent, and log every call."""

    def __init__(self, *, age_s: float = 0.0, fail: dict[str, Exception] | None = None) -> None:
        self.calls: list[str] = []
        self.state = np.zeros(14)
        self.sent: list[np.ndarray] = []
        self._age_s = age_s
        self._fail = fail or {}

    @property
    def fps(self) -> float:
        return 50.0

    def connect(self) -> None:
        self._log("connect")

    def observe(self) -> RobotObservation:
        self._log("observe")
        images = {name: np.zeros((48, 64, 3), np.uint8) for name in spec.CAMERAS}
        return RobotObservation(self.state.copy(), images, time.monotonic() - self._age_s)

    def send(self, target: np.ndarray) -> np.ndarray:
        self._log("send")
        self.sent.append(target)
        self.state = target.copy()
        return target.copy()

    def stop(self) -> None:
        self._log("stop")

    def disconnect(self) -> None:
        self._log("disconnect")

    def _log(self, call: str) -> None:
        self.calls.append(call)
        if call in self._fail:
            raise self._fail[call]


class RampClient:
    """A policy client whose chunks move every joint by a constant step.

    `fail_at` is the prediction that raises.
    """

    action_chunk = 4

    def __init__(
        self, step: float = 0.01, *, fail_at: int | None = None, fail_with: BaseException | None = None
    ) -> None:
        self.states: list[np.ndarray] = []
        self._step = step
        self._fail_at = fail_at
        self._fail_with = fail_with or ServerError("policy server gone")

    def infer(self, state, images, prompt=None) -> Prediction:
        if len(self.states) == self._fail_at:
            raise self._fail_with
        self.states.append(state)
        actions = state + self._step * np.arange(1, 11)[:, None] * np.ones(14)
        actions[:, list(spec.GRIPPER_DIMS)] = 0
        return Prediction(actions, 0.1, 0.08)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def run(robot, client, **options) -> tuple[control.RunRecord, chunks.SyncPlayer]:
    record, player = control.RunRecord(), chunks.SyncPlayer(client, "task")
    with connected(robot):
        control.run(robot, player, LIMITS, record, **{"max_steps": 10, **options})
    return record, player


def test_a_fake_a_shadow_and_a_connected_robot_are_all_robots():
    assert isinstance(FakeRobot(), Robot)
    assert isinstance(ShadowRobot(FakeRobot()), Robot)


def test_the_loop_executes_a_chunk_and_then_looks_again():
    robot, client = FakeRobot(), RampClient()
    record, player = run(robot, client, max_steps=10)
    assert len(robot.sent) == 10
    # Chunks of four: asked at ticks 0, 4 and 8, each time with the state of that moment.
    np.testing.assert_allclose([s[0] for s in client.states], [0, 0.04, 0.08])
    np.testing.assert_allclose([s[0] for s in robot.sent], 0.01 * np.arange(1, 11))
    summary = record.summary(player, None)
    assert summary["steps"] == 10
    assert summary["predictions"] == summary["stand_stills"] == 3
    assert summary["round_trip_ms"] == {"p50": 100.0, "p95": 100.0, "max": 100.0}
    assert summary["infer_ms"]["p50"] == 80.0
    assert summary["clamped_steps"] == 0
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_a_policy_that_is_too_fast_is_slowed_down_and_counted():
    robot = FakeRobot()
    record, player = run(robot, RampClient(step=0.2))
    steps = np.abs(np.diff(np.array([np.zeros(14), *robot.sent]), axis=0))
    assert (steps <= LIMITS.max_step + 1e-9).all()
    summary = record.summary(player, None)
    assert summary["clamped_steps"] == 10
    assert summary["speed_clamps"]["left_waist"] == 10
    assert summary["range_clamps"] == {}
    arrays = record.arrays()
    assert arrays["sent"].shape == arrays["target"].shape == (10, 14)
    assert (np.abs(arrays["target"]) >= np.abs(arrays["sent"]) - 1e-9).all()


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize(
    "error",
    [ServerError("gone"), RejectedError("refused"), ZeroDivisionError("a bug"), Interrupted()],
    ids=lambda e: type(e).__name__,
)
def test_every_end_of_a_run_stops_the_arms_before_anything_else(error):
    robot = FakeRobot()
    with pytest.raises(type(error)):
        run(robot, RampClient(fail_at=1, fail_with=error))
    assert len(robot.sent) == 4
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_a_failing_send_stops_the_arms():
    robot = FakeRobot(fail={"send": RobotError("right arm: connection reset")})
    with pytest.raises(RobotError, match="connection reset"):
        run(robot, RampClient())
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_a_robot_that_cannot_connect_never_moves():
    robot = FakeRobot(fail={"connect": RobotError("left arm: no answer")})
    with pytest.raises(RobotError, match="no answer"):
        run(robot, RampClient())
    assert robot.calls == ["connect"]


def test_a_stop_that_fails_is_logged_as_critical_and_keeps_the_first_error(caplog):
    robot = FakeRobot(fail={"stop": RobotError("no answer")})
    with pytest.raises(ServerError, match="gone"):
        run(robot, RampClient(fail_at=1))
    assert "Press the emergency stop" in caplog.text
    assert robot.calls[-1] == "disconnect"


def test_a_stop_that_fails_after_a_good_run_is_an_error():
    robot = FakeRobot(fail={"stop": RobotError("no answer")})
    with pytest.raises(RobotError, match="Press the emergency stop"):
        run(robot, RampClient())
    assert robot.calls[-1] == "disconnect"


def test_an_old_observation_is_not_acted_on():
    robot = FakeRobot(age_s=2.0)
    with pytest.raises(RobotTimeoutError, match=r"observation: 2\d\d\d ms old, expected at most 500 ms"):
        run(robot, RampClient(), watchdogs=Watchdogs(max_observation_age_s=0.5))
    assert robot.sent == []


def test_a_robot_outside_its_range_does_not_start():
    robot = FakeRobot()
    robot.state = np.full(14, 4.0)
    with pytest.raises(RejectedError, match="measured state"):
        run(robot, RampClient())
    assert robot.sent == []


def test_a_dry_run_asks_the_policy_and_sends_nothing():
    robot, client = FakeRobot(), RampClient()
    record, _ = run(ShadowRobot(robot), client)
    assert len(record.sent) == 10
    assert len(client.states) == 3
    assert robot.sent == []
    assert robot.calls[-2:] == ["stop", "disconnect"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_arms_even_while_the_policy_thinks_and_later_ones_do_not_disturb(number):
    class Thinking(RampClient):
        def infer(self, state, images, prompt=None):
            os.kill(os.getpid(), number)
            time.sleep(60)

    class Stopping(FakeRobot):
        def stop(self):
            os.kill(os.getpid(), number)
            super().stop()

    robot, before = Stopping(), signal.getsignal(number)
    start = time.monotonic()
    with pytest.raises(control.StopRequested) as caught, control.stop_on_signals():
        run(robot, Thinking())
    assert time.monotonic() - start < 30
    assert caught.value.number == number
    assert robot.calls == ["connect", "observe", "observe", "stop", "disconnect"]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_stop_of_a_good_run_does_not_interrupt_it(number):
    class Stopping(FakeRobot):
        def stop(self):
            os.kill(os.getpid(), number)
            super().stop()

    robot = Stopping()
    with control.stop_on_signals():
        run(robot, RampClient())
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_deadlines_do_not_drift_when_ticks_take_different_times():
    clock = FakeClock()
    pacer = Pacer(50.0, clock)
    for work_s in (0.001, 0.015, 0.0, 0.019, 0.005):
        clock.now += work_s
        pacer.wait()
    assert clock.now == pytest.approx(100.0 + 5 * 0.02)
    assert pacer.late_ticks == 0


def test_a_late_tick_is_counted_and_lost_time_is_made_up_slowly():
    clock = FakeClock()
    pacer = Pacer(50.0, clock)
    clock.now += 0.030
    pacer.wait()
    times = []
    for _ in range(60):
        pacer.wait()
        times.append(clock.now)
    # Two ticks in less than a period would be faster than the limit of speed, which is one step per period.
    assert np.diff([100.030, *times]).min() >= 0.99 * 0.02 - 1e-9
    assert times[-1] == pytest.approx(100.0 + 61 * 0.02)
    assert pacer.late_ticks == 1
    assert pacer.worst_late_s == pytest.approx(0.010)


def test_lost_time_is_never_made_up_by_a_burst():
    clock = FakeClock()
    pacer = Pacer(50.0, clock)
    clock.now += 0.5
    pacer.wait()
    clock.sleeps.clear()
    for _ in range(5):
        pacer.wait()
    assert clock.sleeps == pytest.approx([0.02] * 5)
    assert pacer.late_ticks == 1


def test_the_wait_for_a_prediction_is_not_lateness():
    clock, robot = FakeClock(), FakeRobot()

    class Slow(RampClient):
        def infer(self, state, images, prompt=None):
            clock.now += 0.3
            return super().infer(state, images, prompt)

    pacer = Pacer(50.0, clock)
    run(robot, Slow(), max_steps=8, pacer=pacer)
    assert pacer.late_ticks == 0
    assert clock.now == pytest.approx(100.0 + 2 * 0.3 + 8 * 0.02)


def test_arms_do_not_move_on_a_prediction_made_too_long_ago():
    class Slow(RampClient):
        def infer(self, state, images, prompt=None):
            time.sleep(0.05)
            return super().infer(state, images, prompt)

    robot = FakeRobot()
    with pytest.raises(RobotTimeoutError, match=r"prediction: \d+ ms old, expected at most 20 ms"):
        run(robot, Slow(), watchdogs=Watchdogs(max_policy_age_s=0.02))
    assert robot.sent == []
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_a_loop_that_was_held_up_ends_the_run():
    clock = FakeClock()

    class HeldUp(FakeRobot):
        def send(self, target):
            if len(self.sent) == 2:
                clock.now += 3.0
            return super().send(target)

    robot = HeldUp()
    with pytest.raises(RobotTimeoutError, match=r"control loop: 2980 ms late, expected at most 200 ms"):
        run(robot, RampClient(), pacer=Pacer(50.0, clock), watchdogs=Watchdogs(max_overrun_s=0.2))
    assert len(robot.sent) == 3
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_a_loop_that_is_always_a_little_late_ends_the_run_and_single_late_steps_do_not():
    watchdogs = Watchdogs(max_late_ticks=3)
    for late_s in (0.005, 0.0, 0.005, 0.005, 0.005, 0.0):
        watchdogs.check_lateness(late_s)
    for _ in range(3):
        watchdogs.check_lateness(0.005)
    with pytest.raises(RobotTimeoutError, match="4 steps in a row were late"):
        watchdogs.check_lateness(0.005)


def test_a_server_that_dies_while_the_arms_move_stops_them_in_async_mode_too():
    robot, record = FakeRobot(), control.RunRecord()
    player = chunks.AsyncPlayer(RampClient(fail_at=1), None)
    with pytest.raises(ServerError, match="gone"), connected(robot):
        control.run(robot, player, LIMITS, record, max_steps=10_000, pacer=Pacer(500.0))
    assert 4 <= len(robot.sent) < 10_000
    assert robot.calls[-2:] == ["stop", "disconnect"]


def test_nothing_next_to_the_arms_reads_a_clock_that_can_be_set(repo_root):
    # A clock that jumps, by hand or by NTP, must neither freeze nor hurry an arm: time.monotonic() alone.
    files = []
    rooms = (
        "",
        "robots",
        "robots/rm65",
        "robots/cameras",
        "robots/emulator",
        "runtime",
        "runtime/recording",
        "station",
    )
    for room in rooms:
        files += (repo_root / "realman" / room).glob("*.py")
    assert len(files) > 40
    wall_clock = re.compile(r"time\.time\(|datetime|perf_counter")
    assert [f.name for f in files if wall_clock.search(f.read_text()) and f.name != "demo.py"] == []
