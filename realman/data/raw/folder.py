"""Recordings of a folder: their files, order and task texts.

Nothing is left out in silence. What is named like a recording is listed, and opening it says what is wrong with it.
"""

from collections.abc import Sequence
import itertools
import json
import logging
from pathlib import Path
import re

from realman.data.raw.options import check_text
from realman.errors import EpisodeError

logger = logging.getLogger(__name__)

SUFFIXES = (".hdf5", ".h5")
"""In any case, such as .HDF5."""

_MOST_NAMED = 3


def find_episodes(path: Path) -> list[Path]:
    """Return the recordings of a folder in natural order.

    `episode_2` comes before `episode_10`. The path of a single file gives a list of one. If the folder has no
    recordings but a numbered folder for each, as `episode_2/data.hdf5`, these are returned.

    Raises:
        EpisodeError: The path does not exist or holds no recordings.
    """
    if not path.exists():
        raise EpisodeError(f"{path}: no such folder. Give the folder that holds episode_<n>.hdf5")
    if path.is_file():
        return [path]
    try:
        names = sorted(path.iterdir())
        below = {p: _recordings_in(p) for p in names if p.is_dir() and not _is_recording(p)}
    except OSError as e:
        raise EpisodeError(f"{path}: cannot be listed ({e.strerror}). Allow reading it, as with chmod +rx") from e
    found = [p for p in names if _is_recording(p) and not p.name.startswith(".")]
    below = {folder: files for folder, files in below.items() if files}
    if not found:
        found = _one_per_folder(path, below)
    else:
        _report_unread(path, names, below)
    found.sort(key=lambda p: _natural_key(recording_name(p, path)))
    _report_twins(found, path)
    return found


def recording_name(path: Path, folder: Path) -> str:
    """Return what a recording is called in messages and metadata.

    This is its path below the folder of all recordings.
    """
    return path.relative_to(folder).as_posix() if path != folder and path.is_relative_to(folder) else path.name


def choose_episodes(paths: Sequence[Path], numbers: Sequence[int] | None) -> list[Path]:
    """Return the recordings whose names end with these numbers, in order.

    If `numbers` is None, return all recordings. A file that is alone in a numbered folder has the folder's number.

    Raises:
        EpisodeError: No recording has one of the numbers, or several have.
    """
    if numbers is None:
        return list(paths)
    by_number: dict[int, list[Path]] = {}
    in_folders = len({path.parent for path in paths}) > 1
    for path in paths:
        names = [path.parent.name] if in_folders else [path.stem, path.parent.name]
        if match := next(filter(None, (re.search(r"\d+$", name) for name in names)), None):
            by_number.setdefault(int(match.group()), []).append(path)
    if unknown := sorted(set(numbers) - set(by_number)):
        raise EpisodeError(
            f"{paths[0].parent}: no recording of number {unknown}, only {len(paths)} up to '{paths[-1].name}'"
        )
    chosen = [by_number[n] for n in sorted(set(numbers))]
    if twins := next((same for same in chosen if len(same) > 1), None):
        raise EpisodeError(
            f"{twins[0].parent}: {_some([p.name for p in twins])} have the same number, expected one recording of it. "
            "Rename or move one of them"
        )
    return [same[0] for same in chosen]


def read_task_texts(path: Path, recordings: Sequence[str]) -> dict[str, str]:
    """Read the task text of each recording from a JSON object.

    Args:
        path: The file. Its keys are names of recordings, with or without suffix, or of their folders.
        recordings: The names of the recordings.

    Returns:
        The text of each name.

    Raises:
        EpisodeError: The file is not a JSON object of texts, or leaves recordings out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise EpisodeError(f"{path}: cannot be read as JSON ({e})") from e
    if not isinstance(content, dict) or not all(isinstance(text, str) and text.strip() for text in content.values()):
        raise EpisodeError(f'{path}: is not an object of texts, expected {{"episode_0": "fold the towel", ...}}')
    for name, text in content.items():
        check_text(text, f"{path}: text of '{name}'")
    by_stem = {(name if Path(name).suffix.lower() not in SUFFIXES else _stem(name)): content[name] for name in content}
    texts = {}
    for name in recordings:
        # The full name comes first, because two recordings may differ in their suffix alone.
        known = {Path(name).parent.name: by_stem, _stem(name): by_stem, name: content}
        if keys := [key for key, of_key in known.items() if key in of_key]:
            texts[name] = known[keys[-1]][keys[-1]]
    if missing := [name for name in recordings if name not in texts]:
        raise EpisodeError(f"{path}: has no task for {len(missing)} recordings, the first is '{_stem(missing[0])}'")
    return texts


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _recordings_in(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if _is_recording(p) and not p.name.startswith(".")]
    except OSError as e:
        # Disks have folders of the system, such as lost+found.
        logger.warning("%s: left out, because it cannot be listed (%s)", folder, e.strerror)
        return []


def _one_per_folder(path: Path, below: dict[Path, list[Path]]) -> list[Path]:
    """Return the recordings of numbered folders that hold one each.

    Raises:
        EpisodeError: The folders hold something else.
    """
    if below and all(len(files) == 1 and re.search(r"\d$", folder.name) for folder, files in below.items()):
        return [files[0] for files in below.values()]
    expected = "Give the folder of episode_<n>.hdf5"
    if not below:
        raise EpisodeError(f"{path}: no recordings (*.hdf5) in this folder. {expected}")
    counts = [f"'{folder}' holds {len(files)}" for folder, files in sorted(below.items(), key=lambda f: -len(f[1]))]
    if len(counts) > 1:
        expected = "Give one folder of episode_<n>.hdf5 at a time, or move all recordings into one folder"
    raise EpisodeError(f"{path}: no recordings (*.hdf5) in this folder, but {_some(counts)}. {expected}")


def _report_unread(path: Path, names: Sequence[Path], below: dict[Path, list[Path]]) -> None:
    """Say what looks like a recording but is not read."""
    hidden = [p.name for p in names if _is_recording(p) and p.name.startswith(".")]
    others = [
        p.name for p in names if p.is_file() and not _is_recording(p) and re.search(r"\.(h5|hdf|he5)", p.name.lower())
    ]
    folders = [f"{len(files)} in '{folder.name}'" for folder, files in below.items()]
    for found, reason in (
        (hidden, "hidden files are not read"),
        (others, f"only names that end with {' or '.join(SUFFIXES)} are read"),
        (folders, "recordings in folders below are not read. Move them up, or give their folder"),
    ):
        if found:
            logger.warning("%s: left out %s, because %s", path, _some(found), reason)


def _report_twins(paths: Sequence[Path], folder: Path) -> None:
    """Say which recordings differ in zeros or suffix alone.

    They may be one recording and its copy.
    """
    named = [(recording_name(path, folder), path) for path in paths]
    same = [(a, b) for (a, _), (b, _) in itertools.pairwise(named) if _natural_key(a)[0] == _natural_key(b)[0]]
    if same:
        pairs = [f"'{a}' and '{b}'" for a, b in same]
        logger.warning(
            "%s: two recordings have one number: %s. Both are used, so remove one if it is a copy", folder, _some(pairs)
        )


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", re.sub(r"\.\w+$", "", name))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more
