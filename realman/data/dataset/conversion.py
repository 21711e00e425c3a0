"""Convert recordings, from the checks to the finished dataset.

The caller chooses the workers.
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any

from tqdm import tqdm

from realman.data.checks import EpisodeFacts
from realman.data.checks import EpisodeReport
from realman.data.checks import Extra
from realman.data.checks import check_episode
from realman.data.checks import compare_episodes
from realman.data.checks import refuse_bad
from realman.data.dataset import files
from realman.data.dataset import layout
from realman.data.dataset import long_episodes
from realman.data.dataset import notes
from realman.data.dataset import upgrade
from realman.data.dataset.build import DatasetPlan
from realman.data.dataset.build import Failure
from realman.data.dataset.build import build_episodes
from realman.data.dataset.build import check_disk
from realman.data.dataset.build import write_metadata
from realman.data.dataset.from_raw import Storage
from realman.data.dataset.from_raw import plan_raw
from realman.data.dataset.pool import WorkerPool
from realman.data.dataset.pool import as_completed
from realman.data.dataset.progress import FramesBar
from realman.data.dataset.staging import EpisodeRecord
from realman.data.dataset.staging import Shard
from realman.data.dataset.staging import Staging
from realman.data.dataset.staging import check_outside
from realman.data.dataset.staging import find_shards
from realman.data.raw.folder import read_task_texts
from realman.data.raw.folder import recording_name
from realman.data.raw.options import RawOptions
from realman.data.raw.plausible import Doubt

_OPTIONAL = ("action_angle_unit", "action_gripper_range")
"""Options that conversion.json has only if they were given."""


@dataclasses.dataclass(frozen=True)
class ConversionRequest:
    """What to convert, how, and where to."""

    paths: Sequence[Path]
    """The recordings, in order."""
    target: Path
    """Folder of the dataset."""
    options: RawOptions
    """How to read them."""
    cameras: Sequence[str]
    """Cameras that every recording must have."""
    storage: Storage
    robot_type: str
    raw_dir: Path | None = None
    """Folder below which recordings are named. None names them by their files."""
    extras: tuple[Extra, ...] | None = None
    """Numbers to store in addition to state and action. None means those that are sound in all recordings."""
    task_file: Path | None = None
    """File with a JSON object of task texts by recording."""
    accept: tuple[Doubt, ...] = ()
    """Doubts that do not make a recording bad."""
    skip_bad: bool = False
    """Leave bad recordings out instead of stopping."""
    dry_run: bool = False
    """Only check, and write nothing."""
    shard: Shard | None = None
    """Build only this part of the episodes, for a later merge."""
    merge: bool = False
    """Use the episodes that shards have built, and build only the missing ones."""

    def name(self, path: Path) -> str:
        """Return what a recording is called in messages and metadata."""
        return path.name if self.raw_dir is None else recording_name(path, self.raw_dir)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run has made, or would make."""

    plan: DatasetPlan
    records: Sequence[EpisodeRecord]
    rejected: Sequence[EpisodeReport]
    path: Path
    """The dataset, or the folder of the shard."""


def convert(request: ConversionRequest, pool: WorkerPool) -> Outcome:
    """Check all recordings and write the good ones as a dataset.

    Raises:
        EpisodeError: Recordings are bad.
        DatasetError: The dataset cannot be written.
    """
    # Check all that can be checked before anything is written. The staging folder notes what it may replace.
    check_outside(request.paths, request.target)
    staging = Staging(request.target, request.shard)
    facts, rejected = _check(request, pool)
    shards = find_shards(request.target) if request.merge else []
    plan = _plan(facts, request)
    long_episodes.report(plan.jobs, plan.fps)
    check_disk(request.target, plan.needed_bytes, [staging.path, *(shard.path for shard in shards)])
    if request.dry_run:
        return Outcome(plan, [], rejected, request.target)

    with staging:
        for shard in shards:
            with shard:
                staging.adopt(shard)
        plan, records, damaged = _build_sound(plan, facts, request, staging, pool)
        rejected += damaged
        if request.shard is None:
            _publish(staging, plan, records, rejected, conversion=_describe(request))
    for shard in shards:
        shard.discard()
    return Outcome(plan, records, rejected, request.target if request.shard is None else staging.path)


def upgrade_dataset(source: Path, target: Path, robot_type: str | None, pool: WorkerPool, *, dry_run: bool) -> Outcome:
    """Write the v2.1 form of a v2.0 or v2.1 dataset.

    Args:
        source: The existing dataset.
        target: Folder of the new one.
        robot_type: Name of the robot. None keeps the dataset's own.
        pool: The workers that build.
        dry_run: Only check, and write nothing.

    Raises:
        EpisodeError: Episodes are damaged.
        DatasetError: The dataset cannot be read or written.
    """
    is_in_place = source.resolve() == target.resolve()
    if not is_in_place:
        check_outside([source], target)
    plan = upgrade.plan_upgrade(source, robot_type)
    if is_in_place:
        upgrade.refuse_losses(plan)
    long_episodes.report(plan.jobs, plan.fps)
    staging = Staging(target)
    check_disk(target, plan.needed_bytes, [staging.path])
    if dry_run:
        return Outcome(plan, [], [], target)
    with staging:
        records, failures = _build(plan, staging, pool)
        bad = [EpisodeReport(source, problem=f.problem) for f in failures]
        refuse_bad(bad, len(plan.jobs), num_good=len(records), skip_bad=False)
        with files.writing(staging.path):
            upgrade.write_metadata(source, staging.path, plan, records)
        staging.publish()
    return Outcome(plan, records, [], target)


