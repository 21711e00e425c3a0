"""Write files safely.

A file under its final name is complete and on the disk. A full disk gives one clear error.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import threading

from realman.errors import DatasetError

_SYNC_EVERY_S = 0.25
"""A fast worker writes about 100 MB in this time."""


def finish(part: Path, path: Path) -> None:
    """Sync a complete file to the disk, then rename it."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


class EarlySync:
    """Sync a file to the disk in the background while it grows.

    Otherwise the system may keep some hundred MB in memory until the end, and the processor idles while they are
    written.
    """

    def __init__(self, part: Path) -> None:
        self._part = part
        self._error: OSError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop syncing. Call this once, after the last write.

        Raises:
            OSError: A part of the file could not be written to the disk.
        """
        self._ended.set()
        self._thread.join()
        # The system reports an error only once, so a later sync of the file would not see it.
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with self._part.open("rb") as file:
                while not self._ended.wait(_SYNC_EVERY_S):
                    os.fsync(file.fileno())
        except OSError as e:
            self._error = e


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(place: Path | str) -> Iterator[None]:
    """Turn any write error in the block into one line about `place`.

    Raises:
        DatasetError: The disk is full or cannot be written.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(
                f"{place}: disk is full. Free some space and run again, finished episodes are kept"
            ) from e
        raise DatasetError(f"{place}: cannot be written ({e}). Fix that and run again") from e
