"""Writes one recording as one episode of a LeRobot dataset; frames stream through, whatever the episode's length."""

from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from realman import spec
from realman.arrays import Image
from realman.checks import EpisodeFacts
from realman.dataset import layout
from realman.dataset.build import DatasetPlan
from realman.dataset.layout import Features
from realman.dataset.parquet import Column
from realman.dataset.parquet import EpisodeTable
from realman.dataset.staging import EpisodeRecord
from realman.dataset.stats import ImageStats
from realman.dataset.stats import Stats
from realman.dataset.stats import sample_frames
from realman.dataset.stats import vector_stats
from realman.dataset.video import CodecName
from realman.dataset.video import VideoWriter
from realman.dataset.video import check_size
from realman.dataset.video import video_info
from realman.errors import EpisodeError
from realman.raw.episode import Episode
from realman.raw.episode import open_episode
from realman.raw.options import RawOptions

Mode = Literal["image", "video"]

_WRITER_REVISION = 1
"""Raise it when the bytes written for the same recording change, so that half-built datasets are not mixed."""

_BLOCK_FRAMES = 8
"""Frames handed to the table at once: 8 frames of 4 PNG cameras are about 16 MB."""


_PNG_PART = 0.6
"""Size of a PNG of a camera's noisy frame, as part of the raw frame; only to estimate disk space."""
_VIDEO_PART = 0.05
"""The same for video, on the safe side."""


