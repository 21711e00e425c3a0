"""Writing files so that they survive: complete or absent under their name, on the disk, and with one clear error when it is full."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path

from realman.errors import DatasetError


def finish(part: Path, path: Path) -> None:
    """Give a completely written file its name, after its bytes have reached the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Turn the system's refusal to write into one line about `place`.

    Raises:
        DatasetError: The disk is full, or may not be written.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(
                f"{place}: disk is full; free some space and run again, finished episodes are kept"
            ) from e
        raise DatasetError(f"{place}: cannot be written ({e}); mend that and run again") from e
