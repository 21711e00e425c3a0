"""Make a dataset for benchmarks that read only its numbers.

Its numbers have the real size and layout, and its images are tiny.
"""

import json
from pathlib import Path
import shutil

import cv2
import numpy as np

from realman import spec
from realman.data.dataset import layout
from realman.data.dataset.parquet import EpisodeTable

FPS = 50
_SIZE = (48, 64)


def make(root: Path, episodes: int, frames: int) -> Path:
    """Write the dataset at `root` unless it is there, and return `root`.

    It has four cameras and `episodes` of `frames` each.
    """
    done = root / f".made_{episodes}_{frames}"
    if done.exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    features = _features()
    (root / "meta").mkdir(parents=True)
    lines = [{"episode_index": i, "tasks": ["move"], "length": frames} for i in range(episodes)]
    _write_lines(root / "meta/episodes.jsonl", lines)
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": "move"}])
    info = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "chunks_size": 1000,
        "total_episodes": episodes,
        "total_frames": episodes * frames,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    image = cv2.imencode(".jpg", np.full((*_SIZE, 3), 90, np.uint8))[1].tobytes()
    for i in range(episodes):
        _write_episode(root / f"data/chunk-000/episode_{i:06d}.parquet", features, i, frames, image)
    done.touch()
    return root


def _features() -> dict:
    vector = {"dtype": "float32", "shape": [spec.NUM_DIMS], "names": list(spec.DIM_NAMES)}
    image = {"dtype": "image", "shape": [*_SIZE, 3], "names": ["height", "width", "channels"]}
    features = dict.fromkeys((spec.STATE_KEY, spec.ACTION_KEY, spec.VELOCITY_KEY, spec.EFFORT_KEY), vector)
    features |= {f"{spec.IMAGE_KEY_PREFIX}{camera}": image for camera in spec.CAMERAS}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    index = {"dtype": "int64", "shape": [1], "names": None}
    return features | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), index)


def _write_episode(path: Path, features: dict, episode: int, frames: int, image: bytes) -> None:
    t = np.arange(frames)
    rng = np.random.default_rng(episode)
    columns: dict = {}
    for key, feature in features.items():
        if feature["dtype"] == layout.IMAGE:
            columns[key] = [(image, f"frame_{i:06d}.jpg") for i in t]
        elif feature["shape"] != [1]:
            waves = np.sin(t[:, None] / 25 + rng.uniform(0, 6, spec.NUM_DIMS))
            columns[key] = (0.5 + 0.4 * waves + rng.normal(0, 0.005, waves.shape)).astype(np.float32)
    columns |= {"timestamp": (t / FPS).astype(np.float32), "frame_index": t, "episode_index": np.full(frames, episode)}
    columns |= {"index": episode * frames + t, "task_index": np.zeros(frames, np.int64)}
    with EpisodeTable(path, features) as table:
        table.write(columns)


def _write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
