"""RealMan recordings (HDF5) to a LeRobot v2.1 dataset: `python examples/realman/convert_realman_data_to_lerobot.py --raw-dir DIR`.

First every recording is checked, then episodes are written in parallel into a hidden folder beside the dataset, which is moved
into place when all of it is there. An interrupted run goes on where it stopped. A LeRobot v2.0 dataset is upgraded instead.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
import dataclasses
import functools
import logging
import os
from pathlib import Path
import sys
import time
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tqdm import tqdm
import tyro

from realman import cli
from realman import spec
from realman.checks import EpisodeFacts
from realman.checks import EpisodeReport
from realman.checks import check_episode
from realman.checks import compare_episodes
from realman.checks import refuse_bad
from realman.dataset import layout
from realman.dataset import upgrade
from realman.dataset.build import DatasetPlan
from realman.dataset.build import EpisodeJob
from realman.dataset.build import Failure
from realman.dataset.build import build_episodes
from realman.dataset.build import check_disk
from realman.dataset.build import write_metadata
from realman.dataset.from_raw import Mode
from realman.dataset.from_raw import plan_raw
from realman.dataset.pool import as_completed
from realman.dataset.pool import available_cores
from realman.dataset.pool import worker_pool
from realman.dataset.staging import EpisodeRecord
from realman.dataset.staging import Staging
from realman.dataset.staging import check_target
from realman.dataset.video import CodecName
from realman.errors import DatasetError
from realman.errors import EpisodeError
from realman.raw import RawOptions
from realman.raw import find_episodes
from realman.raw.folder import choose_episodes
from realman.raw.folder import read_task_texts
from realman.raw.options import AngleUnit
from realman.raw.options import ArmOrder
from realman.raw.options import ColorOrder

logger = logging.getLogger(__name__)

DEFAULT_ROOT = Path("data/lerobot")
"""Where the training side looks for datasets when HF_LEROBOT_HOME is not set."""

DEFAULT_ROBOT_TYPE = "realman"


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of the converter."""

    raw_dir: Annotated[Path, tyro.conf.arg(aliases=["--data"])]
    """Folder of episode_<n>.hdf5 recordings, one recording, or a LeRobot v2.0 or v2.1 dataset to upgrade."""
    repo_id: str = "realman/dual_arm"
    """Name of the dataset: its folder below the root."""
    root: Path | None = None
    """Where datasets live; by default $HF_LEROBOT_HOME, or data/lerobot."""
    mode: Mode = "image"
    """Store single images (recorded JPEGs untouched, raw frames as lossless PNG) or videos."""
    video_codec: CodecName = "av1"
    """Codec of the video mode."""
    angle_unit: AngleUnit = "rad"
    """Unit of the recorded joint angles."""
    gripper_range: str = "0:1"
    """Recorded gripper value when closed and when open, such as 0:1000 or, inverted, 1000:0."""
    raw_arm_order: ArmOrder = "right_left"
    """Which arm comes first in the recordings."""
    color: ColorOrder = "rgb"
    """Channel order of raw frames, or what an ordinary JPEG decoder makes of encoded ones."""
    fps: int | None = None
    """Frames per second, for recordings that do not state it."""
    task: str | None = None
    """Task text of all recordings, for recordings that do not state it."""
    task_file: Path | None = None
    """JSON object of task texts by recording, such as {"episode_0": "fold the towel"}."""
    cameras: tuple[str, ...] = spec.CAMERAS
    """Cameras to convert; each must be in every recording."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the recordings to convert, as in episode_<n>.hdf5; by default all."""
    robot_type: str | None = None
    """Robot name in info.json; by default "realman", or that of the dataset to upgrade."""
    overwrite: bool = False
    """Replace the dataset if it exists."""
    skip_bad: bool = False
    """Leave bad recordings out and list them in meta/rejected.json, instead of stopping."""
    dry_run: bool = False
    """Check everything and write nothing."""
    workers: int | None = None
    """Episodes converted at a time; by default one per core."""

    @property
    def target(self) -> Path:
        """Folder of the dataset."""
        root = self.root or Path(os.environ.get("HF_LEROBOT_HOME") or DEFAULT_ROOT)
        return root / self.repo_id

    @property
    def options(self) -> RawOptions:
        """How to read recordings."""
        return RawOptions(
            self.angle_unit, _parse_range(self.gripper_range), self.raw_arm_order, self.color, self.fps, self.task
        )


