"""A tiny dataset, and the ways in which other writers would have stored the same one.

Each dialect is a function that changes the folder of a dataset. What a reader sees stays the same.
"""

from collections.abc import Callable
import io
import json
import pathlib
import shutil
from typing import Any

import numpy as np
from PIL import Image
import pyarrow as pa
import pyarrow.parquet as pq

from realman import spec

LENGTHS = (5, 4)
FPS = 50
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
TASKS = ("fold the towel", "put the\u2028cup down")
INDEX_KEYS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
VECTORS = ("observation.state", "action")
VECTOR = pa.list_(pa.float32(), spec.NUM_DIMS)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def vectors(kind: int, episode: int) -> np.ndarray:
    t = np.arange(LENGTHS[episode])[:, None]
    return (0.4 * np.sin(0.3 * t + 0.5 * np.arange(14) + episode + kind) + 0.5).astype(np.float32)


def image(camera: int, episode: int, t: int) -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    return np.stack([8 * x, 10 * y, np.full_like(x, 40 * camera + 20 * episode + 3 * t)], -1).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make(root: pathlib.Path) -> pathlib.Path:
    """Write the dataset in the form of this project."""
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    features: dict[str, Any] = {
        key: {"dtype": "float32", "shape": [14], "names": [list(spec.DIM_NAMES)]} for key in VECTORS
    }
    names = ["channels", "height", "width"]
    features |= {spec.image_key(c): {"dtype": "image", "shape": [3, 24, 32], "names": names} for c in CAMERAS}
    features |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in INDEX_KEYS}
    features["timestamp"]["dtype"] = "float32"
    info = {"codebase_version": "v2.1", "robot_type": "realman", "total_episodes": 2, "total_frames": sum(LENGTHS)}
    info |= {"total_tasks": 2, "total_videos": 0, "total_chunks": 1, "chunks_size": 1000, "fps": FPS}
    info |= {
        "splits": {"train": "0:2"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }
    write_info(root, info | {"video_path": None, "features": features})
    write_lines(root, "tasks", [{"task_index": i, "task": text} for i, text in enumerate(TASKS)])
    write_lines(
        root, "episodes", [{"episode_index": e, "tasks": [TASKS[e]], "length": n} for e, n in enumerate(LENGTHS)]
    )
    for episode, length in enumerate(LENGTHS):
        t = np.arange(length)
        columns: dict[str, Any] = {key: pa.array(vectors(k, episode).tolist(), VECTOR) for k, key in enumerate(VECTORS)}
        for c, camera in enumerate(CAMERAS):
            cells = [{"bytes": png(image(c, episode, i)), "path": f"frame_{i:06d}.png"} for i in t]
            columns[spec.image_key(camera)] = pa.array(cells, IMAGE)
        columns |= {"timestamp": (t / FPS).astype(np.float32), "frame_index": t, "index": t + episode * LENGTHS[0]}
        columns |= {"episode_index": np.full(length, episode), "task_index": np.full(length, episode)}
        pq.write_table(pa.table(columns), table_path(root, episode))
    return root


def table_path(root: pathlib.Path, episode: int) -> pathlib.Path:
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def read_info(root: pathlib.Path) -> dict[str, Any]:
    return json.loads((root / "meta/info.json").read_text())


def write_info(root: pathlib.Path, info: dict[str, Any]) -> None:
    (root / "meta/info.json").write_text(json.dumps(info))


def read_lines(root: pathlib.Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / f"meta/{name}.jsonl").read_text().split("\n") if line]


def write_lines(root: pathlib.Path, name: str, lines: list[dict[str, Any]], *, mark: str = "", end: str = "\n") -> None:
    text = mark + "".join(json.dumps(line, ensure_ascii=False) + end for line in lines)
    (root / f"meta/{name}.jsonl").write_bytes(text.encode())


def change_info(**changes: Any) -> Callable[[pathlib.Path], None]:
    return lambda root: write_info(root, read_info(root) | changes)


def drop_info(*keys: str) -> Callable[[pathlib.Path], None]:
    return lambda root: write_info(root, {k: v for k, v in read_info(root).items() if k not in keys})


