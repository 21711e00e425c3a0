"""A recorder with a thread of its own.

The control loop only hands over references. If the disk is too slow, the recording ends and the run continues.
"""

from collections.abc import Callable
import concurrent.futures
import contextlib
import logging
from pathlib import Path
import queue
import threading
from types import TracebackType
from typing import NamedTuple

import cv2

from realman import spec
from realman.arrays import Image
from realman.arrays import JointVec
from realman.errors import EpisodeError
from realman.robots.robot import RobotObservation
from realman.runtime.recording.episode_file import EpisodeFile
from realman.runtime.recording.episode_file import next_episode
from realman.runtime.recording.episode_file import remove_leftovers

logger = logging.getLogger(__name__)

JPEG_QUALITY = 95
"""At this quality little is lost, and a frame of 480x640 takes about 60 kB."""

MAX_WAITING_BYTES = 256 * 2**20
"""Size of the images that may wait to be written: more than a second of four cameras at full size."""

_MIN_WAITING = 8
_MIN_FRAMES = 2
_CLOSE_TIMEOUT_S = 60.0


class _Frame(NamedTuple):
    observation: RobotObservation
    sent: JointVec
    task: str


class _End(NamedTuple):
    keep: bool
    why: str


class Recorder:
    """Records episodes with all cameras of the robot.

    It implements `realman.runtime.control.TickObserver`. You may call its methods from any thread, and they never wait.
    Only the end of the `with` block waits, and `see` with `may_wait`.

    Attributes:
        saved: Paths of the recordings finished so far.
    """

    def __init__(
        self,
        folder: Path,
        fps: float,
        task: Callable[[], str | None],
        *,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
        may_wait: bool = False,
    ) -> None:
        """Prepare the folder. Nothing is recorded before `start`.

        Args:
            folder: Where the files episode_<n>.hdf5 go. Their numbers continue the existing ones.
            fps: Frames per second.
            task: Returns the present task. When it changes, a new episode begins.
            max_waiting_bytes: Size of the images that may wait in memory.
            may_wait: Let the loop wait for the disk instead of losing the recording. Only for simulated time.

        Raises:
            EpisodeError: The folder cannot be written.
        """
        self.saved: list[Path] = []
        self._folder = folder
        self._fps = fps
        self._task = task
        self._max_waiting_bytes = max_waiting_bytes
        self._may_wait = may_wait
        self._is_watching = False
        self._lock = threading.Lock()
        self._queue: queue.Queue[_Frame | _End | None] = queue.Queue()
        self._num_frames = 0
        self._note = "off"
        self._encoded: dict[str, tuple[Image, bytes]] = {}
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in remove_leftovers(folder):
                logger.warning("%s: removed, because the run that recorded it was killed", path)
        except OSError as e:
            raise EpisodeError(f"{folder}: cannot be written ({e}). Choose another folder") from e

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save the present episode and wait until it is on the disk."""
        self.finish("the run's end" if error is None else str(error) or type(error).__name__)
        self._queue.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("recording: not written within %g s, the last episode is lost", _CLOSE_TIMEOUT_S)

    @property
    def is_watching(self) -> bool:
        """Whether an episode is being recorded."""
        return self._is_watching

    def start(self) -> None:
        """Begin an episode with the next tick."""
        with self._lock:
            self._is_watching = True
            self._num_frames = 0
            self._note = "on"

    def finish(self, why: str = "key") -> None:
        """End the episode and keep it."""
        self._end(_End(keep=True, why=why))

    def discard(self, why: str = "key") -> None:
        """End the episode and delete it."""
        self._end(_End(keep=False, why=why))

    def toggle(self) -> None:
        """Begin an episode, or end and keep the present one."""
        if self._is_watching:
            self.finish()
        else:
            self.start()

    def see(self, observation: RobotObservation, sent: JointVec) -> None:
        """Take one tick.

        In real time the loop never waits for the disk. If the recording cannot keep up, it is given up with an error in
        the log.
        """
        with self._lock:
            if not self._is_watching:
                return
            frame = _Frame(observation, sent, self._task() or "")
            # In real time, lose the episode and not a tick.
            if self._queue.qsize() >= self._capacity(observation) and not self._may_wait:
                self._is_watching = False
                self._note = "LOST: the disk is too slow"
                logger.error(
                    "RECORDING LOST: %d frames wait to be written, this machine or its disk is too slow. "
                    "The run continues and the episode is not kept",
                    self._queue.qsize(),
                )
                self._queue.put(_End(keep=False, why="too slow"))
                return
            self._num_frames += 1
            self._queue.put(frame)
        # In simulated time, wait for the disk, without the lock.
        while self._may_wait and self._queue.qsize() >= self._capacity(observation) and self._thread.is_alive():
            self._thread.join(0.005)

    def status(self) -> str:
        """Return the recording's state in words."""
        if self._is_watching:
            return f"on, {self._num_frames} frames, {self._queue.qsize()} waiting, {len(self.saved)} episodes saved"
        return f"{self._note} ({len(self.saved)} episodes saved in {self._folder})"

    def _capacity(self, observation: RobotObservation) -> int:
        frame_bytes = sum(image.nbytes for image in observation.images.values())
        return max(_MIN_WAITING, self._max_waiting_bytes // max(frame_bytes, 1))

    def _end(self, end: _End) -> None:
        with self._lock:
            if self._is_watching:
                self._is_watching = False
                self._note = "saved" if end.keep else "discarded"
                self._queue.put(end)

    def _run(self) -> None:
        episode: EpisodeFile | None = None
        task = ""
        with concurrent.futures.ThreadPoolExecutor(len(spec.CAMERAS)) as pool:
            # None marks the end of the run.
            while (item := self._queue.get()) is not None:
                try:
                    if isinstance(item, _End):
                        self._close(episode, item)
                        episode = None
                        continue
                    # A frame: an episode has one task, so another task begins another episode.
                    if episode is not None and item.task != task:
                        self._close(episode, _End(keep=True, why="another task"))
                        episode = None
                    if episode is None:
                        task = item.task
                        cameras = tuple(item.observation.images)
                        episode = EpisodeFile(next_episode(self._folder), cameras, self._fps, task)
                    self._append(episode, item, pool)
                except EpisodeError as e:
                    self._give_up(episode, e)
                    episode = None
        if episode is not None:
            episode.discard()

    def _append(self, episode: EpisodeFile, frame: _Frame, pool: concurrent.futures.Executor) -> None:
        observation = frame.observation
        encoded = pool.map(self._jpeg, observation.images, observation.images.values())
        jpegs = dict(zip(observation.images, encoded, strict=True))
        episode.append(observation.state, frame.sent, jpegs, observation.time_s)

    def _jpeg(self, camera: str, image: Image) -> bytes:
        """Return an image as JPEG, encoded only once.

        At 50 Hz most frames of a 30 Hz camera come twice.
        """
        before = self._encoded.get(camera)
        if before is not None and before[0] is image:
            return before[1]
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        is_done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
        if not is_done:
            raise EpisodeError(f"{camera}: an image of shape {image.shape} cannot be encoded as JPEG")
        self._encoded[camera] = image, data.tobytes()
        return data.tobytes()

    def _close(self, episode: EpisodeFile | None, end: _End) -> None:
        if episode is None:
            return
        if not end.keep or len(episode) < _MIN_FRAMES:
            episode.discard()
            logger.info("recording: %d frames discarded (%s)", len(episode), end.why)
            return
        episode.finish(ended_by=end.why)
        self.saved.append(episode.path)
        logger.info("recording: %s, %d frames (ended by %s)", episode.path, len(episode), end.why)

    def _give_up(self, episode: EpisodeFile | None, error: EpisodeError) -> None:
        """Give up the recording, but never the run."""
        with self._lock:
            self._is_watching = False
            self._note = f"LOST: {error}"
        logger.error("RECORDING LOST: %s. The run continues and the episode is not kept", error)
        if episode is not None:
            episode.discard()
        # The waiting frames belong to the lost episode.
        with contextlib.suppress(queue.Empty):
            while (item := self._queue.get_nowait()) is not None:
                pass
            self._queue.put(item)
