"""Open HDF5 files, and find what is in them.

HDF5's many errors become one line. A recording must be whole by itself: links to other files, and data kept outside, are refused.
"""

from collections.abc import Iterator
import contextlib
import math
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from realman.errors import EpisodeError

# h5py raises these on damaged files, depending on the structure hit: I/O and B-tree errors, lost names, impossible
# shapes.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, OverflowError)

_MAX_LINKS = 16
"""Links followed from one name, as many as HDF5 itself follows."""

_MAX_TEXT_BYTES = 64 * 2**20
"""A value that says something about a recording is far smaller."""

Node: TypeAlias = h5py.Group | h5py.Dataset | h5py.Datatype


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn any HDF5 error in the block into one line about `place`.

    Only reads belong in the block. What was read may be odd without being damaged.

    Raises:
        EpisodeError: The file is damaged there, or holds what cannot be read.
    """
    try:
        yield
    except EpisodeError:
        raise
    except TypeError as e:
        raise EpisodeError(f"{place}: has a type that cannot be read ({_line(e)}). Store plain numbers or text") from e
    except MemoryError as e:
        raise EpisodeError(f"{place}: does not fit in memory. Record shorter episodes") from e
    except _DAMAGE as e:
        raise EpisodeError(f"{place}: cannot be read, the file is damaged ({_line(e)}). Copy or record it again") from e


def open_file(path: Path, place: str) -> h5py.File:
    """Open a file for reading.

    Args:
        path: The file.
        place: Its name, for messages.

    Raises:
        EpisodeError: The file is missing, may not be read, is not HDF5, or is cut off.
    """
    # A name that leads to no plain file, such as a lost link, must not be opened: a pipe would wait for ever.
    if path.is_symlink() and not path.exists():
        raise EpisodeError(
            f"{place}: is a link to '{path.readlink()}', which is missing. Restore that or remove the link"
        )
    if not path.exists():
        raise EpisodeError(f"{path}: no such file")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no plain file"
        raise EpisodeError(f"{place}: is {kind}, expected an HDF5 file. Rename or remove it")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as e:
        raise EpisodeError(f"{place}: cannot be opened ({e.strerror}). Allow reading it, as with chmod +r") from e
    if not h5py.is_hdf5(path):
        raise EpisodeError(f"{place}: is not an HDF5 file ({path.stat().st_size} bytes). Remove it or record it again")
    try:
        # Recordings are often on network shares without file locks.
        return h5py.File(path, "r", locking="best-effort")
    except (*_DAMAGE, TypeError, MemoryError) as e:
        reason = "is cut off (truncated HDF5)" if "truncated" in str(e) else f"cannot be opened ({_line(e)})"
        raise EpisodeError(f"{place}: {reason}. Copy or record it again") from e


def find(file: h5py.File, name: str, place: str) -> Node | None:
    """Return what has this name, or None if nothing has.

    Links inside the file are followed.

    Raises:
        EpisodeError: A link leads to another file or in circles, or the file is damaged there.
    """
    with reading(f"{place}: '{name}'"):
        node: Node | None = file
        names, followed = _parts(name), 0
        at: list[str] = []
        while names:
            part = names.pop(0)
            if not isinstance(node, h5py.Group):
                return None
            link = node.get(part, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise EpisodeError(
                    f"{place}: '{name}' is a link to another file ('{link.filename}'), expected the data in the "
                    "recording itself. Copy them into it"
                )
            if isinstance(link, h5py.SoftLink):
                followed += 1
                if followed > _MAX_LINKS:
                    raise EpisodeError(f"{place}: '{name}' is a link that leads in circles. Record the episode again")
                # Start again from the top with the link's own path.
                names = [*([] if link.path.startswith("/") else at), *_parts(link.path), *names]
                node, at = file, []
                continue
            if link is None:
                return None
            node = node[part]
            at.append(part)
        return node


def find_dataset(file: h5py.File, name: str, place: str) -> h5py.Dataset | None:
    """Return the dataset of this name, or None."""
    node = find(file, name, place)
    return node if isinstance(node, h5py.Dataset) else None


def check_data(dataset: h5py.Dataset, place: str) -> None:
    """Refuse a dataset whose data are not all in the file itself.

    Raises:
        EpisodeError: They are in other files, compressed in an unknown way, or were never written.
    """
    with reading(place):
        remedy = "expected the data in the recording itself. Copy them into it"
        if dataset.is_virtual:
            raise EpisodeError(f"{place} is put together from other files (a virtual dataset), {remedy}")
        if dataset.external:
            raise EpisodeError(f"{place} is kept in another file ('{dataset.external[0][0]}'), {remedy}")
        settings = dataset.id.get_create_plist()
        codes = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
        if unknown := [code for code in codes if not h5py.h5z.filter_avail(code)]:
            raise EpisodeError(
                f"{place} is compressed with HDF5 filter {unknown[0]}, which is not installed, expected gzip or none. "
                "Write it again with gzip"
            )
        if not dataset.size:
            return
        # A length can be declared without data, and HDF5 then reads zeros.
        if dataset.chunks:
            wanted = math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
            share = dataset.id.get_num_chunks() / wanted
        else:
            share = dataset.id.get_storage_size() / (dataset.size * dataset.dtype.itemsize)
        if share < 1:
            raise EpisodeError(
                f"{place} declares {dataset.shape[0] if dataset.shape else 1} frames, but {1 - share:.0%} of their "
                "data were never written. Record the episode again"
            )


def read_value(file: h5py.File, name: str, place: str) -> np.ndarray | None:
    """Return the value of an attribute or dataset.

    An attribute comes first.

    Returns:
        An array of at least one element, with bytes or texts as they are. None if there is no such value.

    Raises:
        EpisodeError: The file is damaged there, or the value is too large to say something about a recording.
    """
    with reading(f"{place}: '{name}'"):
        value: Any = None
        if name in file.attrs:
            value = file.attrs[name]
        elif (dataset := find_dataset(file, name, place)) is not None and dataset.shape is not None:
            check_data(dataset, f"{place}: '{name}'")
            if dataset.size * dataset.dtype.itemsize > _MAX_TEXT_BYTES:
                raise EpisodeError(f"{place}: '{name}' has shape {dataset.shape}, expected a single value")
            value = dataset[()]
    if value is None or isinstance(value, h5py.Empty):
        return None
    array = np.asarray(value)
    return array if array.size else None


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
