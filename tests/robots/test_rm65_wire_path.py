"""What is sent at the rate of the wire keeps the limits, whatever comes late."""

import dataclasses
import itertools
import threading
import time

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from realman import spec
from realman.robots.emulator import Emulator
from realman.robots.emulator.settings import HOSTS
from realman.robots.emulator.settings import free_ports
from realman.robots.emulator.settings import two_arms
from realman.robots.limits import CommandedMotion
from realman.robots.limits import MotionLimits
from realman.robots.limits import StepLimits
from realman.robots.limits import limit_target
from realman.robots.rm65 import GripperSettings
from realman.robots.rm65 import Rm65Robot
from realman.robots.rm65 import Rm65Settings
from realman.robots.rm65.stream import CommandStream
from realman.robots.rm65.wire_path import RESOLUTION_RAD
from realman.robots.rm65.wire_path import WirePath

FPS, RATE_HZ = 50.0, 100.0
SPEED, ACCELERATION = np.deg2rad(60.0), np.deg2rad(600.0)
MOTION = MotionLimits(SPEED, ACCELERATION, 4.0, np.deg2rad(2.0))
JOINTS = list(spec.JOINT_DIMS)
EPS = 1e-9


def limited(wanted: np.ndarray, fps: float = FPS, allowed: MotionLimits = MOTION) -> np.ndarray:
    """Return the targets that the control loop makes of what a policy wants."""
    limits, motion, targets = allowed.per_tick(fps), CommandedMotion.at_rest(np.zeros(14)), []
    for target in wanted:
        sent = limit_target(target, motion, limits).target
        motion = CommandedMotion(sent, sent - motion.position, target)
        targets.append(sent)
    return np.array(targets)


def send(path: WirePath, targets: np.ndarray, times_s: np.ndarray, rate_hz: float, phase_s: float = 0.0) -> np.ndarray:
    """Return the commands while targets come at their times, and half a second longer."""
    commands, k = [], 0
    for i in range(int((times_s[-1] + 0.5) * rate_hz)):
        while k < len(targets) and times_s[k] <= i / rate_hz + phase_s:
            path.add(targets[k])
            k += 1
        commands.append(path.step())
    return np.array(commands)


def assert_limits_hold(commands: np.ndarray, limits: StepLimits) -> None:
    steps = np.diff(commands, axis=0, prepend=np.zeros((1, 14)))
    assert (np.abs(steps) <= limits.max_step + EPS).all()
    assert (np.abs(np.diff(steps, axis=0, prepend=np.zeros((1, 14)))) <= limits.max_step_change + EPS).all()
    assert (commands >= limits.lower - 2 * RESOLUTION_RAD).all()
    assert (commands <= limits.upper + 2 * RESOLUTION_RAD).all()


@settings(max_examples=15, deadline=None)
@given(
    delays_s=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.01), st.floats(0, 0.5)), min_size=10, max_size=10),
    wanted=hnp.arrays(np.float64, (10, 14), elements=st.floats(-3, 3)),
    is_limited=st.booleans(),
    rates=st.sampled_from([(50.0, 100.0), (30.0, 100.0), (50.0, 50.0), (50.0, 250.0), (25.0, 120.0)]),
    real_fps=st.sampled_from([10.0, 30.0, 50.0, 100.0]),
    phase_s=st.floats(0, 0.01),
)
def test_the_limits_hold_whatever_comes_late_and_the_arms_end_at_the_last_target(
    delays_s, wanted, is_limited, rates, real_fps, phase_s
):
    fps, rate_hz = rates
    targets = limited(wanted, fps) if is_limited else wanted
    # A late target holds up those behind it, so several may come at once.
    times_s = np.maximum.accumulate(np.arange(10) / real_fps + np.array(delays_s))
    limits = MOTION.per_tick(rate_hz)
    path = WirePath(np.zeros(14), limits, fps, rate_hz)
    commands = send(path, targets, times_s, rate_hz, phase_s)
    assert_limits_hold(commands, limits)
    last = np.clip(targets[-1], limits.lower, limits.upper)
    way_s = np.abs(last - commands[-1]) / (limits.max_step * rate_hz)
    for _ in range(int((way_s.max() + 0.5) * rate_hz)):
        path.step()
    # As exactly as the wire counts.
    np.testing.assert_allclose(path.position, last, atol=RESOLUTION_RAD / 2 + EPS)
    np.testing.assert_array_equal(path.step(), path.step())


