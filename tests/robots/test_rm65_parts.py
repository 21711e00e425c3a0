"""The driver's parts without an SDK: following a target, grippers, error codes, settings."""

import concurrent.futures
import socket
import threading
import time

from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from realman import spec
from realman.errors import RejectedError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError
from realman.robots.limits import MotionLimits
from realman.robots.rm65 import codes
from realman.robots.rm65 import sdk
from realman.robots.rm65.feed import StateFeed
from realman.robots.rm65.follow import FollowWatch
from realman.robots.rm65.gripper import GripperWorker
from realman.robots.rm65.raw import RawArm
from realman.robots.rm65.sdk import bounded
from realman.robots.rm65.settings import GripperSettings
from realman.robots.rm65.settings import Rm65Settings
from realman.robots.rm65.stream import CommandStream

JOINTS = list(spec.JOINT_DIMS)
vectors = hnp.arrays(np.float64, 14, elements=st.floats(-3, 3))


def test_the_command_stream_is_never_faster_than_allowed_however_far_the_target():
    sent: list[np.ndarray] = []
    enough = threading.Event()

    def send(command: np.ndarray) -> None:
        sent.append(command)
        if len(sent) == 20:
            enough.set()

    stream = CommandStream(send, np.zeros(14), MotionLimits(2.0), fps=50.0, rate_hz=200.0)
    stream.set_target(np.full(14, 3.0))
    assert enough.wait(10)
    stream.halt()
    num_sent = len(sent)
    assert np.abs(np.diff(np.stack(sent)[:, JOINTS], axis=0)).max() <= 2.0 / 200.0 + 1e-12
    time.sleep(0.03)
    assert len(sent) == num_sent


@pytest.mark.parametrize("rate_hz", [None, 100.0])
def test_a_command_stream_that_cannot_send_says_so_at_the_next_target(rate_hz):
    def send(_: np.ndarray) -> None:
        raise RobotError("the cable is cut")

    stream = CommandStream(send, np.zeros(14), MotionLimits(), fps=50.0, rate_hz=rate_hz)
    until = time.monotonic() + 10
    with pytest.raises(RobotError, match="the cable is cut"):  # noqa: PT012 - the thread needs an unknown time
        while time.monotonic() < until:
            stream.set_target(np.zeros(14))
            time.sleep(0.001)


def watch_for(seconds: float, measured_speed: float, offset: float) -> FollowWatch:
    """Watch an arm 50 times per second while it moves at `speed`, `offset` away from its target."""
    watch = FollowWatch("right arm", 0.5)
    for tick in range(round(seconds * 50)):
        measured = np.full(6, measured_speed * tick / 50)
        watch.look(measured + offset, measured, tick / 50)
    return watch


@pytest.mark.parametrize(("speed", "offset"), [(0.0, 0.0), (0.0, 0.02), (0.05, 1.0), (3.0, 0.5)])
def test_an_arm_that_moves_or_is_near_its_target_is_left_alone(speed, offset):
    watch_for(5.0, speed, offset)


def test_an_arm_that_stands_still_away_from_its_target_is_noticed():
    watch_for(0.4, 0.0, 0.1)
    with pytest.raises(RejectedError, match=r"right arm: stands still 5\.7 deg away"):
        watch_for(0.8, 0.0, 0.1)


def test_a_pause_between_targets_is_not_taken_for_standing_still():
    watch = FollowWatch("right arm", 0.5)
    watch.look(np.zeros(6), np.zeros(6), 0.0)
    watch.look(np.full(6, 0.1), np.zeros(6), 60.0)


def test_an_arm_is_not_still_while_nothing_new_is_known_of_it():
    # A busy machine calls often and hears late: half a second of calls with one old state does not mean a standstill.
    watch = FollowWatch("right arm", 0.5)
    for _ in range(200):
        watch.look(np.full(6, 0.1), np.zeros(6), 7.0)


class FakeGripper:
    """A gripper that remembers its commands and fails on request."""

    def __init__(self) -> None:
        self.moves: list[float] = []
        self.is_broken = False

    def prepare(self) -> None:
        pass

    def move(self, opening: float) -> None:
        self.moves.append(opening)

    def read(self) -> float:
        if self.is_broken:
            raise RobotTimeoutError("right arm: no answer")
        return self.moves[-1] if self.moves else 1.0


