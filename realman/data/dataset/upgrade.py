"""Upgrade a LeRobot v2.0 dataset to v2.1.

Tables and videos stay the same and are never encoded again. Statistics per episode are added. A v2.1 dataset stays
unchanged, except that missing statistics are computed. Everything else in its folder is kept.
"""

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from realman.data.dataset import existing
from realman.data.dataset import layout
from realman.data.dataset import tables
from realman.data.dataset import upgraded_metadata
from realman.data.dataset.build import DatasetPlan
from realman.data.dataset.existing import ExistingDataset
from realman.data.dataset.staging import BuildContext
from realman.data.dataset.staging import EpisodeRecord
from realman.data.dataset.stats import ImageStats
from realman.data.dataset.stats import Stats
from realman.data.dataset.stats import sample_frames
from realman.data.dataset.stats import vector_stats
from realman.data.dataset.wide_stats import WideStats
from realman.data.raw import pixels
from realman.errors import DatasetError
from realman.errors import EpisodeError

logger = logging.getLogger(__name__)

DEFAULT_ROBOT_TYPE = "realman"

_CAMERA_DTYPES = (layout.IMAGE, layout.VIDEO)
_STATS = frozenset({"min", "max", "mean", "std", "count"})
_WIDE = 1000
"""Columns with more numbers per frame, such as depth, are never held whole."""


@dataclasses.dataclass(frozen=True)
class UpgradeJob:
    """One episode of an existing dataset."""

    dataset: ExistingDataset
    """The existing dataset. Its lists of tasks and episodes are left out."""
    episode_index: int
    num_frames: int
    tasks: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    """Existing and new path of the table, then of the video of each video feature in order.

    Paths are relative to the datasets.
    """
    stats: dict[str, Any]
    """Statistics of the episode that the dataset has."""
    known_tasks: tuple[int, ...] = ()
    """Task indices that the dataset has a text for."""

    @property
    def source(self) -> str:
        """Path of the episode's table, relative to the existing dataset."""
        return self.files[0][0]

    @property
    def _root(self) -> Path:
        return self.dataset.root

    def fingerprint(self) -> str:
        """Return a hash of the source files' identity and all metadata."""
        files = [(self._root / old).resolve() for old, _ in self.files]
        status = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        content = {**dataclasses.asdict(self), "status": status}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def build(self, context: BuildContext) -> EpisodeRecord:
        """Link or copy the episode's files and compute statistics that are missing.

        See `EpisodeJob.build`.
        """
        root = context.root
        stats = self._complete_stats()
        for old, new in self.files:
            _link_or_copy(self._root / old, root / new)
        return EpisodeRecord(
            episode_index=self.episode_index,
            num_frames=self.num_frames,
            tasks=list(self.tasks),
            source=self.source,
            stats=stats,
            files={new: (root / new).stat().st_size for _, new in self.files},
        )

    def _complete_stats(self) -> dict[str, Any]:
        """Return the statistics of all features, in their order.

        Those that are whole stay as they are.
        """
        features = self.dataset.features
        # A text has no statistics, as in LeRobot.
        has_any = [key for key, f in features.items() if f["dtype"] in _CAMERA_DTYPES or existing.is_number(f["dtype"])]
        missing = [key for key in has_any if not _is_whole(self.stats.get(key), features[key]["dtype"])]
        measured = self._measure(missing)
        stats = {key: {**_dict(self.stats.get(key)), **measured.get(key, {})} for key in has_any}
        return {**stats, **{key: value for key, value in self.stats.items() if key not in stats}}

    def _measure(self, keys: list[str]) -> dict[str, Stats]:
        """Check the table before any image is decoded, then measure these features."""
        videos = dict(zip(layout.keys_of(self.dataset.features, layout.VIDEO), self.files[1:], strict=True))
        try:
            with tables.open_table(self._root / self.source, self.source) as file:
                self._check(file)
                of_table = {key: self._measure_column(file, key) for key in keys if key not in videos}
            of_videos = {
                key: _video_stats(self._root / videos[key][0], self.num_frames) for key in keys if key in videos
            }
        except DatasetError as e:
            raise EpisodeError(str(e)) from e
        return {**of_table, **of_videos}

    def _check(self, file: pq.ParquetFile) -> None:
        if file.metadata.num_rows != self.num_frames:
            raise EpisodeError(
                f"{self.source}: has {file.metadata.num_rows} rows, expected {self.num_frames} as in "
                f"{layout.EPISODES.name}. Copy the dataset again, or write the length into that line"
            )
        missing = [
            key
            for key, f in self.dataset.features.items()
            if f["dtype"] != layout.VIDEO and key not in file.schema_arrow.names
        ]
        if missing:
            raise EpisodeError(f"{self.source}: columns {missing} are missing, expected all that info.json lists")
        if "task_index" in file.schema_arrow.names:
            used = np.unique(tables.read_numbers(file, "task_index", (1,), self.source))
            if unknown := sorted(set(used.tolist()) - set(self.known_tasks)):
                raise EpisodeError(
                    f"{self.source}: has task_index {unknown[0]}, which {layout.TASKS} lacks. "
                    "Add a line with its text there"
                )

    def _measure_column(self, file: pq.ParquetFile, key: str) -> Stats:
        dtype, shape = self.dataset.features[key]["dtype"], self.dataset.shape(key)
        if dtype == layout.IMAGE:
            return _image_stats(file, key, self._root, self.num_frames, self.source)
        if key == "timestamp":
            return vector_stats(np.arange(self.num_frames) / self.dataset.fps)
        if np.prod(shape) > _WIDE:
            wide = WideStats()
            for block in tables.blocks_of_numbers(file, key, shape, self.source):
                wide.add(block)
            return wide.result()
        values = tables.read_numbers(file, key, shape, self.source).astype(dtype)
        stats = vector_stats(values)
        # One number per number of a frame, in the shape of a frame.
        return {name: x if name == "count" else np.reshape(x, shape).tolist() for name, x in stats.items()}


