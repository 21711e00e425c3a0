"""Upgrade a LeRobot v2.0 dataset to v2.1.

Tables and videos stay the same and are never encoded again. Statistics per episode are added. A v2.1 dataset stays
unchanged, except that missing statistics are computed.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realman.data.dataset import layout
from realman.data.dataset.build import DatasetPlan
from realman.data.dataset.layout import Features
from realman.data.dataset.staging import BuildContext
from realman.data.dataset.staging import EpisodeRecord
from realman.data.dataset.stats import ImageStats
from realman.data.dataset.stats import Stats
from realman.data.dataset.stats import sample_frames
from realman.data.dataset.stats import vector_stats
from realman.errors import DatasetError
from realman.errors import EpisodeError

READABLE_VERSIONS = ("v2.0", "v2.1")


@dataclasses.dataclass(frozen=True)
class UpgradeJob:
    """One episode of an existing dataset."""

    root: Path
    """The existing dataset."""
    episode_index: int
    num_frames: int
    tasks: tuple[str, ...]
    fps: int
    features: Features
    files: tuple[tuple[str, str], ...]
    """Existing and new path of the table, then of the video of each video feature in order.

    Paths are relative to the datasets.
    """
    stats: dict[str, Any] | None
    """Statistics of the episode if the dataset has them."""

    @property
    def source(self) -> str:
        """Path of the episode's table, relative to the existing dataset."""
        return self.files[0][0]

    def fingerprint(self) -> str:
        """Return a hash of the source files' identity and all metadata."""
        files = [(self.root / old).resolve() for old, _ in self.files]
        status = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        content = {**dataclasses.asdict(self), "status": status}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def build(self, context: BuildContext) -> EpisodeRecord:
        """Link or copy the episode's files and compute its statistics.

        See `EpisodeJob.build`.
        """
        root = context.root
        stats = self.stats if self.stats is not None else self._measure()
        for old, new in self.files:
            _link_or_copy(self.root / old, root / new)
        return EpisodeRecord(
            episode_index=self.episode_index,
            num_frames=self.num_frames,
            tasks=list(self.tasks),
            source=self.source,
            stats=stats,
            files={new: (root / new).stat().st_size for _, new in self.files},
        )

    def _measure(self) -> dict[str, Stats]:
        # Check the table before any image is decoded.
        try:
            table = pq.read_table(self.root / self.source)
        except pa.ArrowInvalid as e:
            raise EpisodeError(f"{self.source}: is not a readable Parquet file ({e}). Copy the dataset again") from e
        if len(table) != self.num_frames:
            raise EpisodeError(
                f"{self.source}: has {len(table)} rows, expected {self.num_frames} as in {layout.EPISODES.name}"
            )
        missing = [
            key for key, f in self.features.items() if f["dtype"] != layout.VIDEO and key not in table.column_names
        ]
        if missing:
            raise EpisodeError(f"{self.source}: columns {missing} are missing, expected all that info.json lists")
        # Each kind of feature has its own source of values.
        videos = dict(zip(layout.keys_of(self.features, layout.VIDEO), self.files[1:], strict=True))
        stats = {}
        for key, feature in self.features.items():
            if key in videos:
                stats[key] = _video_stats(self.root / videos[key][0], self.num_frames)
            elif feature["dtype"] == layout.IMAGE:
                stats[key] = _image_stats(table[key], f"{self.source}: '{key}'")
            elif key == "timestamp":
                stats[key] = vector_stats(np.arange(self.num_frames) / self.fps)
            else:
                stats[key] = vector_stats(np.array(table[key].to_pylist(), feature["dtype"]))
        return stats


def is_dataset(path: Path) -> bool:
    """Return whether `path` contains a LeRobot dataset."""
    return (path / layout.INFO).is_file()


