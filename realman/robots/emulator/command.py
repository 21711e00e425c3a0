"""`realman emulator`: run two emulated RM65 arms until Ctrl-C."""

import dataclasses
import logging
import sys
import threading

from realman import cli
from realman.errors import RobotError
from realman.ranges import ListeningPort
from realman.ranges import Port
from realman.ranges import check_flags
from realman.robots.emulator import prompt
from realman.robots.emulator.server import Emulator
from realman.robots.emulator.settings import PUSH_PORT
from realman.robots.emulator.settings import TCP_PORT
from realman.robots.emulator.settings import Generation
from realman.robots.emulator.settings import two_arms

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Args:
    """Two emulated arms: right at 127.0.0.1, left at 127.0.0.2."""

    port: ListeningPort = TCP_PORT
    """TCP port of both arms. 0 takes a free one for each."""
    push_port: Port = PUSH_PORT
    """UDP port that the state is pushed to until a client changes it."""
    generation: Generation = 3
    """Controller generation, 3 or 4."""
    scene: bool = False
    """Move the arms of the simulated cell (MuJoCo) instead of weightless ones in empty space."""

    def __post_init__(self) -> None:
        check_flags(self)


def main(args: Args) -> None:
    """Run two emulated RM65 controllers on loopback until Ctrl-C."""
    physics = None
    if args.scene:
        from realman.robots.emulator.scene import ScenePhysics

        physics = ScenePhysics()
    emulator = Emulator(two_arms(args.port, args.push_port, args.generation), physics)
    try:
        with emulator:
            for side, (host, port) in emulator.addresses.items():
                print(f"{side} arm: {host}:{port}, state push to UDP port {args.push_port}", flush=True)  # noqa: T201
            logger.info(
                "Press Ctrl-C to stop. Type a line such as 'left error 100D' to cause a fault, or 'help' to list them"
            )
            for line in sys.stdin:
                _obey(emulator, line)
            # Without a keyboard, or after its end, keep running.
            threading.Event().wait()
    except OSError as e:
        raise RobotError(f"emulator: cannot listen ({e}). If another one is running, try --port 0") from e


def _obey(emulator: Emulator, line: str) -> None:
    try:
        print(prompt.obey(emulator, line), flush=True)  # noqa: T201
    except RobotError as e:
        cli.print_error(str(e))
