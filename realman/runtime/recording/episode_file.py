"""One recording that grows frame by frame.

Its file is hidden while it grows. It gets its name only when it is complete.
"""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import re
from typing import Any

import h5py
import numpy as np

from realman.arrays import JointVec
from realman.data.raw.cameras import IMAGES
from realman.data.raw.episode import ACTION
from realman.data.raw.episode import QPOS
from realman.data.raw.statements import FPS
from realman.data.raw.statements import TASK_NAMES
from realman.errors import EpisodeError

TICK_TIMES = "tick_times_s"
"""Dataset with the time of each frame's observation, s from the first.

The time of a frame in a recording is its number over the rate, which omits the waits and pauses of the run."""

_CHUNK_FRAMES = 16


class EpisodeFile:
    """An unfinished ALOHA-style HDF5 recording.

    `finish` or `discard` ends it.
    """

    def __init__(self, path: Path, cameras: Sequence[str], fps: float, task: str) -> None:
        """Begin a file.

        Args:
            path: Where the finished file will be. It must not exist yet.
            cameras: Cameras whose images each frame has.
            fps: Frames per second.
            task: Task text of the episode.

        Raises:
            EpisodeError: The file cannot be written there.
        """
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._states: list[JointVec] = []
        self._actions: list[JointVec] = []
        self._times_s: list[float] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._partial, "w")
        except OSError as e:
            raise EpisodeError(f"{path}: cannot be written ({e}). Choose another folder or free some space") from e
        self._file.attrs.update({FPS: round(fps), TASK_NAMES[0]: task, "compress": True})
        self._images = {
            name: self._file.create_dataset(
                f"{IMAGES}/{name}", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(_CHUNK_FRAMES,)
            )
            for name in cameras
        }

    def __len__(self) -> int:
        """Return the number of frames so far."""
        return len(self._states)

    def append(self, state: JointVec, action: JointVec, jpegs: Mapping[str, bytes], time_s: float) -> None:
        """Add one frame.

        Args:
            state: Measured position.
            action: Target that was sent right after.
            jpegs: An RGB image of each camera as standard JPEG.
            time_s: `time.monotonic()` of the observation.

        Raises:
            EpisodeError: The disk is full or gone.
        """
        try:
            for name, data in self._images.items():
                data.resize((len(self) + 1,))
                data[len(self)] = np.frombuffer(jpegs[name], np.uint8)
        except OSError as e:
            raise EpisodeError(f"{self.path}: cannot be written ({e}). Free some space") from e
        self._states.append(state)
        self._actions.append(action)
        self._times_s.append(time_s)

    def finish(self, **attributes: Any) -> None:
        """Write the numbers and move the file into place.

        Raises:
            EpisodeError: The file cannot be written. Nothing is left of it.
        """
        try:
            self._file[QPOS] = np.array(self._states, np.float32)
            self._file[ACTION] = np.array(self._actions, np.float32)
            self._file[TICK_TIMES] = np.array(self._times_s) - self._times_s[0]
            self._file.attrs.update(attributes)
            self._file.close()
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self.path)
        except OSError as e:
            self.discard()
            raise EpisodeError(f"{self.path}: cannot be written ({e}). Free some space") from e

    def discard(self) -> None:
        """Remove the file."""
        try:
            self._file.close()
        except (OSError, RuntimeError):  # the rest could not be flushed to a full disk
            pass
        finally:
            self._partial.unlink(missing_ok=True)


def next_episode(folder: Path) -> Path:
    """Return the path of a folder's next recording.

    Its number is one more than the highest number there.
    """
    numbers = [int(m.group(1)) for p in folder.glob("episode_*.hdf5") if (m := re.fullmatch(r"episode_(\d+)", p.stem))]
    return folder / f"episode_{max(numbers, default=-1) + 1}.hdf5"


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove the unfinished recordings of killed runs and return their paths."""
    leftovers = sorted(folder.glob(".episode_*.hdf5.partial"))
    for path in leftovers:
        path.unlink()
    return leftovers