def _read_info(root: Path) -> dict[str, Any]:
    """Read the info.json of an existing dataset.

    Raises:
        DatasetError: It is damaged, or its version cannot be upgraded.
    """
    try:
        info = json.loads((root / layout.INFO).read_text(encoding="utf-8"))
        version = info["codebase_version"]
    except (ValueError, KeyError) as e:
        raise DatasetError(f"{root / layout.INFO}: is damaged ({e}). Copy the dataset again") from e
    if version not in READABLE_VERSIONS:
        raise DatasetError(f"{root}: is a LeRobot {version} dataset, expected {' or '.join(READABLE_VERSIONS)}")
    return info


def plan_upgrade(root: Path, robot_type: str | None) -> DatasetPlan:
    """Plan the v2.1 form of an existing dataset.

    Args:
        root: The dataset.
        robot_type: Name of the robot. None keeps the dataset's own.

    Raises:
        DatasetError: Its version is not one of `READABLE_VERSIONS`, its metadata are damaged, or files are missing.
    """
    # Metadata may have any content, so keys and types are checked by using them.
    try:
        info = _read_info(root)
        jobs = _read_jobs(root, info)
        tasks = [line["task"] for line in _sorted_lines(root / layout.TASKS, "task_index")]
        files = [root / old for job in jobs for old, _ in job.files]
        _refuse_missing(root, [f for f in files if not f.is_file()])
        return DatasetPlan(
            jobs=jobs,
            features=info["features"],
            robot_type=robot_type or info["robot_type"],
            fps=info["fps"],
            tasks=tasks,
            needed_bytes=sum(f.stat().st_size for f in files),
        )
    except (KeyError, TypeError) as e:
        raise DatasetError(
            f"{root / 'meta'}: is damaged, {e} is missing or has a wrong type. Copy the dataset again"
        ) from e


def _read_jobs(root: Path, info: dict[str, Any]) -> list[UpgradeJob]:
    _refuse_missing(root, [root / name for name in (layout.TASKS, layout.EPISODES) if not (root / name).is_file()])
    has_stats = (root / layout.EPISODES_STATS).is_file()
    stats_lines = layout.read_json_lines(root / layout.EPISODES_STATS) if has_stats else []
    stats = {line["episode_index"]: line["stats"] for line in stats_lines}
    return [
        UpgradeJob(
            root=root,
            episode_index=line["episode_index"],
            num_frames=line["length"],
            tasks=tuple(line["tasks"]),
            fps=info["fps"],
            features=info["features"],
            files=_episode_files(info, line["episode_index"]),
            stats=stats.get(line["episode_index"]),
        )
        for line in _sorted_lines(root / layout.EPISODES, "episode_index")
    ]


def _sorted_lines(path: Path, key: str) -> list[dict[str, Any]]:
    return sorted(layout.read_json_lines(path), key=lambda line: line[key])


def _episode_files(info: dict[str, Any], index: int) -> tuple[tuple[str, str], ...]:
    chunk_size = info["chunks_size"]
    table = (layout.data_path(index, info["data_path"], chunk_size), layout.data_path(index))
    videos = [
        (layout.video_path(index, key, info["video_path"], chunk_size), layout.video_path(index, key))
        for key in layout.keys_of(info["features"], layout.VIDEO)
    ]
    return tuple((old.as_posix(), new.as_posix()) for old, new in [table, *videos])


def _refuse_missing(root: Path, missing: list[Path]) -> None:
    if missing:
        names = ", ".join(str(p.relative_to(root)) for p in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(f"{root}: files are missing: {names}{more}. Copy the dataset again")


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _image_stats(column: pa.ChunkedArray, place: str) -> Stats:
    stats = ImageStats()
    for t in sample_frames(len(column)):
        bgr = cv2.imdecode(
            np.frombuffer(column[t].as_py()["bytes"], np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if bgr is None:
            raise EpisodeError(f"{place} cannot be decoded at frame {t}. Copy the dataset again")
        stats.add(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
    return stats.result()


def _video_stats(path: Path, num_frames: int) -> Stats:
    # Imported here, so that the codec library is loaded only if there are videos.
    from realman.data.dataset.video import read_frames

    stats = ImageStats()
    try:
        for image in read_frames(path, set(sample_frames(num_frames))):
            stats.add(image)
    except DatasetError as e:
        raise EpisodeError(str(e)) from e
    return stats.result()