@settings(max_examples=10, deadline=None)
@given(
    wanted=hnp.arrays(np.float64, (20, 14), elements=st.floats(-1, 1)),
    rates=st.sampled_from([(50.0, 100.0), (50.0, 200.0), (25.0, 100.0)]),
    phase=st.floats(0.01, 0.99),
)
def test_targets_inside_the_limits_that_come_in_time_are_followed_without_a_deviation(wanted, rates, phase):
    fps, rate_hz = rates
    # Rounding to the unit of the wire needs a little of the acceleration.
    targets = limited(np.cumsum(wanted, axis=0), fps, dataclasses.replace(MOTION, max_joint_acceleration_rad_s2=8.0))
    limits = MOTION.per_tick(rate_hz)
    ratio = round(rate_hz / fps)
    commands = send(
        WirePath(np.zeros(14), limits, fps, rate_hz), targets, np.arange(20) / fps, rate_hz, phase / rate_hz
    )[: 20 * ratio]
    # The legs from target to target, their corners rounded by the mean over one leg: the limits change nothing.
    ends = np.concatenate([np.zeros((1, 14)), targets])
    legs = np.concatenate([a + (b - a) * np.arange(1, ratio + 1)[:, None] / ratio for a, b in itertools.pairwise(ends)])
    rounded = np.array([np.mean(legs[max(0, i - ratio + 1) : i + 1], axis=0) for i in range(ratio - 1, len(legs))])
    np.testing.assert_allclose(commands[ratio - 1 :], rounded, atol=5 * RESOLUTION_RAD)
    # Each target is reached within a leg and a half of its arrival, as far as the arm still heads for it.
    after_leg = commands[ratio - 1 :: ratio]
    np.testing.assert_array_less(np.abs(after_leg - targets), np.abs(targets - ends[:-1]) / 2 + 5 * RESOLUTION_RAD)


@pytest.mark.parametrize("late_s", [0.0, 0.03, 0.12, 0.5])
@pytest.mark.parametrize("jitter_s", [0.0, 0.003])
def test_a_target_that_brakes_within_the_limits_is_never_passed_however_late_it_comes(late_s, jitter_s):
    wanted = np.zeros((80, 14))
    wanted[:, 1] = np.minimum(np.arange(80) * 0.0206, 1.0)
    targets = limited(wanted)
    times_s = np.arange(80) / FPS + np.random.default_rng(0).uniform(0, jitter_s, 80)
    times_s[30:] += late_s
    limits = MOTION.per_tick(RATE_HZ)
    commands = send(WirePath(np.zeros(14), limits, FPS, RATE_HZ), targets, times_s, RATE_HZ, 0.004)
    assert_limits_hold(commands, limits)
    # What rounding takes of the deceleration makes 3 deg of braking up to 0.05 deg longer.
    assert commands[:, 1].max() <= targets[:, 1].max() + 50 * RESOLUTION_RAD


@pytest.mark.parametrize(("rate_hz", "acceleration_deg_s2"), [(50.0, 20.0), (100.0, 10.0), (500.0, 240.0)])
def test_arms_with_a_low_limit_of_acceleration_go_where_they_should_at_every_rate(rate_hz, acceleration_deg_s2):
    # A change of a step that is smaller than the wire's unit: rounding must not stop the arms.
    allowed = dataclasses.replace(MOTION, max_joint_acceleration_rad_s2=float(np.deg2rad(acceleration_deg_s2)))
    targets = limited(np.minimum(np.arange(300)[:, None] * 0.004, 0.1) * np.ones(14), FPS, allowed)
    path = WirePath(np.zeros(14), allowed.per_tick(rate_hz), FPS, rate_hz)
    commands = send(path, targets, np.arange(300) / FPS, rate_hz, 0.004)
    commands = np.concatenate([commands, [path.step() for _ in range(int(4 * rate_hz))]])
    np.testing.assert_allclose(commands[-1], targets[-1], atol=RESOLUTION_RAD)
    limits = allowed.per_tick(rate_hz)
    changes = np.diff(commands, n=2, axis=0, prepend=np.zeros((2, 14)))
    assert (np.abs(changes) <= limits.max_step_change + EPS).all()


