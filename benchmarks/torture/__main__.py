"""Attack the whole product on purpose.

There are kills, damaged files, malformed requests, and faults of the emulated robot.

    make torture                                  # about 20 minutes
    make torture ARGS="--minutes 1 --seed 7"      # a quick look, with other attacks
    make torture ARGS="--kinds files --only 12"   # one attack again

The same seed gives the same attacks. Everything happens in a folder of its own and over loopback. The folder is deleted
at the end, unless something was lost. Exit codes: 0 nothing was lost, 1 something was lost, 130 interrupted by Ctrl-C.
"""

import dataclasses
import importlib
import inspect
from pathlib import Path
import signal
import sys
import tempfile
from typing import Literal, get_args

import tyro

from benchmarks.torture.attack import Kind
from benchmarks.torture.runner import Runner

KindName = Literal["kills", "files", "messages", "robot"]
_CLASSES = {"kills": "Kills", "files": "Files", "messages": "Messages", "robot": "Robot"}


@dataclasses.dataclass(frozen=True)
class Args:
    """How long to attack, and what."""

    minutes: float = 20.0
    """How long to attack. Every kind gets one attack in any case."""
    seed: int = 0
    """Decides the attacks."""
    kinds: tuple[KindName, ...] = get_args(KindName)
    """Kinds of attacks."""
    only: int | None = None
    """Do the attack of this number and nothing else."""
    folder: Path | None = None
    """Where to work. None means a folder in the system's temporary folder."""


def main(args: Args) -> int:
    """Attack, print the table and return the exit code."""
    kinds: list[Kind] = [
        getattr(importlib.import_module(f"benchmarks.torture.{name}"), _CLASSES[name])() for name in args.kinds
    ]
    folder = Path(tempfile.mkdtemp(prefix="torture_", dir=args.folder))

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # A shell that runs this in the background ignores Ctrl-C. A plain kill must clean up as well.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    return Runner(kinds, args.seed, 60 * args.minutes, folder, args.only).run()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=inspect.cleandoc(__doc__ or ""))))
