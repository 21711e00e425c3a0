"""Writing files so that they survive: complete or absent under their name, on the disk, and with one clear error when it is full."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import threading

from realman.errors import DatasetError

_SYNC_EVERY_S = 0.25
"""A fast worker writes some 100 MB in this time."""


def finish(part: Path, path: Path) -> None:
    """Give a completely written file its name, after its bytes have reached the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


class EarlySync:
    """Sends a file to the disk while it grows, so that its writer need not wait for all of it at the end.

    Left alone, the system keeps a file of some hundred MB in memory until then, and the processor idles while it is written.
    """

    def __init__(self, part: Path) -> None:
        """Start with a file that is being written."""
        self._part = part
        self._error: OSError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; call it once, when nothing more is written.

        Raises:
            OSError: The disk refused a part of the file.
        """
        self._ended.set()
        self._thread.join()
        # The system tells an error once only, so whoever syncs the file after this would not see it.
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
