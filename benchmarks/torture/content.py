"""Digests of recordings and datasets, to compare what they say.

`recordings` and `dataset` read the files by the libraries of their formats alone, so that the product is judged by
something else. `loaded` reads a dataset as training does.
"""

from collections.abc import Iterable
import hashlib
import json
from pathlib import Path
import re
from typing import Any

import cv2
import numpy as np

from realman import spec

Content = dict[str, Any]
"""Keys: `lengths`, `state`, `action` and `images` are numbers, `tasks` and `fps` are what people wrote."""

NUMBERS = ("lengths", "state", "action", "images")


class _Digest:
    """Collects numbers, of any type, as float32, and images as they are."""

    def __init__(self) -> None:
        self._hashes = {key: hashlib.sha256() for key in ("state", "action", "images")}
        self._lengths: list[int] = []
        self._tasks: list[str] = []

    def add(self, state: np.ndarray, action: np.ndarray, images: Iterable[np.ndarray], tasks: Iterable[str]) -> None:
        self._lengths.append(len(state))
        for key, values in (("state", state), ("action", action)):
            self._hashes[key].update(np.ascontiguousarray(values, dtype=np.float32).tobytes())
        for image in images:
            self._hashes["images"].update(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        self._tasks += tasks

    def content(self, fps: float) -> Content:
        digests = {key: digest.hexdigest() for key, digest in self._hashes.items()}
        return {"lengths": self._lengths, "tasks": self._tasks, "fps": float(fps), **digests}


def _rgb(data: Any) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError("an image cannot be decoded")
    return found[..., ::-1]


def recordings(folder: Path) -> Content:
    """Read recordings by h5py alone.

    Any damage that shows raises an error.
    """
    import h5py

    digest, rates = _Digest(), set()
    # In the order of their numbers, as they are converted.
    for path in sorted(folder.glob("*.hdf5"), key=lambda p: int(re.sub(r"\D", "", p.stem) or 0)):
        with h5py.File(path, "r") as file:
            stored = [file[f"observations/images/{camera}"][:] for camera in spec.CAMERAS]
            images = [image if image.ndim == 3 else _rgb(image) for rows in stored for image in rows]
            task = file.attrs["language_instruction"]
            digest.add(file["observations/qpos"][:], file["action"][:], images, [str(task)])
            rates.add(float(file.attrs["fps"]))
    (fps,) = rates
    return digest.content(fps)


def dataset(root: Path) -> Content:
    """Read a dataset by pyarrow and PyAV alone.

    Any damage that shows raises an error.
    """
    import pyarrow.parquet as pq

    info = json.loads((root / "meta/info.json").read_text())
    lines = (root / "meta/tasks.jsonl").read_text().splitlines()
    tasks = {task["task_index"]: task["task"] for task in map(json.loads, filter(None, lines))}
    digest = _Digest()
    for path in sorted(root.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        rows = [np.stack(table[key].to_numpy()) for key in (spec.STATE_KEY, spec.ACTION_KEY)]
        names = {tasks[index] for index in table["task_index"].to_pylist()}
        digest.add(*rows, _images(root, path, table), sorted(names))
    return digest.content(info["fps"])


def _images(root: Path, path: Path, table: Any) -> Iterable[np.ndarray]:
    import av

    for camera in spec.CAMERAS:
        key = spec.image_key(camera)
        if key in table.column_names:
            yield from (_rgb(row["bytes"]) for row in table[key].to_pylist())
            continue
        video = root / "videos" / path.parent.name / key / f"{path.stem}.mp4"
        with av.open(str(video)) as container:
            yield from (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))


def loaded(root: Path) -> Content:
    """Read a dataset as training does."""
    from openpi.training.lerobot.dataset import LeRobotDataset

    found = LeRobotDataset(root.name, root=root)
    digest = _Digest()
    for episode in found.meta.episodes:
        items = [found[i] for i in range(episode.first_frame, episode.first_frame + episode.length)]
        state, action = (np.stack([item[key].reshape(-1) for item in items]) for key in (spec.STATE_KEY, "action"))
        images = [item[spec.image_key(c)].transpose(1, 2, 0) for c in spec.CAMERAS for item in items]
        digest.add(state, action, images, sorted({item["task"] for item in items}))
    return digest.content(found.meta.fps)


def files(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder, by its path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