def _is_whole(stats: Any, dtype: str) -> bool:
    """Return whether statistics have all parts.

    Those of a camera must have the shape (3, 1, 1).
    """
    if not isinstance(stats, dict) or not stats.keys() >= _STATS:
        return False
    return dtype not in _CAMERA_DTYPES or all(np.shape(stats[name]) == (3, 1, 1) for name in _STATS - {"count"})


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def is_dataset(path: Path) -> bool:
    """Return whether `path` contains a LeRobot dataset."""
    return (path / layout.INFO).is_file()


def plan_upgrade(root: Path, robot_type: str | None) -> DatasetPlan:
    """Plan the v2.1 form of an existing dataset.

    Args:
        root: The dataset.
        robot_type: Name of the robot. None keeps the dataset's own, or takes the default if it has none.

    Raises:
        DatasetError: Its version cannot be read, its metadata are damaged, or files are missing.
    """
    dataset = existing.read(root)
    _report_arm_order(dataset)
    lines = upgraded_metadata.lines_by_episode(root / layout.EPISODES_STATS)
    stats = {index: _dict(line.get("stats")) for index, line in lines.items()}
    # Workers get what one episode needs, and not the lists of all.
    lean = dataclasses.replace(dataset, tasks=(), episodes=())
    jobs = [
        UpgradeJob(
            dataset=lean,
            episode_index=line["episode_index"],
            num_frames=line["length"],
            tasks=tuple(line.get("tasks") or ()),
            files=_episode_files(dataset, line["episode_index"]),
            stats=stats.get(line["episode_index"], {}),
            known_tasks=tuple(task["task_index"] for task in dataset.tasks),
        )
        for line in dataset.episodes
    ]
    files = [root / old for job in jobs for old, _ in job.files]
    existing.refuse_missing(root, [f for f in files if not f.is_file()])
    others = upgraded_metadata.other_files(dataset)
    return DatasetPlan(
        jobs=jobs,
        features=dataset.features,
        robot_type=robot_type or dataset.info.get("robot_type") or DEFAULT_ROBOT_TYPE,
        fps=dataset.fps,
        tasks=[line["task"] for line in dataset.tasks],
        needed_bytes=sum(f.stat().st_size for f in [*files, *(root / name for name in others)]),
    )


def refuse_losses(plan: DatasetPlan) -> None:
    """Refuse to upgrade in place if something would be deleted.

    Raises:
        DatasetError: See `upgraded_metadata.refuse_losses`.
    """
    jobs = [job for job in plan.jobs if isinstance(job, UpgradeJob)]
    if jobs:
        upgraded_metadata.refuse_losses(jobs[0].dataset, {Path(old) for job in jobs for old, _ in job.files})


def write_metadata(source: Path, root: Path, plan: DatasetPlan, records: list[EpisodeRecord]) -> None:
    """Write the metadata, and keep everything else that the existing dataset has.

    Args:
        source: The existing dataset.
        root: The new one, with all its episodes.
        plan: What was planned.
        records: What was built.
    """
    dataset = existing.read(source)
    for name in upgraded_metadata.other_files(dataset, without=root):
        # Not a link: these are files that people edit.
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, root / name)
    upgraded_metadata.write(dataset, root, plan.robot_type, records)


def _report_arm_order(dataset: ExistingDataset) -> None:
    order = dataset.arm_order()
    if order == "left_right":
        logger.warning(
            "%s: the names put the left arm first. Train with --data.arm-order left_right", dataset.root / layout.INFO
        )


def _episode_files(dataset: ExistingDataset, index: int) -> tuple[tuple[str, str], ...]:
    table = (dataset.table(index), layout.data_path(index))
    videos = [
        (dataset.video(index, key), layout.video_path(index, key))
        for key in layout.keys_of(dataset.features, layout.VIDEO)
    ]
    return tuple((old.as_posix(), new.as_posix()) for old, new in [table, *videos])


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a file, or copy it if the disk has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _image_stats(file: pq.ParquetFile, key: str, root: Path, num_frames: int, name: str) -> Stats:
    stats = ImageStats()
    for t, data in tables.images(file, key, sample_frames(num_frames), root):
        image = pixels.decode(data)
        if image is None:
            raise EpisodeError(f"{name}: '{key}' cannot be decoded at frame {t}. Copy the dataset again")
        stats.add(image)
    return stats.result()


def _video_stats(path: Path, num_frames: int) -> Stats:
    # Imported here, so that the codec library is loaded only if there are videos.
    from realman.data.dataset.video import read_frames

    stats = ImageStats()
    for image in read_frames(path, set(sample_frames(num_frames))):
        stats.add(image)
    return stats.result()
