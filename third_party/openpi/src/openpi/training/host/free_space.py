"""Check the disk space for checkpoints.

The check comes before a save starts, so that a full disk costs no checkpoint.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import logging
import pathlib
import shutil
import time
from typing import Any

import jax
import numpy as np

from openpi.shared import errors

logger = logging.getLogger(__name__)

_GIB = 2**30
# Longest wait for space for the last checkpoint of a run, s. Its steps are stored nowhere else.
_LAST_CHECKPOINT_WAIT_S = 1800
_POLL_S = 5
_REMIND_S = 60
# Words and error numbers by which the library that writes the arrays reports a full disk.
_FULL_WORDS = ("No space left", "ENOSPC", "Disk quota exceeded", "EDQUOT", "File too large", "EFBIG")
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Claim:
    """Bytes that a run will write below a folder later."""

    folder: pathlib.Path
    size: int

    def on_disk_of(self, other: pathlib.Path) -> int:
        """Return the bytes that go to the disk of `other`."""
        return self.size if _existing(self.folder).stat().st_dev == _existing(other).stat().st_dev else 0


class DiskFullError(errors.UserError, OSError):
    """Raised when there is no space for a checkpoint."""


def tree_bytes(tree: Any) -> int:
    """Return the size of a pytree of arrays or ShapeDtypeStructs, bytes.

    It is an upper bound of the size on the disk.
    """
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_bytes(folder: pathlib.Path) -> int:
    """Return the free bytes where `folder` is or will be created."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: pathlib.Path) -> pathlib.Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def folder_bytes(folder: pathlib.Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_start(folder: pathlib.Path, size: int, *, num_kept: int, reusable: int) -> Claim:
    """Check that the checkpoints of a run will fit on the disk.

    Args:
        folder: Folder of the run.
        size: Size of a checkpoint, bytes.
        num_kept: Number of checkpoints that are kept. One more exists while it is being written.
        reusable: Bytes that the run frees (what it overwrites) or already uses (what it resumes from).

    Returns:
        The space that the checkpoints need in addition to `reusable`.

    Raises:
        DiskFullError: There is no space for a single checkpoint.
    """
    free = free_bytes(folder) + reusable
    if free < size:
        raise DiskFullError(
            f"{folder}: a checkpoint takes {_text(size)}, {_text(free)} are free. "
            "Free some space, or choose another disk with --checkpoint-base-dir"
        )
    if free < (num_kept + 1) * size:
        logger.warning(
            "%s: up to %d checkpoints of %s exist at a time, but %s are free. Saving stops when the disk is full",
            *(folder, num_kept + 1, _text(size), _text(free)),
        )
    return Claim(folder, max(0, (num_kept + 1) * size - reusable))


def _text(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.1f} MiB"


def has_room(folder: pathlib.Path, size: int, *, is_last: bool, is_ending: Callable[[], bool] = lambda: False) -> bool:
    """Return whether there is space to save a checkpoint now.

    Before the last checkpoint of a run, wait for space.

    Args:
        folder: Folder of the run.
        size: Size of the checkpoint, bytes.
        is_last: Whether it is the last checkpoint of the run.
        is_ending: Returns whether the process has been asked to stop. A request during the wait ends the wait.

    Raises:
        DiskFullError: There is no space for the last checkpoint, even after a long wait.
    """
    was_ending = is_ending()
    deadline = time.monotonic() + _LAST_CHECKPOINT_WAIT_S
    reminder = time.monotonic()
    while (free := free_bytes(folder)) < size:
        shortage = f"{folder}: a checkpoint takes {_text(size)}, {_text(free)} are free"
        if not is_last:
            logger.error("%s. It is not saved and training continues. Free some space for the next one", shortage)
            return False
        # A signal ends the wait, unless it is the one that has ended the run.
        if is_ending() and not was_ending:
            raise DiskFullError(
                f"{shortage}. Asked to stop while waiting for space, so the steps since the last checkpoint are lost"
            )
        if time.monotonic() >= deadline:
            raise DiskFullError(f"{shortage}. No space was freed, so the steps since the last checkpoint are lost")
        if time.monotonic() >= reminder:
            minutes = (deadline - time.monotonic()) / 60
            logger.error("%s. Waiting %.0f more minutes for space, so that the run is not lost", shortage, minutes)
            reminder += _REMIND_S
        time.sleep(_POLL_S)
    return True


@contextlib.contextmanager
def explain(folder: pathlib.Path) -> Iterator[None]:
    """Replace an error caused by a full disk with a clear one.

    Raises:
        DiskFullError: The disk is full.
    """
    try:
        yield
    except Exception as e:
        if not _is_full(e):
            raise
        raise DiskFullError(
            f"{folder}: the disk is full, the last checkpoint could not be written. The checkpoints before it are intact. "
            "Free some space and continue with --resume"
        ) from e


def _is_full(error: BaseException) -> bool:
    chain = [error, error.__cause__, error.__context__]
    return any(
        getattr(each, "errno", None) in _FULL_NUMBERS or any(word in str(each) for word in _FULL_WORDS)
        for each in chain
        if each is not None
    )
