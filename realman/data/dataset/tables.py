"""Read the table of one episode, column by column.

Only the columns asked for are read, and numbers are not copied one by one. Writers differ in the types of lists, of
texts and of images. All of them are read.
"""

from collections.abc import Collection, Iterator
import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realman.errors import DatasetError

_ROWS_AT_ONCE = 8
"""Images or other large values read at once from a table that has many in one row group."""


@contextlib.contextmanager
def open_table(path: Path, name: str) -> Iterator[pq.ParquetFile]:
    """Open a table and read its footer.

    Args:
        path: The file.
        name: What it is called in messages.

    Raises:
        DatasetError: It is missing or damaged, here or inside the block.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            yield file
    except FileNotFoundError as e:
        raise DatasetError(f"{name}: is missing. Copy the dataset again") from e
    except (pa.ArrowException, OSError) as e:
        reason = str(e).splitlines()[0]
        raise DatasetError(f"{name}: is not a readable Parquet file ({reason}). Copy the dataset again") from e


def read_numbers(file: pq.ParquetFile, key: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Read a column of numbers (t, *shape).

    Raises:
        DatasetError: It has other values.
    """
    return _to_numpy(file.read(columns=[key])[key], shape, f"{name}: '{key}'")


def blocks_of_numbers(file: pq.ParquetFile, key: str, shape: tuple[int, ...], name: str) -> Iterator[np.ndarray]:
    """Read a column of large values piece by piece, each (n, *shape).

    Raises:
        DatasetError: It has other values.
    """
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[key], use_threads=False):
        yield _to_numpy(batch.column(0), shape, f"{name}: '{key}'")


def images(file: pq.ParquetFile, key: str, wanted: Collection[int], root: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each wanted frame and its encoded image.

    An empty cell has no bytes. Row groups without a wanted frame are not read. The others are read piece by piece.

    Args:
        file: The open table.
        key: The camera.
        wanted: Frames.
        root: Folder of the dataset, which paths of images are relative to.

    Raises:
        DatasetError: An image is a file that cannot be read.
    """
    start, frames = 0, set(wanted)
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if not frames.isdisjoint(range(start, stop)):
            t = start
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[key]):
                for row in range(len(batch)):
                    if t in frames:
                        yield t, _image(batch.column(0)[row], root)
                    t += 1
        start = stop


def _to_numpy(column: Any, shape: tuple[int, ...], place: str) -> np.ndarray:
    values = _plain(column)
    while pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        values = _plain(values.flatten())
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "biuf" or numbers.size != len(column) * math.prod(shape):
        raise DatasetError(
            f"{place} has {numbers.size} values of {values.type} in {len(column)} rows, expected numbers of shape "
            f"{list(shape)} each"
        )
    return numbers.reshape(len(column), *shape)


def _plain(array: Any) -> Any:
    """Join the chunks of an array.

    The type of another library and a dictionary are removed.
    """
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _image(cell: Any, root: Path) -> bytes:
    """Return the encoded image of a cell.

    It is stored as bytes, as the path of a file, or as a struct of both.
    """
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    if isinstance(cell, pa.StructScalar) and cell.is_valid:
        parts = [cell[part] for part in ("bytes", "path") if part in cell]
        cell = next((part for part in parts if part.is_valid), None)
    if cell is None or not cell.is_valid:
        return b""
    content = cell.as_py()
    if not isinstance(content, str):
        return bytes(content)
    # The folder's own name may be a link, so only the text of the path is compared.
    folder = Path(os.path.normpath(root.absolute()))
    path = Path(os.path.normpath(folder / content))
    if not path.is_relative_to(folder):
        raise DatasetError(
            f"{path}: an image of {root} is outside the dataset's folder. Copy it there, and name it relative to that"
        )
    try:
        return path.read_bytes()
    except OSError as e:
        raise DatasetError(
            f"{path}: an image cannot be read ({e.strerror}). Copy the dataset again with all its files"
        ) from e
