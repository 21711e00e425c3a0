"""Read LeRobot v2.0 and v2.1 datasets for inspection.

One episode is read at a time, and only the wanted images.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realman import spec
from realman.arrays import Image
from realman.data.dataset import layout
from realman.data.dataset.video import read_frames
from realman.data.inspection.decode import decode_small
from realman.data.raw.options import Traj
from realman.errors import DatasetError

READABLE_VERSIONS = ("v2.0", "v2.1")

_ROWS_AT_ONCE = 8
"""Images read at once from a table that has many in one row group. At 1 MB each this stays small."""

_SWAP = np.r_[7:14, 0:7]


@dataclasses.dataclass(frozen=True)
class DatasetMeta:
    """The metadata of a dataset that the inspection needs."""

    root: Path
    fps: float
    features: dict[str, Any]
    data_path: str
    video_path: str | None
    chunk_size: int
    episodes: tuple[tuple[int, int, str | None], ...]
    """Index, length and task of each episode."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the episodes."""
        return tuple(f"episode_{index:06d}" for index, _, _ in self.episodes)

    @property
    def is_left_first(self) -> bool:
        """Whether the names of the 14 numbers begin with the left arm."""
        names: Any = self.features[spec.STATE_KEY].get("names")
        # Existing datasets have a list, a list in a list, or a list in an object.
        while names and not isinstance(names, str):
            names = next(iter(names.values() if isinstance(names, dict) else names))
        return bool(names) and str(names).startswith("left")


def is_dataset(path: Path) -> bool:
    """Whether `path` holds a LeRobot dataset."""
    return (path / layout.INFO).is_file()


def read_meta(root: Path) -> DatasetMeta:
    """Read a dataset's metadata.

    Raises:
        DatasetError: The metadata is damaged, of another version, or not of this robot.
    """
    # Anything that is missing or has the wrong type counts as damage.
    try:
        info = json.loads((root / layout.INFO).read_text(encoding="utf-8"))
        if info["codebase_version"] not in READABLE_VERSIONS:
            raise DatasetError(
                f"{root}: found a LeRobot {info['codebase_version']} dataset, expected {' or '.join(READABLE_VERSIONS)}"
            )
        lines = sorted(layout.read_json_lines(root / layout.EPISODES), key=lambda line: line["episode_index"])
        meta = DatasetMeta(
            root=root,
            fps=float(info["fps"]),
            features=info["features"],
            data_path=info["data_path"],
            video_path=info["video_path"],
            chunk_size=info["chunks_size"],
            episodes=tuple((e["episode_index"], e["length"], next(iter(e["tasks"]), None)) for e in lines),
        )
        shapes = {key: meta.features[key]["shape"] for key in (spec.STATE_KEY, spec.ACTION_KEY)}
    except (OSError, ValueError, KeyError, TypeError) as e:
        if isinstance(e, DatasetError):
            raise
        raise DatasetError(f"{root / 'meta'}: damaged ({e!r}). Copy the dataset again") from e
    for key, shape in shapes.items():
        if shape != [spec.NUM_DIMS]:
            raise DatasetError(
                f"{root}: '{key}' has shape {shape}, expected [{spec.NUM_DIMS}] (both arms with grippers)"
            )
    if not meta.episodes:
        raise DatasetError(f"{root}: no episodes found. Convert the recordings again")
    return meta


class DatasetEpisode:
    """One episode of a dataset, as an `EpisodeView`.

    The right arm comes first, also if the dataset has the left arm first.
    """

    def __init__(self, meta: DatasetMeta, number: int) -> None:
        """Read the numbers of the episode at position `number`."""
        self._meta = meta
        self._index, length, self.task = meta.episodes[number]
        self._path = meta.root / layout.data_path(self._index, meta.data_path, meta.chunk_size)
        self.fps, self.has_fps = meta.fps, True
        self.cameras = _camera_sizes(meta.features)
        keys = [spec.STATE_KEY, spec.ACTION_KEY, "timestamp"]
        has_velocity = spec.VELOCITY_KEY in meta.features
        table = self._read([*keys, spec.VELOCITY_KEY] if has_velocity else keys)
        self.num_frames = len(table)
        if self.num_frames != length or length == 0:
            raise DatasetError(
                f"{self._path}: found {self.num_frames} rows, expected {length} as in {layout.EPISODES.name}"
            )
        self.state = self._vectors(table, spec.STATE_KEY)
        self.action = self._vectors(table, spec.ACTION_KEY)
        self.velocity = self._vectors(table, spec.VELOCITY_KEY) if has_velocity else None
        self.timestamp: np.ndarray | None = np.array(table["timestamp"].to_pylist(), np.float64).reshape(-1)

    def images(self, camera: str, frames: Sequence[int]) -> Iterator[Image]:
        """Yield frames of a camera as RGB, possibly at a reduced size.

        Raises:
            DatasetError: An image is damaged or missing.
        """
        key = spec.image_key(camera)
        if self._meta.features[key]["dtype"] == layout.VIDEO:
            template = self._meta.video_path or layout.VIDEO_PATH
            path = self._meta.root / layout.video_path(self._index, key, template, self._meta.chunk_size)
            yield from read_frames(path, set(frames))
            return
        for t, data in self._encoded(key, frames):
            image = decode_small(data or b"")
            if image is None:
                raise DatasetError(
                    f"{self._path}: '{key}' cannot be decoded at frame {t}. Convert the recordings again"
                )
            yield image

    def _encoded(self, key: str, frames: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
        """Yield the encoded images of the wanted frames.

        Row groups without a wanted frame are not read. The others are read piece by piece.
        """
        wanted, start = set(frames), 0
        with pq.ParquetFile(self._path, pre_buffer=False, buffer_size=2**20) as file:
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if not wanted.isdisjoint(range(start, stop)):
                    t = start
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[key]):
                        for row in range(len(batch)):
                            if t in wanted:
                                yield t, batch.column(0)[row].as_py()["bytes"]
                            t += 1
                start = stop

    def _read(self, columns: list[str]) -> pa.Table:
        try:
            table = pq.read_table(self._path, columns=columns)
        except (OSError, pa.ArrowInvalid) as e:
            raise DatasetError(f"{self._path}: cannot be read ({e}). Copy the dataset again") from e
        missing = set(columns) - set(table.column_names)
        if missing:
            raise DatasetError(
                f"{self._path}: columns {sorted(missing)} are missing, expected as in info.json. Copy the dataset again"
            )
        return table

    def _vectors(self, table: pa.Table, key: str) -> Traj:
        values = np.array(table[key].to_pylist(), np.float32)
        if values.shape != (len(table), spec.NUM_DIMS):
            raise DatasetError(f"{self._path}: '{key}' has shape {values.shape}, expected (T, {spec.NUM_DIMS})")
        return values[:, _SWAP] if self._meta.is_left_first else values


def _camera_sizes(features: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return height and width of each camera.

    Shapes are (3, height, width) or (height, width, 3).
    """
    keys = [k for k in features if features[k]["dtype"] in (layout.IMAGE, layout.VIDEO)]
    shapes = {k.removeprefix(spec.IMAGE_KEY_PREFIX): features[k]["shape"] for k in keys}
    sizes = {name: (s[0], s[1]) if s[2] == 3 else (s[1], s[2]) for name, s in shapes.items()}
    known = [camera for camera in spec.CAMERAS if camera in sizes]
    return {name: sizes[name] for name in [*known, *sorted(set(sizes) - set(known))]}
