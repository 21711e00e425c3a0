"""Build a dataset from jobs, one per episode, and write its metadata.

The episodes may come from recordings or from another dataset.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from pathlib import Path
import shutil
from typing import Protocol, runtime_checkable

from realman.data.dataset import files
from realman.data.dataset import layout
from realman.data.dataset.layout import Features
from realman.data.dataset.pool import WorkerPool
from realman.data.dataset.pool import as_completed
from realman.data.dataset.staging import BuildContext
from realman.data.dataset.staging import EpisodeRecord
from realman.data.dataset.staging import Staging
from realman.data.dataset.staging import load_record
from realman.data.dataset.staging import save_record
from realman.errors import DatasetError
from realman.errors import EpisodeError

_FREE_MARGIN_BYTES = 64 * 2**20
"""Kept free on the disk, for metadata and for other users."""


@runtime_checkable
class EpisodeJob(Protocol):
    """Everything needed to write one episode. Jobs are sent to worker processes."""

    @property
    def episode_index(self) -> int:
        """Index of the episode in the dataset."""
        ...

    @property
    def num_frames(self) -> int:
        """Number of frames of the episode."""
        ...

    @property
    def source(self) -> str:
        """What the episode is made from, for messages and metadata."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of everything the episode's files depend on."""
        ...

    def build(self, context: BuildContext) -> EpisodeRecord:
        """Write the episode's files below `context.root`.

        Raises:
            EpisodeError: The source turned out to be damaged.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DatasetPlan:
    """A dataset that is about to be written."""

    jobs: Sequence[EpisodeJob]
    """One per episode, in order."""
    features: Features
    robot_type: str
    fps: float
    """Frames per second."""
    tasks: Sequence[str]
    """Task texts by task index."""
    needed_bytes: int
    """Estimated size on disk, in bytes."""

    @property
    def num_frames(self) -> int:
        """Number of frames of all episodes."""
        return sum(job.num_frames for job in self.jobs)


@dataclasses.dataclass(frozen=True)
class Failure:
    """An episode that could not be written because its source is damaged."""

    job: EpisodeJob
    problem: str


def build_episodes(
    jobs: Sequence[EpisodeJob],
    staging: Staging,
    pool: WorkerPool,
    *,
    on_done: Callable[[EpisodeJob], None],
) -> tuple[list[EpisodeRecord], list[Failure]]:
    """Write all episodes that an earlier run has not finished.

    Args:
        jobs: One per episode.
        staging: The locked folder to build in.
        pool: The workers that build.
        on_done: Called for every episode that is finished, failed or reused.

    Returns:
        The records of all finished episodes in order, and the failures.
    """
    # Reuse what an earlier run has finished, and delete everything else it has left.
    kept = {job.episode_index: load_record(staging.path, job.episode_index, job.fingerprint()) for job in jobs}
    finished = {index: record for index, record in kept.items() if record is not None}
    staging.remove_all_but(list(finished.values()))
    for job in jobs:
        if job.episode_index in finished:
            on_done(job)
    # Build the rest. A failure does not stop the other episodes.
    failures = []
    to_do = [job for job in jobs if job.episode_index not in finished]
    build = functools.partial(_build, context=BuildContext(staging.path, pool.threads))
    for job, result in as_completed(pool.executor, build, to_do, max_pending=pool.max_pending):
        if isinstance(result, EpisodeRecord):
            finished[job.episode_index] = result
        else:
            failures.append(Failure(job, result))
        on_done(job)
    return [finished[index] for index in sorted(finished)], failures


def _build(job: EpisodeJob, context: BuildContext) -> EpisodeRecord | str:
    """Build one episode and return its record or its problem.

    A problem with the source is returned and not raised, so that one run finds all damaged sources.
    """
    try:
        with files.writing(context.root):
            record = job.build(context)
            save_record(context.root, job.fingerprint(), record)
    except EpisodeError as e:
        return str(e)
    return record


def check_disk(target: Path, needed_bytes: int, reused: Sequence[Path]) -> None:
    """Refuse to start a dataset that does not fit on the disk.

    Args:
        target: Folder of the dataset.
        needed_bytes: Its estimated size.
        reused: Folders of earlier runs. Their content counts as free space, because it is reused or removed.

    Raises:
        DatasetError: The disk has too little space.
    """
    place = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    present = sum(p.stat().st_size for folder in reused for p in folder.rglob("*") if p.is_file())
    free = shutil.disk_usage(place).free + present
    if needed_bytes + _FREE_MARGIN_BYTES > free:
        raise DatasetError(
            f"{target}: disk has {free / 1e9:.1f} GB free, the dataset needs about {needed_bytes / 1e9:.1f} GB. "
            "Free some space or choose another --root"
        )


def write_metadata(root: Path, plan: DatasetPlan, records: Sequence[EpisodeRecord]) -> None:
    """Write the `meta` folder below `root`, after all episodes are written."""
    write_lines = layout.write_json_lines
    write_lines(root / layout.TASKS, ({"task_index": i, "task": task} for i, task in enumerate(plan.tasks)))
    write_lines(
        root / layout.EPISODES,
        ({"episode_index": r.episode_index, "tasks": r.tasks, "length": r.num_frames} for r in records),
    )
    write_lines(root / layout.EPISODES_STATS, ({"episode_index": r.episode_index, "stats": r.stats} for r in records))
    write_lines(root / layout.SOURCES, ({"episode_index": r.episode_index, "source": r.source} for r in records))
    info = layout.make_info(
        plan.features,
        robot_type=plan.robot_type,
        fps=plan.fps,
        num_frames=[r.num_frames for r in records],
        num_tasks=len(plan.tasks),
    )
    layout.write_json(root / layout.INFO, info)
