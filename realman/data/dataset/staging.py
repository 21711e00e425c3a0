"""Build a dataset in a hidden folder, then move it into place.

The folder `.<name>.partial` is next to the dataset. Each finished episode leaves a record in it, with a fingerprint of
everything that its bytes depend on. So a run that was interrupted at any moment resumes where it stopped, and two runs
are never mixed.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path
import shutil
import time
from types import TracebackType
from typing import Any

from realman.data.dataset import files
from realman.data.dataset.layout import INFO
from realman.errors import DatasetError

_RECORDS = Path(".build")
_LOCK = _RECORDS / "lock"

_REPORT_EVERY_S = 0.5


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """Where and with how many threads an episode is built.

    It is sent to a worker together with the job.
    """

    root: Path
    """The dataset under construction."""
    threads: int = 1
    """Number of threads for codecs."""

    def report(self, episode_index: int, num_frames: int) -> None:
        """Report how many frames of an episode are done, for `read_progress`.

        Reports are written at most twice per second.
        """
        path = _progress_path(self.root, episode_index)
        with contextlib.suppress(OSError):
            if not path.exists() or time.time() - path.stat().st_mtime > _REPORT_EVERY_S:
                path.write_text(str(num_frames))


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """What the dataset's metadata need from one finished episode."""

    episode_index: int
    num_frames: int
    tasks: list[str]
    source: str
    """What the episode was made from."""
    stats: dict[str, dict[str, list[Any]]]
    """Statistics by feature."""
    files: dict[str, int]
    """Size in bytes of each file of the episode, by path relative to the dataset."""


def read_progress(root: Path) -> dict[int, int]:
    """Return the number of frames that workers have reported as done.

    Keys are the indices of the unfinished episodes.
    """
    found = {}
    for path in (root / _RECORDS).glob("*.progress"):
        with contextlib.suppress(OSError, ValueError):  # it has just been finished, or is being written
            found[int(path.stem.removeprefix("episode_"))] = int(path.read_text())
    return found


def _progress_path(root: Path, episode_index: int) -> Path:
    return root / _RECORDS / f"episode_{episode_index:06d}.progress"


def save_record(root: Path, fingerprint: str, record: EpisodeRecord) -> None:
    """Record that an episode is finished.

    This is the last step of building it.
    """
    path = _record_path(root, record.episode_index)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"fingerprint": fingerprint, **dataclasses.asdict(record)}), encoding="utf-8")
    files.finish(part, path)
    _progress_path(root, record.episode_index).unlink(missing_ok=True)


def load_record(root: Path, episode_index: int, fingerprint: str) -> EpisodeRecord | None:
    """Return the record of an episode that an earlier run has finished.

    Return None if there is no record, if its fingerprint differs, or if files have changed their sizes.
    """
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
    """Refuse a target that may not be replaced.

    Raises:
        DatasetError: The target is a dataset and `overwrite` is off, or it is not a dataset, or a link.
    """
    # The data behind a link are somebody's own, and a folder cannot be moved over a link.
    if target.is_symlink():
        raise DatasetError(
            f"{target}: is a link to '{target.readlink()}', expected a folder or nothing. "
            "Give the dataset's own place with --root and --repo-id, or remove the link"
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / INFO).is_file():
        raise DatasetError(
            f"{target}: exists and is not a LeRobot dataset (no {INFO}). Choose another --repo-id or --root"
        )
    if not overwrite:
        raise DatasetError(f"{target}: dataset already exists. Give --overwrite to replace it, or another --repo-id")


def check_outside(sources: Sequence[Path], target: Path) -> None:
    """Refuse sources inside the folder that is going to be replaced.

    They would be deleted with the old dataset.

    Raises:
        DatasetError: One of them is, by its own path or behind links.
    """
    folder = target.resolve()
    inside = next((path for path in sources if path.resolve().is_relative_to(folder)), None)
    if inside is not None:
        raise DatasetError(
            f"{inside}: is inside '{target}', expected it outside of the folder that is written. "
            "Move it out, or choose another --repo-id or --root"
        )


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of the episodes, built by one of several machines."""

    number: int
    """1..count."""
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse `i/n`, such as `1/4`.

    Raises:
        DatasetError: The text does not have this form, or i is not within 1..n.
    """
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError as e:
        raise DatasetError(f"shard '{text}' is not NUMBER/COUNT, such as 1/4") from e
    if not 1 <= number <= count:
        raise DatasetError(f"shard '{text}' does not exist, expected 1/{count} to {count}/{count}")
    return Shard(number, count)


