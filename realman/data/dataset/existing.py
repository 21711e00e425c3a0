"""Read the metadata of a LeRobot dataset of any writer.

Lines and keys are kept as they are, so that an upgrade loses none of them.
"""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from realman import spec
from realman.data.dataset import arm_names
from realman.data.dataset import layout
from realman.data.dataset.layout import Features
from realman.data.raw.options import ArmOrder
from realman.errors import DatasetError

READABLE_VERSIONS = ("v2.0", "v2.1")

Line = dict[str, Any]

_WRITE = "Write it into the file"


@dataclasses.dataclass(frozen=True)
class ExistingDataset:
    """The metadata of a dataset."""

    root: Path
    info: Mapping[str, Any]
    """The content of info.json."""
    tasks: tuple[Line, ...]
    """Lines of tasks.jsonl, in order of their index."""
    episodes: tuple[Line, ...]
    """Lines of episodes.jsonl, one per episode, in order of their index."""

    @property
    def fps(self) -> float:
        """Frames per second. A whole number is an int."""
        fps = float(self.info["fps"])
        return int(fps) if fps.is_integer() else fps

    @property
    def features(self) -> Features:
        """Description (dtype, shape, names) of each key of a frame."""
        return self.info["features"]

    def table(self, episode_index: int) -> Path:
        """Return the path of an episode's table, relative to the dataset."""
        return layout.data_path(episode_index, self.info.get("data_path") or layout.DATA_PATH, self._chunk_size)

    def video(self, episode_index: int, key: str) -> Path:
        """Return the path of a camera's video, relative to the dataset."""
        template = self.info.get("video_path") or layout.VIDEO_PATH
        return layout.video_path(episode_index, key, template, self._chunk_size)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a feature's values. Single numbers have (1,)."""
        return tuple(self.features[key].get("shape") or (1,))

    def arm_order(self) -> ArmOrder | None:
        """Return which arm the names put first in states and actions.

        Returns None if the names do not say.

        Raises:
            DatasetError: They mix the arms, or differ between states and actions.
        """
        remedy = "Correct the names in the file, or convert the recordings again"
        place = self.root / layout.INFO
        keys = [key for key in (spec.STATE_KEY, spec.ACTION_KEY) if key in self.features]
        try:
            orders = {arm_names.find_arm_order(arm_names.flatten(self.features[key].get("names"))) for key in keys}
        except ValueError as e:
            raise DatasetError(f"{place}: {e}. {remedy}") from e
        known = orders - {None}
        if len(known) > 1:
            raise DatasetError(f"{place}: the names put another arm first in states than in actions. {remedy}")
        return next(iter(known), None)

    @property
    def _chunk_size(self) -> int:
        return self.info.get("chunks_size") or layout.CHUNK_SIZE


def is_number(dtype: str) -> bool:
    """Return whether a feature's dtype is that of numbers.

    Others are texts, images and videos.
    """
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def read(root: Path) -> ExistingDataset:
    """Read a dataset's metadata.

    Raises:
        DatasetError: Files are missing or damaged, contradict each other, or have another version.
    """
    info = _read_info(root / layout.INFO)
    refuse_missing(root, [root / name for name in (layout.TASKS, layout.EPISODES) if not (root / name).is_file()])
    tasks = _read_table(root / layout.TASKS, "task_index", "task", str, "a text")
    episodes = _read_table(root / layout.EPISODES, "episode_index", "length", int, "a number of frames")
    dataset = ExistingDataset(root, info, tuple(tasks.values()), tuple(episodes.values()))
    _check_totals(dataset)
    return dataset


