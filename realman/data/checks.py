"""Check recordings before anything is written.

Are the numbers sound, and do they agree with the options? A check never changes anything. It says in one line per
episode what it found, where, and which option would explain it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
import dataclasses
import logging
import math
from pathlib import Path
from typing import TypeVar

import numpy as np

from realman import spec
from realman.data.raw import plausible
from realman.data.raw.episode import ACTION
from realman.data.raw.episode import QPOS
from realman.data.raw.episode import Episode
from realman.data.raw.episode import open_episode
from realman.data.raw.options import RawOptions
from realman.data.raw.options import Traj
from realman.data.raw.plausible import ALL_DOUBTS
from realman.data.raw.plausible import Doubt
from realman.errors import EpisodeError

logger = logging.getLogger(__name__)

LIMIT_TOLERANCE_RAD = math.radians(2.0)
"""How far a measured angle may be beyond the vendor's limit. Encoders and leader arms overshoot a little."""

GRIPPER_TOLERANCE = 0.05
"""How far a gripper may be beyond 0..1 before clipping. RealMan's EG2 reads down to -3 of 1000 when closed."""

FULL_TURN_RAD = 2 * math.pi
"""No joint of the arm turns further than this, so larger numbers are not radians."""

MIN_MOTION_DEG = 5.0
"""If all joints of both arms stay this close to zero, the numbers are radians that were taken for degrees."""

_JOINTS = list(spec.JOINT_DIMS)
_GRIPPERS = list(spec.GRIPPER_DIMS)
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class EpisodeFacts:
    """What the converter needs to know about a sound recording."""

    path: Path
    file_bytes: int
    modified_ns: int
    num_frames: int
    fps: int
    has_fps: bool
    task: str
    image_sizes: tuple[tuple[str, int, int], ...]
    """Camera, height and width in px, in the order of the dataset."""
    is_jpeg: bool
    """Whether the frames of all cameras can be copied unchanged."""
    image_bytes: int
    """Size of all frames as recorded, in bytes."""
    has_velocity: bool
    has_effort: bool
    other_cameras: tuple[str, ...]
    """Recorded cameras that were not requested."""


@dataclasses.dataclass(frozen=True)
class EpisodeReport:
    """Result of checking one recording: its facts, or its problem.

    The problem is one line that says what is wrong.
    """

    path: Path
    facts: EpisodeFacts | None = None
    problem: str | None = None


def check_episode(
    path: Path, options: RawOptions, cameras: Sequence[str], *, accept: Collection[Doubt] = ALL_DOUBTS
) -> EpisodeReport:
    """Check one recording on its own.

    This reads all joints and three frames of each camera.

    Args:
        path: The recording.
        options: How to read it.
        cameras: Cameras that it must have.
        accept: Doubts that do not make it bad.
    """
    try:
        with open_episode(path, options) as episode:
            problems = list(_problems(episode, cameras)) or list(_doubts(episode, accept))
            if problems:
                return EpisodeReport(path, problem=f"{path.name}: {'; '.join(problems)}")
            return EpisodeReport(path, facts=_facts(episode, cameras))
    except EpisodeError as e:
        return EpisodeReport(path, problem=str(e))


def compare_episodes(reports: Sequence[EpisodeReport]) -> list[EpisodeReport]:
    """Mark every sound recording that differs from most others as bad.

    All episodes of a dataset must have the same form.
    """
    facts = [r.facts for r in reports if r.facts is not None]
    if not facts:
        return list(reports)
    usual = {name: _most_common([_form(f)[name] for f in facts]) for name in _form(facts[0])}
    compared = []
    for report in reports:
        form = _form(report.facts) if report.facts is not None else usual
        differences = [
            f"{name} {form[name]}, expected {usual[name]} as in most others"
            for name in usual
            if form[name] != usual[name]
        ]
        if differences:
            compared.append(EpisodeReport(report.path, problem=f"{report.path.name}: has {'; '.join(differences)}"))
        else:
            compared.append(report)
    return compared


def refuse_bad(bad: Sequence[EpisodeReport], num_all: int, *, num_good: int, skip_bad: bool) -> None:
    """Stop with one line per bad episode, or only warn if `skip_bad`.

    Raises:
        EpisodeError: There are bad episodes that may not be skipped, or no good ones.
    """
    if not bad:
        return
    lines = [str(report.problem) for report in bad]
    if skip_bad and num_good:
        for line in lines:
            logger.warning("left out: %s", line)
        return
    them = "it" if len(bad) == 1 else "them"
    remedy = f"Fix {them}, or leave {them} out with --skip-bad" if num_good else "None is left to convert"
    count = f"{len(bad)} of {num_all} episodes {'is' if len(bad) == 1 else 'are'} bad. {remedy}"
    raise EpisodeError(f"{lines[0]} ({count})" if len(lines) == 1 else "\n  ".join([f"{count}:", *lines]))


def _form(facts: EpisodeFacts) -> dict[str, str]:
    """Describe what must be the same in all episodes."""
    sizes = ", ".join(f"{camera} {height}x{width} px" for camera, height, width in facts.image_sizes)
    return {
        "frame rate": f"{facts.fps} fps",
        "images": sizes,
        "velocities": "recorded" if facts.has_velocity else "missing",
        "efforts": "recorded" if facts.has_effort else "missing",
    }


