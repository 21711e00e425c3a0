"""Read what a recording says about itself: rate, task, times.

Recorders write these in many forms. What cannot be understood is not damaged: a flag or `--accept` replaces it.
"""

import math
import re
from typing import NamedTuple

import h5py
import numpy as np

from realman.data.raw import hdf5
from realman.data.raw.options import MAX_FPS
from realman.data.raw.options import RawOptions
from realman.errors import EpisodeError

FPS = "fps"

TIMESTAMPS = ("timestamps", "timestamp", "observations/timestamps", "observations/timestamp")
"""Datasets that may hold the time of each frame, in order of preference."""

TASK_NAMES = ("language_instruction", "instruction", "task", "language_raw", "task_description", "prompt")
"""Attributes or datasets that may hold the task text, in order of preference."""

TASK_REMEDY = "Give --task 'what the robot does', or --task-file for a text per recording"


_NO_RATE = "neither number nor text"


class Statement(NamedTuple):
    """A value that a recording states, or why it cannot be used."""

    value: str | None = None
    problem: str | None = None


def read_fps(file: h5py.File, options: RawOptions, place: str) -> tuple[int | None, str | None, str | None]:
    """Return the frame rate, why there is none, and a note.

    The option comes first, because it is the user's own word.

    Returns:
        The rate, or None if nobody states it. The problem of what is stated, or None. A note if the option replaces
        what is stated, or None.
    """
    try:
        value = hdf5.read_value(file, FPS, place)
    except EpisodeError as e:
        if options.fps is not None:
            return options.fps, None, None
        return None, f"{str(e).removeprefix(f'{place}: ')}, or give --fps and the true rate", None
    recorded = set() if value is None else {_comparable(v) for v in value.reshape(-1).tolist()}
    number = _number(next(iter(recorded))) if len(recorded) == 1 else None
    is_rate = number is not None and number == round(number) and 1 <= number <= MAX_FPS
    shown = f"{number:g}" if number is not None else ", ".join(_shown(v) for v in sorted(recorded, key=str)[:3])
    if options.fps is not None:
        replaces = bool(recorded) and number != options.fps
        return (
            options.fps,
            None,
            f"recorded with fps {shown}, read as {options.fps} as --fps says" if replaces else None,
        )
    if is_rate and number is not None:
        return int(number), None, None
    if not recorded:
        return None, None, None
    # Name the rate that is probably meant, if the text or number is close to one.
    guess = number if number is not None else _first_number(shown) if recorded - {_NO_RATE} else None
    flag = f"--fps {round(guess)}" if guess is not None and 1 <= round(guess) <= MAX_FPS else "--fps and the true rate"
    problem = f"attribute '{FPS}' is {shown}, expected a whole number of frames per second, 1..{MAX_FPS}. Give {flag}"
    return None, problem, None


def read_task(file: h5py.File, options: RawOptions, place: str) -> tuple[Statement, str | None]:
    """Return the task text, and a note.

    The option comes first, because it is the user's own word. The note says what it replaces.
    """
    recorded = _recorded_task(file, place)
    if options.task is None:
        return recorded, None
    wanted = options.task.strip()
    if recorded.value is not None and recorded.value != wanted:
        return Statement(wanted), f"recorded with the task '{_short(recorded.value)}', read as '{_short(wanted)}'"
    return Statement(wanted), None


def read_timestamps(file: h5py.File, num_frames: int, place: str) -> tuple[np.ndarray | None, str | None]:
    """Return the time of each frame (T,), or its problem.

    Unit and zero are the recorder's own. Both are None if no times are recorded.
    """
    for name in TIMESTAMPS:
        dataset = hdf5.find_dataset(file, name, place)
        if dataset is None:
            continue
        if dataset.dtype.kind not in "fiu":
            return None, f"'{name}' holds no numbers ({dataset.dtype}), expected times in s, ms, us or ns"
        if dataset.shape not in ((num_frames,), (num_frames, 1)):
            return None, f"'{name}' has shape {dataset.shape}, expected ({num_frames},)"
        hdf5.check_data(dataset, f"{place}: '{name}'")
        with hdf5.reading(f"{place}: '{name}'"):
            recorded = dataset[()]
        return np.asarray(recorded, np.float64).reshape(-1), None
    return None, None


def _recorded_task(file: h5py.File, place: str) -> Statement:
    """Return the first task text of a recording.

    One text per frame is accepted if all are the same.
    """
    others = []
    # A name that says nothing, or holds no text, leaves the next one to say it.
    for name in TASK_NAMES:
        try:
            value = hdf5.read_value(file, name, place)
            if value is None:
                continue
            texts = {_text(item) for item in value.reshape(-1).tolist()} - {""}
        except EpisodeError as e:
            return Statement(problem=f"{str(e).removeprefix(f'{place}: ')}. {TASK_REMEDY}")
        except UnicodeError:
            return Statement(problem=f"'{name}' is not text in UTF-8. {TASK_REMEDY}")
        except TypeError:
            others.append(f"'{name}' is not text")
            continue
        if len(texts) > 1:
            return Statement(
                problem=f"'{name}' holds {len(texts)} different texts, expected one per episode. {TASK_REMEDY}"
            )
        if texts:
            return Statement(texts.pop())
    names = f"{', '.join(TASK_NAMES[:-1])} or {TASK_NAMES[-1]}"
    found = "; ".join(others) or f"none of {names} is there"
    return Statement(problem=f"has no task text ({found}). {TASK_REMEDY}")


def _text(value: object) -> str:
    """Return a text without blanks around it.

    Raises:
        UnicodeError: It is not UTF-8.
        TypeError: It is not text.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is not text")
    # h5py hides bytes that are not UTF-8 in a text that cannot be written.
    value.encode("utf-8")
    text = value.strip().strip("\0").strip()
    # Zeros inside are another encoding, or what an older text has left in a buffer.
    if "\0" in text:
        raise UnicodeError("zeros in a text")
    return text


def _comparable(value: object) -> str | bytes | int | float:
    """Return a number or text as it is.

    Recorders can also store lists, links and structures.
    """
    return value if isinstance(value, str | bytes | int | float) else _NO_RATE


def _number(value: object) -> float | None:
    """Return a number, which may be written as text, or None."""
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _first_number(text: str) -> float | None:
    found = re.search(r"\d+(\.\d+)?", text)
    return None if found is None else float(found.group())


def _shown(value: object) -> str:
    """Return a value as a message shows it, in one line."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return repr(_short(value)) if isinstance(value, str) else _short(str(value))


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
