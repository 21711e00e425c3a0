"""Let one process alone train a run.

The lock is held by the living process, so a kill releases it. On network disks it works as far as their server knows
locks: NFS needs its lock service, and without one only a line in the log says that nothing is locked.
"""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import socket

from openpi.shared import errors

logger = logging.getLogger(__name__)

FILE_NAME = ".lock"
# Error numbers of file systems without locks.
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class RunInUseError(errors.UserError, OSError):
    """Raised when another process trains the run."""


class RunLock:
    """A lock on a run's folder, or nothing before `take`."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Name the folder. It may be missing until `take`."""
        self._folder = folder
        self._path = folder / FILE_NAME
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, if this process does not hold it.

        Raises:
            RunInUseError: Another process holds it.
        """
        while not self._is_held():
            self.release()
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise RunInUseError(
                    f"{self._folder}: {holder} trains this run. Wait for it or stop it, or choose another --exp-name"
                ) from e
            except OSError as e:
                if e.errno not in _WITHOUT_LOCKS:
                    os.close(file)
                    raise
                logger.warning("%s: this disk has no locks (%s). Do not train this run twice", self._folder, e.strerror)
            self._file = file
            with contextlib.suppress(OSError):  # a full disk, and the text is only for the other's message
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _is_held(self) -> bool:
        """Return whether the locked file is still the one in the folder.

        Another process may have removed it between opening and locking, and --overwrite deletes the folder.
        """
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the file and release the lock."""
        if self._file is None:
            return
        if self._is_held():
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._file)
        self._file = None
