"""Camera devices behind their sources: OpenCV and RealSense stand-ins, colors, sizes, missing and frozen devices."""

import sys
import time
import types

import cv2
import numpy as np
import pytest

from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError
from realman.robots.cameras import devices
from realman.robots.cameras.frozen import FrozenCheck
from realman.robots.cameras.opencv import OpenCvSource
from realman.robots.cameras.realsense import RealSenseSource
from realman.robots.cameras.settings import CameraSettings
from realman.robots.cameras.settings import open_cameras
from realman.robots.cameras.threads import CameraSource
from realman.robots.cameras.threads import ThreadedCameras

RED_IN_BGR = np.zeros((4, 6, 3), np.uint8)
RED_IN_BGR[..., 2] = 255
RED = [255, 0, 0]


class FakeCapture:
    """What `cv2.VideoCapture` returns."""

    def __init__(self, frame: np.ndarray | None = RED_IN_BGR, *, opens: bool = True) -> None:
        self.frame = frame
        self.opens = opens
        self.is_released = False

    def isOpened(self) -> bool:
        return self.opens

    def set(self, _property: int, _value: float) -> bool:
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        return self.frame is not None, self.frame

    def release(self) -> None:
        self.is_released = True


def opencv_source(capture: FakeCapture, **options) -> OpenCvSource:
    return OpenCvSource("cam_high", "/dev/video0", 6, 4, 30, open_capture=lambda _device: capture, **options)


@pytest.mark.parametrize(("color", "expected"), [("bgr", RED), ("rgb", RED[::-1])])
def test_the_order_of_the_channels_is_what_the_site_says(color, expected):
    source = opencv_source(FakeCapture(), color=color)
    assert isinstance(source, CameraSource)
    source.open()
    image = source.grab()["cam_high"]
    assert image[0, 0].tolist() == expected
    assert image.flags.c_contiguous
    assert not np.shares_memory(image, RED_IN_BGR)


def test_a_device_that_does_not_open_is_named_and_released():
    capture = FakeCapture(opens=False)
    with pytest.raises(RobotError, match=r"camera 'cam_high' \(/dev/video0\): cannot be opened"):
        opencv_source(capture).open()
    assert capture.is_released


@pytest.mark.parametrize(
    ("frame", "says"),
    [(None, "delivers no frame"), (np.zeros((8, 6, 3), np.uint8), "frame of 8x6x3, expected 4x6x3")],
    ids=["unplugged", "other size"],
)
def test_a_device_that_delivers_nothing_usable_is_reported(frame, says):
    capture = FakeCapture(frame)
    source = opencv_source(capture)
    source.open()
    with pytest.raises(RobotError, match=says):
        source.grab()
    source.close()
    source.close()
    assert capture.is_released


class FakeRealSense(types.SimpleNamespace):
    """What the source uses of the module `pyrealsense2`."""

    def __init__(self, *serials: str, start_error: str | None = None, is_silent: bool = False) -> None:
        self.enabled: list[tuple] = []
        self.stopped = 0
        devices = [types.SimpleNamespace(get_info=lambda _key, s=s: s) for s in serials]
        color = types.SimpleNamespace(get_data=lambda: RED_IN_BGR[..., ::-1])

        def start(_config):
            if start_error:
                raise RuntimeError(start_error)

        def wait(_timeout_ms):
            if is_silent:
                raise RuntimeError("Frame didn't arrive within 1000")
            return types.SimpleNamespace(get_color_frame=lambda: color)

        def stop():
            self.stopped += 1

        super().__init__(
            camera_info=types.SimpleNamespace(serial_number="serial"),
            stream=types.SimpleNamespace(color="color"),
            format=types.SimpleNamespace(rgb8="rgb8"),
            context=lambda: types.SimpleNamespace(query_devices=lambda: devices),
            config=lambda: types.SimpleNamespace(
                enable_device=lambda s: self.enabled.append((s,)), enable_stream=lambda *a: self.enabled.append(a)
            ),
            pipeline=lambda: types.SimpleNamespace(start=start, wait_for_frames=wait, stop=stop),
        )


def realsense_source(library: FakeRealSense) -> RealSenseSource:
    return RealSenseSource("cam_low", "222", 640, 480, 30, load_library=lambda: library)


def test_a_realsense_is_opened_by_its_serial_number_with_its_channels_in_order():
    library = FakeRealSense("111", "222")
    source = realsense_source(library)
    source.open()
    assert library.enabled == [("222",), ("color", 640, 480, "rgb8", 30)]
    assert source.grab()["cam_low"][0, 0].tolist() == RED
    source.close()
    source.close()
    assert library.stopped == 1


@pytest.mark.parametrize(
    ("library", "says"),
    [
        (FakeRealSense("111"), r"RealSense 222\): not connected, found 111"),
        (FakeRealSense(), "found no RealSense"),
        (FakeRealSense("222", start_error="busy"), r"640x480 px at 30 Hz does not start \(busy\)"),
    ],
)
def test_a_missing_realsense_is_reported_with_what_was_found(library, says):
    with pytest.raises(RobotError, match=says):
        realsense_source(library).open()


def test_a_realsense_without_frames_is_a_timeout():
    source = realsense_source(FakeRealSense("222", is_silent=True))
    source.open()
    with pytest.raises(RobotTimeoutError, match="no frame within 1000 ms"):
        source.grab()


def test_without_the_vendors_library_a_realsense_site_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    cameras = open_cameras({"cam_high": CameraSettings(kind="realsense", serial="1")})
    with pytest.raises(SiteError, match="pip install pyrealsense2"):
        cameras.open()


