"""Open recordings and datasets through one small interface."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from realman.arrays import Image
from realman.data import checks
from realman.data.inspection import lerobot
from realman.data.inspection.decode import decode_small
from realman.data.raw import Episode
from realman.data.raw import RawOptions
from realman.data.raw import find_episodes
from realman.data.raw import open_episode
from realman.data.raw import plausible
from realman.data.raw.folder import recording_name
from realman.data.raw.options import Traj
from realman.errors import EpisodeError


@runtime_checkable
class EpisodeView(Protocol):
    """What is read of one episode.

    Grippers are not clipped, so that checks see how far beyond 0..1 they are.
    """

    num_frames: int
    fps: float
    has_fps: bool
    """Whether the rate is stated. Otherwise it is assumed."""
    task: str | None
    cameras: dict[str, tuple[int, int]]
    """Height and width in px of each camera."""
    recorded_cameras: tuple[str, ...]
    """Names of all cameras, also of those that cannot be read."""
    clock_fps: float | None
    """Frames per second by the recorder's clock. None if it has none, and for a dataset."""
    state: Traj
    action: Traj
    velocity: Traj | None
    timestamp: np.ndarray | None
    """Seconds of each frame. None for formats without timestamps."""

    def images(self, camera: str, frames: Sequence[int]) -> Iterator[Image]:
        """Yield frames of a camera as RGB, possibly at a reduced size.

        `frames` must be ascending.
        """
        ...


@dataclasses.dataclass(frozen=True)
class InspectedData:
    """Recordings or a dataset, and how to read them."""

    path: Path
    options: RawOptions
    dataset: lerobot.DatasetMeta | None
    """None for recordings."""
    names: tuple[str, ...]
    """Names of the episodes, for messages."""

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[EpisodeView]:
        """Open one episode.

        Raises:
            EpisodeError: The recording is damaged.
            DatasetError: The dataset's files are damaged.
        """
        if self.dataset is not None:
            yield lerobot.DatasetEpisode(self.dataset, self.names.index(name))
            return
        with open_episode(self._file_of(name), self.options, cameras=(), name=name) as episode:
            yield RawView(episode)

    def converter_problem(self, name: str, cameras: Sequence[str]) -> str | None:
        """Return why the converter would refuse a recording.

        Returns None if it would not, and for a dataset.
        """
        if self.dataset is not None:
            return None
        return checks.check_episode(self._file_of(name), self.options, cameras, name=name).problem

    def _file_of(self, name: str) -> Path:
        return self.path if self.path.is_file() else self.path / name


def open_data(path: Path, options: RawOptions) -> InspectedData:
    """Find the episodes of recordings or of a dataset.

    Raises:
        EpisodeError: There are none, or options for recordings are given for a dataset.
        DatasetError: The dataset's metadata is damaged.
    """
    if lerobot.is_dataset(path):
        if options != RawOptions():
            raise EpisodeError(f"{path}: found options for recordings, but this is a LeRobot dataset. Leave them out")
        meta = lerobot.read_meta(path)
        return InspectedData(path, options, meta, meta.names)
    names = tuple(recording_name(file, path) for file in find_episodes(path))
    return InspectedData(path, options, None, names)


class RawView:
    """An open recording as an `EpisodeView`."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self.num_frames = episode.num_frames
        self.fps = float(episode.fps)
        self.has_fps = episode.has_fps
        self.task = episode.task
        streams = {name: episode.camera(name) for name in episode.cameras}
        self.cameras = {name: (stream.height, stream.width) for name, stream in streams.items()}
        self.recorded_cameras = (*self.cameras, *episode.broken_cameras)
        times = episode.timestamps
        self.clock_fps = None if times is None else plausible.clock_rate(times, episode.fps)
        self.state = episode.unclipped_state
        self.action = episode.unclipped_action
        self.velocity = episode.velocity
        self.timestamp: np.ndarray | None = None

    def images(self, camera: str, frames: Sequence[int]) -> Iterator[Image]:
        """Yield frames of a camera as RGB, possibly at a reduced size."""
        for t in frames:
            data = self._episode.encoded_image(camera, t)
            small = None if data is None else decode_small(data)
            # If an image is damaged, the reader of recordings raises an error with file and frame.
            yield self._episode.image(camera, t) if small is None else small
