"""Notices a camera that goes on delivering the same picture, as a hung driver or a capture card without signal does."""

from collections.abc import Callable
import time

import numpy as np

from realman.arrays import Image
from realman.errors import RobotTimeoutError
from realman.robots.cameras.threads import CameraSource


class FrozenCheck:
    """A camera source that fails when the one behind it delivers the same picture, bit for bit, for too long."""

    def __init__(self, source: CameraSource, max_frozen_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Watch `source`; `max_frozen_s` is how long a picture may stay the same."""
        self.names = source.names
        self._source = source
        self._max_frozen_s = max_frozen_s
        self._now = now
        self._last: dict[str, tuple[Image, float]] = {}

    def open(self) -> None:
        """Open the source and forget earlier pictures."""
        self._last = {}
        self._source.open()

    def grab(self) -> dict[str, Image]:
        """Return the next frame of each camera.

        Raises:
            RobotTimeoutError: A picture has not changed for too long.
        """
        images = self._source.grab()
        for name, image in images.items():
            now_s = self._now()
            before = self._last.get(name)
            if before is None or not np.array_equal(before[0], image):
                self._last[name] = (image, now_s)
            elif now_s - before[1] > self._max_frozen_s:
                raise RobotTimeoutError(
                    f"camera '{name}': the picture has not changed for {now_s - before[1]:.1f} s "
                    f"(at most {self._max_frozen_s:g} s); reconnect it"
                )
        return images

    def close(self) -> None:
        """Close the source."""
        self._source.close()
