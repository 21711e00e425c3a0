"""Convert recordings to a LeRobot v2.1 dataset: `realman convert --raw-dir DIR`.

All recordings (HDF5) are checked first. Then episodes are written in parallel into a hidden folder next to the dataset.
The folder is moved into place once it is complete. An interrupted run resumes where it stopped. A LeRobot v2.0 dataset
is upgraded instead.
"""

import contextlib
import dataclasses
import os
from pathlib import Path
import sys
import time
from typing import Annotated

from rich.console import Console
from rich.table import Table
import tyro

from realman import cli
from realman import spec
from realman.data.checks import Extra
from realman.data.dataset import conversion
from realman.data.dataset import existing
from realman.data.dataset import layout
from realman.data.dataset import upgrade
from realman.data.dataset.conversion import ConversionRequest
from realman.data.dataset.conversion import Outcome
from realman.data.dataset.frames import Encoding
from realman.data.dataset.frames import ImageFormat
from realman.data.dataset.from_raw import Mode
from realman.data.dataset.from_raw import Storage
from realman.data.dataset.pool import WorkerPool
from realman.data.dataset.pool import dask_pool
from realman.data.dataset.pool import local_pool
from realman.data.dataset.staging import check_target
from realman.data.dataset.staging import parse_shard
from realman.data.dataset.upgrade import DEFAULT_ROBOT_TYPE
from realman.data.dataset.video_codecs import CodecName
from realman.data.raw import RawOptions
from realman.data.raw import find_episodes
from realman.data.raw.flags import ReadingFlags
from realman.data.raw.folder import choose_episodes
from realman.data.raw.plausible import Doubt
from realman.errors import DatasetError
from realman.errors import FlagError
from realman.ranges import Index
from realman.ranges import Range
from realman.ranges import Workers

DEFAULT_ROOT = Path("data/lerobot")
"""Where training looks for datasets if HF_LEROBOT_HOME is not set."""


def dataset_dir(root: Path | None, repo_id: str) -> Path:
    """Return the folder of a dataset.

    Without a root, datasets are below $HF_LEROBOT_HOME, or below data/lerobot if that is not set.
    """
    return (root or Path(os.environ.get("HF_LEROBOT_HOME") or DEFAULT_ROOT)) / repo_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(ReadingFlags):
    """Flags of the converter."""

    raw_dir: Annotated[Path, tyro.conf.arg(aliases=["--data"])]
    """Folder of episode_<n>.hdf5 recordings, a single recording, or a LeRobot v2.0 or v2.1 dataset to upgrade."""
    repo_id: str = "realman/dual_arm"
    """Name of the dataset, which is its folder below the root."""
    root: Path | None = None
    """Folder of all datasets. None means $HF_LEROBOT_HOME, or data/lerobot if that is not set."""
    mode: Mode = "image"
    """Store single images (recorded JPEGs stay untouched) or videos."""
    image_format: ImageFormat = "png"
    """Format for raw frames: png is lossless, jpg is a sixth of the size and nine times faster."""
    jpeg_quality: Annotated[int, Range(1, 100, "what JPEG has")] = 95
    """JPEG quality for --image-format jpg, 1..100."""
    video_codec: CodecName = "av1"
    """Codec for --mode video."""
    task_file: Path | None = None
    """JSON object of task texts by recording, such as {"episode_0": "fold the towel"}."""
    cameras: tuple[str, ...] = spec.CAMERAS
    """Cameras to convert. Every recording must have all of them."""
    extras: tuple[Extra, ...] | None = None
    """Numbers in addition to state and action that every recording must have: velocity, effort, or none of them.
    By default those that are sound in all recordings."""
    episodes: tuple[Index, ...] | None = None
    """Numbers of the recordings to convert, as in episode_<n>.hdf5. None means all."""
    robot_type: str | None = None
    """Robot name in info.json. None means "realman", or the name in the dataset to upgrade."""
    overwrite: bool = False
    """Replace the dataset if it already exists."""
    skip_bad: bool = False
    """Leave out bad recordings and list them in meta/rejected.json, instead of stopping."""
    accept: tuple[Doubt, ...] = ()
    """Doubts to accept: jump (faster than joints can move), timestamps (gaps, other rate), frozen and black images."""
    dry_run: bool = False
    """Check everything but write nothing."""
    workers: Workers | None = None
    """Number of worker processes. None means one per core."""
    dask: str | None = None
    """Address of a Dask scheduler, such as tcp://10.0.0.5:8786. Its workers convert instead."""
    shard: str | None = None
    """Build only part i of n, such as 1/4, on one of several machines. --merge then joins all parts."""
    merge: bool = False
    """Join the shards next to the dataset's folder. Give all other flags as for the shards."""

    @property
    def target(self) -> Path:
        """Folder of the dataset."""
        return dataset_dir(self.root, self.repo_id)

    @property
    def storage(self) -> Storage:
        """How to store images."""
        return Storage(self.mode, self.video_codec, Encoding(self.image_format, self.jpeg_quality))


