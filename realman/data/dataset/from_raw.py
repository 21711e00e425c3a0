"""Write one recording as one episode of a LeRobot dataset.

Frames are streamed, so memory does not depend on the length of the episode.
"""

from collections.abc import Collection, Sequence
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
import threading
from typing import Literal

import numpy as np

from realman import spec
from realman.data.checks import EpisodeFacts
from realman.data.checks import Extra
from realman.data.checks import check_again
from realman.data.checks import check_unchanged
from realman.data.dataset import layout
from realman.data.dataset.build import DatasetPlan
from realman.data.dataset.frames import CameraFrames
from realman.data.dataset.frames import Encoding
from realman.data.dataset.frames import codec_threads
from realman.data.dataset.frames import image_blocks
from realman.data.dataset.layout import Features
from realman.data.dataset.parquet import Column
from realman.data.dataset.parquet import EpisodeTable
from realman.data.dataset.staging import BuildContext
from realman.data.dataset.staging import EpisodeRecord
from realman.data.dataset.stats import Stats
from realman.data.dataset.stats import vector_stats
from realman.data.dataset.video_codecs import CodecName
from realman.data.dataset.video_codecs import check_size
from realman.data.dataset.video_codecs import video_info
from realman.data.raw.episode import Episode
from realman.data.raw.episode import open_episode
from realman.data.raw.options import RawOptions
from realman.data.raw.plausible import Doubt
from realman.errors import EpisodeError

Mode = Literal["image", "video"]

_WRITER_REVISION = 3
"""Increase this when the bytes written for the same recording change, so that half-built datasets are not mixed."""

_PNG_PART = 0.6
"""Size of a PNG of a noisy camera frame as a fraction of the raw frame, only to estimate disk space."""
_JPG_PART = 0.2
"""The same for a high-quality JPEG."""
_VIDEO_PART = 0.05
"""The same for video, on the safe side."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How images are stored."""

    mode: Mode = "image"
    codec: CodecName = "av1"
    """Only for videos."""
    encoding: Encoding = dataclasses.field(default_factory=Encoding)
    """Only for single images that are not stored as recorded."""


@dataclasses.dataclass(frozen=True)
class DatasetForm:
    """What all episodes of a dataset have in common."""

    image_sizes: tuple[tuple[str, int, int], ...]
    """Camera, height and width in px."""
    has_velocity: bool
    has_effort: bool
    fps: int
    storage: Storage

    @property
    def features(self) -> Features:
        """Features of the dataset, for info.json and the tables."""
        return layout.robot_features(
            self.image_sizes,
            has_velocity=self.has_velocity,
            has_effort=self.has_effort,
            video_info=video_info(self.storage.codec, self.fps) if self.storage.mode == "video" else None,
        )


@dataclasses.dataclass(frozen=True)
class RawJob:
    """One recording and its place in the dataset."""

    facts: EpisodeFacts
    options: RawOptions
    form: DatasetForm
    episode_index: int
    first_index: int
    """Global index of its first frame."""
    task_index: int
    accept: tuple[Doubt, ...] = ()
    """Doubts about recordings that the user has accepted."""

    @property
    def num_frames(self) -> int:
        """Number of frames of the recording."""
        return self.facts.num_frames

    @property
    def source(self) -> str:
        """File name of the recording."""
        return self.facts.name

    def fingerprint(self) -> str:
        """Return a hash of everything the episode's files depend on.

        That is the recording's identity (name, size, time of change), all options, and the episode's place in the
        dataset. The recording's folder is left out, because another machine that builds a part of the dataset may have
        it elsewhere.
        """
        content = {**dataclasses.asdict(self), "revision": _WRITER_REVISION}
        content["facts"]["path"] = self.facts.name
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def build(self, context: BuildContext) -> EpisodeRecord:
        """Write the episode's table and videos. See `EpisodeJob.build`."""
        cameras = [camera for camera, _, _ in self.facts.image_sizes]
        with open_episode(self.facts.path, self.options, cameras=cameras, name=self.source) as episode:
            # What was checked before may not be what is written now.
            check_again(episode, self.facts, self.accept)
            stats = _write_episode(episode, self, context)
        check_unchanged(self.facts)
        return EpisodeRecord(
            episode_index=self.episode_index,
            num_frames=self.num_frames,
            tasks=[self.facts.task],
            source=self.source,
            stats=stats,
            files={path.as_posix(): (context.root / path).stat().st_size for path in self._paths()},
        )

    def _paths(self) -> list[Path]:
        videos = [
            layout.video_path(self.episode_index, key) for key in layout.keys_of(self.form.features, layout.VIDEO)
        ]
        return [layout.data_path(self.episode_index), *videos]