class StillSource:
    """A source whose image changes only on request."""

    names = ("cam_high",)

    def __init__(self) -> None:
        self.image = np.zeros((4, 6, 3), np.uint8)

    def open(self) -> None:
        pass

    def grab(self) -> dict[str, np.ndarray]:
        return {"cam_high": self.image.copy()}

    def close(self) -> None:
        pass


def test_an_image_that_never_changes_is_a_frozen_camera_and_one_changed_bit_is_not():
    source, now = StillSource(), [0.0]
    check = FrozenCheck(source, 1.0, now=lambda: now[0])
    check.open()
    for now[0] in (0.0, 0.9):
        check.grab()
    source.image[2, 3, 1] = 1
    for now[0] in (1.0, 1.9):
        check.grab()
    now[0] = 2.1
    with pytest.raises(RobotTimeoutError, match=r"camera 'cam_high': the image has not changed for 1\.1 s"):
        check.grab()


def wait_for_the_end_of(cameras: ThreadedCameras, error: type[Exception], match: str) -> None:
    """Read the newest frames, as the driver does at each tick, until a camera reports an error."""
    until = time.monotonic() + 10
    with pytest.raises(error, match=match):  # noqa: PT012 - which read fails is not known
        while time.monotonic() < until:
            cameras.latest()
            time.sleep(0.01)


def test_the_driver_reports_a_frozen_camera():
    cameras = ThreadedCameras([FrozenCheck(StillSource(), 0.05)], max_fps=200)
    cameras.open()
    wait_for_the_end_of(cameras, RobotTimeoutError, "camera 'cam_high': the image has not changed")
    cameras.close()


def test_any_error_of_a_library_is_a_failed_camera():
    class Broken(StillSource):
        def grab(self) -> dict[str, np.ndarray]:
            if self.grabs:
                raise ZeroDivisionError("inside the device's library")
            self.grabs = True
            return super().grab()

        grabs = False

    cameras = ThreadedCameras([Broken()], max_fps=200)
    cameras.open()
    wait_for_the_end_of(cameras, RobotError, "camera cam_high: failed .inside the device's library.")
    cameras.close()


@pytest.fixture
def video(tmp_path) -> str:
    """A file with ten different frames, mostly red. OpenCV opens it like any device."""
    path = str(tmp_path / "video.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for t in range(10):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 2], frame[..., 0] = 200, 5 * t
        writer.write(frame)
    writer.release()
    return path


def test_opencv_itself_opens_a_stream_and_its_end_is_an_unplugged_camera(video):
    settings = CameraSettings("opencv", device=video, width_px=64, height_px=48)
    cameras = ThreadedCameras([settings.source("cam_high")], max_fps=100)
    cameras.open()
    frame = cameras.latest()["cam_high"]
    assert frame.image.shape == (48, 64, 3)
    np.testing.assert_allclose(frame.image[..., 0].mean(), 200, atol=10)
    wait_for_the_end_of(cameras, RobotError, "cam_high.*delivers no frame. Check its cable")
    cameras.close()


def test_a_stream_of_another_size_says_what_to_set(video):
    source = CameraSettings("opencv", device=video).source("cam_low")
    source.open()
    with pytest.raises(RobotError, match=r"frame of 48x64x3, expected 480x640x3\. Set 'width_px' and 'height_px'"):
        source.grab()
    source.close()


def describe_camera(folder, port: str, number: int, name: str, serial: str | None = None) -> None:
    """Describe a USB camera as Linux does."""
    usb = folder / "usb" / port
    (usb / "1.0").mkdir(parents=True, exist_ok=True)
    if serial is not None:
        (usb / "serial").write_text(f"{serial}\n")
    node = folder / f"video{number}"
    node.mkdir(exist_ok=True)
    (node / "name").write_text(f"{name}\n")
    (node / "device").unlink(missing_ok=True)
    (node / "device").symlink_to(usb / "1.0")


def test_a_camera_is_recognized_by_its_serial_number_or_its_port(tmp_path):
    describe_camera(tmp_path, "1-1", 0, "HD Webcam", "A77")
    describe_camera(tmp_path, "1-2", 1, "HD Webcam")
    assert devices.identify("/dev/video0", tmp_path) == "HD Webcam, serial number A77"
    assert devices.identify(1, tmp_path) == "HD Webcam at 1-2"
    for unknown in ("rtsp://camera/stream", "clip.mp4", "/dev/video7", 9, str(tmp_path / "video0")):
        assert devices.identify(unknown, tmp_path) is None


@pytest.mark.parametrize("device", [0, "/dev/video0"])
def test_a_device_number_that_passed_to_another_camera_is_refused(tmp_path, device):
    describe_camera(tmp_path, "1-1", 0, "HD Webcam", "A77")
    source = OpenCvSource(
        *("cam_high", device, 6, 4, 30),
        open_capture=lambda _device: FakeCapture(),
        identify=lambda named: devices.identify(named, tmp_path),
    )
    for _ in range(2):  # The same camera may come back.
        source.open()
        source.close()
    describe_camera(tmp_path, "1-1", 0, "HD Webcam", "B12")
    for _ in range(2):
        with pytest.raises(
            RobotError, match=r"another camera, found HD Webcam, serial number B12, expected .* A77\. Name"
        ):
            source.open()
    describe_camera(tmp_path, "1-3", 0, "HD Webcam", "A77")  # in another port
    source.open()
    source.close()
