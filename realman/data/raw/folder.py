"""Recordings of a folder: their files, order and task texts."""

from collections import Counter
from collections.abc import Sequence
import json
from pathlib import Path
import re

from realman.errors import EpisodeError

SUFFIXES = (".hdf5", ".h5")


def find_episodes(path: Path) -> list[Path]:
    """Return the recordings of a folder in natural order.

    `episode_2` comes before `episode_10`. The path of a single file gives a list of one.

    Raises:
        EpisodeError: The path does not exist or holds no recordings.
    """
    if not path.exists():
        raise EpisodeError(f"{path}: no such folder. Give the folder that holds episode_<n>.hdf5")
    if path.is_file():
        return [path]
    found = [p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    if not found:
        below = Counter(p.parent for suffix in SUFFIXES for p in path.glob(f"*/*{suffix}"))
        fullest = next((f", but '{folder}' holds {n}" for folder, n in below.most_common(1)), "")
        raise EpisodeError(
            f"{path}: no recordings (*.hdf5) in this folder{fullest}. Give the folder of episode_<n>.hdf5"
        )
    return sorted(found, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts], path.name


def choose_episodes(paths: Sequence[Path], numbers: Sequence[int] | None) -> list[Path]:
    """Return the recordings whose names end with these numbers, in order.

    If `numbers` is None, return all recordings.

    Raises:
        EpisodeError: No recording has one of the numbers.
    """
    if numbers is None:
        return list(paths)
    by_number = {int(m.group()): path for path in paths if (m := re.search(r"\d+$", path.stem))}
    unknown = sorted(set(numbers) - set(by_number))
    if unknown:
        raise EpisodeError(
            f"{paths[0].parent}: no recording of number {unknown}, only {len(paths)} up to '{paths[-1].name}'"
        )
    return [by_number[n] for n in sorted(set(numbers))]


def read_task_texts(path: Path, recordings: Sequence[Path]) -> dict[str, str]:
    """Read the task text of each recording from a JSON object.

    The keys in the file are names or stems of recordings. The keys of the result are stems.

    Raises:
        EpisodeError: The file is not a JSON object of texts, or leaves recordings out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise EpisodeError(f"{path}: cannot be read as JSON ({e})") from e
    if not isinstance(content, dict) or not all(isinstance(text, str) and text.strip() for text in content.values()):
        raise EpisodeError(f'{path}: is not an object of texts, expected {{"episode_0": "fold the towel", ...}}')
    texts = {Path(name).stem if name.endswith(SUFFIXES) else name: text for name, text in content.items()}
    missing = [p.stem for p in recordings if p.stem not in texts]
    if missing:
        raise EpisodeError(f"{path}: has no task for {len(missing)} recordings, the first is '{missing[0]}'")
    return texts
