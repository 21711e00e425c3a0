"""Read the rows of an HDF5 dataset, each of them once.

Rows are read in blocks, so that memory stays bounded. A compressed chunk is unpacked once, however many rows it has.
"""

import os
from typing import Any
import zlib

import h5py
import numpy as np

from realman.data.raw import hdf5
from realman.errors import EpisodeError

_BLOCK_BYTES = 4 * 2**20
"""Bytes read at once.

Enough to make HDF5's cost per call negligible, and small compared with a run's budget of 1 GiB.
"""

_MAX_CHUNK_BYTES = 64 * 2**20
"""A compressed HDF5 chunk up to this size is read whole. A larger one is unpacked piece by piece if possible."""

_MAX_SPAN_BYTES = 256 * 2**20
"""A large chunk that cannot be unpacked piece by piece is read in spans of this size, and unpacked for each span."""

_PACKED_BYTES = 2**20
"""Bytes of a compressed chunk that are read at once when it is unpacked piece by piece."""

_VARIABLE_LENGTH_ROWS = 16
"""Rows read at once when the size of a row is not known in advance."""


class Rows:
    """Random access to the rows of a dataset, fast in order.

    Reading a single row reads little more than that row. A row that was returned stays as it is.
    """

    def __init__(self, dataset: h5py.Dataset, place: str) -> None:
        """Look at how the dataset is stored.

        Args:
            dataset: Its first axis counts the rows.
            place: File and dataset, for messages.
        """
        self._dataset = dataset
        self._place = place
        self._block_start = 0
        self._block: Any = np.empty(0)
        self._unit = 1
        self._unpacked: _UnpackedRows | None = None
        if _has_fixed_rows(dataset) and dataset.chunks and dataset.compression:
            self._choose_unit(int(dataset.chunks[0]))
        self.block_rows = self._rows_per_block()
        """Rows read at once by a reader in order."""

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, t: int) -> Any:
        """Return row `t` as HDF5 does: an array, bytes or void.

        Raises:
            EpisodeError: The file is damaged there.
        """
        if not 0 <= t < len(self):
            raise IndexError(f"row {t} of {len(self)}")
        place = f"{self._place} near frame {t}"
        if self._unpacked is not None:
            with hdf5.reading(place):
                return self._unpacked.row(t)
        if not self._block_start <= t < self._block_start + len(self._block):
            # A whole block is read only for a reader that continues where the last block ends.
            follows = len(self._block) > 0 and t == self._block_start + len(self._block)
            start = t // self._unit * self._unit
            with hdf5.reading(place):
                self._block = self._dataset[start : start + (self.block_rows if follows else self._unit)]
            self._block_start = start
        return self._block[t - self._block_start]

    def _choose_unit(self, chunk_rows: int) -> None:
        """Choose how many rows are read at the cost of one.

        These are the rows of a chunk, or a part of it.
        """
        chunk_bytes = chunk_rows * row_bytes(self._dataset)
        if chunk_bytes <= _MAX_CHUNK_BYTES:
            self._unit = chunk_rows
        elif _can_unpack(self._dataset):
            self._unpacked = _UnpackedRows(self._dataset)
        else:
            num_spans = -(-chunk_bytes // _MAX_SPAN_BYTES)
            self._unit = -(-chunk_rows // num_spans)

    def _rows_per_block(self) -> int:
        """Return how many rows to read at once.

        Blocks consist of whole chunks, because a chunk across the border of two blocks is unpacked twice.
        """
        if not _has_fixed_rows(self._dataset):
            return _VARIABLE_LENGTH_ROWS
        rows = max(1, _BLOCK_BYTES // row_bytes(self._dataset))
        return -(-rows // self._unit) * self._unit


class _UnpackedRows:
    """The rows of gzip chunks, unpacked piece by piece.

    HDF5 itself can only unpack a whole chunk, which may be as large as the episode. Going back starts the chunk again.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._handle: int = dataset.file.id.get_vfd_handle()
        self._chunk_rows = int(dataset.chunks[0])
        self._row_bytes = row_bytes(dataset)
        self._chunk = -1
        self._last = -1
        self._row: Any = None

    def row(self, t: int) -> Any:
        """Return row `t`.

        Raises:
            OSError: The chunk is damaged.
        """
        chunk = t // self._chunk_rows
        if chunk != self._chunk or t < self._last:
            self._start(chunk)
        while self._last < t:
            data = self._take(self._row_bytes)
            self._last += 1
        if self._row is None or t != self._row[0]:
            kind, shape = self._dataset.dtype, self._dataset.shape[1:]
            self._row = t, np.frombuffer(data, kind).reshape(shape)[()]
        return self._row[1]

    def _start(self, chunk: int) -> None:
        origin = (chunk * self._chunk_rows, *(0 for _ in self._dataset.shape[1:]))
        stored = self._dataset.id.get_chunk_info_by_coord(origin)
        self._at = stored.byte_offset
        self._end = self._at + stored.size
        self._codec = zlib.decompressobj()
        self._packed = b""
        self._chunk, self._last, self._row = chunk, origin[0] - 1, None

    def _take(self, size: int) -> bytes:
        """Unpack the next `size` bytes."""
        parts: list[bytes] = []
        missing = size
        while missing:
            if not self._packed and self._at < self._end:
                self._packed = os.pread(self._handle, min(_PACKED_BYTES, self._end - self._at), self._at)
                self._at += len(self._packed) or self._end
            try:
                part = self._codec.decompress(self._packed, missing)
            except zlib.error as e:
                raise OSError(str(e)) from e
            if not part and (self._codec.eof or (not self._codec.unconsumed_tail and self._at >= self._end)):
                raise OSError("a compressed chunk ends too early")
            self._packed = self._codec.unconsumed_tail
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def row_bytes(dataset: h5py.Dataset) -> int:
    """Return the size of a row in bytes."""
    return max(1, int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize)


def _has_fixed_rows(dataset: h5py.Dataset) -> bool:
    return dataset.dtype.kind != "O"


def _can_unpack(dataset: h5py.Dataset) -> bool:
    """Return whether a chunk is its rows, packed with gzip alone."""
    settings = dataset.id.get_create_plist()
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    # Shuffling bytes changes nothing in rows of single bytes.
    harmless = {h5py.h5z.FILTER_SHUFFLE} if dataset.dtype.itemsize == 1 else set()
    if filters - harmless != {h5py.h5z.FILTER_DEFLATE} or dataset.chunks[1:] != dataset.shape[1:]:
        return False
    # Versions of HDF5 differ in whether a chunk's place counts from the start of the file or after a user block.
    if dataset.file.driver != "sec2" or dataset.file.userblock_size:
        return False
    return all(not dataset.id.get_chunk_info(i).filter_mask for i in range(dataset.id.get_num_chunks()))


def check_row_size(dataset: h5py.Dataset, most_bytes: int, place: str) -> None:
    """Refuse rows that are larger than `most_bytes`.

    Raises:
        EpisodeError: They are.
    """
    if _has_fixed_rows(dataset) and (size := row_bytes(dataset)) > most_bytes:
        raise EpisodeError(
            f"{place} declares frames of {size / 1e6:.0f} MB, expected at most {most_bytes / 1e6:.0f} MB. "
            "Record smaller images"
        )
