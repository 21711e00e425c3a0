"""Detection of a frozen camera: it keeps delivering the same image.

A hung driver or a capture card without signal does this.
"""

from collections.abc import Callable
import time

import numpy as np

from realman.arrays import Image
from realman.errors import RobotTimeoutError
from realman.robots.cameras.threads import CameraSource


class FrozenCheck:
    """A camera source that fails when an image stops changing.

    It wraps another source and compares its images bit for bit.
    """

    def __init__(self, source: CameraSource, max_frozen_s: float, now: Callable[[], float] = time.monotonic) -> None:
        """Watch a source.

        Args:
            source: The source to watch.
            max_frozen_s: How long an image may stay the same, s.
            now: The clock, s.
        """
        self.names = source.names
        self._source = source
        self._max_frozen_s = max_frozen_s
        self._now = now
        self._last: dict[str, tuple[Image, float]] = {}

    def open(self) -> None:
        """Open the source and forget earlier images."""
        self._last = {}
        self._source.open()

    def grab(self) -> dict[str, Image]:
        """Return the next image of each camera.

        Raises:
            RobotTimeoutError: An image has not changed for too long.
        """
        images = self._source.grab()
        for name, image in images.items():
            now_s = self._now()
            before = self._last.get(name)
            if before is None or not np.array_equal(before[0], image):
                self._last[name] = (image, now_s)
            elif not now_s - before[1] <= self._max_frozen_s:
                raise RobotTimeoutError(
                    f"camera '{name}': the image has not changed for {now_s - before[1]:.1f} s, "
                    f"expected a change within {self._max_frozen_s:g} s. Reconnect the camera"
                )
        return images

    def close(self) -> None:
        """Close the source."""
        self._source.close()
