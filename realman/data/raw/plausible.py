"""Doubts about a recording that can be read without an error: did the robot, the clock and the cameras work?

Everything here may be accepted by name (`Doubt`), because a person may know better; the other checks may not.
"""

from collections.abc import Iterator
from typing import Literal, get_args

from jaxtyping import Float64
from jaxtyping import Int64
import numpy as np

from realman import spec
from realman.arrays import StoredFrame
from realman.data.raw.options import Traj

Doubt = Literal["jump", "timestamps", "frozen", "black"]

ALL_DOUBTS: tuple[Doubt, ...] = get_args(Doubt)

JUMP_SPEED = 2.0
"""A step between two frames faster than this many times the joint's top speed is a fault: one frame may have been lost at full speed."""

_JUMP_MARGIN_RAD = np.deg2rad(1.0)
"""Noise of encoders and leaders on top, which matters at high frame rates."""

_RATE_TOLERANCE = 0.1
_LONGEST_GAP_FRAMES = 5
_LONGEST_GAP_S = 0.1
"""A gap between timestamps must exceed both: schedulers stutter, but half a chunk of missing motion is a wrong motion."""

_SECONDS_PER_UNIT = (1.0, 1e-3, 1e-6, 1e-9)
"""Recorders count in s, ms, us or ns."""

FROZEN_S = 1.0
"""A camera at a lower rate than the recording repeats its frames for less."""
_FROZEN_MOTION_RAD = 0.1
"""Meanwhile a joint that the camera should see moves at least this far; a simulated camera shows a still scene as equal frames."""

_BLACK_MEAN = 16.0
_BLACK_STD = 4.0
"""A covered or unpowered camera: no brighter than the black of limited-range video, and without any structure (levels of 255)."""

_JOINTS = list(spec.JOINT_DIMS)
_SIDE_OF_CAMERA = {f"cam_{side}_wrist": side for side in spec.SIDES}


def jump_problems(name: str, values: Traj, fps: int) -> Iterator[str]:
    """Steps that no joint can make.

    Args:
        name: Dataset of the values, for the message.
        values: Positions, rad.
        fps: Frames per second.
    """
    speed = np.tile(spec.ARM_SPEED_RAD_S, len(spec.SIDES))
    step = np.abs(np.diff(values[:, _JOINTS].astype(np.float64), axis=0))
    excess = step - (JUMP_SPEED * speed / fps + _JUMP_MARGIN_RAD)
    if not excess.size or excess.max() <= 0:
        return
    frame, column = np.unravel_index(np.argmax(excess), excess.shape)
    times = step[frame, column] * fps / speed[column]
    yield (
        f"'{name}' {spec.DIM_NAMES[_JOINTS[column]]} jumps by {step[frame, column]:.3f} rad at frame {frame + 1}, {times:.1f} times "
        f"the joint's top speed ({int((excess > 0).sum())} such steps); --accept jump keeps it"
    )


def timestamp_problems(times: Float64[np.ndarray, " t"], fps: int, *, has_fps: bool) -> Iterator[str]:
    """Clocks that run backwards, at another rate, or with holes.

    Args:
        times: Time of each frame, in s, ms, us or ns.
        fps: Frames per second.
        has_fps: Whether the rate is stated; an assumed one is no yardstick.
    """
    if len(times) < 2:
        return
    remedy = "; --accept timestamps keeps it"
    if not np.isfinite(times).all():
        yield f"timestamps are not finite at frame {int(np.argmin(np.isfinite(times)))}{remedy}"
        return
    steps = np.diff(times)
    if steps.min() <= 0:
        yield f"timestamps do not grow at frame {int(np.argmin(steps)) + 1} (step {steps.min():g}){remedy}"
        return
    usual = float(np.median(steps))
    unit_s = min(_SECONDS_PER_UNIT, key=lambda unit: abs(np.log(usual * unit * fps)))
    rate = 1 / (usual * unit_s)
    if has_fps and abs(rate / fps - 1) > _RATE_TOLERANCE:
        yield f"timestamps are {rate:.1f} frames per second apart, the recording states {fps}{remedy}"
    longest = steps.max() * unit_s
    if longest > max(_LONGEST_GAP_S, _LONGEST_GAP_FRAMES / rate):
        yield f"no frames for {longest:.2f} s before frame {int(np.argmax(steps)) + 1}, by its timestamps{remedy}"


def is_black(counts: Int64[np.ndarray, "3 256"]) -> bool:
    """Whether a picture shows nothing at all, by its number of pixels of each level in each colour channel."""
    levels, of_level = np.arange(counts.shape[1]), counts.sum(0)
    mean = of_level @ levels / of_level.sum()
    variance = of_level @ (levels - mean) ** 2 / of_level.sum()
    return bool(mean < _BLACK_MEAN and variance < _BLACK_STD**2)


class CameraWatch:
    """Looks at the frames of one camera while they pass by."""

    def __init__(self, camera: str, state: Traj, fps: int) -> None:
        """Prepare for the frames of an episode, from the first to the last.

        Args:
            camera: Its name, which tells the arm it is on.
            state: Measured positions of the episode.
            fps: Frames per second.
        """
        side = _SIDE_OF_CAMERA.get(camera)
        seen = range(spec.NUM_DIMS)[spec.ARM_SLICES[side]] if side else range(spec.NUM_DIMS)
        self._motion = state[:, [dim for dim in seen if dim in spec.JOINT_DIMS]]
        self._fps = fps
        self._last: StoredFrame | None = None
        self._since = 0
        self._frozen: tuple[int, int] | None = None
        self._black: list[int] = []

    def add_frame(self, t: int, frame: StoredFrame) -> None:
        """See frame `t` as it is stored; frames come in order."""
        if self._last is None or not np.array_equal(frame, self._last):
            self._end_run(t)
            self._since = t
        self._last = frame

    def note_black(self, t: int) -> None:
        """Note that frame `t` was found to be black."""
        self._black.append(t)

    def problems(self) -> dict[Doubt, str]:
        """What was found, in words; call it when all frames have passed by."""
        self._end_run(len(self._motion))
        found: dict[Doubt, str] = {}
        if self._frozen is not None:
            start, end = self._frozen
            found["frozen"] = (
                f"shows the same picture for {(end - start) / self._fps:.1f} s from frame {start} while the arm moves; "
                "--accept frozen keeps it"
            )
        if self._black:
            found["black"] = f"is black at frame {min(self._black)}; --accept black keeps it"
        return found

    def _end_run(self, end: int) -> None:
        """Judge the run of equal frames that lasted to before frame `end`; the longest is kept."""
        start, length = self._since, end - self._since
        longest = 0 if self._frozen is None else self._frozen[1] - self._frozen[0]
        if length < FROZEN_S * self._fps or length <= longest:
            return
        if np.ptp(self._motion[start:end], axis=0).max() > _FROZEN_MOTION_RAD:
            self._frozen = start, end
