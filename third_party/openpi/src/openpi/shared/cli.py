"""Runs the entry points: parses flags, prints errors, returns the exit status.

Exit status: 0 for success, 1 for an error that you can fix (`UserError`, printed as one line) or a crash, 2 for wrong flags,
130 if interrupted.
"""

from collections.abc import Callable
import inspect
import logging
import os
import sys
from typing import Any, NoReturn, TypeVar

import rich.console
import rich.logging
import tyro

from openpi.shared import errors

Args = TypeVar("Args")

DEBUG_ENV = "OPENPI_DEBUG"
"""Set to 1 to see the traceback of a `UserError`."""


def setup_logging(level: int = logging.INFO) -> None:
    """Send log lines to stderr, so that stdout holds results only.

    The lines are colored on a terminal and plain otherwise.
    """
    if sys.stderr.isatty():
        console = rich.console.Console(stderr=True)
        handler: logging.Handler = rich.logging.RichHandler(console=console, show_path=False, log_time_format="%X")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # JAX reports each kind of accelerator that is missing.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)


def run(main: Callable[[Args], int | None], args_type: type[Args] | Callable[[], Args]) -> NoReturn:
    """Parse the command line, run `main` and exit.

    Args:
        main: The command. It returns the exit status, and None means 0.
        args_type: The type of its flags, or a function without parameters that parses them.
    """
    setup_logging()
    try:
        description = inspect.cleandoc(main.__doc__) if main.__doc__ else None
        args: Any = args_type() if inspect.isroutine(args_type) else tyro.cli(args_type, description=description)
        status = main(args)
    except errors.UserError as e:
        if os.environ.get(DEBUG_ENV, "0") not in ("", "0"):
            raise
        print_error(str(e))
        status = 1
    except KeyboardInterrupt:
        print_error("interrupted")
        status = 130
    sys.exit(status or 0)


def print_error(message: str) -> None:
    """Print `error: message` as one line to stderr, red on a terminal."""
    console = rich.console.Console(stderr=True, soft_wrap=True)
    console.print("error: " + " ".join(message.split()), style="bold red", markup=False, highlight=False)
