"""Read LeRobot v2.0 and v2.1 datasets for inspection.

One episode is read at a time, and only the wanted images.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from realman import spec
from realman.arrays import Image
from realman.data.dataset import existing
from realman.data.dataset import layout
from realman.data.dataset import tables
from realman.data.dataset.existing import ExistingDataset
from realman.data.dataset.video import read_frames
from realman.data.inspection.decode import decode_small
from realman.data.raw.options import Traj
from realman.errors import DatasetError

_SWAP = np.r_[7:14, 0:7]


@dataclasses.dataclass(frozen=True)
class DatasetMeta:
    """The metadata of a dataset that the inspection needs."""

    dataset: ExistingDataset
    is_left_first: bool
    """Whether the names of the 14 numbers put the left arm first."""
    episodes: tuple[tuple[int, int, str | None], ...]
    """Index, length and task of each episode."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the episodes."""
        return tuple(f"episode_{index:06d}" for index, _, _ in self.episodes)


def is_dataset(path: Path) -> bool:
    """Whether `path` holds a LeRobot dataset."""
    return (path / layout.INFO).is_file()


def read_meta(root: Path) -> DatasetMeta:
    """Read a dataset's metadata.

    Raises:
        DatasetError: The metadata is damaged, of another version, or not of this robot.
    """
    dataset = existing.read(root)
    if missing := [key for key in (spec.STATE_KEY, spec.ACTION_KEY) if key not in dataset.features]:
        raise DatasetError(f"{root}: has no {missing}, found {list(dataset.features)}. Record them")
    for key in (spec.STATE_KEY, spec.ACTION_KEY):
        if (shape := dataset.shape(key)) != (spec.NUM_DIMS,):
            raise DatasetError(
                f"{root}: '{key}' has shape {list(shape)}, expected [{spec.NUM_DIMS}] (both arms with grippers)"
            )
    return DatasetMeta(
        dataset=dataclasses.replace(dataset, tasks=(), episodes=()),
        is_left_first=dataset.arm_order() == "left_right",
        episodes=tuple(
            (e["episode_index"], e["length"], next(iter(e.get("tasks") or ()), None)) for e in dataset.episodes
        ),
    )


class DatasetEpisode:
    """One episode of a dataset, as an `EpisodeView`.

    The right arm comes first, also if the dataset has the left arm first.
    """

    def __init__(self, meta: DatasetMeta, number: int) -> None:
        """Read the numbers of the episode at position `number`."""
        self._dataset, self._is_left_first = meta.dataset, meta.is_left_first
        self._index, length, self.task = meta.episodes[number]
        self._path = self._dataset.root / self._dataset.table(self._index)
        self.fps, self.has_fps = float(self._dataset.fps), True
        self.cameras = _camera_sizes(self._dataset)
        self.recorded_cameras = tuple(self.cameras)
        self.clock_fps: float | None = None
        with tables.open_table(self._path, str(self._path)) as file:
            self.num_frames = file.metadata.num_rows
            if self.num_frames != length or length == 0:
                raise DatasetError(
                    f"{self._path}: found {self.num_frames} rows, expected {length} as in {layout.EPISODES.name}"
                )
            self.state = self._vectors(file, spec.STATE_KEY)
            self.action = self._vectors(file, spec.ACTION_KEY)
            has_velocity = spec.VELOCITY_KEY in self._dataset.features
            self.velocity = self._vectors(file, spec.VELOCITY_KEY) if has_velocity else None
            self.timestamp: np.ndarray | None = self._read(file, "timestamp", (1,)).astype(np.float64).reshape(-1)

    def images(self, camera: str, frames: Sequence[int]) -> Iterator[Image]:
        """Yield frames of a camera as RGB, possibly at a reduced size.

        Raises:
            DatasetError: An image is damaged or missing.
        """
        key = spec.image_key(camera)
        key = key if key in self._dataset.features else camera
        if self._dataset.features[key]["dtype"] == layout.VIDEO:
            path = self._dataset.root / self._dataset.video(self._index, key)
            yield from read_frames(path, set(frames))
            return
        with tables.open_table(self._path, str(self._path)) as file:
            for t, data in tables.images(file, key, frames, self._dataset.root):
                image = decode_small(data)
                if image is None:
                    raise DatasetError(
                        f"{self._path}: '{key}' cannot be decoded at frame {t}. Convert the recordings again"
                    )
                yield image

    def _read(self, file: pq.ParquetFile, key: str, shape: tuple[int, ...]) -> np.ndarray:
        if key not in file.schema_arrow.names:
            raise DatasetError(
                f"{self._path}: columns ['{key}'] are missing, expected as in info.json. Copy the dataset again"
            )
        return tables.read_numbers(file, key, shape, str(self._path))

    def _vectors(self, file: pq.ParquetFile, key: str) -> Traj:
        values = self._read(file, key, (spec.NUM_DIMS,)).astype(np.float32)
        return values[:, _SWAP] if self._is_left_first else values


def _camera_sizes(dataset: ExistingDataset) -> dict[str, tuple[int, int]]:
    """Return height and width of each camera.

    Shapes are (3, height, width) or (height, width, 3). A camera without a shape has the size (0, 0).
    """
    sizes = {}
    for key, feature in dataset.features.items():
        if feature["dtype"] in (layout.IMAGE, layout.VIDEO):
            first, second, third = (*dataset.shape(key), 0, 0)[:3]
            size = (first, second) if third == 3 else (second, third)
            sizes[key.removeprefix(spec.IMAGE_KEY_PREFIX)] = size
    known = [camera for camera in spec.CAMERAS if camera in sizes]
    return {name: sizes[name] for name in [*known, *sorted(set(sizes) - set(known))]}
