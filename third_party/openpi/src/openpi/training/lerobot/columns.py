"""Read the columns of a LeRobot dataset: state, action, timestamps, indices, texts.

No image is touched.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi.shared import errors
from openpi.training.lerobot.metadata import INDEX_KEYS
from openpi.training.lerobot.metadata import Episode
from openpi.training.lerobot.metadata import LeRobotMetadata

# Largest difference between a timestamp step and 1 / fps, s, beyond what float32 rounds. It is LeRobot's own tolerance.
_TIMESTAMP_TOLERANCE_S = 1e-4


def read_columns(
    metadata: LeRobotMetadata, keys: Sequence[str], on_episode: Callable[[], Any] = lambda: None
) -> dict[str, np.ndarray]:
    """Read columns of all episodes, in episode order.

    Args:
        metadata: The dataset.
        keys: Keys of columns. Nothing else is read.
        on_episode: Called once for each episode that was read, for a progress bar.

    Returns:
        By key: (total_frames, d) for vectors, (total_frames,) for features of shape [1], whether a writer stored them as
        numbers or as lists of one. The dtype is the stored one, or object for texts.

    Raises:
        MissingFileError: An episode's file is missing.
        DataError: Columns are missing, or a file contradicts the metadata.
    """
    absent = [key for key in keys if key not in metadata.column_keys]
    if absent:
        raise errors.DataError(f"{metadata.root}: columns {absent} are missing, found {list(metadata.column_keys)}")

    def read(episode: Episode) -> dict[str, np.ndarray]:
        columns = _read_episode(metadata, episode, keys)
        on_episode()
        return columns

    # Threads help: decompression and file access release the interpreter lock.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        per_episode = list(pool.map(read, metadata.episodes))
    return {key: np.concatenate([columns[key] for columns in per_episode]) for key in keys}


def open_parquet(path: pathlib.Path, what: str) -> pq.ParquetFile:
    """Open a parquet file and read its footer only.

    Raises:
        MissingFileError: The file does not exist.
        DataError: It is not a parquet file.
    """
    with damage_named(path, what):
        return pq.ParquetFile(path)


@contextlib.contextmanager
def damage_named(path: pathlib.Path, what: str) -> Iterator[None]:
    """Name a parquet file that cannot be read.

    Put nothing but its reading inside.

    Args:
        path: The file.
        what: What it holds, for the messages.

    Raises:
        MissingFileError: The file does not exist.
        DataError: It is damaged, or not a parquet file.
    """
    try:
        yield
    except FileNotFoundError as e:
        raise errors.MissingFileError(
            f"{path}: {what} is missing. Copy the file back, or convert the recordings again with 'make convert'"
        ) from e
    # A damaged page is any of these to pyarrow.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise errors.DataError(
            f"{path}: {what} cannot be read ({reason}). Convert the recordings again with 'make convert'"
        ) from e


def _read_episode(metadata: LeRobotMetadata, episode: Episode, keys: Sequence[str]) -> dict[str, np.ndarray]:
    path = metadata.data_path(episode.index)
    with open_parquet(path, f"episode {episode.index}") as file:
        absent = [key for key in keys if key not in file.schema_arrow.names]
        if absent:
            raise errors.DataError(f"{path}: columns {absent} are missing, found {file.schema_arrow.names}")
        with damage_named(path, f"episode {episode.index}"):
            table = file.read(columns=list(keys), use_threads=False)
    if table.num_rows != episode.length:
        raise errors.DataError(
            f"{path}: found {table.num_rows} frames, expected {episode.length} (meta/episodes.jsonl)"
        )
    # Texts are decoded here.
    with damage_named(path, f"episode {episode.index}"):
        columns = {key: _to_numpy(table[key], metadata.shape(key), f"{path}: '{key}'") for key in keys}
    for key in INDEX_KEYS:
        if key in columns and table[key].null_count:
            raise errors.DataError(f"{path}: '{key}' has {table[key].null_count} empty cells. Copy the dataset again")
    if "timestamp" in columns:
        check_timestamps(columns["timestamp"], metadata.fps, path)
    return columns


def _to_numpy(column: pa.ChunkedArray, shape: tuple[int, ...], place: str) -> np.ndarray:
    """Return a column as (t, *shape), or (t,) for single numbers.

    Writers differ in the type of lists, and some store texts and repeated numbers with a dictionary.
    """
    values = _plain(column.combine_chunks())
    while pa.types.is_nested(values.type):
        if pa.types.is_struct(values.type):
            raise errors.DataError(f"{place}: found {values.type}, expected numbers or texts of shape {shape}")
        values = _plain(values.flatten())
    flat = values.to_numpy(zero_copy_only=False)
    if flat.size != len(column) * int(np.prod(shape)):
        raise errors.DataError(
            f"{place}: found {flat.size} values in {len(column)} frames, expected shape {shape} each"
        )
    return flat if shape == (1,) else flat.reshape(len(column), *shape)


def _plain(array: Any) -> Any:
    """Remove another library's type and a dictionary from an array."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def check_timestamps(timestamps: np.ndarray, fps: float, path: pathlib.Path) -> None:
    """Check that an episode's timestamps (t,), s, are 1 / fps apart.

    Raises:
        DataError: They are not. The message names the file and the first frame.
    """
    steps = np.diff(timestamps.astype(np.float64))
    # The format stores float32. From 1024 s on, their own spacing is more than the tolerance.
    rounding = np.spacing(np.abs(timestamps[1:]).astype(np.float32)).astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(steps - 1 / fps) <= _TIMESTAMP_TOLERANCE_S + rounding))
    if wrong.size:
        frame = int(wrong[0]) + 1
        raise errors.DataError(
            f"{path}: frame {frame} comes {steps[frame - 1]:.6f} s after the one before, expected {1 / fps:.6f} s "
            f"({fps} fps in meta/info.json). Convert the recordings again with the right --fps"
        )
