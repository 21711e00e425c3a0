"""Settings of a site's cameras, and the devices they name."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated, Literal

from realman import spec
from realman.errors import SiteError
from realman.ranges import Range
from realman.ranges import check_settings
from realman.robots.cameras.frozen import FrozenCheck
from realman.robots.cameras.opencv import OpenCvSource
from realman.robots.cameras.realsense import RealSenseSource
from realman.robots.cameras.threads import CameraSource
from realman.robots.cameras.threads import ThreadedCameras


@dataclasses.dataclass(frozen=True)
class CameraSettings:
    """One camera."""

    kind: Literal["realsense", "opencv"]
    """'realsense': an Intel RealSense by its serial number. 'opencv': any device that OpenCV can open."""
    serial: str | None = None
    """Serial number of a RealSense. It does not depend on the USB port."""
    device: Annotated[int, Range(0, 63, "the system numbers its video devices from 0")] | str | None = None
    """OpenCV: a stable path such as '/dev/v4l/by-id/...', a stream's address, or a number, which may change at boot."""
    color: Literal["bgr", "rgb"] = "bgr"
    """OpenCV: channel order that the device delivers. OpenCV's own is bgr. If faces look blue, it is wrong."""
    width_px: Annotated[int, Range(16, 7680, "from a thumbnail to 8K")] = spec.DEFAULT_IMAGE_WIDTH_PX
    height_px: Annotated[int, Range(16, 4320, "from a thumbnail to 8K")] = spec.DEFAULT_IMAGE_HEIGHT_PX
    fps: Annotated[int, Range(1, 240, "what USB cameras deliver")] = 30
    """Rate to request from the device, Hz."""
    max_frozen_s: Annotated[float, Range(0.05, 10.0, "the policy must see what the arms did")] = 1.0
    """How long an image may stay the same to the last bit, s. The noise of a live sensor changes it with each frame."""

    def __post_init__(self) -> None:
        check_settings(self)
        wanted, other = ("serial", "device") if self.kind == "realsense" else ("device", "serial")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise SiteError(f"kind = '{self.kind}' needs '{wanted}' and does not accept '{other}'")
        if self.max_frozen_s < 2 / self.fps:
            raise SiteError(
                f"max_frozen_s: found {self.max_frozen_s}, expected at least {2 / self.fps:.3g}, two images at 'fps'"
            )

    def source(self, name: str) -> CameraSource:
        """Return the device of the camera `name`. It is not open yet."""
        size = (self.width_px, self.height_px, self.fps)
        if self.kind == "realsense":
            assert self.serial is not None
            return FrozenCheck(RealSenseSource(name, self.serial, *size), self.max_frozen_s)
        assert self.device is not None
        return FrozenCheck(OpenCvSource(name, self.device, *size, color=self.color), self.max_frozen_s)


def open_cameras(cameras: Mapping[str, CameraSettings]) -> ThreadedCameras:
    """Return all cameras of a site, one thread each.

    They are not open yet.

    Raises:
        SiteError: Two cameras name the same device.
    """
    seen: dict[int | str, str] = {}
    for name, settings in cameras.items():
        device = settings.serial if settings.serial is not None else settings.device
        assert device is not None
        if device in seen:
            raise SiteError(f"cameras: '{seen[device]}' and '{name}' are both '{device}', expected a device for each")
        seen[device] = name
    fastest = max((settings.fps for settings in cameras.values()), default=1)
    # The devices set the pace. The threads only have to keep up.
    return ThreadedCameras([s.source(name) for name, s in cameras.items()], max_fps=2.0 * fastest)