def main(args: Args) -> int:
    """Convert RealMan recordings to a LeRobot v2.1 dataset; the path of the dataset goes to stdout."""
    _check_args(args)
    target = args.target
    check_target(target, overwrite=args.overwrite)
    started = time.monotonic()
    try:
        outcome = _upgrade(args) if upgrade.is_dataset(args.raw_dir) else _convert(args)
    except KeyboardInterrupt:
        cli.print_error(f"interrupted; '{target}' is as it was, run again to go on with the episodes that are finished")
        return 130
    _print_summary(args, outcome, time.monotonic() - started)
    if not args.dry_run:
        sys.stdout.write(f"{target}\n")
    return 0


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a run made, or would make."""

    plan: DatasetPlan
    records: Sequence[EpisodeRecord]
    rejected: Sequence[EpisodeReport]


def _check_args(args: Args) -> None:
    """Refuse flags that make no sense, before anything is read.

    Raises:
        DatasetError: They do not.
    """
    parts = Path(args.repo_id).parts
    if not parts or ".." in parts or Path(args.repo_id).is_absolute():
        raise DatasetError(f"repo id '{args.repo_id}' is no name of a dataset, expected one like 'realman/dual_arm'")
    if args.workers is not None and args.workers < 1:
        raise DatasetError(f"--workers {args.workers} is not positive")
    if not args.cameras:
        raise DatasetError("--cameras names no camera; leave it out to convert all four")


def _parse_range(text: str) -> tuple[float, float]:
    try:
        closed, opened = (float(part) for part in text.split(":"))
    except ValueError as e:
        raise EpisodeError(f"gripper range '{text}' is not CLOSED:OPEN, such as 0:1000") from e
    return closed, opened


def _upgrade(args: Args) -> _Outcome:
    if args.options != RawOptions() or args.task_file or args.episodes:
        raise DatasetError(
            f"{args.raw_dir}: is a LeRobot dataset, to be upgraded as it is; leave options for recordings out"
        )
    plan = upgrade.plan_upgrade(args.raw_dir, args.robot_type)
    check_disk(args.target, plan.needed_bytes, Staging(args.target).path)
    if args.dry_run:
        return _Outcome(plan, [], [])
    workers = _num_workers(args, len(plan.jobs))
    with worker_pool(workers) as executor, Staging(args.target) as staging:
        records, failures = _build(plan, staging, executor, workers)
        bad = [EpisodeReport(args.raw_dir, problem=f.problem) for f in failures]
        refuse_bad(bad, len(plan.jobs), num_good=len(records), skip_bad=False)
        _publish(staging, plan, records, [])
    return _Outcome(plan, records, [])


def _convert(args: Args) -> _Outcome:
    paths = choose_episodes(find_episodes(args.raw_dir), args.episodes)
    workers = _num_workers(args, len(paths))
    with worker_pool(workers) as executor:
        reports = _check(paths, args, executor, workers)
        rejected = [r for r in reports if r.problem is not None]
        facts = [r.facts for r in reports if r.facts is not None]
        refuse_bad(rejected, len(reports), num_good=len(facts), skip_bad=args.skip_bad)
        _tell_assumptions(facts)
        plan = _plan(facts, args)
        check_disk(args.target, plan.needed_bytes, Staging(args.target).path)
        if args.dry_run:
            return _Outcome(plan, [], rejected)
        with Staging(args.target) as staging:
            records, failures = _build(plan, staging, executor, workers)
            while failures:
                # Damage that only shows in the middle of an episode: the ones after it move up and are written anew.
                late = {f.job.source: f.problem for f in failures}
                found = [EpisodeReport(f.path, problem=late[f.path.name]) for f in facts if f.path.name in late]
                rejected += found
                facts = [f for f in facts if f.path.name not in late]
                refuse_bad(found, len(reports), num_good=len(facts), skip_bad=args.skip_bad)
                plan = _plan(facts, args)
                records, failures = _build(plan, staging, executor, workers)
            _publish(staging, plan, records, rejected)
    return _Outcome(plan, records, rejected)


def _plan(facts: Sequence[EpisodeFacts], args: Args) -> DatasetPlan:
    robot_type = args.robot_type or DEFAULT_ROBOT_TYPE
    return plan_raw(facts, args.options, mode=args.mode, codec=args.video_codec, robot_type=robot_type)


def _num_workers(args: Args, num_episodes: int) -> int:
    return max(1, min(args.workers or available_cores(), num_episodes))


def _check(paths: Sequence[Path], args: Args, executor: Executor, workers: int) -> list[EpisodeReport]:
    """Check all recordings, each on its own and then against the others; reports are in the order of `paths`."""
    texts = read_task_texts(args.task_file, paths) if args.task_file else {}
    options = args.options
    items = [(p, dataclasses.replace(options, task=texts[p.stem]) if texts else options) for p in paths]
    reports = {}
    with tqdm(total=len(items), desc="check", unit=" episodes", leave=False) as bar:
        check = functools.partial(_check_one, cameras=args.cameras)
        for (path, _), report in as_completed(executor, check, items, ahead=2 * workers):
            reports[path] = report
            bar.update()
    return compare_episodes([reports[path] for path in paths])


def _check_one(item: tuple[Path, RawOptions], cameras: Sequence[str]) -> EpisodeReport:
    return check_episode(*item, cameras)


def _tell_assumptions(facts: Sequence[EpisodeFacts]) -> None:
    """Nothing is assumed or dropped silently."""
    if not facts[0].has_fps:
        logger.warning("no recording states its rate: %d frames per second assumed; --fps says otherwise", facts[0].fps)
    others = sorted({camera for f in facts for camera in f.other_cameras})
    if others:
        logger.warning("cameras recorded but not converted: %s; --cameras chooses", ", ".join(others))


def _build(
    plan: DatasetPlan, staging: Staging, executor: Executor, workers: int
) -> tuple[list[EpisodeRecord], list[Failure]]:
    with tqdm(total=plan.num_frames, desc="convert", unit=" frames", unit_scale=True) as bar:

        def on_done(job: EpisodeJob) -> None:
            bar.update(job.num_frames)

        return build_episodes(plan.jobs, staging, executor, ahead=2 * workers, on_done=on_done)


def _publish(
    staging: Staging, plan: DatasetPlan, records: Sequence[EpisodeRecord], rejected: Sequence[EpisodeReport]
) -> None:
    write_metadata(staging.path, plan, records)
    if rejected:
        content = [{"source": r.path.name, "reason": r.problem} for r in rejected]
        layout.write_json(staging.path / layout.REJECTED, content)
    staging.publish()


def _print_summary(args: Args, outcome: _Outcome, seconds: float) -> None:
    plan = outcome.plan
    num_bytes = sum(size for record in outcome.records for size in record.files.values())
    images = layout.keys_of(plan.features, layout.IMAGE) + layout.keys_of(plan.features, layout.VIDEO)
    rows = {
        "episodes": f"{len(plan.jobs)}",
        "left out": f"{len(outcome.rejected)}",
        "frames": f"{plan.num_frames} ({plan.num_frames / plan.fps:.0f} s at {plan.fps} fps)",
        "tasks": "; ".join(plan.tasks),
        "cameras": ", ".join(key.removeprefix(spec.IMAGE_KEY_PREFIX) for key in images),
        "size": f"{num_bytes / 1e6:.1f} MB" if outcome.records else f"about {plan.needed_bytes / 1e6:.0f} MB",
        "time": f"{seconds:.1f} s ({plan.num_frames / seconds:.0f} frames/s)",
    }
    title = (
        "Dry run: all checks passed, nothing written"
        if args.dry_run
        else f"LeRobot {layout.CODEBASE_VERSION} dataset {args.target}"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(stderr=True).print(table, highlight=False)


if __name__ == "__main__":
    cli.run(main, Args)
