"""Flags that describe what a recording does not say about itself.

Every command that reads recordings has them.
"""

import dataclasses

from realman.data.raw.options import AngleUnit
from realman.data.raw.options import ArmOrder
from realman.data.raw.options import ColorOrder
from realman.data.raw.options import Fps
from realman.data.raw.options import RawOptions
from realman.data.raw.options import parse_camera_map
from realman.data.raw.options import parse_gripper_range
from realman.ranges import check_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingFlags:
    """Flags shared by all commands that read recordings."""

    angle_unit: AngleUnit = "rad"
    """Unit of the recorded joint angles."""
    gripper_range: str = "0:1"
    """Recorded gripper values when closed and when open, such as 0:1000, or 1000:0 if inverted."""
    raw_arm_order: ArmOrder = "right_left"
    """Which arm comes first in the recordings."""
    color: ColorOrder = "rgb"
    """Channel order of raw frames, or of encoded frames after an ordinary JPEG decoder."""
    fps: Fps | None = None
    """Frames per second. This replaces what the recordings state, so give it if they are wrong or silent."""
    task: str | None = None
    """Task text. This replaces what the recordings state, so give it if they are wrong or silent."""
    camera_map: tuple[str, ...] = ()
    """Cameras to rename, as RECORDED=NAME, such as cam_top=cam_high. To swap two cameras, give both pairs."""
    action_angle_unit: AngleUnit | None = None
    """Unit of the joint angles in /action, if it differs from --angle-unit."""
    action_gripper_range: str | None = None
    """Gripper values in /action when closed and when open, if they differ from --gripper-range."""

    def __post_init__(self) -> None:
        check_flags(self)

    @property
    def options(self) -> RawOptions:
        """The reading options these flags describe.

        Raises:
            EpisodeError: A flag is malformed.
        """
        return RawOptions(
            self.angle_unit,
            parse_gripper_range(self.gripper_range),
            self.raw_arm_order,
            self.color,
            self.fps,
            self.task,
            parse_camera_map(self.camera_map),
            self.action_angle_unit,
            None if self.action_gripper_range is None else parse_gripper_range(self.action_gripper_range),
        )