def main(args: Args) -> int:
    """Convert RealMan recordings to a LeRobot v2.1 dataset and print its path."""
    _check_args(args)
    check_target(args.target, overwrite=args.overwrite)
    if not args.dry_run:
        _check_place(args.target.parent)
    started = time.monotonic()
    try:
        outcome = _upgrade(args) if upgrade.is_dataset(args.raw_dir) else _convert(args)
    except KeyboardInterrupt:
        cli.print_error(f"interrupted: '{args.target}' is unchanged. Run again to resume, finished episodes are kept")
        return 130
    _print_summary(args, outcome, time.monotonic() - started)
    if not args.dry_run:
        sys.stdout.write(f"{outcome.path}\n")
    return 0


def _check_place(folder: Path) -> None:
    try:
        cli.check_place(folder, "--root")
    except FlagError as e:
        raise DatasetError(str(e)) from e


def _check_args(args: Args) -> None:
    """Refuse invalid flags before anything is read.

    Raises:
        DatasetError: A flag is invalid, or two of them contradict each other.
    """
    parts = Path(args.repo_id).parts
    if not parts or ".." in parts or Path(args.repo_id).is_absolute():
        raise DatasetError(f"repo id '{args.repo_id}' is not a dataset name, expected one such as 'realman/dual_arm'")
    if not args.cameras:
        raise DatasetError("--cameras names no camera. Leave it out to convert all four")
    if args.shard and args.merge:
        raise DatasetError("--shard builds a part and --merge joins all parts. Give only one of them")
    if args.dask and args.workers:
        raise DatasetError("--dask uses the workers of the cluster. Leave --workers out")


def _open_pool(args: Args, num_episodes: int) -> contextlib.AbstractContextManager[WorkerPool]:
    return dask_pool(args.dask) if args.dask else local_pool(args.workers, num_episodes)


def _upgrade(args: Args) -> Outcome:
    for_recordings = (args.task_file, args.episodes, args.shard, args.merge, args.extras is not None)
    if args.options != RawOptions() or any(for_recordings):
        raise DatasetError(
            f"{args.raw_dir}: is a LeRobot dataset, expected no flags for reading recordings. "
            "Leave them out to upgrade it"
        )
    with _open_pool(args, len(existing.read(args.raw_dir).episodes)) as pool:
        return conversion.upgrade_dataset(args.raw_dir, args.target, args.robot_type, pool, dry_run=args.dry_run)


def _convert(args: Args) -> Outcome:
    request = ConversionRequest(
        paths=choose_episodes(find_episodes(args.raw_dir), args.episodes),
        target=args.target,
        options=args.options,
        cameras=args.cameras,
        raw_dir=args.raw_dir,
        extras=args.extras,
        storage=args.storage,
        robot_type=args.robot_type or DEFAULT_ROBOT_TYPE,
        task_file=args.task_file,
        accept=args.accept,
        skip_bad=args.skip_bad,
        dry_run=args.dry_run,
        shard=parse_shard(args.shard) if args.shard else None,
        merge=args.merge,
    )
    with _open_pool(args, len(request.paths)) as pool:
        return conversion.convert(request, pool)


def _print_summary(args: Args, outcome: Outcome, seconds: float) -> None:
    plan = outcome.plan
    # Rows: facts of the dataset. Its size is only an estimate until something was written.
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
    # Title: what the run made, and where.
    if args.dry_run:
        title = "Dry run: all checks passed, nothing was written"
    elif args.shard:
        title = f"Shard {args.shard} of a LeRobot {layout.CODEBASE_VERSION} dataset: {outcome.path}"
    else:
        title = f"LeRobot {layout.CODEBASE_VERSION} dataset {outcome.path}"
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(stderr=True).print(table, highlight=False)
