"""Cameras as a robot driver sees them: named, with the newest frame of each and when it was taken.

No driver waits for a frame in the control loop; whoever implements `Cameras` keeps the newest one ready.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from realman.arrays import Image


class Frame(NamedTuple):
    """One picture."""

    image: Image
    """uint8 (height, width, 3), RGB."""
    time_s: float
    """`time.monotonic()` at the capture."""


@runtime_checkable
class Cameras(Protocol):
    """All cameras of one robot."""

    def open(self) -> None:
        """Start them and wait for the first frame of each. A failure leaves none open.

        Raises:
            RobotTimeoutError: A camera gave no frame in time.
        """
        ...

    def latest(self) -> dict[str, Frame]:
        """Return the newest frame of each camera at once, without waiting.

        Raises:
            RobotError: A camera broke down.
        """
        ...

    def close(self) -> None:
        """Release them; safe to call twice."""
        ...
