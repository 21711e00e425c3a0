"""The operator's station: keys, pauses, prompts, the view, and restored terminals."""

from collections.abc import Iterator
import contextlib
import io
import logging
import os
import pty
import signal
import sys
import termios
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from realman.errors import RejectedError
from realman.robots.robot import STOP_SIGNALS
from realman.robots.robot import RobotObservation
from realman.robots.robot import connected
from realman.runtime import chunks
from realman.runtime import control
from realman.runtime.client import Prediction
from realman.runtime.safety import Limits
from realman.runtime.safety import SafetySettings
from realman.runtime.steering import SteeredPolicy
from realman.runtime.steering import Steering
from realman.station import site_config
from realman.station import view
from realman.station.keyboard import Keyboard
from realman.station.run import Run
from realman.station.view import View
from realman.station.view import Watched
from realman.station.view import chunk_use
from realman.station.view import line
from realman.station.view import render

SETTINGS = SafetySettings(max_joint_speed_deg_s=60, max_joint_acceleration_deg_s2=600)
LIMITS = Limits.per_tick(SETTINGS, fps=50)


def wait_until(condition) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


class Terminal:
    """A terminal with somebody at its keys.

    This process is not in its foreground group, so `tcgetpgrp` is replaced.
    """

    def __init__(self, monkeypatch) -> None:
        self.master, slave = pty.openpty()
        self.file = os.fdopen(slave, "r")
        monkeypatch.setattr(os, "tcgetpgrp", lambda _fd: os.getpgrp())

    def press(self, text: str) -> None:
        os.write(self.master, text.encode())

    @property
    def is_line_mode(self) -> bool:
        return bool(termios.tcgetattr(self.file.fileno())[3] & termios.ICANON)

    def close(self) -> None:
        self.file.close()
        os.close(self.master)


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal(monkeypatch)
    yield terminal
    terminal.close()


def test_keys_act_at_once_and_the_terminal_is_restored(terminal):
    pressed = []
    assert terminal.is_line_mode
    with Keyboard({"a": lambda: pressed.append("a")}, "p", pressed.append, terminal.file) as keyboard:
        assert keyboard.is_active
        assert not terminal.is_line_mode
        terminal.press("aba")
        wait_until(lambda: pressed == ["a", "a"])
    assert terminal.is_line_mode
    assert not keyboard.is_active


def test_the_terminal_is_restored_after_a_crash(terminal):
    with pytest.raises(ZeroDivisionError), Keyboard({}, "p", print, terminal.file):
        raise ZeroDivisionError
    assert terminal.is_line_mode


def test_a_line_is_typed_corrected_and_taken_with_enter_while_its_letters_are_not_keys(terminal):
    pressed, lines = [], []
    with Keyboard({"s": lambda: pressed.append("s")}, "p", lines.append, terminal.file) as keyboard:
        terminal.press("pfold thes\x7f towel \u6298\u6bdb\u5dfe")
        wait_until(lambda: keyboard.typed == "fold the towel \u6298\u6bdb\u5dfe")
        terminal.press("\n")
        wait_until(lambda: lines == ["fold the towel \u6298\u6bdb\u5dfe"])
        assert pressed == []
        terminal.press("pnever")
        wait_until(lambda: keyboard.typed == "never")
        terminal.press("\x1b")
        wait_until(lambda: keyboard.typed is None)
        terminal.press("\x1b[As")  # an arrow, whose letters mean nothing
        time.sleep(0.05)
        terminal.press("s")
        wait_until(lambda: pressed == ["s"])
    assert lines == ["fold the towel \u6298\u6bdb\u5dfe"]


@pytest.mark.parametrize("file", [io.StringIO(), None], ids=["pipe", "stdin of pytest"])
def test_without_a_terminal_there_are_no_keys(file):
    with Keyboard({}, "p", print, file) as keyboard:
        assert not keyboard.is_active


class Arms:
    """Arms that go where they are sent.

    `at` holds actions for the tick of their name.
    """

    fps = 50.0

    def __init__(self, **at) -> None:
        self.state = np.zeros(14)
        self.sent: list[np.ndarray] = []
        self.stops: list[str] = []
        self._at = {int(key.removeprefix("tick_")): action for key, action in at.items()}

    def connect(self) -> None: ...

    def observe(self) -> RobotObservation:
        return RobotObservation(self.state.copy(), {"cam_high": np.zeros((4, 4, 3), np.uint8)}, time.monotonic())

    def send(self, target: np.ndarray) -> np.ndarray:
        self.sent.append(target.copy())
        self.state = target.copy()
        if action := self._at.pop(len(self.sent), None):
            action(self)
        return target

    def slow_stop(self) -> None:
        self.stops.append("slow")

    def stop(self) -> None:
        self.stops.append("stop")

    def disconnect(self) -> None: ...