def _check(request: ConversionRequest, pool: WorkerPool) -> tuple[list[EpisodeFacts], list[EpisodeReport]]:
    """Check all recordings, and return the sound and the rejected ones.

    Each recording is checked on its own and then compared with the others. Both lists are in the order of the paths.

    Raises:
        EpisodeError: Recordings are bad and may not be skipped, or none is good.
    """
    names = [request.name(path) for path in request.paths]
    texts = read_task_texts(request.task_file, names) if request.task_file else {}
    items = [
        (path, name, dataclasses.replace(request.options, task=texts.get(name, request.options.task)))
        for path, name in zip(request.paths, names, strict=True)
    ]
    # Reports arrive in any order.
    by_path = {}
    with tqdm(total=len(items), desc="check", unit=" episodes", leave=False) as bar:
        check = functools.partial(_check_one, request=request)
        for (path, *_), report in as_completed(pool.executor, check, items, max_pending=pool.max_pending):
            by_path[path] = report
            bar.update()
    reports = compare_episodes([by_path[path] for path in request.paths])
    facts = [r.facts for r in reports if r.facts is not None]
    rejected = [r for r in reports if r.problem is not None]
    refuse_bad(rejected, len(reports), num_good=len(facts), skip_bad=request.skip_bad)
    notes.report_assumptions(facts, request.extras)
    return facts, rejected


def _check_one(item: tuple[Path, str, RawOptions], request: ConversionRequest) -> EpisodeReport:
    path, name, options = item
    return check_episode(path, options, request.cameras, accept=request.accept, extras=request.extras, name=name)


def _plan(facts: Sequence[EpisodeFacts], request: ConversionRequest) -> DatasetPlan:
    plan = plan_raw(
        facts,
        request.options,
        request.storage,
        robot_type=request.robot_type,
        accept=request.accept,
        extras=request.extras,
    )
    if request.shard is None:
        return plan
    # Every n-th episode, so that long and short ones are spread evenly.
    return dataclasses.replace(
        plan,
        jobs=plan.jobs[request.shard.number - 1 :: request.shard.count],
        needed_bytes=plan.needed_bytes // request.shard.count,
    )


def _build_sound(
    plan: DatasetPlan,
    facts: Sequence[EpisodeFacts],
    request: ConversionRequest,
    staging: Staging,
    pool: WorkerPool,
) -> tuple[DatasetPlan, list[EpisodeRecord], list[EpisodeReport]]:
    """Build until all episodes are sound, leaving out those that are damaged.

    Some damage only shows in the middle of an episode. The episodes after it then move up and are written again.

    Args:
        plan: The plan for `facts`.
        facts: The recordings.
        request: What to convert.
        staging: The locked folder to build in.
        pool: The workers that build.

    Returns:
        The plan that was built, the records of its episodes, and the damaged recordings.

    Raises:
        EpisodeError: Recordings are damaged and may not be skipped, or none is sound.
    """
    damaged: list[EpisodeReport] = []
    while True:
        records, failures = _build(plan, staging, pool)
        if not failures:
            return plan, records, damaged
        problems = {f.job.source: f.problem for f in failures}
        found = [EpisodeReport(f.path, problem=problems[f.name], name=f.name) for f in facts if f.name in problems]
        facts = [f for f in facts if f.name not in problems]
        refuse_bad(found, len(request.paths), num_good=len(facts), skip_bad=request.skip_bad)
        damaged += found
        plan = _plan(facts, request)


def _build(plan: DatasetPlan, staging: Staging, pool: WorkerPool) -> tuple[list[EpisodeRecord], list[Failure]]:
    with FramesBar(plan.jobs, staging) as bar:
        return build_episodes(plan.jobs, staging, pool, on_done=bar.finish)


def _describe(request: ConversionRequest) -> dict[str, Any]:
    """Describe how the dataset's numbers follow from the recordings."""
    storage = request.storage
    options = dataclasses.asdict(request.options)
    return {
        "options": {name: value for name, value in options.items() if value is not None or name not in _OPTIONAL},
        "cameras": list(request.cameras),
        "storage": {"mode": storage.mode, "codec": storage.codec, **dataclasses.asdict(storage.encoding)},
        "accept": sorted(request.accept),
    }


def _publish(
    staging: Staging,
    plan: DatasetPlan,
    records: Sequence[EpisodeRecord],
    rejected: Sequence[EpisodeReport],
    conversion: dict[str, Any] | None = None,
) -> None:
    with files.writing(staging.path):
        write_metadata(staging.path, plan, records)
        if conversion:
            layout.write_json(staging.path / layout.CONVERSION, conversion)
        if rejected:
            content = [{"source": r.name or r.path.name, "reason": r.problem} for r in rejected]
            layout.write_json(staging.path / layout.REJECTED, content)
    staging.publish()