def test_lost_time_is_made_up_for():
    # One target is 60 ms late, and those behind it come at once. A second later nothing is left of it.
    targets = limited(0.3 * np.sin(np.arange(200)[:, None] * 0.04) * np.ones(14))
    in_time, late = np.arange(200) / FPS, np.arange(200) / FPS
    late[100:103] = late[103]
    limits = MOTION.per_tick(RATE_HZ)
    expected = send(WirePath(np.zeros(14), limits, FPS, RATE_HZ), targets, in_time, RATE_HZ, 0.004)
    found = send(WirePath(np.zeros(14), limits, FPS, RATE_HZ), targets, late, RATE_HZ, 0.004)
    assert_limits_hold(found, limits)
    assert np.abs(found - expected)[:, JOINTS][200:220].max() > 0.005
    np.testing.assert_allclose(found[350:400], expected[350:400], atol=1e-3)


class Wire:
    """Keeps what is sent, and tells when so much was."""

    def __init__(self) -> None:
        self.sent: list[np.ndarray] = []
        self._changed = threading.Condition()

    def send(self, command: np.ndarray) -> None:
        with self._changed:
            self.sent.append(command.copy())
            self._changed.notify_all()

    def wait_for(self, position: np.ndarray) -> None:
        """Wait until the last two commands are at a position."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self.sent) > 2 and np.abs(np.array(self.sent[-2:]) - position).max() < RESOLUTION_RAD, 20
            )


@pytest.mark.parametrize("rate_hz", [None, RATE_HZ])
@pytest.mark.parametrize("pause_s", [0.0, 0.06, 0.2])
def test_arms_at_speed_brake_and_return_while_no_target_comes(rate_hz, pause_s):
    wire, limits = Wire(), MOTION.per_tick(rate_hz or FPS)
    stream = CommandStream(wire.send, np.zeros(14), MOTION, fps=FPS, rate_hz=rate_hz)
    wanted = np.zeros((60, 14))
    wanted[:, 1] = 0.02 * np.arange(60)
    targets = limited(wanted)
    try:
        for k, target in enumerate(targets):
            stream.set_target(target)
            time.sleep(1 / FPS + (pause_s if k in (20, 40) else 0.0))
        wire.wait_for(targets[-1])
        num_sent = len(wire.sent)
    finally:
        stream.halt()
    assert_limits_hold(np.array(wire.sent), limits)
    if rate_hz is None:
        # At rest nothing more is sent.
        assert len(wire.sent) <= num_sent + 1


def test_in_low_follow_two_targets_are_never_sent_within_one_period():
    now, sent_s = [0.0], []

    class Clock:
        def monotonic(self) -> float:
            return now[0]

        def sleep(self, seconds: float, /) -> None:
            now[0] += seconds

    stream = CommandStream(lambda _: sent_s.append(now[0]), np.zeros(14), MOTION, fps=FPS, clock=Clock())
    for gap_s in (0.0, 0.001, 0.03, 0.0, 0.019, 0.002, 0.02):
        now[0] += gap_s
        stream.set_target(np.zeros(14))
    stream.halt()
    assert np.diff(sent_s).min() >= 0.99 / FPS - EPS


def test_a_target_that_waits_for_its_period_and_a_braking_command_are_never_sent_together():
    wire = Wire()

    class LateClock:
        """Its sleeps end as soon as a command has left, or late: what a busy machine may do."""

        monotonic = staticmethod(time.monotonic)

        def sleep(self, seconds: float, /) -> None:
            num_before, until_s = len(wire.sent), time.monotonic() + seconds + 4 / FPS
            while time.monotonic() < until_s and len(wire.sent) == num_before:
                time.sleep(0.001)

    stream = CommandStream(wire.send, np.zeros(14), MOTION, fps=FPS, clock=LateClock())
    try:
        for k in range(4):
            num_before = len(wire.sent)
            stream.set_target(np.full(14, 0.004 * (k + 1)))
            # Without a pause between two targets, each of them is early and waits.
            assert len(wire.sent) == num_before + 1
    finally:
        stream.halt()


@pytest.mark.parametrize("rate_hz", [None, RATE_HZ])
def test_after_a_send_that_was_held_up_the_next_command_comes_a_period_later(rate_hz):
    times_s: list[tuple[float, float]] = []

    def send(_: np.ndarray) -> None:
        begin_s = time.monotonic()
        time.sleep(3 / FPS if len(times_s) == 2 else 0.0)
        times_s.append((begin_s, time.monotonic()))

    stream = CommandStream(send, np.zeros(14), MOTION, fps=FPS, rate_hz=rate_hz)
    try:
        for k in range(6):
            stream.set_target(np.full(14, 0.004 * (k + 1)))
            time.sleep(1 / FPS)
    finally:
        stream.halt()
    assert times_s[3][0] - times_s[2][1] >= 0.98 / (rate_hz or FPS)


def test_after_a_silence_the_arms_start_from_rest():
    # A process that was halted at speed: the controllers hold the last command meanwhile.
    path = WirePath(np.zeros(14), MOTION.per_tick(RATE_HZ), FPS, RATE_HZ)
    for k in range(40):
        path.add(np.full(14, 0.02 * k))
        path.step()
        before = path.step()
    path.stand()
    change = MOTION.per_tick(RATE_HZ).max_step_change
    assert (np.abs(path.step() - before)[JOINTS] <= change[JOINTS] + EPS).all()


@pytest.mark.parametrize("follow", ["low", "high"])
def test_the_controllers_receive_no_command_beyond_the_limits_when_targets_are_late(follow):
    pytest.importorskip("Robotic_Arm", reason="needs the vendor's SDK: pip install Robotic_Arm")
    port, push_port = free_ports()
    settings_ = Rm65Settings(
        *HOSTS.values(),
        tcp_port=port,
        push_port=push_port,
        follow=follow,
        max_state_age_s=20.0,
        connect_timeout_s=60.0,
        gripper=GripperSettings(kind="none"),
    )
    rate_hz = settings_.high_follow_rate_hz if follow == "high" else settings_.fps
    with Emulator(two_arms(port, push_port)) as emulator:
        robot = Rm65Robot(settings_, limits=MOTION)
        robot.connect()
        try:
            start = robot.observe().state
            for k, target in enumerate(limited(0.02 * np.arange(40)[:, None] * np.ones(14) * (np.arange(14) < 1))):
                robot.send(start + target)
                time.sleep(1 / settings_.fps + (0.06 if k == 20 else 0.0))
        finally:
            robot.stop()
            robot.disconnect()
        records = emulator.controllers["right"].records
    commands = [r for r in records if r.command == "movej_canfd"]
    sent = np.array([r.request["joint"][0] for r in commands])
    steps = np.diff(sent, prepend=sent[0])
    # In units of the wire, 0.001 deg.
    assert steps.max() > 0.5 * 60_000 / rate_hz
    assert np.abs(steps).max() <= 60_000 / rate_hz
    # After a silence of a busy machine the arms have stopped, and may start from rest.
    is_silent = np.diff([r.time_s for r in commands]) > 0.04
    changes = np.where(is_silent, np.minimum(np.abs(np.diff(steps)), np.abs(steps[1:])), np.abs(np.diff(steps)))
    assert changes.max() <= 600_000 / rate_hz**2
