"""The flags by which every command that reads recordings is told what a recording cannot say about itself."""

import dataclasses

from realman.data.raw.options import AngleUnit
from realman.data.raw.options import ArmOrder
from realman.data.raw.options import ColorOrder
from realman.data.raw.options import RawOptions
from realman.data.raw.options import parse_camera_map
from realman.data.raw.options import parse_gripper_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingFlags:
    """Base of the flags of a command that reads recordings."""

    angle_unit: AngleUnit = "rad"
    """Unit of the recorded joint angles."""
    gripper_range: str = "0:1"
    """Recorded gripper value when closed and when open, such as 0:1000 or, inverted, 1000:0."""
    raw_arm_order: ArmOrder = "right_left"
    """Which arm comes first in the recordings."""
    color: ColorOrder = "rgb"
    """Channel order of raw frames, or what an ordinary JPEG decoder makes of encoded ones."""
    fps: int | None = None
    """Frames per second, for recordings that do not state it."""
    task: str | None = None
    """Task text of all recordings, for recordings that do not state it."""
    camera_map: tuple[str, ...] = ()
    """Cameras to rename, as RECORDED=NAME, such as cam_top=cam_high; two that were exchanged need both pairs."""

    @property
    def options(self) -> RawOptions:
        """How to read recordings.

        Raises:
            EpisodeError: A flag cannot be read.
        """
        return RawOptions(
            self.angle_unit,
            parse_gripper_range(self.gripper_range),
            self.raw_arm_order,
            self.color,
            self.fps,
            self.task,
            parse_camera_map(self.camera_map),
        )