def _most_common(values: Sequence[_T]) -> _T:
    return Counter(values).most_common(1)[0][0]


def _facts(episode: Episode, cameras: Sequence[str]) -> EpisodeFacts:
    streams = {name: episode.camera(name) for name in cameras}
    status = episode.path.stat()
    return EpisodeFacts(
        path=episode.path,
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        num_frames=episode.num_frames,
        fps=episode.fps,
        has_fps=episode.has_fps,
        task=episode.task or "",
        image_sizes=tuple((name, s.height, s.width) for name, s in streams.items()),
        is_jpeg=all(s.keeps_encoding for s in streams.values()),
        image_bytes=sum(s.stored_bytes for s in streams.values()),
        has_velocity=episode.velocity is not None,
        has_effort=episode.effort is not None,
        other_cameras=tuple(c for c in episode.cameras if c not in cameras),
    )


def _problems(episode: Episode, cameras: Sequence[str]) -> Iterator[str]:
    if episode.task is None:
        yield "has no task text. Give --task 'what the robot does'"
    missing = [camera for camera in cameras if camera not in episode.cameras]
    if missing:
        names = ", ".join(f"'{c}'" for c in missing)
        have = ", ".join(episode.cameras) or "none"
        yield f"camera {names} is missing (recorded: {have}). Choose what to convert with --cameras"
    optional = {"observations/qvel": episode.velocity, "observations/effort": episode.effort}
    positions = {QPOS: episode.unclipped_state, ACTION: episode.unclipped_action}
    for name, values in {**positions, **optional}.items():
        if values is not None and not np.isfinite(values).all():
            yield _not_finite(name, values)
        elif values is not None and name in positions:
            yield from _angle_problems(name, values, episode.options)
            yield from _gripper_problems(name, values, episode.options)
    for camera in cameras:
        if camera not in missing:
            yield from _frame_problems(episode, camera)


def _doubts(episode: Episode, accept: Collection[Doubt]) -> Iterator[str]:
    """Describe doubts about motion and clock.

    Doubts about images are found while the images are copied.
    """
    if "jump" not in accept:
        for name, values in ((QPOS, episode.state), (ACTION, episode.action)):
            yield from plausible.jump_problems(name, values, episode.fps)
    if "timestamps" not in accept and episode.timestamps is not None:
        yield from plausible.timestamp_problems(episode.timestamps, episode.fps, has_fps=episode.has_fps)


def _not_finite(name: str, values: Traj) -> str:
    bad = np.argwhere(~np.isfinite(values))
    frame, dim = bad[0]
    return f"'{name}' is not finite at frame {frame}, {spec.DIM_NAMES[dim]} [{dim}] ({len(bad)} such values)"


def _angle_problems(name: str, values: Traj, options: RawOptions) -> Iterator[str]:
    # Report the strongest excess, because one line can show only one.
    excess = np.maximum(values - spec.UPPER, spec.LOWER - values)[:, _JOINTS]
    frame, column = np.unravel_index(np.argmax(excess), excess.shape)
    largest_rad = float(np.abs(values[:, _JOINTS]).max())
    if excess[frame, column] > LIMIT_TOLERANCE_RAD:
        dim = _JOINTS[column]
        limit = spec.UPPER[dim] if values[frame, dim] > 0 else spec.LOWER[dim]
        text = f"'{name}' {spec.DIM_NAMES[dim]} is {values[frame, dim]:.3f} rad at frame {frame}, limit {limit:.3f} rad"
        if options.angle_unit == "rad" and largest_rad > FULL_TURN_RAD + LIMIT_TOLERANCE_RAD:
            text += ". These look like degrees: give --angle-unit deg"
        yield text
    elif options.angle_unit == "deg" and 0 < largest_rad < math.radians(MIN_MOTION_DEG):
        seen = f"'{name}' stays within {math.degrees(largest_rad):.2f} deg"
        yield f"{seen}. These look like radians: leave --angle-unit deg out"


def _gripper_problems(name: str, values: Traj, options: RawOptions) -> Iterator[str]:
    low, high = options.gripper_range
    fractions = values[:, _GRIPPERS].astype(np.float64)
    recorded = low + fractions * (high - low)
    seen = f"'{name}' grippers go from {recorded.min():g} to {recorded.max():g}"
    if fractions.min() < -GRIPPER_TOLERANCE or fractions.max() > 1 + GRIPPER_TOLERANCE:
        yield f"{seen}, outside {low:g}:{high:g}. Give --gripper-range CLOSED:OPEN, such as 0:1000"
    elif max(abs(low), abs(high)) >= 100 and np.ptp(recorded) > 0.05 and np.abs(recorded).max() <= 1.5:
        yield f"{seen}, far too little for {low:g}:{high:g}. These look like 0:1: leave --gripper-range out"


def _frame_problems(episode: Episode, camera: str) -> Iterator[str]:
    """Decode the first, a middle and the last frame.

    All other frames are checked while they are copied.
    """
    stream = episode.camera(camera)
    try:
        for t in sorted({0, episode.num_frames // 2, episode.num_frames - 1}):
            stream.image(t)
    except EpisodeError as e:
        yield str(e).removeprefix(f"{episode.path.name}: ")
