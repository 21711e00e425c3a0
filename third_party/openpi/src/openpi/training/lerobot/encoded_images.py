"""Find one encoded image, so that its neighbors are not read.

The converter of this project puts one frame into a row group, uncompressed. Each image is then a span of bytes of the
parquet file. Other writers (LeRobot's own) put a whole episode into one compressed row group. Its images are unpacked
once, into a file in the dataset's folder.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import logging
import os
import pathlib
import shutil
import threading
from typing import Any
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openpi.shared import errors
from openpi.training.lerobot import columns as lerobot_columns
from openpi.training.lerobot.metadata import LeRobotMetadata

logger = logging.getLogger(__name__)

# Folder of unpacked images, inside the dataset's folder.
UNPACKED = ".frames"
# A row group with more image bytes than this is unpacked. A smaller one is read whole.
_MAX_GROUP_BYTES = 16 * 2**20
# Before an image, its column chunk has a page header and two runs of levels: some tens of bytes.
_MAX_PREAMBLE_BYTES = 256
# Frames that are unpacked at once. It bounds the memory needed beyond the decompressed row group.
_UNPACK_ROWS = 16

_unpacking = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images of one camera and episode, as spans of a file."""

    path: pathlib.Path
    # Offset and size of each frame's span, bytes, int64 (t, 2).
    spans: np.ndarray
    # Whether a span is a column chunk that ends with the image, not the image alone.
    is_chunk: bool

    def read(self, frame: int) -> bytes | None:
        """Return a frame's encoded image, or None if its cell is empty."""
        offset, size = self.spans[frame].tolist()
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        return _last_value(data) if self.is_chunk else data or None


def cell_bytes(cell: Any, root: pathlib.Path) -> Any:
    """Return the encoded image of a cell as a buffer.

    None if the cell is empty. Writers store bytes, the path of a file, or a struct of both. A path is relative to the dataset.

    Args:
        cell: A value of a camera's column.
        root: Folder of the dataset.

    Raises:
        MissingFileError: The file that the cell names does not exist.
        DataError: It is outside the dataset.
    """
    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.StructScalar):
        parts = [cell[name] for name in ("bytes", "path") if name in cell]
        cell = next((part for part in parts if part.is_valid), None)
    if cell is None or (not pa.types.is_string(cell.type) and not pa.types.is_large_string(cell.type)):
        return None if cell is None else cell.as_buffer()
    # The folder's own name may be a link, so only the text of the path is compared.
    folder = pathlib.Path(os.path.normpath(root.absolute()))
    path = pathlib.Path(os.path.normpath(folder / cell.as_py()))
    if not path.is_relative_to(folder):
        raise errors.DataError(
            f"{path}: an image of {root} is outside the dataset's folder. Copy it there, and name it relative to that"
        )
    try:
        return path.read_bytes()
    except OSError as e:
        raise errors.MissingFileError(
            f"{path}: an image cannot be read ({e.strerror}). Copy the dataset again with all its files"
        ) from e


def _last_value(chunk: bytes) -> bytes | None:
    """Return the only value of an uncompressed column chunk.

    The value ends the chunk and is preceded by its own length.
    """
    for start in range(min(len(chunk) - 4, _MAX_PREAMBLE_BYTES)):
        if int.from_bytes(chunk[start : start + 4], "little") == len(chunk) - start - 4:
            return chunk[start + 4 :] or None
    return None


def find(metadata: LeRobotMetadata, episode_index: int, keys: Sequence[str]) -> dict[str, EncodedImages] | None:
    """Locate an episode's images.

    They are unpacked first if single images cannot be read.

    Args:
        metadata: The dataset.
        episode_index: Index of the episode.
        keys: Cameras.

    Returns:
        The images by camera. None if the row groups are small enough to be read whole, or if there is no space to
        unpack them.

    Raises:
        MissingFileError: The episode's file is missing.
        DataError: It is not a parquet file.
    """
    path = metadata.data_path(episode_index)
    with lerobot_columns.open_parquet(path, f"episode {episode_index}") as file:
        spans = _chunk_spans(file.metadata, keys)
        if spans is not None:
            images = {key: EncodedImages(path, found, is_chunk=True) for key, found in spans.items()}
            # Another writer may build its pages differently.
            if all(of_camera.read(0) is not None for of_camera in images.values()):
                return images
        if _largest_group_bytes(file.metadata, keys) <= _MAX_GROUP_BYTES:
            return None
    with _unpacking:
        return {key: _unpack(metadata, path, key) for key in keys} if _has_room(metadata, path) else None


