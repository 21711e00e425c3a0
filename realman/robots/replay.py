"""A robot that plays back a recording.

It accepts every target without moving. It plays a recorded episode (HDF5), with images for a policy, or the log of a
run (run.npz), without images.
"""

from pathlib import Path
import time
from typing import Protocol, runtime_checkable

import numpy as np

from realman import spec
from realman.arrays import Image
from realman.arrays import JointTraj
from realman.arrays import JointVec
from realman.data.raw.episode import Episode
from realman.data.raw.episode import open_episode
from realman.data.raw.options import RawOptions
from realman.errors import EpisodeError
from realman.errors import NotConnectedError
from realman.errors import RejectedError
from realman.robots.robot import RobotObservation


@runtime_checkable
class _Playable(Protocol):
    """A recording that can be played frame by frame."""

    @property
    def state(self) -> JointTraj: ...

    def images(self, t: int) -> dict[str, Image]: ...

    def close(self) -> None: ...


class _Log:
    """The log of a run."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path) as arrays:
                state, sent = arrays["state"], arrays["sent"]
        except (OSError, ValueError, KeyError) as e:
            raise EpisodeError(
                f"{path}: not the log of a run ({e}), expected a run.npz written by `realman client`"
            ) from e
        # A robot that reported no position is assumed to be where it was sent.
        self.state = np.where(np.isfinite(state), state, sent)
        if not len(self.state):
            raise EpisodeError(f"{path}: the run has no steps, expected at least one")

    def images(self, _t: int) -> dict[str, Image]:
        return {}

    def close(self) -> None: ...


class _Recording:
    """A recorded episode."""

    def __init__(self, path: Path, options: RawOptions) -> None:
        self._episode: Episode = open_episode(path, options)
        self.state = self._episode.state.astype(np.float64)

    def images(self, t: int) -> dict[str, Image]:
        return {name: self._episode.image(name, t) for name in self._episode.cameras}

    def close(self) -> None:
        self._episode.close()


class ReplayRobot:
    """Implements `realman.robots.robot.Robot`.

    Each `send` advances by one frame. Playback stays at the last frame.

    Attributes:
        taken: Targets received since `connect`.
    """

    def __init__(self, path: Path, fps: float = spec.DEFAULT_FPS, options: RawOptions | None = None) -> None:
        """Describe the robot. `connect` opens the file.

        Args:
            path: A recording (.hdf5) or the log of a run (.npz).
            fps: Frames per second.
            options: How to read a recording.
        """
        self._path = path
        self._fps = float(fps)
        self._options = options or RawOptions()
        self._source: _Playable | None = None
        self._is_stopped = False
        self.taken: list[JointVec] = []

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self._fps

    @property
    def num_frames(self) -> int:
        """Number of frames in the recording."""
        return len(self._connected().state)

    def connect(self) -> None:
        """Open the file and start at its first frame.

        Raises:
            EpisodeError: The file is neither a recording nor a log.
        """
        self.disconnect()
        is_log = self._path.suffix == ".npz"
        self._source = _Log(self._path) if is_log else _Recording(self._path, self._options)
        self.taken = []
        self._is_stopped = False

    def observe(self) -> RobotObservation:
        """Return the recorded state and images of the current frame."""
        return RobotObservation(self.measure(), self._connected().images(self._frame()), time.monotonic())

    def measure(self) -> JointVec:
        """Return the recorded state of the current frame."""
        return np.array(self._connected().state[self._frame()])

    def ages_s(self) -> dict[str, float]:
        """Return no ages: nothing grows old in a recording."""
        return {}

    def send(self, target: JointVec) -> JointVec:
        """Take a target and advance to the next frame.

        Raises:
            NotConnectedError: Not connected.
            RejectedError: The robot was stopped.
        """
        self._connected()
        if self._is_stopped:
            raise RejectedError("replay: stopped, so no motion is accepted. Call connect() first")
        self.taken.append(target.copy())
        return target.copy()

    def stop(self) -> None:
        """Refuse further targets."""
        self._is_stopped = True

    def disconnect(self) -> None:
        """Close the file. Safe to call twice."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _frame(self) -> int:
        return min(len(self.taken), self.num_frames - 1)

    def _connected(self) -> _Playable:
        if self._source is None:
            raise NotConnectedError("replay: not connected. Call connect() first")
        return self._source
