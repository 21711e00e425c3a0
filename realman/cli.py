"""How every command of this package starts.

It parses the flags, sets up logging, and prints a `RealmanError` as one line.

Exit codes: 0 success, 1 bad data, robot or server or a number out of its range, 2 wrong flags (from tyro), 130 interrupted.
"""

from collections.abc import Callable
import inspect
import logging
import os
from pathlib import Path
import sys
from typing import TypeVar

import tyro

from openpi_client import places
from realman.errors import FlagError
from realman.errors import RealmanError

ArgsT = TypeVar("ArgsT")

DEBUG_ENV = "REALMAN_DEBUG"
"""Set to 1 to see the traceback behind a one-line error."""


def run(main: Callable[[ArgsT], int | None], args_type: type[ArgsT], prog: str | None = None) -> None:
    """Parse the command line, call `main` and exit with its code.

    Args:
        main: Does the work. Returns an exit code, or None for 0.
        args_type: A frozen dataclass whose fields are the flags.
        prog: Name of the command in its help. None takes the script's.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        args = tyro.cli(args_type, prog=prog, description=inspect.getdoc(main))
        code = main(args) or 0
    except RealmanError as error:
        if os.environ.get(DEBUG_ENV) == "1":
            raise
        print_error(str(error))
        code = 1
    except KeyboardInterrupt:
        print_error("interrupted")
        code = 130
    sys.exit(code)


def check_place(folder: Path, flag: str) -> None:
    """Check that a folder can be written, before any work begins.

    Nothing is left behind.

    Args:
        folder: The folder. It may be missing.
        flag: The flag that chooses another one.

    Raises:
        FlagError: It cannot be written.
    """
    if found := places.problem(folder):
        raise FlagError(f"{folder}: cannot be written ({found}). Choose another folder with {flag}")


def print_error(message: str) -> None:
    """Write one line to stderr, red on a terminal."""
    line = f"error: {message}"
    if sys.stderr.isatty():
        line = f"\x1b[31m{line}\x1b[0m"
    sys.stderr.write(line + "\n")
