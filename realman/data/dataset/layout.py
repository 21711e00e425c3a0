"""The LeRobot v2.1 format on disk: names, paths, features and metadata.

This module knows nothing about recordings or robot drivers. The tree:
`meta/{info.json,tasks.jsonl,episodes.jsonl,episodes_stats.jsonl}`, `data/chunk-000/episode_000000.parquet` and, in
video mode, `videos/chunk-000/<camera key>/episode_000000.mp4`.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from realman import spec
from realman.errors import DatasetError

CODEBASE_VERSION = "v2.1"
CHUNK_SIZE = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"

INFO = Path("meta/info.json")
TASKS = Path("meta/tasks.jsonl")
EPISODES = Path("meta/episodes.jsonl")
EPISODES_STATS = Path("meta/episodes_stats.jsonl")
SOURCES = Path("meta/sources.jsonl")
"""Our addition: the recording of each episode."""
CONVERSION = Path("meta/conversion.json")
"""Our addition: how the recordings were read and their images stored."""
REJECTED = Path("meta/rejected.json")
"""Our addition: recordings that were left out, with reasons."""

Features = dict[str, dict[str, Any]]
"""The `features` of info.json: key -> {dtype, shape, names}, and `info` for videos."""

IMAGE = "image"
VIDEO = "video"

_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x7f\x85\u2028\u2029"}

INDEX_FEATURES: Features = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
"""Columns that the format adds to every dataset, at the end and in this order."""


def robot_features(
    image_sizes: Sequence[tuple[str, int, int]],
    *,
    has_velocity: bool,
    has_effort: bool,
    video_info: Mapping[str, Any] | None = None,
) -> Features:
    """Return the features of a dataset of this robot.

    Their order is that of a RealMan user's own dataset.

    Args:
        image_sizes: Camera name, height and width in px.
        has_velocity: Whether joint velocities are stored.
        has_effort: Whether joint efforts are stored.
        video_info: Facts common to all videos. None means that single images are stored.
    """
    # Vectors come first, then cameras.
    keys = [spec.STATE_KEY, spec.ACTION_KEY]
    keys += [spec.VELOCITY_KEY] * has_velocity + [spec.EFFORT_KEY] * has_effort
    features: Features = {
        key: {"dtype": "float32", "shape": [spec.NUM_DIMS], "names": [list(spec.DIM_NAMES)]} for key in keys
    }
    for camera, height, width in image_sizes:
        shape = {"shape": [3, height, width], "names": ["channels", "height", "width"]}
        if video_info is None:
            features[spec.image_key(camera)] = {"dtype": IMAGE, **shape}
        else:
            size = {"video.height": height, "video.width": width}
            features[spec.image_key(camera)] = {"dtype": VIDEO, **shape, "info": {**size, **video_info}}
    return {**features, **INDEX_FEATURES}


def keys_of(features: Features, dtype: str) -> list[str]:
    """Return the keys of all features of one dtype, such as `image`."""
    return [key for key, feature in features.items() if feature["dtype"] == dtype]


def camera_keys(root: Path) -> list[str]:
    """Return the keys of all images and videos of a dataset."""
    features = json.loads((root / INFO).read_text(encoding="utf-8"))["features"]
    return keys_of(features, IMAGE) + keys_of(features, VIDEO)


def data_path(episode_index: int, template: str = DATA_PATH, chunk_size: int = CHUNK_SIZE) -> Path:
    """Return the path of an episode's Parquet file, relative to the dataset."""
    return Path(template.format(episode_chunk=episode_index // chunk_size, episode_index=episode_index))


def video_path(episode_index: int, video_key: str, template: str = VIDEO_PATH, chunk_size: int = CHUNK_SIZE) -> Path:
    """Return the path of an episode's video, relative to the dataset."""
    chunk = episode_index // chunk_size
    return Path(template.format(episode_chunk=chunk, episode_index=episode_index, video_key=video_key))


def make_info(
    features: Features, *, robot_type: str, fps: float, num_frames: Sequence[int], num_tasks: int
) -> dict[str, Any]:
    """Return the content of info.json.

    Args:
        features: Features of the dataset.
        robot_type: Name of the robot.
        fps: Frames per second.
        num_frames: Number of frames of each episode.
        num_tasks: Number of different tasks.
    """
    num_episodes = len(num_frames)
    video_keys = keys_of(features, VIDEO)
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": robot_type,
        "total_episodes": num_episodes,
        "total_frames": sum(num_frames),
        "total_tasks": num_tasks,
        "total_videos": num_episodes * len(video_keys),
        "total_chunks": -(-num_episodes // CHUNK_SIZE),
        "chunks_size": CHUNK_SIZE,
        "fps": fps,
        "splits": {"train": f"0:{num_episodes}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if video_keys else None,
        "features": features,
    }


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, and create the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Write one JSON object per line, and create the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_one_line(json.dumps(record, ensure_ascii=False)) + "\n" for record in records)


def _one_line(text: str) -> str:
    """Escape what some readers take for the end of a line."""
    return text.translate(_LINE_ENDS)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line.

    Raises:
        DatasetError: A line is not a JSON object.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (ValueError, RecursionError) as e:
        raise DatasetError(f"{path}: is damaged ({e}). Copy the dataset again") from e
    if any(not isinstance(line, dict) for line in lines):
        raise DatasetError(f"{path}: is damaged (a line is not a JSON object). Copy the dataset again")
    return lines