def change_features(change: Callable[[dict[str, Any]], Any]) -> Callable[[pathlib.Path], None]:
    def apply(root: pathlib.Path) -> None:
        info = read_info(root)
        change(info["features"])
        write_info(root, info)

    return apply


def names(value: Any) -> Callable[[pathlib.Path], None]:
    return change_features(lambda features: [features[key].update(names=value) for key in VECTORS])


def change_tables(change: Callable[[pa.Table], pa.Table], **layout: Any) -> Callable[[pathlib.Path], None]:
    def apply(root: pathlib.Path) -> None:
        for episode in range(len(LENGTHS)):
            path = table_path(root, episode)
            pq.write_table(change(pq.read_table(path)), path, **layout)

    return apply


def columns(keys: tuple[str, ...], convert: Callable[[pa.ChunkedArray], Any]) -> Callable[[pathlib.Path], None]:
    def change(table: pa.Table) -> pa.Table:
        for key in keys:
            table = table.set_column(table.schema.get_field_index(key), key, convert(table[key]))
        return table

    return change_tables(change)


def cast(kind: pa.DataType) -> Callable[[pa.ChunkedArray], Any]:
    return lambda column: pa.array(column.to_pylist(), kind)


def add_column(
    key: str, dtype: str, values: list[Any], shape: tuple[int, ...] = (1,)
) -> Callable[[pathlib.Path], None]:
    def apply(root: pathlib.Path) -> None:
        change_features(lambda f: f.update({key: {"dtype": dtype, "shape": list(shape), "names": None}}))(root)
        change_tables(lambda table: table.append_column(key, pa.array(values * len(table))))(root)

    return apply


def images_as_files(root: pathlib.Path) -> None:
    for episode, length in enumerate(LENGTHS):
        path = table_path(root, episode)
        table = pq.read_table(path)
        for camera in CAMERAS:
            key = spec.image_key(camera)
            files = [f"images/{key}/episode_{episode:06d}/frame_{t:06d}.png" for t in range(length)]
            for file, cell in zip(files, table[key].to_pylist(), strict=True):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                (root / file).write_bytes(cell["bytes"])
            cells = pa.array([{"bytes": None, "path": file} for file in files], IMAGE)
            table = table.set_column(table.schema.get_field_index(key), key, cells)
        pq.write_table(table, path)


def images_by_path_alone(root: pathlib.Path) -> None:
    images_as_files(root)
    columns(CAMERA_KEYS, lambda column: pa.array([cell["path"] for cell in column.to_pylist()]))(root)


def tables_in_small_chunks(root: pathlib.Path) -> None:
    change_info(chunks_size=1, data_path="data/part-{episode_chunk}/{episode_index}.parquet")(root)
    for episode in range(len(LENGTHS)):
        (root / f"data/part-{episode}").mkdir()
        shutil.move(table_path(root, episode), root / f"data/part-{episode}/{episode}.parquet")


def tasks_with_holes(root: pathlib.Path) -> None:
    write_lines(root, "tasks", [{"task_index": 3 + 4 * i, "task": text} for i, text in enumerate(TASKS)])
    columns(("task_index",), lambda column: pa.array([3 + 4 * i for i in column.to_pylist()]))(root)


def stats_of_vectors_alone(root: pathlib.Path) -> None:
    part = {"min": [0.0] * 14, "max": [1.0] * 14, "mean": [0.5] * 14, "std": [0.1] * 14}
    write_lines(root, "episodes_stats", [{"episode_index": e, "stats": dict.fromkeys(VECTORS, part)} for e in range(2)])


def stats_by_lists_of_one(root: pathlib.Path) -> None:
    stats_of_vectors_alone(root)
    for name in ("episodes_stats", "sources"):
        lines = read_lines(root, "episodes_stats")
        write_lines(root, name, [{**line, "episode_index": [e], "source": f"{e}.hdf5"} for e, line in enumerate(lines)])


def in_form(name: str, **form: Any) -> Callable[[pathlib.Path], None]:
    return lambda root: write_lines(root, name, read_lines(root, name), **form)


def byte_order_mark_in_info(root: pathlib.Path) -> None:
    path = root / "meta/info.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


CAMERA_KEYS = tuple(spec.image_key(camera) for camera in CAMERAS)
INTEGERS = tuple(key for key in INDEX_KEYS if key != "timestamp")

