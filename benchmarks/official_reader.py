"""Time the official lerobot reading a dataset as openpi does.

    python official_reader.py DATASET_FOLDER NUM_ITEMS DUMP.npz

`bench_train.py` runs this in lerobot's environment. It prints three rates in samples/s over random items: of
`LeRobotDataset.__getitem__` in one process, of a torch DataLoader with two worker processes, and in one process with
what openpi then does to three of the cameras (8-bit levels, resize to 224x224 with Pillow). The first few items go
into DUMP.npz with their indices.
"""

from importlib import import_module
from pathlib import Path
import sys
import time

import numpy as np
from PIL import Image

SIDE_PX = 224
ACTION_HORIZON = 50
NUM_DUMPED = 6
NUM_WORKERS = 2
# Small, so that a few items are enough batches.
BATCH_SIZE = 4
NUM_BATCHES = 12


def main(root: Path, num_items: int, dump: Path) -> None:
    """Open, read, and print three rates."""
    dataset_class = import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    metadata = import_module("lerobot.datasets.lerobot_dataset").LeRobotDatasetMetadata(root.name, root=root)
    windows = {"action": [t / metadata.fps for t in range(ACTION_HORIZON)]}
    dataset = dataset_class(root.name, root=root, delta_timestamps=windows, video_backend="pyav")
    order = np.random.default_rng(0).permutation(len(dataset))[:num_items].tolist()
    items = [dataset[i] for i in order[:NUM_DUMPED]]  # This also warms up.
    numbers = {f"{n}/{key}": np.asarray(value) for n, item in enumerate(items) for key, value in item.items()}
    np.savez(dump, order=order[:NUM_DUMPED], **numbers)
    started = time.perf_counter()
    for i in order:
        dataset[i]
    alone = len(order) / (time.perf_counter() - started)
    cameras = dataset.meta.camera_keys[:3]
    started = time.perf_counter()
    for i in order:
        item = dataset[i]
        for key in cameras:
            shrink(np.asarray(item[key]))
    prepared = len(order) / (time.perf_counter() - started)
    sys.stdout.write(f"{alone} {with_workers(dataset, order)} {prepared}\n")


def shrink(image: np.ndarray) -> np.ndarray:
    """Fit float (3, h, w) in 0..1 into 224x224 as uint8."""
    levels = np.moveaxis((255 * image).astype(np.uint8), 0, -1)
    ratio = max(levels.shape[0], levels.shape[1]) / SIDE_PX
    size = (int(levels.shape[1] / ratio), int(levels.shape[0] / ratio))
    return np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BILINEAR))


def with_workers(dataset: object, order: list[int]) -> float:
    """Return the samples/s of two worker processes.

    Batches that are read while the workers start are not counted.
    """
    data = import_module("torch.utils.data")
    num_warm = 2 * NUM_WORKERS
    indices = [order[i % len(order)] for i in range(BATCH_SIZE * (num_warm + NUM_BATCHES))]
    batches = iter(data.DataLoader(data.Subset(dataset, indices), BATCH_SIZE, num_workers=NUM_WORKERS))
    for _ in range(num_warm):
        next(batches)
    started = time.perf_counter()
    for _ in batches:
        pass
    return NUM_BATCHES * BATCH_SIZE / (time.perf_counter() - started)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