def wait_until(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_the_newest_gripper_target_wins_and_none_is_sent_after_a_halt():
    gripper = FakeGripper()
    worker = GripperWorker("right arm", gripper, GripperSettings(rate_hz=50))
    worker.open()
    assert worker.opening() == 1.0
    for opening in (0.1, 0.3, 0.7):
        worker.set_target(opening)
    wait_until(lambda: worker.opening() == 0.7)
    assert gripper.moves == [0.7]
    worker.halt()
    worker.set_target(0.0)
    time.sleep(0.1)
    worker.close()
    assert gripper.moves == [0.7]


def test_a_gripper_may_miss_an_answer_but_not_for_long():
    gripper = FakeGripper()
    worker = GripperWorker("right arm", gripper, GripperSettings(rate_hz=50, max_age_s=0.2))
    worker.open()
    gripper.is_broken = True
    assert worker.opening() == 1.0
    time.sleep(0.4)
    with pytest.raises(RobotTimeoutError, match="right arm: no answer"):
        worker.opening()
    worker.close()


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (1, RejectedError, "the controller refused it"),
        (-1, RobotError, "the connection is lost"),
        (-2, RobotTimeoutError, "no answer"),
        (-3, RobotError, "Check that the SDK and the controller"),
        (77, RobotError, "unknown code"),
    ],
)
def test_return_codes_become_errors_that_say_what_they_mean(code, kind, text):
    codes.check(0, "right arm", "rm_movej")
    with pytest.raises(kind, match=f"right arm: 'rm_movej' failed .{code}.: .*{text}"):
        codes.check(code, "right arm", "rm_movej")


def test_joint_error_bits_are_named_one_by_one():
    assert (
        codes.describe_joint_error("elbow", 0x4002)
        == "elbow error 0x4002 (overvoltage, step in the commanded position)"
    )
    assert codes.describe_joint_error("elbow", codes.JOINT_FRAME_LOSS) == "elbow error 0xF000 (lost frames)"
    assert codes.describe_system_error(0x100D) == "error 0x100D (collision)"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"left_host": "192.168.1.19"}, "both arms have the address"),
        ({"fps": 0.0}, "fps: found 0, expected 1 to 200"),
        ({"follow": "high", "high_follow_rate_hz": 50.0}, "high_follow_rate_hz: found 50, expected 100 to 500"),
        ({"follow": "high", "fps": 200.0}, "high_follow_rate_hz: found 100.0, expected at least 200.0"),
        ({"collision_stage": 9}, "expected 0 to 8"),
        ({"push_cycle": 0}, "expected 1 to 40"),
        ({"push_cycle": 30}, "max_state_age_s: found 0.1, expected at least 0.15"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, text):
    with pytest.raises(SiteError, match=text):
        Rm65Settings(**changes)


def test_a_state_that_the_sdk_could_not_read_is_not_used():
    class Unreadable:
        errCode = -3  # noqa: N815 - the SDK's name

    feed = StateFeed("right arm", 0.1)
    feed.receive(Unreadable())
    with pytest.raises(
        RobotTimeoutError, match=r"1 pushes could not be read: check that the firmware is 1\.7 or newer"
    ):
        feed.latest()


def test_a_call_that_never_returns_is_given_up_and_its_errors_are_passed_on():
    forever = threading.Event()
    with pytest.raises(RobotTimeoutError, match=r"sleeping: the SDK did not return within 0\.05 s"):
        bounded(forever.wait, 0.05, "sleeping")
    forever.set()
    assert bounded(lambda: 3, 1.0, "counting") == 3
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 1.0, "dividing")


def test_a_call_that_never_returns_is_given_up_on_python_3_10_too(monkeypatch):
    # Before Python 3.11 a future raises a TimeoutError of its own, not the built-in one.
    class FutureTimeoutError(Exception): ...

    def result(_future: object, _timeout_s: float) -> None:
        raise FutureTimeoutError

    monkeypatch.setattr(concurrent.futures, "TimeoutError", FutureTimeoutError)
    monkeypatch.setattr(concurrent.futures.Future, "result", result)
    forever = threading.Event()
    with pytest.raises(RobotTimeoutError, match="sleeping: the SDK did not return"):
        bounded(forever.wait, 0.05, "sleeping")
    forever.set()


@pytest.mark.parametrize(
    ("reply", "kind", "text"),
    [
        (b'{"command":"set_arm_stop","arm_stop":false}\r\n', RobotError, "refused to stop"),
        (b"not json\r\n[1]\r\n", RobotTimeoutError, "was not acknowledged"),
        (b"", RobotTimeoutError, "was not acknowledged"),
    ],
)
def test_a_raw_stop_believes_only_an_acknowledgement(reply, kind, text):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with RawArm("right arm", "127.0.0.1", port, 1.0) as raw, pytest.raises(kind, match=text):
            raw.stop()
        thread.join(10)


def test_no_controller_at_the_raw_stops_address_is_reported():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RobotTimeoutError, match=r"right arm: no connection to 127\.0\.0\.1"):
            RawArm("right arm", "127.0.0.1", unused.getsockname()[1], 1.0)


def test_what_comes_back_too_late_is_undone_in_its_own_thread_and_is_not_hung():
    gate, undone = threading.Event(), threading.Event()
    with pytest.raises(RobotTimeoutError, match="connecting: the SDK did not return"):
        bounded(lambda: gate.wait(20), 0.05, "connecting", undo=undone.set)
    assert "connecting" in sdk._hung_calls()
    gate.set()
    assert undone.wait(20)
    assert "connecting" not in sdk._hung_calls(grace_s=20.0)


def test_what_comes_back_in_time_is_not_undone():
    undone = threading.Event()
    assert bounded(lambda: 5, 20.0, "connecting", undo=undone.set) == 5
    assert not undone.is_set()
