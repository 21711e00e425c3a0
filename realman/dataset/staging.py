"""The hidden folder in which a dataset grows, and its one move into place.

`.<name>.partial` lies beside the dataset. Each finished episode leaves a record in it with a fingerprint of everything its bytes
depend on, so a run that was interrupted at any moment goes on where it stopped, and never mixes two runs.
"""

import dataclasses
import fcntl
import json
import os
from pathlib import Path
import shutil
from types import TracebackType
from typing import Any

from realman.dataset.layout import INFO
from realman.errors import DatasetError

_RECORDS = Path(".build")
_LOCK = _RECORDS / "lock"


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """What the dataset's metadata need of one finished episode."""

    episode_index: int
    num_frames: int
    tasks: list[str]
    source: str
    """Where the episode came from."""
    stats: dict[str, dict[str, list[Any]]]
    """Statistics by feature."""
    files: dict[str, int]
    """Size in bytes of each file of the episode, by path relative to the dataset."""


def save_record(root: Path, fingerprint: str, record: EpisodeRecord) -> None:
    """Note that an episode is finished; the last step of building it."""
    path = _record_path(root, record.episode_index)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"fingerprint": fingerprint, **dataclasses.asdict(record)}), encoding="utf-8")
    part.replace(path)


def load_record(root: Path, episode_index: int, fingerprint: str) -> EpisodeRecord | None:
    """The record of an episode finished earlier with the same fingerprint and still complete; else None."""
    try:
        content = json.loads(_record_path(root, episode_index).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if content.pop("fingerprint", None) != fingerprint:
        return None
    record = EpisodeRecord(**content)
    sizes_agree = all(
        (root / name).is_file() and (root / name).stat().st_size == size for name, size in record.files.items()
    )
    return record if sizes_agree else None


def _record_path(root: Path, episode_index: int) -> Path:
    return root / _RECORDS / f"episode_{episode_index:06d}.json"


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a place where something stands that may not be replaced.

    Raises:
        DatasetError: A dataset is there and `overwrite` is off, or something is there that is no dataset.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / INFO).is_file():
        raise DatasetError(
            f"{target}: exists and is no LeRobot dataset (no {INFO}); choose another --repo-id or --root"
        )
    if not overwrite:
        raise DatasetError(f"{target}: dataset exists already; give --overwrite to replace it, or another --repo-id")


class Staging:
    """The folder under construction, locked against a second run. Leaving the block keeps what is finished."""

    def __init__(self, target: Path) -> None:
        """Nothing is made before the `with` block.

        Args:
            target: Where the finished dataset will stand.
        """
        self.target = target
        self.path = target.with_name(f".{target.name}.partial")
        self._old = target.with_name(f".{target.name}.old")
        self._lock: int | None = None

    def __enter__(self) -> "Staging":
        """Make or take over the folder.

        Raises:
            DatasetError: Another run works on it.
        """
        (self.path / _RECORDS).mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(self._lock)
            raise DatasetError(f"{self.target}: another conversion is writing it; wait for its end") from e
        # A run killed between the two renames of `publish` left only the old dataset's new name.
        if self._old.exists() and not self.target.exists():
            self._old.rename(self.target)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def remove_all_but(self, records: list[EpisodeRecord]) -> None:
        """Delete files of an earlier run that belong to none of these episodes."""
        wanted = {self.path / name for record in records for name in record.files}
        wanted |= {_record_path(self.path, record.episode_index) for record in records} | {self.path / _LOCK}
        # Deepest first, so that a folder is looked at when all in it is gone.
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.is_file() and path not in wanted:
                path.unlink()

    def publish(self) -> None:
        """Move the finished dataset into place; an old one there is removed after that."""
        shutil.rmtree(self.path / _RECORDS)
        shutil.rmtree(self._old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(self._old)
        self.path.rename(self.target)
        shutil.rmtree(self._old, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder with all that is finished."""
        shutil.rmtree(self.path, ignore_errors=True)
