"""Room for checkpoints on the disk: asked for before a save begins, so that a full disk costs nothing."""

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
# Longest wait for room for the last checkpoint of a run, s: its steps exist nowhere else.
_LAST_CHECKPOINT_WAIT_S = 1800
_POLL_S = 5
_REMIND_S = 60
# How a full disk looks when the library that writes the arrays reports it.
_FULL_WORDS = ("No space left", "ENOSPC", "Disk quota exceeded", "EDQUOT", "File too large", "EFBIG")
_FULL_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclasses.dataclass(frozen=True)
class Claim:
    """Bytes that will be written below a folder later on."""

    folder: pathlib.Path
    size: int

    def on_disk_of(self, other: pathlib.Path) -> int:
        """Return the bytes if they will go to the disk that `other` lies on, else 0."""
        return self.size if _existing(self.folder).stat().st_dev == _existing(other).stat().st_dev else 0


class DiskFullError(errors.UserError, OSError):
    """There is no room for a checkpoint."""


def tree_bytes(tree: Any) -> int:
    """Return the size of a pytree of arrays or ShapeDtypeStructs, bytes: an upper bound of what they take on the disk."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def free_bytes(folder: pathlib.Path) -> int:
    """Return what is free where `folder` is, or will be made."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: pathlib.Path) -> pathlib.Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def folder_bytes(folder: pathlib.Path) -> int:
    """Return what the files of a folder take; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_start(folder: pathlib.Path, size: int, *, num_kept: int, reusable: int) -> Claim:
    """Look whether the checkpoints of a run will have room.

    Args:
        folder: Of the run.
        size: Of a checkpoint, bytes.
        num_kept: Checkpoints that stay; one more exists while it is written.
        reusable: Bytes that the run frees (what it overwrites) or has taken already (what it resumes from).

    Returns:
        What they take beyond that.

    Raises:
        DiskFullError: There is no room for a single one.
    """
    free = free_bytes(folder) + reusable
    if free < size:
        raise DiskFullError(
            f"{folder}: a checkpoint takes {_text(size)}, {_text(free)} are free; "
            "make room, or choose another disk with --checkpoint-base-dir"
        )
    if free < (num_kept + 1) * size:
        logger.warning(
            "%s: up to %d checkpoints of %s exist at a time, but %s are free; saving will stop when they are used",
            *(folder, num_kept + 1, _text(size), _text(free)),
        )
    return Claim(folder, max(0, (num_kept + 1) * size - reusable))


def _text(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.1f} MiB"


def has_room(folder: pathlib.Path, size: int, *, is_last: bool, is_ending: Callable[[], bool] = lambda: False) -> bool:
    """Look whether a checkpoint can be saved now; before the last one of a run, wait for room.

    Args:
        folder: Of the run.
        size: Of a checkpoint, bytes.
        is_last: Whether it is the run's last one.
        is_ending: Whether the process has been asked to end; when that happens during the wait, it is over.

    Raises:
        DiskFullError: There is no room for the last checkpoint after a long wait.
    """
    was_ending = is_ending()
    deadline = time.monotonic() + _LAST_CHECKPOINT_WAIT_S
    reminder = time.monotonic()
    while (free := free_bytes(folder)) < size:
        words = f"{folder}: a checkpoint takes {_text(size)}, {_text(free)} are free"
        if not is_last:
            logger.error("%s; this one is not saved, training goes on; make room for the next one", words)
            return False
        if is_ending() and not was_ending:
            raise DiskFullError(
                f"{words}; asked to end while waiting for room, the steps since the last checkpoint are lost"
            )
        if time.monotonic() >= deadline:
            raise DiskFullError(f"{words}; nobody made room, the steps since the last checkpoint are lost")
        if time.monotonic() >= reminder:
            minutes = (deadline - time.monotonic()) / 60
            logger.error("%s; waiting %.0f more minutes for room, so that the run is not lost", words, minutes)
            reminder += _REMIND_S
        time.sleep(_POLL_S)
    return True


@contextlib.contextmanager
def explain(folder: pathlib.Path) -> Iterator[None]:
    """Turn an error of writing that means a full disk into one that says so.

    Raises:
        DiskFullError: The disk is full.
    """
    try:
        yield
    except Exception as e:
        if not _is_full(e):
            raise
        raise DiskFullError(
            f"{folder}: the disk is full, the last checkpoint could not be written; those before it are whole: make room "
            "and go on with --resume"
        ) from e


def _is_full(error: BaseException) -> bool:
    chain = [error, error.__cause__, error.__context__]
    return any(
        getattr(each, "errno", None) in _FULL_NUMBERS or any(word in str(each) for word in _FULL_WORDS)
        for each in chain
        if each is not None
    )