DIALECTS: dict[str, Callable[[pathlib.Path], None]] = {
    "as written here": lambda root: None,
    "v2.0": change_info(codebase_version="v2.0"),
    "byte order mark in info": byte_order_mark_in_info,
    "byte order marks and carriage returns": in_form("tasks", mark="\ufeff", end="\r\n"),
    "blank lines": in_form("episodes", end="\n\n \n"),
    "lines in another order": lambda root: write_lines(root, "episodes", read_lines(root, "episodes")[::-1]),
    "lines twice": lambda root: write_lines(root, "tasks", read_lines(root, "tasks") * 2),
    "tasks with holes": tasks_with_holes,
    "lists of one in lines": lambda root: write_lines(
        root, "episodes", [{**line, "length": [line["length"]]} for line in read_lines(root, "episodes")]
    ),
    "statistics by a list of one": stats_by_lists_of_one,
    "a chunk size as a float": change_info(chunks_size=1000.0),
    "shapes as numbers": change_features(
        lambda f: [f[key].update(shape=14) for key in VECTORS] + [f[key].update(shape=1.0) for key in INDEX_KEYS]
    ),
    "no counts": drop_info("total_episodes", "total_frames", "total_tasks", "total_chunks", "total_videos", "splits"),
    "empty counts": change_info(total_episodes=None, total_frames=None, splits=None),
    "no robot": drop_info("robot_type"),
    "empty robot": change_info(robot_type=None),
    "no paths": drop_info("data_path", "video_path", "chunks_size"),
    "fps as a float": change_info(fps=50.0),
    "incomplete statistics": stats_of_vectors_alone,
    "names as a list": names(list(spec.DIM_NAMES)),
    "names as an object": names({"motors": list(spec.DIM_NAMES)}),
    "names by position": names({name: i for i, name in enumerate(spec.DIM_NAMES)}),
    "no names": names(None),
    "no shapes of single numbers": change_features(lambda f: [f[key].update(shape=None) for key in INDEX_KEYS]),
    "channels last": change_features(
        lambda f: [f[key].update(shape=[24, 32, 3], names=["height", "width", "channel"]) for key in CAMERA_KEYS]
    ),
    "names of axes by position": change_features(
        lambda f: [f[key].update(names={"channels": 0, "height": 1, "width": 2}) for key in CAMERA_KEYS]
    ),
    "index columns as lists of one": columns(INDEX_KEYS, lambda column: pa.array([[x] for x in column.to_pylist()])),
    "index columns as fixed lists of one": columns(
        INTEGERS, lambda column: pa.array([[x] for x in column.to_pylist()], pa.list_(pa.int64(), 1))
    ),
    "index columns of 32 bits": columns(INTEGERS, cast(pa.int32())),
    "timestamps of 64 bits": columns(("timestamp",), cast(pa.float64())),
    "index columns with a dictionary": columns(INTEGERS, lambda column: column.dictionary_encode()),
    "vectors as lists": columns(VECTORS, cast(pa.list_(pa.float32()))),
    "vectors as large lists": columns(VECTORS, cast(pa.large_list(pa.float32()))),
    "images as bytes": columns(
        CAMERA_KEYS, lambda column: pa.array([cell["bytes"] for cell in column.to_pylist()], pa.large_binary())
    ),
    "images as files": images_as_files,
    "images by path alone": images_by_path_alone,
    "other columns": change_tables(lambda table: table.append_column("note", pa.array(["x"] * len(table)))),
    "a text feature": add_column("language_instruction", "string", ["fold"]),
    "a large text with a dictionary": lambda root: (
        add_column("language", "string", ["fold"])(root),
        columns(("language",), lambda column: column.cast(pa.large_string()).dictionary_encode())(root),
    )[0],
    "a flag": add_column("next.done", "bool", [False]),
    "depth as numbers": add_column("observation.depth", "uint16", [[[7, 8], [9, 10]]], (2, 2)),
    "several row groups": change_tables(lambda table: table, row_group_size=2),
    "one row per group, uncompressed": change_tables(lambda table: table, row_group_size=1, compression="none"),
    "zstd": change_tables(lambda table: table, compression="zstd", use_dictionary=False),
    "other places": tables_in_small_chunks,
}
