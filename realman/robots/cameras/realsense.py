"""Intel RealSense cameras by serial number, through `pyrealsense2`. Color only."""

from collections.abc import Callable
from typing import Any

import numpy as np

from realman.arrays import Image
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.errors import SiteError

_FRAME_TIMEOUT_MS = 1000


def load() -> Any:
    """Import the vendor's library.

    Raises:
        SiteError: It is not installed or does not load.
    """
    try:
        import pyrealsense2
    except ImportError as e:
        raise SiteError(
            f"cameras: kind = 'realsense' needs the package 'pyrealsense2' ({e}). Run: pip install pyrealsense2"
        ) from e
    return pyrealsense2


class RealSenseSource:
    """Implements `realman.robots.cameras.threads.CameraSource` for one device."""

    def __init__(
        self,
        name: str,
        serial: str,
        width_px: int,
        height_px: int,
        fps: int,
        *,
        load_library: Callable[[], Any] = load,
    ) -> None:
        """Describe the camera. `open` opens it.

        Args:
            name: The camera's name.
            serial: Serial number, as `rs-enumerate-devices -s` prints it.
            width_px: Width of the color stream.
            height_px: Height of the color stream.
            fps: Rate of the color stream, Hz.
            load_library: Returns the module `pyrealsense2`.
        """
        self.names: tuple[str, ...] = (name,)
        self._serial = serial
        self._mode = (width_px, height_px, fps)
        self._load_library = load_library
        self._pipeline: Any = None

    def open(self) -> None:
        """Start the color stream.

        Raises:
            SiteError: `pyrealsense2` is not installed.
            RobotError: The camera is not connected or does not support this mode.
        """
        rs = self._load_library()
        connected = [d.get_info(rs.camera_info.serial_number) for d in rs.context().query_devices()]
        if self._serial not in connected:
            found = ", ".join(connected) or "no RealSense"
            raise RobotError(f"{self._where}: not connected, found {found}. Check its cable and the serial number")
        width_px, height_px, fps = self._mode
        config = rs.config()
        config.enable_device(self._serial)
        # The library converts: the channel order is RGB for every sensor.
        config.enable_stream(rs.stream.color, width_px, height_px, rs.format.rgb8, fps)
        pipeline = rs.pipeline()
        try:
            pipeline.start(config)
        except RuntimeError as e:
            raise RobotError(
                f"{self._where}: {width_px}x{height_px} px at {fps} Hz does not start ({e}). "
                "Check that the camera is on USB 3, and that no other program uses it"
            ) from e
        self._pipeline = pipeline

    def grab(self) -> dict[str, Image]:
        """Wait for the next image, RGB.

        Raises:
            RobotTimeoutError: No frame arrived in time.
        """
        try:
            frames = self._pipeline.wait_for_frames(_FRAME_TIMEOUT_MS)
        except RuntimeError as e:
            raise RobotTimeoutError(f"{self._where}: no frame within {_FRAME_TIMEOUT_MS} ms ({e})") from e
        # Copied, because the library reuses the buffer for the next frame.
        return {self.names[0]: np.array(frames.get_color_frame().get_data(), dtype=np.uint8)}

    def close(self) -> None:
        """Stop the stream. Safe to call twice."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.stop()

    @property
    def _where(self) -> str:
        return f"camera '{self.names[0]}' (RealSense {self._serial})"