def plan_raw(
    facts: Sequence[EpisodeFacts],
    options: RawOptions,
    storage: Storage,
    *,
    robot_type: str,
    accept: Sequence[Doubt] = (),
    extras: Collection[Extra] | None = None,
) -> DatasetPlan:
    """Plan a dataset of checked recordings.

    Args:
        facts: The recordings in order. At least one, and all of the same form.
        options: How to read them. Task texts are taken from `facts`.
        storage: How images are stored.
        robot_type: Name of the robot.
        accept: Doubts about recordings that the user has accepted.
        extras: Numbers to store in addition to state and action. None means those that are sound in all recordings.

    Raises:
        DatasetError: Frames of this size cannot be stored as video.
    """
    first = facts[0]
    if storage.mode == "video":
        for _, height, width in first.image_sizes:
            check_size(height, width)
    # Each episode's place: its indices and the index of its first frame.
    has_velocity = all(f.has_velocity for f in facts) and (extras is None or "velocity" in extras)
    has_effort = all(f.has_effort for f in facts) and (extras is None or "effort" in extras)
    form = DatasetForm(first.image_sizes, has_velocity, has_effort, first.fps, storage)
    tasks = list(dict.fromkeys(f.task for f in facts))
    starts = itertools.accumulate((f.num_frames for f in facts), initial=0)
    jobs = [
        RawJob(
            f, options, form, i, first_index=start, task_index=tasks.index(f.task), accept=tuple(sorted(set(accept)))
        )
        for i, (f, start) in enumerate(zip(facts, starts, strict=False))
    ]
    needed = sum(f.image_bytes if storage.mode == "image" and f.is_jpeg else _encoded_bytes(f, storage) for f in facts)
    return DatasetPlan(
        jobs=jobs,
        features=form.features,
        robot_type=robot_type,
        fps=first.fps,
        tasks=tasks,
        needed_bytes=int(needed),
    )


def _encoded_bytes(facts: EpisodeFacts, storage: Storage) -> float:
    raw_bytes = facts.num_frames * sum(3 * height * width for _, height, width in facts.image_sizes)
    if storage.mode == "video":
        return _VIDEO_PART * raw_bytes
    return (_PNG_PART if storage.encoding.image_format == "png" else _JPG_PART) * raw_bytes


def _write_episode(episode: Episode, job: RawJob, context: BuildContext) -> dict[str, Stats]:
    numbers = _number_columns(episode, job)
    names = [name for name, _, _ in job.form.image_sizes]
    with codec_threads(context.threads) as threads:
        cameras = [CameraFrames(episode, name, threads, frozenset(job.accept)) for name in names]
        with EpisodeTable(context.root / layout.data_path(job.episode_index), job.form.features) as table:
            if job.form.storage.mode == "image":
                _write_images(table, cameras, numbers, job, context)
            else:
                table.write(numbers)
        if job.form.storage.mode == "video":
            _write_videos(cameras, job, context)
        found = {camera.key: camera.finish() for camera in cameras}
    if problems := [problem for _, of_camera in found.values() for problem in of_camera]:
        raise EpisodeError(f"{job.source}: {'; '.join(problems)}")
    # LeRobot computes the statistics of time from the exact values, not from the float32 column.
    time_stats = vector_stats(numbers["frame_index"] / job.form.fps)
    stats = {"timestamp": time_stats, **{key: camera_stats for key, (camera_stats, _) in found.items()}}
    return {key: stats[key] if key in stats else vector_stats(numbers[key]) for key in job.form.features}


def _write_images(
    table: EpisodeTable, cameras: list[CameraFrames], numbers: dict[str, np.ndarray], job: RawJob, context: BuildContext
) -> None:
    start = 0
    for block in image_blocks(cameras, job.num_frames, job.form.storage.encoding):
        end = start + len(block[cameras[0].key])
        columns: dict[str, Column] = {key: values[start:end] for key, values in numbers.items()}
        table.write({**columns, **block})
        start = end
        context.report(job.episode_index, start)


def _write_videos(cameras: Sequence[CameraFrames], job: RawJob, context: BuildContext) -> None:
    """Encode as many cameras at a time as there are threads.

    With one thread, cameras are encoded one after the other. Encoders need much memory.
    """
    # Imported here, because the codec library takes a fifth of the converter's start, and only this mode needs it.
    from realman.data.dataset.video import VideoWriter

    num_done = itertools.count(1)
    stop = threading.Event()

    def write(camera: CameraFrames, height: int, width: int) -> None:
        path = context.root / layout.video_path(job.episode_index, camera.key)
        with VideoWriter(path, fps=job.form.fps, height=height, width=width, codec=job.form.storage.codec) as video:
            for image in camera.images():
                # Another camera has failed, or the run is interrupted.
                if stop.is_set():
                    break
                video.write(image)
                context.report(job.episode_index, next(num_done) // len(cameras))

    with codec_threads(min(context.threads, len(cameras))) as threads:
        try:
            sizes = [(height, width) for _, height, width in job.form.image_sizes]
            futures = [threads.submit(write, camera, *size) for camera, size in zip(cameras, sizes, strict=True)]
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise


def _number_columns(episode: Episode, job: RawJob) -> dict[str, np.ndarray]:
    """Return all columns except images, for all frames."""
    frame_index = np.arange(job.num_frames, dtype=np.int64)
    vectors = {
        spec.STATE_KEY: episode.state,
        spec.ACTION_KEY: episode.action,
        spec.VELOCITY_KEY: episode.velocity if job.form.has_velocity else None,
        spec.EFFORT_KEY: episode.effort if job.form.has_effort else None,
    }
    return {
        **{key: values for key, values in vectors.items() if values is not None},
        "timestamp": (frame_index / job.form.fps).astype(np.float32),
        "frame_index": frame_index,
        "episode_index": np.full_like(frame_index, job.episode_index),
        "index": frame_index + job.first_index,
        "task_index": np.full_like(frame_index, job.task_index),
    }