def _image_columns(footer: pq.FileMetaData, keys: Sequence[str]) -> dict[str, int]:
    paths = {footer.schema.column(i).path: i for i in range(len(footer.schema))}
    # An image is usually a struct of bytes and a path, and may be bytes alone.
    named = {key: next((name for name in (f"{key}.bytes", key) if name in paths), None) for key in keys}
    return {key: paths[name] for key, name in named.items() if name is not None}


def _chunk_spans(footer: pq.FileMetaData, keys: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the span of each image's column chunk, by camera.

    Spans are int64 (t, 2): offset and size, bytes. None if a chunk is compressed or holds several images.
    """
    if footer.num_row_groups != footer.num_rows or not footer.num_rows:
        return None
    columns = _image_columns(footer, keys)
    spans = {key: np.empty((footer.num_rows, 2), np.int64) for key in columns}
    for row in range(footer.num_rows):
        group = footer.row_group(row)
        for key, column in columns.items():
            chunk = group.column(column)
            if chunk.compression != "UNCOMPRESSED" or chunk.dictionary_page_offset is not None:
                return None
            spans[key][row] = chunk.data_page_offset, chunk.total_compressed_size
    return spans if spans.keys() == set(keys) else None


def _largest_group_bytes(footer: pq.FileMetaData, keys: Sequence[str]) -> int:
    columns = _image_columns(footer, keys).values()
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    return max((sum(group.column(i).total_compressed_size for i in columns) for group in groups), default=0)


def _has_room(metadata: LeRobotMetadata, path: pathlib.Path) -> bool:
    folder = metadata.root / UNPACKED
    if not folder.exists():
        logger.warning(
            "%s: a whole episode of images is stored in one row group. Each episode is unpacked into %s when first read",
            metadata.root,
            folder,
        )
    try:
        folder.mkdir(exist_ok=True)
        return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2 * path.stat().st_size
    except OSError:
        return False


def _unpack(metadata: LeRobotMetadata, path: pathlib.Path, key: str) -> EncodedImages:
    """Write the images of a camera, and their spans next to them.

    Files that exist already are used if they belong to this version of the parquet file.
    """
    stem = metadata.root / UNPACKED / key / path.stem
    packed, index = stem.with_suffix(".bin"), stem.with_suffix(".npy")
    status = path.stat()
    version = [status.st_size, status.st_mtime_ns]
    if packed.exists() and index.exists():
        stored = np.load(index)
        if stored[0].tolist() == version:
            return EncodedImages(packed, stored[1:], is_chunk=False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    spans, end = [version], 0
    # Other processes, on this or another machine, may unpack the same episode: write under a name of our own, then
    # put the whole file in place.
    mark = uuid.uuid4().hex
    part = packed.with_name(f"{packed.name}.{mark}")
    try:
        with pq.ParquetFile(path) as file, part.open("wb") as target:
            for batch in _batches(file, path, key):
                for cell in batch.column(0):
                    data = cell_bytes(cell, metadata.root) or b""
                    spans.append([end, len(data)])
                    end += target.write(data)
        part.replace(packed)
    finally:
        part.unlink(missing_ok=True)
    part_index = index.with_name(f"{mark}.{index.name}")
    np.save(part_index, np.array(spans, np.int64))
    part_index.replace(index)
    return EncodedImages(packed, np.array(spans[1:], np.int64), is_chunk=False)


def _batches(file: pq.ParquetFile, path: pathlib.Path, key: str) -> Iterator[pa.RecordBatch]:
    with lerobot_columns.damage_named(path, f"the images '{key}'"):
        yield from file.iter_batches(_UNPACK_ROWS, columns=[key], use_threads=False)


def weigh(images: Mapping[str, EncodedImages] | None) -> int:
    """Return the memory that an episode's spans take, bytes."""
    return 1 if images is None else sum(of_camera.spans.nbytes for of_camera in images.values())