@dataclasses.dataclass(frozen=True)
class DatasetForm:
    """What all episodes of a dataset have in common."""

    image_sizes: tuple[tuple[str, int, int], ...]
    """Camera, height and width in px."""
    has_velocity: bool
    has_effort: bool
    fps: int
    mode: Mode
    codec: CodecName

    @property
    def features(self) -> Features:
        """Features of the dataset, for info.json and for the tables."""
        return layout.robot_features(
            self.image_sizes,
            has_velocity=self.has_velocity,
            has_effort=self.has_effort,
            video_info=video_info(self.codec, self.fps) if self.mode == "video" else None,
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

    @property
    def num_frames(self) -> int:
        """Frames of the recording."""
        return self.facts.num_frames

    @property
    def source(self) -> str:
        """File name of the recording."""
        return self.facts.path.name

    def fingerprint(self) -> str:
        """Hash of the recording's identity (path, size, time of change), all options and the place in the dataset."""
        content = {**dataclasses.asdict(self), "path": self.facts.path.resolve(), "revision": _WRITER_REVISION}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def build(self, root: Path) -> EpisodeRecord:
        """Write the episode's table and videos below `root`; see `EpisodeJob.build`."""
        with open_episode(self.facts.path, self.options) as episode:
            if episode.num_frames != self.facts.num_frames:
                raise EpisodeError(f"{self.source}: changed while it was converted; run again when recording has ended")
            stats = _write_episode(episode, self, root)
        return EpisodeRecord(
            episode_index=self.episode_index,
            num_frames=self.num_frames,
            tasks=[self.facts.task],
            source=self.source,
            stats=stats,
            files={path.as_posix(): (root / path).stat().st_size for path in self._paths()},
        )

    def _paths(self) -> list[Path]:
        videos = [
            layout.video_path(self.episode_index, key) for key in layout.keys_of(self.form.features, layout.VIDEO)
        ]
        return [layout.data_path(self.episode_index), *videos]


def plan_raw(
    facts: Sequence[EpisodeFacts], options: RawOptions, *, mode: Mode, codec: CodecName, robot_type: str
) -> DatasetPlan:
    """Lay out a dataset of checked recordings of one form.

    Args:
        facts: The recordings in order; at least one, all of the same form.
        options: How to read them; their own task texts have been found already.
        mode: Single images, or videos.
        codec: Codec of the videos.
        robot_type: Name of the robot.

    Raises:
        DatasetError: The frames cannot be stored in this mode.
    """
    first = facts[0]
    if mode == "video":
        for _, height, width in first.image_sizes:
            check_size(height, width)
    form = DatasetForm(first.image_sizes, first.has_velocity, first.has_effort, first.fps, mode, codec)
    tasks = list(dict.fromkeys(f.task for f in facts))
    starts = itertools.accumulate((f.num_frames for f in facts), initial=0)
    jobs = [
        RawJob(f, options, form, episode_index=i, first_index=start, task_index=tasks.index(f.task))
        for i, (f, start) in enumerate(zip(facts, starts, strict=False))
    ]
    part = _VIDEO_PART if mode == "video" else _PNG_PART
    needed = sum(f.image_bytes if mode == "image" and f.is_jpeg else part * _raw_bytes(f) for f in facts)
    return DatasetPlan(
        jobs=jobs,
        features=form.features,
        robot_type=robot_type,
        fps=first.fps,
        tasks=tasks,
        needed_bytes=int(needed),
    )


def _raw_bytes(facts: EpisodeFacts) -> int:
    return facts.num_frames * sum(3 * height * width for _, height, width in facts.image_sizes)


class _Camera:
    """Frames of one camera on their way into the dataset; the sampled ones are counted in passing."""

    def __init__(self, episode: Episode, name: str) -> None:
        self.key = spec.image_key(name)
        self.stats = ImageStats()
        self._episode = episode
        self._name = name
        self._sampled = frozenset(sample_frames(episode.num_frames))

    def image(self, t: int) -> Image:
        """Frame `t`, decoded."""
        image = self._episode.image(self._name, t)
        if t in self._sampled:
            self.stats.add(image)
        return image

    def encoded(self, t: int) -> tuple[bytes, str]:
        """Frame `t` as the recorded JPEG where there is one, else as PNG; with its file name."""
        jpeg = self._episode.encoded_image(self._name, t)
        if jpeg is None:
            return _encode_png(self.image(t)), f"frame_{t:06d}.png"
        if t in self._sampled:
            self.image(t)
        return jpeg, f"frame_{t:06d}.jpg"


def _encode_png(image: Image) -> bytes:
    # OpenCV's default level: ten times faster than Pillow's at the same size.
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise EpisodeError(f"a frame of shape {image.shape} cannot be encoded as PNG; record the episode again")
    return data.tobytes()


def _write_episode(episode: Episode, job: RawJob, root: Path) -> dict[str, Stats]:
    features = job.form.features
    numbers = _number_columns(episode, job)
    cameras = [_Camera(episode, name) for name, _, _ in job.form.image_sizes]
    with EpisodeTable(root / layout.data_path(job.episode_index), features) as table:
        if job.form.mode == "image":
            _write_images(table, cameras, numbers)
        else:
            table.write(numbers)
            _write_videos(cameras, job, root)
    stats = {camera.key: camera.stats.result() for camera in cameras}
    # LeRobot takes the statistics of time from the exact values, not from the float32 column.
    stats["timestamp"] = vector_stats(numbers["frame_index"] / job.form.fps)
    return {key: stats[key] if key in stats else vector_stats(numbers[key]) for key in features}


def _write_images(table: EpisodeTable, cameras: Sequence[_Camera], numbers: dict[str, np.ndarray]) -> None:
    num_frames = len(numbers["frame_index"])
    for start in range(0, num_frames, _BLOCK_FRAMES):
        frames = range(start, min(start + _BLOCK_FRAMES, num_frames))
        columns: dict[str, Column] = {key: values[start : frames.stop] for key, values in numbers.items()}
        columns |= {camera.key: [camera.encoded(t) for t in frames] for camera in cameras}
        table.write(columns)


def _write_videos(cameras: Sequence[_Camera], job: RawJob, root: Path) -> None:
    form = job.form
    for camera, (_, height, width) in zip(cameras, form.image_sizes, strict=True):
        path = root / layout.video_path(job.episode_index, camera.key)
        with VideoWriter(path, fps=form.fps, height=height, width=width, codec=form.codec) as video:
            for t in range(job.num_frames):
                video.write(camera.image(t))


def _number_columns(episode: Episode, job: RawJob) -> dict[str, np.ndarray]:
    """All columns but the images, complete."""
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