class Ramp:
    """A policy that moves every joint by 1 deg per tick, which is 50 deg/s.

    It remembers its prompts.
    """

    def __init__(self, action_chunk: int = 4) -> None:
        self.action_chunk = action_chunk
        self.prompts: list[str | None] = []
        self.states: list[np.ndarray] = []

    def infer(self, state, images, prompt=None) -> Prediction:
        self.prompts.append(prompt)
        self.states.append(state)
        actions = state + np.deg2rad(np.arange(1, 61))[:, None] * np.ones(14)
        actions[:, [6, 13]] = 0
        return Prediction(actions, 0.01, 0.005)


def play(robot: Arms, steering: Steering, *, max_steps: int | None = 30, policy: Ramp | None = None) -> Run:
    policy = policy or Ramp()

    def player() -> chunks.SyncPlayer:
        return chunks.SyncPlayer(SteeredPolicy(policy, steering), None)

    run = Run(site_config.SIM_SITE, player(), steering)
    with connected(robot):
        control.run(robot, run.player, LIMITS, run.record, max_steps=max_steps, steering=steering, renew=player)
    return run


def later(steering: Steering, robot: Arms, num_sent: int, action) -> None:
    """Act from another thread, as keys do, after a number of targets."""

    def wait() -> None:
        wait_until(lambda: len(robot.sent) >= num_sent)
        action()

    threading.Thread(target=wait, daemon=True).start()
    del steering


def test_a_pause_brakes_inside_the_acceleration_limit_holds_and_resumes_from_a_fresh_observation():
    steering, policy = Steering(), Ramp(60)
    robot = Arms(tick_10=lambda _: steering.toggle_pause())
    later(steering, robot, 25, steering.toggle_pause)
    run = play(robot, steering, policy=policy)
    joints = np.array(robot.sent)[:, 0]
    steps = np.diff(joints, prepend=0)
    # 600 deg/s^2 at 50 Hz change a step by 0.24 deg a tick.
    assert np.rad2deg(np.abs(np.diff(steps))).max() < 0.24 + 1e-6
    assert steps[9] > np.deg2rad(0.5)
    assert np.abs(steps[18:24]).max() < 1e-9
    assert run.record.pauses == 1
    assert len(run.record.sent) == 30
    assert len(robot.sent) > 40
    # The chunk under way was forgotten: the next request saw where the arms were held.
    held = joints[24]
    assert any(abs(state[0] - held) < 1e-9 for state in policy.states)
    assert robot.stops == ["slow", "stop"]


def test_arms_that_were_moved_far_during_a_pause_are_not_moved_on():
    steering = Steering()

    class Pushed(Ramp):
        def infer(self, state, images, prompt=None):
            prediction = super().infer(state, images, prompt)
            far = prediction.actions + (np.deg2rad(40) if len(self.prompts) > 3 else 0)
            return Prediction(far, 0.01, None)

    robot = Arms(tick_10=lambda _: steering.toggle_pause())
    later(steering, robot, 20, steering.toggle_pause)
    with pytest.raises(RejectedError, match="first target: too far"):
        play(robot, steering, policy=Pushed())
    assert robot.stops[-1] == "stop"


def test_the_end_key_brakes_first_and_is_a_regular_end():
    steering = Steering()
    robot = Arms(tick_10=lambda _: steering.end())
    play(robot, steering, max_steps=None, policy=Ramp(60))
    steps = np.diff(np.array(robot.sent)[:, 0], prepend=0)
    assert len(robot.sent) > 12
    assert abs(steps[-1]) < 1e-9
    assert np.rad2deg(np.abs(np.diff(steps))).max() < 0.24 + 1e-6
    assert robot.stops == ["slow", "stop"]


def test_the_end_key_also_ends_a_paused_run():
    steering = Steering()
    robot = Arms(tick_5=lambda _: steering.toggle_pause())
    later(steering, robot, 15, steering.end)
    play(robot, steering, max_steps=None)
    assert robot.stops == ["slow", "stop"]


def test_the_stop_key_ends_even_a_wait_for_the_server_with_a_slow_stop():
    steering = Steering()

    class Waiting(Ramp):
        def infer(self, state, images, prompt=None):
            if len(self.prompts) == 2:
                threading.Timer(0.05, steering.stop).start()
                time.sleep(60)
            return super().infer(state, images, prompt)

    robot = Arms()
    began = time.monotonic()
    with pytest.raises(control.StopRequested, match="the stop key"), control.stop_on_signals(steering):
        play(robot, steering, policy=Waiting())
    assert time.monotonic() - began < 30
    assert robot.stops == ["slow", "stop"]


