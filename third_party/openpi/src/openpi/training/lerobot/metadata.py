"""Read the `meta/` folder of a LeRobot v2.0 or v2.1 dataset."""

import bisect
from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from openpi.shared import errors

SUPPORTED_VERSIONS = ("v2.0", "v2.1")
# Columns that every dataset has. They number the frames and say nothing about the robot.
INDEX_KEYS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_IMAGE_DTYPES = ("image", "video")


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
        """Keys whose values are numbers, stored as plain columns."""
        return tuple(key for key in self.features if key not in self.camera_keys)

    def dim_names(self, key: str) -> list[str]:
        """Return the name of each number of a column.

        Names come from info.json. Indices stand in where it has none.
        """
        size = int(np.prod(self.features[key]["shape"]))
        names = self.features[key].get("names")
        # Datasets use {"motors": [...]} and [[...]] as well as a plain list.
        while names and not isinstance(names, str) and len(names) == 1 and size > 1:
            names = next(iter(names.values())) if isinstance(names, Mapping) else names[0]
        is_complete = isinstance(names, list) and len(names) == size
        return [str(name) for name in names] if is_complete else [str(i) for i in range(size)]

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
            f"from the Hugging Face hub with 'hf download {repo_id} --repo-type dataset --local-dir {directory}'"
        )
    info = _read_json(info_path)
    _check_info(info, info_path)
    # Tasks and episodes. Each episode begins where the one before it ends.
    tasks = {int(line["task_index"]): line["task"] for line in _read_jsonl(directory / "meta" / "tasks.jsonl")}
    episodes = []
    first_frame = 0
    for line in _read_jsonl(directory / "meta" / "episodes.jsonl"):
        episodes.append(Episode(int(line["episode_index"]), int(line["length"]), first_frame))
        first_frame += episodes[-1].length
    if first_frame == 0:
        raise errors.DataError(
            f"{directory}: the dataset has no frames. Convert at least one recording with 'make convert'"
        )
    # A list that was cut off is valid JSON, so its totals must agree with info.json.
    for name, found in (("total_episodes", len(episodes)), ("total_frames", first_frame)):
        if (expected := info.get(name, found)) != found:
            raise errors.DataError(
                f"{directory}/meta/episodes.jsonl: found {name} {found}, expected {expected} (info.json). "
                "Convert the recordings again, or copy the dataset again"
            )
    return LeRobotMetadata(repo_id=repo_id, root=directory, info=info, tasks=tasks, episodes=tuple(episodes))


def _check_info(info: Mapping[str, Any], info_path: pathlib.Path) -> None:
    version = info.get("codebase_version")
    if version not in SUPPORTED_VERSIONS:
        raise errors.DataError(
            f"{info_path}: found codebase_version '{version}', expected {' or '.join(SUPPORTED_VERSIONS)}. "
            "Convert the recordings again with 'make convert', or the dataset with the lerobot release that wrote it"
        )
    missing = [key for key in ("fps", "features", "chunks_size", "data_path") if key not in info]
    if missing:
        raise errors.DataError(
            f"{info_path}: keys {missing} are missing. Convert the recordings again with 'make convert'"
        )


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise errors.MissingFileError(
            f"{path}: file is missing. Convert the recordings again with 'make convert'"
        ) from e
    except json.JSONDecodeError as e:
        raise errors.DataError(f"{path}: not valid JSON ({e}). Convert the recordings again with 'make convert'") from e


def _read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except FileNotFoundError as e:
        raise errors.MissingFileError(
            f"{path}: file is missing. Convert the recordings again with 'make convert'"
        ) from e
    except json.JSONDecodeError as e:
        raise errors.DataError(f"{path}: not valid JSON ({e}). Convert the recordings again with 'make convert'") from e
