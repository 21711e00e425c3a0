"""Read the `meta/` folder of a LeRobot v2.0 or v2.1 dataset."""

import bisect
from collections.abc import Mapping
import dataclasses
import os
import pathlib
import shlex
from typing import Any

import numpy as np

from openpi.shared import errors
from openpi.training.lerobot import dim_names
from openpi.training.lerobot import json_files

SUPPORTED_VERSIONS = ("v2.0", "v2.1")
# Columns that every dataset has. They number the frames and say nothing about the robot.
INDEX_KEYS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_IMAGE_DTYPES = ("image", "video")
_WRITE = "Write it into the file"
# Values of keys that a writer has left out of info.json. They are those of the format.
_DEFAULTS = {
    "chunks_size": 1000,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}


@dataclasses.dataclass(frozen=True)
class Episode:
    """One recording."""

    index: int
    # Number of frames.
    length: int
    # Number of frames in all episodes before this one.
    first_frame: int


@dataclasses.dataclass(frozen=True)
class LeRobotMetadata:
    """Contents of the `meta/` folder."""

    repo_id: str
    root: pathlib.Path
    # The content of info.json.
    info: Mapping[str, Any]
    # Task texts by task index.
    tasks: Mapping[int, str]
    episodes: tuple[Episode, ...]

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.info["fps"]

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        """Description (dtype, shape, names) of each key of a frame."""
        return self.info["features"]

    @property
    def total_frames(self) -> int:
        """Frames of all episodes."""
        return sum(episode.length for episode in self.episodes)

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Keys whose values are images."""
        return tuple(key for key, feature in self.features.items() if feature["dtype"] in _IMAGE_DTYPES)

    @property
    def column_keys(self) -> tuple[str, ...]:
        """Keys whose values are numbers or texts, stored as plain columns."""
        return tuple(key for key in self.features if key not in self.camera_keys)

    @property
    def number_keys(self) -> tuple[str, ...]:
        """Keys whose values are numbers, stored as plain columns."""
        return tuple(key for key in self.column_keys if _is_number(self.features[key]["dtype"]))

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a column's values. Single numbers have (1,)."""
        return tuple(self.features[key].get("shape") or (1,))

    def dim_names(self, key: str) -> list[str]:
        """Return the name of each number of a column.

        Names come from info.json. Indices stand in where it has none.
        """
        size = int(np.prod(self.shape(key)))
        names = self.stated_names(key)
        return names if len(names) == size else [str(i) for i in range(size)]

    def stated_names(self, key: str) -> list[str]:
        """Return the names that info.json states for a column.

        There may be none, or too few.
        """
        return dim_names.flatten(self.features[key].get("names"))

    def episode_of(self, frame: int) -> Episode:
        """Return the episode that holds a frame, counted over all episodes."""
        starts = [episode.first_frame for episode in self.episodes]
        return self.episodes[bisect.bisect_right(starts, frame) - 1]

    def is_video(self, key: str) -> bool:
        """Return whether the images of camera `key` are stored as video."""
        return self.features[key]["dtype"] == "video"

    def data_path(self, episode_index: int) -> pathlib.Path:
        """Return the path of an episode's parquet file."""
        return self.root / self.info["data_path"].format(**self._path_fields(episode_index))

    def video_path(self, episode_index: int, key: str) -> pathlib.Path:
        """Return the path of the video file of an episode and camera."""
        return self.root / self.info["video_path"].format(video_key=key, **self._path_fields(episode_index))

    def _path_fields(self, episode_index: int) -> dict[str, int]:
        return {"episode_index": episode_index, "episode_chunk": episode_index // self.info["chunks_size"]}


def default_root() -> pathlib.Path:
    """Return the folder that holds all datasets: $HF_LEROBOT_HOME, or else ./data/lerobot.

    Each repo_id has a sub-folder of its own.
    """
    return pathlib.Path(os.environ.get("HF_LEROBOT_HOME") or "data/lerobot").expanduser()


def load_metadata(repo_id: str, root: pathlib.Path | str | None = None) -> LeRobotMetadata:
    """Read a dataset's `meta/` folder.

    Args:
        repo_id: Name of the dataset.
        root: Folder of the dataset itself. The default is `default_root() / repo_id`.

    Raises:
        MissingFileError: There is no such dataset, or one of its files is missing.
        DataError: The dataset has a version or content that cannot be read.
    """
    directory = (pathlib.Path(root) if root is not None else default_root() / repo_id).absolute()
    info_path = directory / "meta" / "info.json"
    if not info_path.is_file():
        raise errors.MissingFileError(
            f"{directory}: no LeRobot dataset '{repo_id}' here (meta/info.json is missing). Make it with "
            f"'make convert DATA=<recordings> REPO_ID={repo_id}', set HF_LEROBOT_HOME to the folder that holds it, or get it "
            f"from the Hugging Face hub with 'hf download {repo_id} --repo-type dataset --local-dir {shlex.quote(str(directory))}'"
        )
    stated = json_files.read_object(info_path)
    _check_info(stated, info_path)
    info = _plain_info(stated, info_path)
    tasks = _read_tasks(directory / "meta" / "tasks.jsonl")
    episodes = _read_episodes(directory / "meta" / "episodes.jsonl")
    _check_totals(info, episodes, directory)
    return LeRobotMetadata(repo_id=repo_id, root=directory, info=info, tasks=tasks, episodes=episodes)


def _read_tasks(path: pathlib.Path) -> dict[int, str]:
    """Return task texts by their index.

    Indices may have holes and begin anywhere.
    """
    tasks: dict[int, str] = {}
    for line in json_files.read_lines(path):
        index, text = json_files.whole_number(line, "task_index", path), line.get("task")
        if not isinstance(text, str):
            raise errors.DataError(
                f"{path}: task_index {index} has the task {text!r}, expected a text. Write one there"
            )
        if tasks.setdefault(index, text) != text:
            raise errors.DataError(
                f"{path}: task_index {index} has two texts, '{tasks[index]}' and '{text}'. Remove the line that is wrong"
            )
    return tasks


def _read_episodes(path: pathlib.Path) -> tuple[Episode, ...]:
    """Return the episodes in order of their index.

    Each begins where the one before it ends.
    """
    lengths: dict[int, int] = {}
    for line in json_files.read_lines(path):
        index, length = (json_files.whole_number(line, key, path) for key in ("episode_index", "length"))
        if lengths.setdefault(index, length) != length:
            raise errors.DataError(
                f"{path}: episode_index {index} has two lengths, {lengths[index]} and {length}. "
                "Remove the line that is wrong"
            )
    ordered = sorted(lengths.items())
    starts = np.cumsum([0, *(length for _, length in ordered)]).tolist()
    return tuple(Episode(index, length, start) for (index, length), start in zip(ordered, starts, strict=False))


def _check_totals(info: Mapping[str, Any], episodes: tuple[Episode, ...], root: pathlib.Path) -> None:
    """Compare the list of episodes with info.json.

    A list that was cut off is valid JSON.
    """
    found = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    if found["total_frames"] == 0:
        raise errors.DataError(f"{root}: the dataset has no frames. Convert at least one recording with 'make convert'")
    wrong = [key for key, number in found.items() if info.get(key) not in (None, number)]
    if wrong:
        listed = " and ".join(f'"{key}": {found[key]}' for key in wrong)
        raise errors.DataError(
            f"{root}/meta/episodes.jsonl: found {wrong[0]} {found[wrong[0]]}, expected {info[wrong[0]]} (info.json). "
            f"Copy the dataset again, or, if you removed episodes, write {listed} into meta/info.json"
        )


def _check_info(info: Mapping[str, Any], info_path: pathlib.Path) -> None:
    version = info.get("codebase_version")
    if version not in SUPPORTED_VERSIONS:
        raise errors.DataError(
            f"{info_path}: found codebase_version '{version}', expected {' or '.join(SUPPORTED_VERSIONS)}. "
            f"{_version_remedy(version)}"
        )
    if missing := [key for key in ("fps", "features") if not info.get(key)]:
        raise errors.DataError(
            f"{info_path}: keys {missing} are missing. Copy the dataset again, or write them into the file"
        )
    fps, features = info["fps"], info["features"]
    if not isinstance(features, dict):
        raise errors.DataError(f"{info_path}: found features {features!r:.60}, expected an object. {_WRITE}")
    if not isinstance(fps, int | float) or not 0 < fps < np.inf:
        raise errors.DataError(f"{info_path}: found fps {fps!r}, expected frames per second. Write them into the file")
    bad = [key for key, feature in features.items() if not isinstance(feature, dict) or "dtype" not in feature]
    if bad:
        raise errors.DataError(f"{info_path}: features {bad} have no dtype. Write it into the file")
    if absent := [key for key in INDEX_KEYS if key not in features]:
        raise errors.DataError(f"{info_path}: features {absent} are missing, which number the frames. Add them there")


def _plain_info(stated: Mapping[str, Any], info_path: pathlib.Path) -> dict[str, Any]:
    """Return info.json with shapes and paths in the format's form.

    Keys that a writer has left out have the format's own values.

    Raises:
        DataError: They have another form, or lead outside of the dataset.
    """
    info = _DEFAULTS | {key: value for key, value in stated.items() if value or key not in _DEFAULTS}
    features = {}
    for key, feature in info["features"].items():
        shape = feature.get("shape")
        sizes = [json_files.as_whole(size) for size in (shape if isinstance(shape, list) else [shape])]
        if shape is not None and None in sizes:
            raise errors.DataError(
                f"{info_path}: found shape {shape!r} of '{key}', expected a list of whole numbers. {_WRITE}"
            )
        features[key] = feature if shape is None else {**feature, "shape": sizes}
    chunk_size = json_files.as_whole(info["chunks_size"])
    if not chunk_size:
        raise errors.DataError(f"{info_path}: found chunks_size {info['chunks_size']!r}, expected a number. {_WRITE}")
    for key in ("data_path", "video_path"):
        try:
            found = pathlib.Path(info[key].format(episode_index=0, episode_chunk=0, video_key="camera"))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            found = None
        # A dataset does not take in files from elsewhere.
        if found is None or found.is_absolute() or ".." in found.parts:
            raise errors.DataError(
                f"{info_path}: found {key} {info[key]!r}, expected one such as '{_DEFAULTS[key]}'. {_WRITE}"
            )
    return {**info, "features": features, "chunks_size": chunk_size}


def _version_remedy(version: Any) -> str:
    if isinstance(version, str) and version.startswith("v3."):
        return "Convert it to v2.1 with any4lerobot (its v30_to_v21), or its recordings with 'make convert'"
    return "Convert its recordings again with 'make convert'"


def _is_number(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False