@contextlib.contextmanager
def handled_by(handler: signal.Handlers) -> Iterator[None]:
    """Let all signals that stop a run begin with one handler."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_at_once_without_braking_first(number):
    robot = Arms(tick_5=lambda _: os.kill(os.getpid(), number))
    # The tests themselves may run under nohup.
    stopped = pytest.raises(control.StopRequested, match=number.name)
    with handled_by(signal.SIG_DFL), stopped, control.stop_on_signals(Steering()):
        play(robot, Steering())
    assert robot.stops == ["stop"]


def test_only_a_lost_terminal_is_ignored_and_only_under_nohup():
    with handled_by(signal.SIG_IGN), control.stop_on_signals():
        ignored = {number.name for number in STOP_SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
    assert ignored == {"SIGHUP"}


def test_a_slow_stop_that_fails_does_not_keep_the_stop_from_coming(caplog):
    class Stubborn(Arms):
        def slow_stop(self) -> None:
            raise OSError("no answer")

    robot = Stubborn()
    play(robot, Steering(), max_steps=3)
    assert robot.stops == ["stop"]
    assert "slow stop: failed (no answer). Stopping at once" in caplog.text


def test_a_new_prompt_goes_with_the_next_request():
    steering, policy = Steering("first"), Ramp()

    def change(_robot: Arms) -> None:
        steering.prompt = "second"

    play(Arms(tick_6=change), steering, policy=policy, max_steps=12)
    assert policy.prompts == ["first", "first", "second"]


def test_the_use_of_chunks_is_counted_from_their_seams():
    assert chunk_use([]) == (0, None)
    assert chunk_use([True, False, False]) == (3, None)
    assert chunk_use([True, False, False, True, False]) == (2, 3.0)


def watched(run: Run, **changes) -> Watched:
    return Watched(
        **{
            "run": run,
            "horizon": 10,
            "ages_s": lambda: {"right arm": 0.004, "cam_high": 0.15},
            "age_limits_s": {"arm": 0.1, "cam": 0.2},
            "recording": lambda: "on, 12 frames",
            **changes,
        }
    )


@pytest.mark.parametrize(("age_s", "is_red"), [(0.4, False), (0.6, True)])
def test_an_age_over_half_of_its_limit_is_red(age_s, is_red):
    run = play(Arms(), Steering("go"))
    run.record.prediction_ages_s.append(age_s)
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    console.print(render(watched(run, age_limits_s={"prediction": 1.0})))
    shown = console.file.getvalue()
    assert f"prediction {age_s * 1000:.0f}/1000 ms" in shown
    assert (f"\x1b[31mprediction {age_s * 1000:.0f}/1000 ms" in shown) == is_red


def test_the_view_shows_rate_latency_chunk_use_ages_clamps_prompt_and_state():
    run = play(Arms(), Steering("fold the towel"))
    assert run.record.safety is not None
    run.record.safety.speed_clamps[1] = 77
    console = Console(file=io.StringIO(), width=120)
    console.print(render(watched(run)))
    text = console.file.getvalue()
    for shown in (
        "RUNNING",
        "sync, step 30",
        "fold the towel",
        " Hz",
        "p50 10 ms, p95 10 ms",
        "2 of 10 steps, 4.0 used on average",
        "right arm 4/100 ms",
        "cam_high 150/200 ms",
        "shoulder 77",
        "on, 12 frames",
    ):
        assert shown in text, shown
    run.steering.is_paused = True
    assert watched(run).state() == "PAUSED"
    assert line(watched(run)).startswith("paused: step 30")


def test_the_view_lives_in_a_terminal_and_lets_log_lines_pass_above_it():
    run = play(Arms(), Steering("task"))
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=40)
    handler = logging.StreamHandler(sys.stderr)
    before = handler.stream
    logging.getLogger().addHandler(handler)
    try:
        with View(watched(run), console):
            wait_until(lambda: "RUNNING" in screen.getvalue())
            logging.getLogger("x").warning("a line in between")
    finally:
        logging.getLogger().removeHandler(handler)
    assert "a line in between" in screen.getvalue()
    assert handler.stream is before


def test_without_a_terminal_the_view_is_a_plain_line_now_and_then(caplog, monkeypatch):
    monkeypatch.setattr(view, "_LINE_EVERY_S", 0.0)
    run = play(Arms(), Steering("task"))
    with caplog.at_level(logging.INFO), View(watched(run), Console(file=io.StringIO())):
        wait_until(lambda: "running: step 30" in caplog.text)
    assert "latency p50 10 ms" in caplog.text


def test_a_view_that_breaks_is_logged_and_ends_nothing(caplog):
    run = play(Arms(), Steering())
    console = Console(file=io.StringIO(), force_terminal=True)
    with View(watched(run, recording=lambda: 1 / 0), console):
        wait_until(lambda: "view: failed" in caplog.text)
