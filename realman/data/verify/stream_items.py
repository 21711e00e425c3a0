"""Stream every item that the official lerobot loads to standard output.

This script runs in lerobot's own environment:

    python stream_items.py DATASET_FOLDER

It imports nothing from this project, so it sends what any user of lerobot sees. The stream starts with a line of JSON:
the library's version, the number of items, and the dtype and shape of each array of an item by key. Each item follows
as a line of JSON and the bytes of its arrays in that order. Images are sent as 8-bit levels. The item's line names
those whose numbers are not exactly n / 255.
"""

import importlib
from importlib.metadata import version
import json
import os
from pathlib import Path
import sys
from typing import Any, BinaryIO

import numpy as np


def main(root: Path) -> None:
    """Stream the dataset at `root`."""
    # Anything that a library prints goes to the log, not into the stream.
    with os.fdopen(os.dup(1), "wb") as stream:
        os.dup2(2, 1)
        send(load(root), stream)


def load(root: Path) -> Any:
    """Open a dataset from its folder alone.

    The caller has switched the Hub off.
    """
    lerobot_dataset = importlib.import_module("lerobot.datasets.lerobot_dataset")
    return lerobot_dataset.LeRobotDataset(f"{root.parent.name}/{root.name}", root=root, video_backend="pyav")


def send(dataset: Any, stream: BinaryIO) -> None:
    """Write all items in the format described at the top."""
    header = None
    for i in range(len(dataset)):
        item = dataset[i]
        # Split the item into texts and arrays, and turn images back into 8-bit levels.
        texts = {key: value for key, value in item.items() if isinstance(value, str)}
        arrays, inexact = {}, []
        for key, value in item.items():
            if key in texts:
                continue
            array = np.asarray(value)
            if key in dataset.meta.camera_keys:
                levels = np.rint(array * 255).astype(np.uint8)
                if not np.array_equal(levels.astype(np.float32) / 255, array):
                    inexact.append(key)
                array = levels
            arrays[key] = np.asarray(array, order="C")
        # The first item provides the header.
        if header is None:
            header = {key: [a.dtype.str, list(a.shape)] for key, a in arrays.items()}
            write_line(stream, {"lerobot": version("lerobot"), "num_items": len(dataset), "arrays": header})
        write_line(stream, {**texts, "inexact": inexact})
        for key in header:
            stream.write(arrays[key].tobytes())


def write_line(stream: BinaryIO, content: dict[str, Any]) -> None:
    """Write one object as a line of JSON."""
    stream.write(json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
