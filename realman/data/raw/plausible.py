"""Doubts about a readable recording: did robot, clock and cameras work?

You can accept each of these findings by name (`Doubt`), because you may know better. The findings of all other checks
cannot be accepted.
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
"""A step between two frames faster than this many times the joint's top speed is a fault.

Two, because one frame may have been lost at full speed.
"""

_JUMP_MARGIN_RAD = np.deg2rad(1.0)
"""Allowance for the noise of encoders and leader arms, which matters at high frame rates."""

_RATE_TOLERANCE = 0.1
_LONGEST_GAP_FRAMES = 5
_LONGEST_GAP_S = 0.1
"""A gap between timestamps is a fault if it exceeds both limits.

Schedulers stutter, but with half an action chunk missing the motion is wrong.
"""

ACCEPT_TIMESTAMPS = "Keep it with --accept timestamps"

_SECONDS_PER_UNIT = (1.0, 1e-3, 1e-6, 1e-9)
"""Recorders count time in s, ms, us or ns."""

FROZEN_S = 1.0
"""A run of equal frames this long is a fault. A camera slower than the recording repeats its frames for less time."""
_FROZEN_MOTION_RAD = 0.1
"""Equal frames are a fault only if a joint that the camera should see moves at least this far meanwhile.

A simulated camera shows a still scene as equal frames.
"""

_BLACK_MEAN = 16.0
_BLACK_STD = 4.0
"""A frame darker and flatter than this comes from a covered or unpowered camera (levels of 255).

The limit is the black of limited-range video, without any structure.
"""

_JOINTS = list(spec.JOINT_DIMS)
_SIDE_OF_CAMERA = {f"cam_{side}_wrist": side for side in spec.SIDES}


def jump_problems(name: str, values: Traj, fps: int) -> Iterator[str]:
    """Describe steps that no joint can make.

    Args:
        name: Name of the dataset, for the message.
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
        f"'{name}' {spec.DIM_NAMES[_JOINTS[column]]} jumps by {step[frame, column]:.3f} rad at frame {frame + 1}, "
        f"{times:.1f} times the joint's top speed ({int((excess > 0).sum())} such steps). Keep it with --accept jump"
    )


def clock_rate(times: Float64[np.ndarray, " t"], fps: int) -> float | None:
    """Return the frames per second of a clock, or None.

    None means that it shows no rate. A few times that are lost or repeat each other do not hide it.

    Args:
        times: Time of each frame, in s, ms, us or ns.
        fps: About how many to expect. This decides between the units.
    """
    steps = np.diff(times)
    growing = steps[np.isfinite(steps) & (steps > 0)]
    # A clock that mostly stands still is too coarse to say anything.
    if not len(growing) or 2 * len(growing) < len(steps):
        return None
    return 1 / (float(np.median(growing)) * _unit_s(growing, fps))


def contradicts(rate: float | None, fps: float) -> bool:
    """Return whether a clock's rate is another one than `fps`."""
    return rate is not None and abs(rate / fps - 1) > _RATE_TOLERANCE


def timestamp_problems(
    times: Float64[np.ndarray, " t"], fps: int, *, has_fps: bool, stated_by: str = "the recording states"
) -> Iterator[str]:
    """Describe a clock that runs backwards, at another rate, or with gaps.

    Args:
        times: Time of each frame, in s, ms, us or ns.
        fps: Frames per second.
        has_fps: Whether the rate is stated. An assumed rate is not compared with the timestamps.
        stated_by: Who states it, for the message.
    """
    if len(times) < 2:
        return
    remedy = f". {ACCEPT_TIMESTAMPS}"
    if not np.isfinite(times).all():
        yield f"timestamps are not finite at frame {int(np.argmin(np.isfinite(times)))}{remedy}"
        return
    # Without a strictly growing clock there is no rate to measure.
    steps = np.diff(times)
    if steps.min() <= 0:
        yield f"timestamps do not grow at frame {int(np.argmin(steps)) + 1} (step {steps.min():g}){remedy}"
        return
    rate = 1 / (float(np.median(steps)) * _unit_s(steps, fps))
    if has_fps and contradicts(rate, fps):
        yield (
            f"timestamps are {rate:.1f} frames per second apart, expected {fps} as {stated_by}. "
            f"Give --fps {max(1, round(rate))}, or keep it with --accept timestamps"
        )
    longest = steps.max() * _unit_s(steps, fps)
    if longest > max(_LONGEST_GAP_S, _LONGEST_GAP_FRAMES / rate):
        yield f"no frames for {longest:.2f} s before frame {int(np.argmax(steps)) + 1}, by its timestamps{remedy}"


def _unit_s(steps: Float64[np.ndarray, " t"], fps: int) -> float:
    """Return the recorder's unit in seconds.

    It is the one that comes closest to the frame rate.
    """
    usual = float(np.median(steps))
    return min(_SECONDS_PER_UNIT, key=lambda unit: abs(np.log(usual * unit * fps)))


def is_black(counts: Int64[np.ndarray, "3 256"]) -> bool:
    """Return whether an image shows nothing at all.

    Args:
        counts: Number of pixels of each level in each color channel.
    """
    levels, of_level = np.arange(counts.shape[1]), counts.sum(0)
    mean = of_level @ levels / of_level.sum()
    variance = of_level @ (levels - mean) ** 2 / of_level.sum()
    return bool(mean < _BLACK_MEAN and variance < _BLACK_STD**2)


class CameraWatch:
    """Watch the frames of one camera for doubts while they are copied."""

    def __init__(self, camera: str, state: Traj, fps: int) -> None:
        """Prepare to watch an episode from its first to its last frame.

        Args:
            camera: Its name, which says which arm it is mounted on.
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
        """Add frame `t` as stored. Add frames in order."""
        if self._last is None or not np.array_equal(frame, self._last):
            self._end_run(t)
            self._since = t
        self._last = frame

    def note_black(self, t: int) -> None:
        """Note that frame `t` was found to be black."""
        self._black.append(t)

    def problems(self) -> dict[Doubt, str]:
        """Describe what was found. Call this after all frames have been added."""
        self._end_run(len(self._motion))
        found: dict[Doubt, str] = {}
        if self._frozen is not None:
            start, end = self._frozen
            found["frozen"] = (
                f"shows the same image for {(end - start) / self._fps:.1f} s from frame {start} while the arm moves. "
                "Keep it with --accept frozen"
            )
        if self._black:
            found["black"] = f"is black at frame {min(self._black)}. Keep it with --accept black"
        return found

    def _end_run(self, end: int) -> None:
        """Judge the run of equal frames that ended before frame `end`.

        Only the longest run is kept.
        """
        start, length = self._since, end - self._since
        longest = 0 if self._frozen is None else self._frozen[1] - self._frozen[0]
        if length < FROZEN_S * self._fps or length <= longest:
            return
        if np.ptp(self._motion[start:end], axis=0).max() > _FROZEN_MOTION_RAD:
            self._frozen = start, end
