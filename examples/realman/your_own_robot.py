"""Drive a robot of your own, in 40 lines.

    python examples/realman/your_own_robot.py --prompt "pick up the cube"

`docs/your_own_robot.md` explains each method. This robot is a stand-in: it goes where it is sent, and its cameras are
black. Replace the bodies of its methods with calls of your own SDK.
"""

import dataclasses
import time

import numpy as np

from realman import PolicyClient
from realman import RobotObservation
from realman import cli
from realman import connected
from realman import spec
from realman.pacing import Pacer
from realman.runtime import Limits
from realman.runtime import RunRecord
from realman.runtime import SafetySettings
from realman.runtime import Watchdogs
from realman.runtime import make_player
from realman.runtime import run


class MyRobot:
    """Two arms that are where they were last sent."""

    fps = 50.0

    def __init__(self) -> None:
        self._state = np.zeros(spec.NUM_DIMS)
        self._is_open = False

    def connect(self) -> None:
        """Open the arms and cameras. Nothing moves."""
        self._is_open = True

    def observe(self) -> RobotObservation:
        """Return the measured state and the newest frame of each camera."""
        images = {name: np.zeros((480, 640, 3), np.uint8) for name in spec.CAMERAS}
        return RobotObservation(self._state.copy(), images, time.monotonic())

    def send(self, target: np.ndarray) -> np.ndarray:
        """Start one tick of motion and return what was sent."""
        if self._is_open:
            self._state = target.copy()
        return self._state.copy()

    def stop(self) -> None:
        """Stop the arms now, and ignore further targets."""
        self._is_open = False

    def disconnect(self) -> None:
        """Release the arms. A second call does nothing."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Flags of this example."""

    host: str = "127.0.0.1"
    """Policy server."""
    port: int = 8000
    """Port of the policy server."""
    prompt: str = "pick up the cube"
    """Task text."""
    max_steps: int = 250
    """Control steps, 50 per second."""


def main(args: Args) -> None:
    """Run a policy on a robot of your own."""
    settings, record = SafetySettings(), RunRecord()
    with (
        PolicyClient.connect(args.host, args.port, cameras=spec.CAMERAS, fps=MyRobot.fps) as client,
        connected(MyRobot()) as robot,
    ):
        player = make_player("async", client, args.prompt)
        limits = Limits.per_tick(settings, robot.fps)
        watchdogs = Watchdogs.from_settings(settings)
        run(robot, player, limits, record, max_steps=args.max_steps, pacer=Pacer(robot.fps), watchdogs=watchdogs)
    print(f"{len(record.sent)} steps sent, {len(player.round_trips_s)} predictions")


if __name__ == "__main__":
    cli.run(main, Args)
