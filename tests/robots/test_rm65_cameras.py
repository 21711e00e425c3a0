"""The camera threads that the driver reads from: newest frame, its time, and what happens when a camera fails."""

import threading
import time

import numpy as np
import pytest

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.robots.cameras import Cameras
from realman.robots.cameras.threads import ThreadedCameras


class FakeSource:
    """A device whose images count up. It can be missing, silent or unplugged."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.count = 0
        self.thread: int | None = None
        self.is_open = False
        self.failure: RobotError | None = None
        self.is_silent = threading.Event()

    def open(self) -> None:
        self.thread = threading.get_ident()
        if self.failure:
            raise self.failure
        self.is_open = True

    def grab(self) -> dict[str, np.ndarray]:
        assert threading.get_ident() == self.thread
        if self.failure:
            raise self.failure
        if self.is_silent.is_set():
            time.sleep(0.005)
            return {}
        self.count += 1
        return {name: np.full((2, 2, 3), self.count % 256, np.uint8) for name in self.names}

    def close(self) -> None:
        self.is_open = False


def wait_until(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_the_newest_frame_of_every_camera_is_at_hand_with_its_time():
    sources = [FakeSource("cam_high"), FakeSource("cam_left_wrist", "cam_right_wrist")]
    cameras = ThreadedCameras(sources, max_fps=200)
    assert isinstance(cameras, Cameras)
    cameras.open()
    first = cameras.latest()
    assert set(first) == {"cam_high", "cam_left_wrist", "cam_right_wrist"}
    wait_until(lambda: cameras.latest()["cam_high"].image[0, 0, 0] > first["cam_high"].image[0, 0, 0])
    assert first["cam_high"].time_s < cameras.latest()["cam_high"].time_s <= time.monotonic()
    cameras.close()
    cameras.close()
    assert not any(s.is_open for s in sources)


def test_frames_are_taken_no_faster_than_asked():
    source = FakeSource("cam_high")
    cameras = ThreadedCameras([source], max_fps=50)
    start = time.monotonic()
    cameras.open()
    wait_until(lambda: source.count >= 10)
    elapsed_s = time.monotonic() - start
    cameras.close()
    assert elapsed_s >= 9 / 50


def test_a_missing_camera_is_reported_and_the_others_are_released():
    sources = [FakeSource("cam_high"), FakeSource("cam_low")]
    sources[1].failure = RobotError("camera 'cam_low': serial 123 is not connected")
    with pytest.raises(RobotError, match="serial 123 is not connected"):
        ThreadedCameras(sources).open()
    assert not sources[0].is_open


def test_a_camera_without_a_first_frame_is_named():
    sources = [FakeSource("cam_high"), FakeSource("cam_low")]
    sources[1].is_silent.set()
    with pytest.raises(RobotTimeoutError, match=r"no frame from cam_low within 0.2 s"):
        ThreadedCameras(sources, first_frame_timeout_s=0.2).open()


def test_an_unplugged_camera_is_reported_at_the_next_read_and_works_when_it_is_opened_again():
    source = FakeSource("cam_high")
    cameras = ThreadedCameras([source], max_fps=200)
    cameras.open()
    last = cameras.latest()["cam_high"]
    source.failure = RobotError("camera 'cam_high': unplugged")
    wait_until(lambda: not source.is_open)
    with pytest.raises(RobotError, match="camera 'cam_high': unplugged"):
        cameras.latest()
    source.failure = None
    cameras.open()
    assert cameras.latest()["cam_high"].time_s > last.time_s
    cameras.close()
