"""The cameras of a robot: the newest frame of each, by name.

A driver never waits for a frame in the control loop. Implementations of `Cameras` keep the newest one ready.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from realman.arrays import Image


class Frame(NamedTuple):
    """One image and the time of its capture."""

    image: Image
    """uint8 (height, width, 3), RGB."""
    time_s: float
    """`time.monotonic()` at the capture."""


@runtime_checkable
class Cameras(Protocol):
    """All cameras of one robot."""

    def open(self) -> None:
        """Start the cameras and wait for the first frame of each.

        A failure leaves none open.

        Raises:
            RobotTimeoutError: A camera gave no frame in time.
        """
        ...

    def latest(self) -> dict[str, Frame]:
        """Return the newest frame of each camera without waiting.

        Raises:
            RobotError: A camera failed.
        """
        ...

    def close(self) -> None:
        """Release the cameras. Safe to call twice."""
        ...
