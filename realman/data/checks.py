"""Check recordings before anything is written.

Are the numbers sound, and do they agree with the options? A check never changes anything. It says in one line per
episode what it found, where, and which option would explain it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
import dataclasses
import logging
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from realman import spec
from realman.data import units
from realman.data.raw import plausible
from realman.data.raw.episode import ACTION
from realman.data.raw.episode import EFFORT
from realman.data.raw.episode import QPOS
from realman.data.raw.episode import QVEL
from realman.data.raw.episode import Episode
from realman.data.raw.episode import open_episode
from realman.data.raw.options import RawOptions
from realman.data.raw.options import Traj
from realman.data.raw.plausible import ALL_DOUBTS
from realman.data.raw.plausible import Doubt
from realman.data.raw.statements import TASK_REMEDY
from realman.errors import EpisodeError

logger = logging.getLogger(__name__)

_CHANGED = "changed while it was converted"
_WAIT = "Run again after recording has ended"

_T = TypeVar("_T")


Extra = Literal["velocity", "effort"]
"""Numbers that a dataset may hold in addition to state and action."""

_EXTRA_NAMES: dict[Extra, str] = {"velocity": QVEL, "effort": EFFORT}


@dataclasses.dataclass(frozen=True)
class EpisodeFacts:
    """What the converter needs to know about a sound recording."""

    path: Path
    name: str
    """What it is called in messages and metadata."""
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
    """Whether velocities are recorded, and all of them are numbers."""
    has_effort: bool
    """The same for efforts."""
    other_cameras: tuple[str, ...]
    """Recorded cameras that were not requested."""
    left_out: tuple[tuple[str, str], ...] = ()
    """What the file holds but cannot be converted, with the reason."""
    notes: tuple[str, ...] = ()
    """What the recording states and an option replaces."""


@dataclasses.dataclass(frozen=True)
class EpisodeReport:
    """Result of checking one recording: its facts, or its problem.

    The problem is one line that says what is wrong.
    """

    path: Path
    facts: EpisodeFacts | None = None
    problem: str | None = None
    name: str = ""


def check_episode(
    path: Path,
    options: RawOptions,
    cameras: Sequence[str],
    *,
    accept: Collection[Doubt] = ALL_DOUBTS,
    extras: Collection[Extra] | None = None,
    name: str | None = None,
) -> EpisodeReport:
    """Check one recording on its own.

    This reads all joints and three frames of each camera.

    Args:
        path: The recording.
        options: How to read it.
        cameras: Cameras that it must have.
        accept: Doubts that do not make it bad.
        extras: Numbers that it must have in addition to state and action. None takes those that are sound.
        name: What to call it. None means its file name.
    """
    name = path.name if name is None else name
    try:
        with open_episode(path, options, cameras=(), name=name) as episode:
            problems = list(_problems(episode, cameras, extras or ())) or list(_doubts(episode, accept))
            if problems:
                return EpisodeReport(path, problem=f"{name}: {'; '.join(problems)}", name=name)
            return EpisodeReport(path, facts=_facts(episode, cameras), name=name)
    except EpisodeError as e:
        return EpisodeReport(path, problem=str(e), name=name)


def check_again(episode: Episode, facts: EpisodeFacts, accept: Collection[Doubt]) -> None:
    """Check the very numbers that are about to be written.

    The file may have been replaced since it was checked, even by one of the same size and time.

    Raises:
        EpisodeError: The recording is not the one that was checked.
    """
    cameras = [camera for camera, _, _ in facts.image_sizes]
    problems = list(_number_problems(episode)) or list(_doubts(episode, accept))
    # Task texts may come from a file that only the first check has read.
    found = dataclasses.replace(_facts(episode, cameras), task=facts.task, notes=facts.notes)
    if problems or found != facts:
        details = f" ({'; '.join(problems)})" if problems else ""
        raise EpisodeError(f"{facts.name}: {_CHANGED}{details}. {_WAIT}")


def check_unchanged(facts: EpisodeFacts) -> None:
    """Refuse a recording whose file has changed since it was checked.

    Raises:
        EpisodeError: Its size or its time of change differs.
    """
    try:
        status = facts.path.stat()
        found = status.st_size, status.st_mtime_ns
    except OSError:
        found = None
    if found != (facts.file_bytes, facts.modified_ns):
        raise EpisodeError(f"{facts.name}: {_CHANGED}. {_WAIT}")


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
            problem = f"{report.name}: has {'; '.join(differences)}"
            compared.append(EpisodeReport(report.path, problem=problem, name=report.name))
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
    }


def _most_common(values: Sequence[_T]) -> _T:
    return Counter(values).most_common(1)[0][0]


def _facts(episode: Episode, cameras: Sequence[str]) -> EpisodeFacts:
    streams = {name: episode.camera(name) for name in cameras}
    status = episode.path.stat()
    return EpisodeFacts(
        path=episode.path,
        name=episode.name,
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        num_frames=episode.num_frames,
        fps=episode.fps,
        has_fps=episode.has_fps,
        task=episode.task or "",
        image_sizes=tuple((name, s.height, s.width) for name, s in streams.items()),
        is_jpeg=all(s.keeps_encoding for s in streams.values()),
        image_bytes=sum(s.stored_bytes for s in streams.values()),
        has_velocity=episode.velocity is not None and bool(np.isfinite(episode.velocity).all()),
        has_effort=episode.effort is not None and bool(np.isfinite(episode.effort).all()),
        other_cameras=tuple(c for c in episode.cameras if c not in cameras),
        left_out=tuple({**episode.left_out, **_extras_not_finite(episode)}.items()),
        notes=episode.notes,
    )


def _extras_not_finite(episode: Episode) -> dict[str, str]:
    extras = {QVEL: episode.velocity, EFFORT: episode.effort}
    return {
        name: _not_finite(name, values)
        for name, values in extras.items()
        if values is not None and not np.isfinite(values).all()
    }


def _problems(episode: Episode, cameras: Sequence[str], extras: Collection[Extra]) -> Iterator[str]:
    if episode.task is None:
        yield episode.task_problem or f"has no task text. {TASK_REMEDY}"
    # Cameras that were asked for must be there and readable.
    broken = [camera for camera in cameras if camera in episode.broken_cameras]
    missing = [camera for camera in cameras if camera not in episode.cameras and camera not in broken]
    if missing:
        names = ", ".join(f"'{c}'" for c in missing)
        have = ", ".join(episode.cameras) or "none"
        yield f"camera {names} is missing (recorded: {have}). Choose what to convert with --cameras"
    for camera in broken:
        yield episode.broken_cameras[camera].removeprefix(f"{episode.name}: ")
    yield from _number_problems(episode)
    # So must extra numbers, if they were asked for.
    unusable = {**episode.left_out, **_extras_not_finite(episode)}
    values = {"velocity": episode.velocity, "effort": episode.effort}
    for extra in extras:
        name = _EXTRA_NAMES[extra]
        if values[extra] is None or name in unusable:
            found = unusable.get(name, f"'{name}' is missing")
            yield f"{found}. Leave {extra} out of --extras"
    for camera in cameras:
        if camera in episode.cameras:
            yield from _frame_problems(episode, camera)


def _number_problems(episode: Episode) -> Iterator[str]:
    """Describe what is wrong with state, action and rate."""
    positions = {QPOS: episode.unclipped_state, ACTION: episode.unclipped_action}
    finite = {name: bool(np.isfinite(values).all()) for name, values in positions.items()}
    for name, values in positions.items():
        if not finite[name]:
            yield _not_finite(name, values)
    yield from units.unit_problems({n: v for n, v in positions.items() if finite[n]}, episode.options)
    # An assumed rate may not contradict the clock. A stated one is a doubt.
    if not episode.has_fps and episode.timestamps is not None:
        rate = plausible.clock_rate(episode.timestamps, episode.fps)
        if rate is not None and plausible.contradicts(rate, episode.fps):
            yield (
                f"timestamps are {rate:.1f} frames per second apart, and no frame rate is stated. "
                f"Give --fps {max(1, round(rate))}"
            )


def _doubts(episode: Episode, accept: Collection[Doubt]) -> Iterator[str]:
    """Describe doubts about motion and clock.

    Doubts about images are found while the images are copied.
    """
    if "jump" not in accept:
        for name, values in ((QPOS, episode.state), (ACTION, episode.action)):
            yield from plausible.jump_problems(name, values, episode.fps)
    if "timestamps" not in accept and episode.timestamps is not None:
        stated_by = "the recording states" if episode.options.fps is None else "--fps says"
        yield from plausible.timestamp_problems(
            episode.timestamps, episode.fps, has_fps=episode.has_fps, stated_by=stated_by
        )
    if "timestamps" not in accept and episode.timestamps_problem:
        yield f"{episode.timestamps_problem}. {plausible.ACCEPT_TIMESTAMPS}"


def _not_finite(name: str, values: Traj) -> str:
    bad = np.argwhere(~np.isfinite(values))
    frame, dim = bad[0]
    return f"'{name}' is not finite at frame {frame}, {spec.DIM_NAMES[dim]} [{dim}] ({len(bad)} such values)"


def _frame_problems(episode: Episode, camera: str) -> Iterator[str]:
    """Decode the first, a middle and the last frame.

    All other frames are checked while they are copied.
    """
    stream = episode.camera(camera)
    try:
        for t in sorted({0, episode.num_frames // 2, episode.num_frames - 1}):
            stream.image(t)
    except EpisodeError as e:
        yield str(e).removeprefix(f"{episode.name}: ")