class Staging:
    """The staging folder, locked against a second run.

    Finished episodes are kept when the `with` block ends.
    """

    def __init__(self, target: Path, shard: Shard | None = None) -> None:
        """Choose the folder.

        It is created at the start of the `with` block.

        Args:
            target: Folder of the finished dataset.
            shard: The part of it that is built here. None means all of it.
        """
        self.target = target
        suffix = "partial" if shard is None else f"shard-{shard.number}-of-{shard.count}"
        self.path = target.with_name(f".{target.name}.{suffix}")
        self._old = target.with_name(f".{target.name}.old")
        self._lock: int | None = None
        self._found = _identity(target)

    def __enter__(self) -> "Staging":
        """Create the folder, or take over that of an earlier run.

        Raises:
            DatasetError: Another run is using the folder, or it cannot be created.
        """
        with files.writing(self.path):
            (self.path / _RECORDS).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            self._take_lock(self._lock)
            self._check_target()
        except BaseException:
            os.close(self._lock)
            self._lock = None
            raise
        # A run that was killed between the two renames of `publish` has left only the renamed old dataset.
        if self._old.exists() and not self.target.exists():
            self._old.rename(self.target)
            self._found = _identity(self.target)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _take_lock(self, handle: int) -> None:
        """Take the lock without waiting.

        The file must still be in this folder. A run that has just ended has moved it away, so its lock protects nothing.
        """
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = _is_same_file(handle, self.path / _LOCK)
        except BlockingIOError:
            is_free = False
        if not is_free:
            raise DatasetError(f"{self.target}: another conversion is writing it. Wait until that has ended")

    def remove_all_but(self, records: list[EpisodeRecord]) -> None:
        """Delete all files of an earlier run, except those of these episodes."""
        wanted = {self.path / name for record in records for name in record.files}
        wanted |= {_record_path(self.path, record.episode_index) for record in records} | {self.path / _LOCK}
        # Deepest first, so that a folder is checked after its content is deleted.
        for path in sorted(self.path.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.is_file() and path not in wanted:
                path.unlink()

    def adopt(self, part: "Staging") -> None:
        """Move the finished episodes of a shard to this folder.

        The shard must be open, and so locked, as well. Its empty folder stays.
        """
        with files.writing(self.path):
            # Records are moved last, so that an episode counts as finished only if all its files are here.
            paths = sorted(p for p in part.path.rglob("*") if p.is_file() and p != part.path / _LOCK)
            for path in sorted(paths, key=lambda p: p.parent == part.path / _RECORDS):
                target = self.path / path.relative_to(part.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)

    def publish(self) -> None:
        """Move the finished dataset into place, then remove the old one.

        The lock moves along and is removed after that, so no other run can start in between.

        Raises:
            DatasetError: The disk cannot be written, or another run has made a dataset here meanwhile.
        """
        self._check_target()
        with files.writing(self.target):
            for record in (self.path / _RECORDS).iterdir():
                if record != self.path / _LOCK:
                    record.unlink()
            for folder in (self.path, *(p for p in self.path.rglob("*") if p.is_dir())):
                files.sync_folder(folder)
            shutil.rmtree(self._old, ignore_errors=True)
            if self.target.exists():
                self.target.rename(self._old)
            self.path.rename(self.target)
            shutil.rmtree(self.target / _RECORDS)
            files.sync_folder(self.target)
            files.sync_folder(self.target.parent)
            shutil.rmtree(self._old, ignore_errors=True)

    def _check_target(self) -> None:
        """Refuse to replace a dataset made since this run began."""
        if _identity(self.target) not in (self._found, None):
            raise DatasetError(
                f"{self.target}: another run has made it meanwhile. Give --overwrite to replace it, "
                "or another --repo-id"
            )

    def discard(self) -> None:
        """Delete the folder and all finished episodes in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Identify a folder. None means that there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_same_file(handle: int, path: Path) -> bool:
    """Return whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def find_shards(target: Path) -> list[Staging]:
    """Find the staging folders of all shards of a dataset, in order.

    Raises:
        DatasetError: There are no shards, some are missing, or their counts differ.
    """
    names = [p.name.rpartition(".")[2] for p in target.parent.glob(f".{target.name}.shard-*-of-*") if p.is_dir()]
    shards = [parse_shard(name.removeprefix("shard-").replace("-of-", "/")) for name in names]
    counts = sorted({shard.count for shard in shards})
    if not counts:
        raise DatasetError(f"{target}: no shards to merge next to it. Build them with --shard 1/2 and --shard 2/2")
    if len(counts) > 1:
        raise DatasetError(f"{target}: shards of different divisions ({counts}) are next to it. Remove the old ones")
    missing = sorted(set(range(1, counts[0] + 1)) - {shard.number for shard in shards})
    if missing:
        texts: Sequence[str] = [f"--shard {number}/{counts[0]}" for number in missing]
        raise DatasetError(f"{target}: shards are missing. Build them first: {', '.join(texts)}")
    return [Staging(target, shard) for shard in sorted(shards, key=lambda s: s.number)]