def refuse_missing(root: Path, missing: list[Path]) -> None:
    """Refuse a dataset that lacks files.

    Raises:
        DatasetError: `missing` is not empty.
    """
    if missing:
        names = ", ".join(str(p.relative_to(root)) for p in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DatasetError(f"{root}: files are missing: {names}{more}. Copy the dataset again")


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise DatasetError(f"{path}: is damaged ({e}). Copy the dataset again") from e
    if not isinstance(info, dict) or "codebase_version" not in info:
        raise DatasetError(f"{path}: has no codebase_version, expected the info.json of a LeRobot dataset")
    if (version := info["codebase_version"]) not in READABLE_VERSIONS:
        raise DatasetError(
            f"{path.parents[1]}: is a LeRobot {version} dataset, expected {' or '.join(READABLE_VERSIONS)}. "
            f"{_version_remedy(version)}"
        )
    fps, features = info.get("fps"), info.get("features")
    if not isinstance(fps, int | float) or not 0 < fps < np.inf:
        raise DatasetError(f"{path}: has fps {fps!r}, expected frames per second. Write them into the file")
    if not isinstance(features, dict) or not features:
        raise DatasetError(f"{path}: has no features. Copy the dataset again, or write them into the file")
    bad = [key for key, feature in features.items() if not isinstance(feature, dict) or "dtype" not in feature]
    if bad:
        raise DatasetError(f"{path}: features {bad} have no dtype. Write it into the file")
    return _plain_info(info, path)


def _plain_info(info: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return info.json with its shapes and paths in the format's own form.

    Raises:
        DatasetError: They have another form, or lead outside of the dataset.
    """
    features = {}
    for key, feature in info["features"].items():
        shape = feature.get("shape")
        sizes = [whole(size) for size in (shape if isinstance(shape, list) else [shape])]
        if shape is not None and not all(isinstance(size, int) for size in sizes):
            raise DatasetError(
                f"{path}: feature '{key}' has shape {shape!r}, expected a list of whole numbers. {_WRITE}"
            )
        features[key] = feature if shape is None else {**feature, "shape": sizes}
    # Keys that a writer has left out have the format's own value.
    chunk_size = whole(info.get("chunks_size") or layout.CHUNK_SIZE)
    if not isinstance(chunk_size, int) or not chunk_size:
        raise DatasetError(f"{path}: has chunks_size {info['chunks_size']!r}, expected a whole number. {_WRITE}")
    for key, default in (("data_path", layout.DATA_PATH), ("video_path", layout.VIDEO_PATH)):
        template = info.get(key) or default
        try:
            found = layout.video_path(0, "camera", template, chunk_size)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            found = None
        # A dataset does not take in files from elsewhere.
        if found is None or found.is_absolute() or ".." in found.parts:
            raise DatasetError(f"{path}: has {key} {template!r}, expected one such as '{default}'. {_WRITE}")
    return {**info, "features": features} | ({"chunks_size": chunk_size} if info.get("chunks_size") else {})


def _version_remedy(version: Any) -> str:
    if isinstance(version, str) and version.startswith("v3."):
        return "Convert it to v2.1 with any4lerobot (its v30_to_v21), or its recordings with 'make convert'"
    return "Convert its recordings again with 'make convert'"


def _read_table(path: Path, index_key: str, value_key: str, kind: type, expected: str) -> dict[int, Line]:
    """Return lines by their index, in its order.

    Lines may have any order, and repeat each other.
    """
    lines: dict[int, Line] = {}
    for line in layout.read_json_lines(path):
        if index_key not in line:
            raise DatasetError(f"{path}: is damaged, '{index_key}' is missing in a line. Copy the dataset again")
        index = whole(line[index_key])
        value = line.get(value_key) if kind is str else whole(line.get(value_key))
        if not isinstance(index, int) or not isinstance(value, kind):
            raise DatasetError(
                f"{path}: {index_key} {line[index_key]} has {value_key} {line.get(value_key)!r}, expected {expected}. "
                "Write it into the line"
            )
        plain = {**line, index_key: index, value_key: value}
        if (known := lines.setdefault(index, plain))[value_key] != value:
            raise DatasetError(
                f"{path}: {index_key} {index} has {value_key} '{known[value_key]}' and '{value}'. "
                "Remove the line that is wrong"
            )
    return dict(sorted(lines.items()))


def whole(value: Any) -> Any:
    """Return a whole number that is written as 3, 3.0 or [3].

    Everything else stays.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None if isinstance(value, bool) or (isinstance(value, int) and value < 0) else value


def _check_totals(dataset: ExistingDataset) -> None:
    """Compare the list of episodes with info.json.

    A list that was cut off looks like a whole one.
    """
    num_frames = sum(line["length"] for line in dataset.episodes)
    if num_frames == 0:
        raise DatasetError(f"{dataset.root}: no frames found in {layout.EPISODES}. Convert at least one recording")
    found = {"total_episodes": len(dataset.episodes), "total_frames": num_frames}
    wrong = [key for key, number in found.items() if dataset.info.get(key) not in (None, number)]
    if wrong:
        listed = " and ".join(f'"{key}": {found[key]}' for key in wrong)
        raise DatasetError(
            f"{dataset.root / layout.EPISODES}: found {wrong[0]} {found[wrong[0]]}, expected "
            f"{dataset.info[wrong[0]]} (info.json). Copy the dataset again, or, if you removed episodes, write {listed} "
            f"into {layout.INFO}"
        )
