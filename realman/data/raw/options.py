"""Options for reading a recording, and the conversion of its numbers.

The options describe what a recording does not say about itself. With them its numbers are brought into the contract's
layout and units. Detection never changes a number: `realman.data.checks` only stops if the data
contradict the options.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Annotated, Literal

from jaxtyping import Float32
from jaxtyping import Float64
from jaxtyping import Num
import numpy as np

from realman import spec
from realman.errors import EpisodeError
from realman.ranges import Range
from realman.ranges import problems

AngleUnit = Literal["rad", "deg"]
ArmOrder = Literal["right_left", "left_right"]
ColorOrder = Literal["rgb", "bgr"]
GripperValue = Annotated[float, Range(-1e9, 1e9, "what a recorder counts in")]
MAX_FPS = 1000
"""No camera of a robot is faster."""

Fps = Annotated[int, Range(1, MAX_FPS, "frames per second of a recording")]

_ARM_DIMS = spec.NUM_DIMS // 2
_JOINTS = list(spec.JOINT_DIMS)
_GRIPPERS = list(spec.GRIPPER_DIMS)

RawTraj = Num[np.ndarray, "t 14"]
Traj = Float32[np.ndarray, "t 14"]


@dataclasses.dataclass(frozen=True)
class RawOptions:
    """How to read a recording.

    The defaults are the contract's own layout and units, so they change nothing.

    Raises:
        EpisodeError: A value is invalid.
    """

    angle_unit: AngleUnit = "rad"
    """Unit of the joint angles in the file. Velocities are in this unit per second."""
    gripper_range: tuple[GripperValue, GripperValue] = (0.0, 1.0)
    """Recorded gripper values when closed and when open. The first may be the larger one."""
    raw_arm_order: ArmOrder = "right_left"
    """Which arm the first seven of the 14 numbers belong to."""
    color: ColorOrder = "rgb"
    """Channel order of raw frames, or of encoded frames after an ordinary JPEG decoder."""
    fps: Fps | None = None
    """Frames per second. None means the recording's own."""
    task: str | None = None
    """Task text. None means the recording's own."""
    camera_map: tuple[tuple[str, str], ...] = ()
    """Pairs of a camera's name in the file and the name it should have. Other cameras keep their names.

    A dataset in a camera's group is named with the group, such as `top/color`."""
    action_angle_unit: AngleUnit | None = None
    """Unit of the joint angles in commands. None means that of the measured angles."""
    action_gripper_range: tuple[GripperValue, GripperValue] | None = None
    """Gripper values in commands when closed and when open. None means those of the measured ones."""

    def __post_init__(self) -> None:
        if found := problems(self):
            raise EpisodeError(". ".join(found))
        for low, high in filter(None, (self.gripper_range, self.action_gripper_range)):
            if low == high:
                raise EpisodeError(
                    f"gripper range {low:g}:{high:g} is empty. Give the closed and the open value, such as 0:1000"
                )
        if self.task is not None and not self.task.strip():
            raise EpisodeError("task text is empty. Say what the robot does, such as 'fold the towel'")
        check_text(self.task or "", "task text")
        for names in zip(*self.camera_map, strict=True):
            if twice := [name for name in names if names.count(name) > 1]:
                raise EpisodeError(f"camera map names '{twice[0]}' twice. Give each camera once, as RECORDED=NAME")

    def for_actions(self) -> "RawOptions":
        """Return how to read commands.

        Their units may differ from those of measurements.
        """
        return dataclasses.replace(
            self,
            angle_unit=self.action_angle_unit or self.angle_unit,
            gripper_range=self.action_gripper_range or self.gripper_range,
        )


def check_text(text: str, what: str) -> None:
    """Refuse a text that no file in UTF-8 can hold.

    Raises:
        EpisodeError: It has bytes or halves of characters.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise EpisodeError(f"{what} {text!a} is not UTF-8. Write it again in UTF-8") from e


def parse_gripper_range(text: str) -> tuple[float, float]:
    """Parse `CLOSED:OPEN`, such as `0:1000`, or `1000:0` if inverted.

    Raises:
        EpisodeError: The text does not have this form.
    """
    try:
        closed, opened = (float(part) for part in text.split(":"))
    except ValueError as e:
        raise EpisodeError(f"gripper range '{text}' is not CLOSED:OPEN, such as 0:1000") from e
    return closed, opened


def parse_camera_map(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Parse `RECORDED=NAME` pairs, such as `cam_top=cam_high`.

    Raises:
        EpisodeError: A text does not have this form.
    """
    parsed = []
    for pair in pairs:
        recorded, _, name = pair.partition("=")
        if not recorded or not name or "=" in name or "/" in name:
            raise EpisodeError(f"camera map '{pair}' is not RECORDED=NAME, such as cam_top=cam_high")
        parsed.append((recorded, name))
    return tuple(parsed)


def positions(recorded: RawTraj, options: RawOptions) -> Traj:
    """Convert recorded positions to rad and gripper fractions, right arm first.

    Grippers are scaled but not clipped. Sensors read slightly beyond both ends, and the checks need to see by how much.
    """
    low, high = options.gripper_range
    values = _right_arm_first(recorded, options)
    values[:, _JOINTS] *= _rad_per_unit(options)
    values[:, _GRIPPERS] = (values[:, _GRIPPERS] - low) / (high - low)
    return _to_float32(values)


def velocities(recorded: RawTraj, options: RawOptions) -> Traj:
    """Convert recorded velocities to rad/s, right arm first.

    Grippers are in fractions per second, and positive means opening.
    """
    low, high = options.gripper_range
    values = _right_arm_first(recorded, options)
    values[:, _JOINTS] *= _rad_per_unit(options)
    values[:, _GRIPPERS] /= high - low
    return _to_float32(values)


def efforts(recorded: RawTraj, options: RawOptions) -> Traj:
    """Return recorded efforts, right arm first, in the recorder's unit."""
    return _to_float32(_right_arm_first(recorded, options))


def clip_grippers(values: Traj) -> Traj:
    """Return a copy with both grippers clipped to 0..1. NaN stays NaN."""
    clipped = values.copy()
    clipped[:, _GRIPPERS] = np.clip(values[:, _GRIPPERS], 0.0, 1.0)
    return clipped


def _to_float32(values: Float64[np.ndarray, "t 14"]) -> Traj:
    # A damaged number that is too large for float32 becomes infinite, and the checks report where it is.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _right_arm_first(recorded: RawTraj, options: RawOptions) -> Float64[np.ndarray, "t 14"]:
    """Return a float64 copy in the contract's arm order.

    With float64, scaling rounds only once, at the end.
    """
    values = np.array(recorded, np.float64)
    return np.roll(values, _ARM_DIMS, axis=1) if options.raw_arm_order == "left_right" else values


def _rad_per_unit(options: RawOptions) -> float:
    return math.pi / 180.0 if options.angle_unit == "deg" else 1.0
