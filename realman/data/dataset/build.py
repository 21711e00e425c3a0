"""Builds a dataset from jobs of one episode each, wherever the episodes come from, and writes its metadata."""

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
from realman.data.dataset.staging import EpisodeRecord
from realman.data.dataset.staging import Staging
from realman.data.dataset.staging import BuildContext
from realman.data.dataset.staging import load_record
from realman.data.dataset.staging import save_record
from realman.errors import DatasetError
from realman.errors import EpisodeError

_FREE_MARGIN_BYTES = 64 * 2**20
"""Left free on the disk for metadata and for everybody else."""


@runtime_checkable
class EpisodeJob(Protocol):
    """All that is needed to write one episode; travels to a worker process."""

    @property
    def episode_index(self) -> int:
        """Place of the episode in the dataset."""
        ...

    @property
    def num_frames(self) -> int:
        """Frames of the episode."""
        ...

    @property
    def source(self) -> str:
        """What the episode is made from, for messages."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything the episode's files depend on."""
        ...

    def build(self, context: BuildContext) -> EpisodeRecord:
        """Write the episode's files below the context's root.

        Raises:
            EpisodeError: The source turned out to be damaged.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DatasetPlan:
    """A dataset before it is written."""

    jobs: Sequence[EpisodeJob]
    """One per episode, in order."""
    features: Features
    robot_type: str
    fps: int
    """Frames per second."""
    tasks: Sequence[str]
    """Task texts by task index."""
    needed_bytes: int
    """Estimated size on disk."""

    @property
    def num_frames(self) -> int:
        """Frames of all episodes."""
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
    """Write the episodes that an earlier run has not finished already.

    Args:
        jobs: One per episode.
        staging: The locked folder to build in.
        pool: Who builds.
        on_done: Called for every episode that is finished, failed or reused.

    Returns:
        Records of all finished episodes in order, and the failures.
    """
    kept = {job.episode_index: load_record(staging.path, job.episode_index, job.fingerprint()) for job in jobs}
    finished = {index: record for index, record in kept.items() if record is not None}
    staging.remove_all_but(list(finished.values()))
    for job in jobs:
        if job.episode_index in finished:
            on_done(job)
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
    """Build one episode; a damaged source is a result, so that all of them are found in one run."""
    try:
        with files.writing(context.root):
            record = job.build(context)
            save_record(context.root, job.fingerprint(), record)
    except EpisodeError as e:
        return str(e)
    return record


def check_disk(target: Path, needed_bytes: int, reused: Sequence[Path]) -> None:
    """Refuse to start what cannot fit.

    Args:
        target: Where the dataset will stand.
        needed_bytes: Its estimated size.
        reused: Folders of earlier runs; what they hold counts as free, since it is taken over or removed.

    Raises:
        DatasetError: The disk has too little space.
    """
    place = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    present = sum(p.stat().st_size for folder in reused for p in folder.rglob("*") if p.is_file())
    free = shutil.disk_usage(place).free + present
    if needed_bytes + _FREE_MARGIN_BYTES > free:
        raise DatasetError(
            f"{target}: disk has {free / 1e9:.1f} GB free, the dataset needs about {needed_bytes / 1e9:.1f} GB; "
            "free some space or choose another --root"
        )


def write_metadata(root: Path, plan: DatasetPlan, records: Sequence[EpisodeRecord]) -> None:
    """Write the `meta` folder of the dataset below `root`, all of whose episodes are there."""
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
