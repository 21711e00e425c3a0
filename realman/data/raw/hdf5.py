"""Opening HDF5 files, and HDF5's many ways of reporting damage as one error of ours."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import h5py

from realman.errors import EpisodeError

# What h5py raises on damaged files, depending on the structure hit: I/O and B-tree errors, lost names, impossible types and shapes.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn whatever HDF5 raises in the block into one line about `place`.

    Raises:
        EpisodeError: The file is damaged there.
    """
    try:
        yield
    except EpisodeError:
        raise
    except _DAMAGE as e:
        reason = " ".join(str(e).split())
        raise EpisodeError(f"{place}: cannot be read, the file is damaged ({reason}); copy or record it again") from e


def open_file(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        EpisodeError: It is missing, no HDF5 file, or cut off.
    """
    if not path.is_file():
        raise EpisodeError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise EpisodeError(
            f"{path.name}: is not an HDF5 file ({path.stat().st_size} bytes); remove it or record it again"
        )
    try:
        # Recordings often lie on network shares that know no locks.
        return h5py.File(path, "r", locking="best-effort")
    except _DAMAGE as e:
        reason = "is cut off (truncated HDF5)" if "truncated" in str(e) else f"cannot be opened ({e})"
        raise EpisodeError(f"{path.name}: {reason}; copy or record it again") from e
