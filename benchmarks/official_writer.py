"""Time the official lerobot writing a recording as its examples do.

    python official_writer.py RECORDING TARGET image|video NUM_FRAMES

`bench_convert.py` runs this in lerobot's environment. It prints the seconds that writing took, without the library's
import. It uses four threads per camera, as the library recommends.
"""

from importlib import import_module
import io
from pathlib import Path
import sys
import time

import h5py
import numpy as np
from PIL import Image


def main(recording: Path, target: Path, mode: str, num_frames: int) -> None:
    """Write the first frames of a recording as one episode."""
    dataset_class = import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    with h5py.File(recording) as file:
        images = file["observations/images"]
        vector = {"dtype": "float32", "shape": (14,), "names": [f"n{i}" for i in range(14)]}
        features = dict.fromkeys(("observation.state", "action", "observation.velocity", "observation.effort"), vector)
        image = {"dtype": mode, "shape": (3, 480, 640), "names": ["channels", "height", "width"]}
        features |= {f"observation.images.{camera}": image for camera in images}
        started = time.perf_counter()
        dataset = dataset_class.create(
            "bench/official",
            fps=50,
            root=target,
            features=features,
            use_videos=mode == "video",
            image_writer_threads=4 * len(images),
        )
        for t in range(num_frames):
            dataset.add_frame(_frame(file, t), task="fold the towel")
        dataset.save_episode()
        sys.stdout.write(f"{time.perf_counter() - started}\n")


def _frame(file: h5py.File, t: int) -> dict:
    vectors = {
        "observation.state": "observations/qpos",
        "action": "action",
        "observation.velocity": "observations/qvel",
        "observation.effort": "observations/effort",
    }
    images = {f"observation.images.{c}": _image(d[t]) for c, d in file["observations/images"].items()}
    return {**{key: file[name][t].astype(np.float32) for key, name in vectors.items()}, **images}


def _image(stored: np.ndarray) -> np.ndarray:
    if stored.ndim == 3:
        return stored
    return np.asarray(Image.open(io.BytesIO(stored.tobytes())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
