"""One thread per camera source that keeps the newest frame ready.

The control loop therefore never waits for a frame.
"""

from collections.abc import Sequence
import logging
import threading
import time
from typing import Protocol, runtime_checkable

from realman.arrays import Image
from realman.errors import RealmanError
from realman.errors import RobotError
from realman.errors import RobotTimeoutError
from realman.robots.cameras import Frame

logger = logging.getLogger(__name__)

_CLOSE_WAIT_S = 5.0


@runtime_checkable
class CameraSource(Protocol):
    """One device, or several that deliver together.

    All calls come from one thread, which serves this source alone.
    """

    names: tuple[str, ...]
    """Names of its cameras."""

    def open(self) -> None:
        """Open the source.

        Raises:
            RobotError: It is not there.
        """
        ...

    def grab(self) -> dict[str, Image]:
        """Wait for the next image of each of its cameras, RGB."""
        ...

    def close(self) -> None:
        """Release the source. Safe to call twice."""
        ...


class ThreadedCameras:
    """Implements `realman.robots.cameras.Cameras` on any number of sources.

    It can be opened again after `close`.
    """

    def __init__(self, sources: Sequence[CameraSource], *, max_fps: float = 30.0, first_frame_timeout_s: float = 10.0):
        """Describe the cameras.

        Args:
            sources: Where frames come from.
            max_fps: Largest rate at which frames are taken from a source that never waits, Hz.
            first_frame_timeout_s: How long a camera may take to deliver its first frame, s.
        """
        self._sources = tuple(sources)
        self._period_s = 1.0 / max_fps
        self._first_frame_timeout_s = first_frame_timeout_s
        self._frames: dict[str, Frame] = {}
        self._errors: list[Exception] = []
        self._changed = threading.Condition()
        self._is_closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Start every source and wait for the first frame of each camera.

        A failure leaves none open.

        Raises:
            RobotError: A camera is not there.
            SiteError: A camera's library is not installed.
            RobotTimeoutError: A camera gave no frame in time.
        """
        # Start every source in its own thread.
        self.close()
        self._is_closing.clear()
        self._frames, self._errors = {}, []
        wanted = {name for source in self._sources for name in source.names}
        self._threads = [
            threading.Thread(target=self._run, args=(s,), name=f"cameras {s.names}") for s in self._sources
        ]
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        # Wait until every camera has delivered or one has failed. A source's own error explains more than a timeout.
        with self._changed:
            self._changed.wait_for(lambda: self._errors or wanted <= set(self._frames), self._first_frame_timeout_s)
        missing = sorted(wanted - set(self._frames))
        if missing:
            errors = list(self._errors)
            self.close()
            if errors:
                raise errors[0]
            raise RobotTimeoutError(
                f"cameras: no frame from {', '.join(missing)} within {self._first_frame_timeout_s:g} s. "
                "Check cable and name"
            )

    def latest(self) -> dict[str, Frame]:
        """Return the newest frame of each camera without waiting.

        Raises:
            RobotError: A source failed since `open`. This is its own error.
        """
        with self._changed:
            if self._errors:
                raise self._errors[0]
            return dict(self._frames)

    def close(self) -> None:
        """Stop all threads and release the sources. Safe to call twice."""
        self._is_closing.set()
        for thread in self._threads:
            thread.join(_CLOSE_WAIT_S)
        self._threads = []

    def _run(self, source: CameraSource) -> None:
        try:
            source.open()
            while not self._is_closing.is_set():
                begin_s = time.monotonic()
                images = source.grab()
                # The time before the call is the earliest possible capture time, so a frame's age is never understated.
                with self._changed:
                    self._frames |= {name: Frame(image, begin_s) for name, image in images.items()}
                    self._changed.notify_all()
                self._is_closing.wait(max(0.0, begin_s + self._period_s - time.monotonic()))
        except Exception as e:
            # Device libraries raise errors of any type. All of them mean that this camera is dead.
            error = e if isinstance(e, RealmanError) else RobotError(f"camera {', '.join(source.names)}: failed ({e})")
            logger.error("%s", error)
            with self._changed:
                self._errors.append(error)
                self._changed.notify_all()
        finally:
            source.close()
