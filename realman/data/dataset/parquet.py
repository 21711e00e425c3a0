"""Write the table of one episode as a Parquet file.

Its columns are vectors, images as encoded bytes, and the format's index columns.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from realman.arrays import Bytes
from realman.data.dataset import files
from realman.data.dataset.layout import IMAGE
from realman.data.dataset.layout import VIDEO
from realman.data.dataset.layout import Features
from realman.data.dataset.layout import keys_of

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Column = np.ndarray | Sequence[tuple[bytes | Bytes, str]]
"""Numbers (t,) or (t, d), or an encoded image and its file name per frame."""


def make_schema(features: Features) -> pa.Schema:
    """Return the columns of the table. Videos have no column.

    The metadata key `huggingface` makes the `datasets` library load image columns as images and not as plain dicts.
    """
    columns = {key: feature for key, feature in features.items() if feature["dtype"] != VIDEO}
    info = {"info": {"features": {key: _huggingface_type(feature) for key, feature in columns.items()}}}
    schema = pa.schema([(key, _arrow_type(feature)) for key, feature in columns.items()])
    return schema.with_metadata({"huggingface": json.dumps(info)})


def _arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    if feature["dtype"] == IMAGE:
        return IMAGE_TYPE
    value = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    (size,) = feature["shape"]
    return value if size == 1 else pa.list_(value, size)


def _huggingface_type(feature: Mapping[str, Any]) -> dict[str, Any]:
    if feature["dtype"] == IMAGE:
        return {"_type": "Image"}
    value = {"dtype": feature["dtype"], "_type": "Value"}
    (size,) = feature["shape"]
    # Every version of `datasets` can read "Sequence", but not the newer "List".
    return value if size == 1 else {"feature": value, "length": size, "_type": "Sequence"}


class EpisodeTable:
    """Write the table of one episode piece by piece.

    The file gets its final name only once it is complete.
    """

    def __init__(self, path: Path, features: Features) -> None:
        """Open a temporary file next to `path`.

        It is renamed to `path` at the end of the `with` block.
        """
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._schema = make_schema(features)
        has_images = bool(keys_of(features, IMAGE))
        # With one frame per row group, reading a frame does not read the pixels of the frames next to it.
        self._group_rows = 1 if has_images else None
        path.parent.mkdir(parents=True, exist_ok=True)
        # Encoded images cannot be compressed further. A page dictionary would hold each of them twice while writing.
        # Their min and max mean nothing.
        self._writer = pq.ParquetWriter(
            self._part,
            self._schema,
            compression="none" if has_images else "snappy",
            use_dictionary=False,
            write_statistics=False,
        )
        self._sync = files.EarlySync(self._part)

    def __enter__(self) -> "EpisodeTable":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with contextlib.closing(self._sync):
                self._writer.close()
            files.finish(self._part, self._path)
        else:
            # Report the error that ended the block. Closing the file may fail as well, for example on a full disk.
            with contextlib.suppress(OSError), contextlib.closing(self._sync):
                self._writer.close()

    def write(self, columns: Mapping[str, Column]) -> None:
        """Append frames.

        Args:
            columns: The same number of frames for every column of the features.
        """
        arrays = [_to_arrow(columns[field.name], field.type) for field in self._schema]
        self._writer.write_table(pa.table(arrays, schema=self._schema), row_group_size=self._group_rows)


def _to_arrow(column: Column, kind: pa.DataType) -> pa.Array:
    if kind == IMAGE_TYPE:
        data, names = zip(*column, strict=True)
        return pa.StructArray.from_arrays([_to_binary(data), pa.array(names, pa.string())], fields=list(IMAGE_TYPE))
    values = np.asarray(column)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), kind.list_size)
    return pa.array(values, kind)


def _to_binary(data: Sequence[bytes | Bytes]) -> pa.Array:
    """Copy buffers into one of the right size.

    Arrow's own builder copies its content again each time it grows.
    """
    offsets = np.cumsum([0, *map(len, data)], dtype=np.int32)
    content = np.concatenate([np.frombuffer(d, np.uint8) for d in data])
    return pa.Array.from_buffers(pa.binary(), len(data), [None, pa.py_buffer(offsets), pa.py_buffer(content)])
