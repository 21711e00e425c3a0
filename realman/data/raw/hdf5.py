"""Open HDF5 files, and turn HDF5's many damage reports into one error."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import h5py

from realman.errors import EpisodeError

# h5py raises these on damaged files, depending on the structure hit: I/O and B-tree errors, lost names, impossible
# types and shapes.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn any HDF5 error in the block into one line about `place`.

    Raises:
        EpisodeError: The file is damaged there.
    """
    try:
        yield
    except EpisodeError:
        raise
    except _DAMAGE as e:
        reason = " ".join(str(e).split())
        raise EpisodeError(f"{place}: cannot be read, the file is damaged ({reason}). Copy or record it again") from e


def open_file(path: Path) -> h5py.File:
    """Open a file for reading.

    Raises:
        EpisodeError: The file is missing, not HDF5, or cut off.
    """
    if not path.is_file():
        raise EpisodeError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise EpisodeError(
            f"{path.name}: is not an HDF5 file ({path.stat().st_size} bytes). Remove it or record it again"
        )
    try:
        # Recordings are often on network shares without file locks.
        return h5py.File(path, "r", locking="best-effort")
    except _DAMAGE as e:
        reason = "is cut off (truncated HDF5)" if "truncated" in str(e) else f"cannot be opened ({e})"
        raise EpisodeError(f"{path.name}: {reason}. Copy or record it again") from e
