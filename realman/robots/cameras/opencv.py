"""Cameras that OpenCV can open: USB cameras, capture cards, network streams, files."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from realman.arrays import Image
from realman.errors import RobotError
from realman.robots.cameras import devices


class OpenCvSource:
    """Implements `realman.robots.cameras.threads.CameraSource` for one device."""

    def __init__(
        self,
        name: str,
        device: int | str,
        width_px: int,
        height_px: int,
        fps: int,
        *,
        color: Literal["bgr", "rgb"] = "bgr",
        open_capture: Callable[[int | str], Any] | None = None,
        identify: Callable[[int | str], str | None] = devices.identify,
    ) -> None:
        """Describe the camera. `open` opens it.

        Args:
            name: The camera's name.
            device: What `cv2.VideoCapture` opens: a number, path or address.
            width_px: Width to request. The device must deliver it.
            height_px: Height to request. The device must deliver it.
            fps: Rate to request, Hz. Devices round it.
            color: Channel order that the device delivers.
            open_capture: Opens the device. None means `cv2.VideoCapture`.
            identify: Says which camera is behind the device now.
        """
        self.names: tuple[str, ...] = (name,)
        self._device = device
        self._size_px = (height_px, width_px)
        self._fps = fps
        self._color = color
        self._open_capture = open_capture
        self._identify = identify
        self._identity: str | None = None
        self._capture: Any = None

    def open(self) -> None:
        """Open the device.

        Raises:
            RobotError: The device cannot be opened, or is another camera than the last time.
        """
        self._check_same_camera()
        # Imported late, like every device library: only users with such a camera pay for it.
        import cv2

        capture = (self._open_capture or cv2.VideoCapture)(self._device)
        if not capture.isOpened():
            capture.release()
            raise RobotError(f"{self._where}: cannot be opened. Check its cable, and that no other program uses it")
        # Uncompressed, three cameras do not fit on one USB controller. Devices without MJPG ignore this.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size_px[1])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size_px[0])
        capture.set(cv2.CAP_PROP_FPS, self._fps)
        # Deliver the newest frame, not the oldest of a queue.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture = capture

    def _check_same_camera(self) -> None:
        """Refuse another camera behind the same device file.

        Numbers pass on when cameras are unplugged, and a left wrist would be shown as a right one.
        """
        found = self._identify(self._device)
        before, self._identity = self._identity, self._identity or found
        if None not in (before, found) and found != before:
            raise RobotError(
                f"{self._where}: came back as another camera, found {found}, expected {before}. "
                "Name it by its link in /dev/v4l/by-id/, and start the program again"
            )

    def grab(self) -> dict[str, Image]:
        """Wait for the next image, RGB.

        Raises:
            RobotError: The device delivers no frame, or one of another size.
        """
        is_good, frame = self._capture.read()
        if not is_good or frame is None:
            raise RobotError(f"{self._where}: delivers no frame. Check its cable")
        if frame.shape != (*self._size_px, 3):
            found, wanted = ("x".join(map(str, size)) for size in (frame.shape, (*self._size_px, 3)))
            raise RobotError(f"{self._where}: frame of {found}, expected {wanted}. Set 'width_px' and 'height_px'")
        return {self.names[0]: np.ascontiguousarray(frame[..., ::-1]) if self._color == "bgr" else frame.copy()}

    def close(self) -> None:
        """Release the device. Safe to call twice."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    @property
    def _where(self) -> str:
        return f"camera '{self.names[0]}' ({self._device})"
