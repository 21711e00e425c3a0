"""A robot that is a recording: it shows what was seen and measured then, and takes every target without moving anything.

Plays a recorded episode (HDF5), whose pictures a policy can be asked about, or the log of a run (run.npz), which has none.
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
    """What is replayed."""

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
            raise EpisodeError(f"{path}: is no log of a run ({e}); expected the run.npz that the client writes") from e
        # Robots that do not say where they are were taken to be where they were sent.
        self.state = np.where(np.isfinite(state), state, sent)
        if not len(self.state):
            raise EpisodeError(f"{path}: the run has no steps")

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
    """Implements `realman.robots.robot.Robot`. Time advances by one frame with each `send`, and stands still at the last frame.

    Attributes:
        taken: Targets it was sent since `connect`.
    """

    def __init__(self, path: Path, fps: float = spec.DEFAULT_FPS, options: RawOptions | None = None) -> None:
        """Describe the robot; nothing is opened before `connect`.

        Args:
            path: A recording (.hdf5), or the log of a run (.npz).
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
        """Length of what is replayed."""
        return len(self._connected().state)

    def connect(self) -> None:
        """Open the file and begin at its first frame.

        Raises:
            EpisodeError: It is neither a recording nor a log.
        """
        self.disconnect()
        is_log = self._path.suffix == ".npz"
        self._source = _Log(self._path) if is_log else _Recording(self._path, self._options)
        self.taken = []
        self._is_stopped = False

    def observe(self) -> RobotObservation:
        """Return what was measured and seen at the present frame."""
        return RobotObservation(self.measure(), self._connected().images(self._frame()), time.monotonic())

    def measure(self) -> JointVec:
        """Return what was measured at the present frame."""
        return np.array(self._connected().state[self._frame()])

    def ages_s(self) -> dict[str, float]:
        """Nothing grows old in a recording."""
        return {}

    def send(self, target: JointVec) -> JointVec:
        """Take a target and go on to the next frame.

        Raises:
            RejectedError: Stopped.
        """
        self._connected()
        if self._is_stopped:
            raise RejectedError("replay: stopped, so no motion is accepted; connect again first")
        self.taken.append(target.copy())
        return target.copy()

    def stop(self) -> None:
        """Take no further target."""
        self._is_stopped = True

    def disconnect(self) -> None:
        """Close the file; safe to call twice."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _frame(self) -> int:
        return min(len(self.taken), self.num_frames - 1)

    def _connected(self) -> _Playable:
        if self._source is None:
            raise NotConnectedError("replay: not connected; call connect() first")
        return self._source
