"""What the storage libraries raise on files that are missing or cut off, as one line."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import sys

from openpi.shared import errors

_MAX_REASON = 300


@contextlib.contextmanager
def explained(describe: Callable[[str], str]) -> Iterator[None]:
    """Turn errors of reading a checkpoint into one that a user understands.

    Args:
        describe: Makes the message out of the reason.

    Raises:
        DataError: The checkpoint cannot be read.
    """
    sys.unraisablehook = _report_unless_late
    try:
        yield
    except errors.UserError:
        raise
    except (OSError, ValueError, KeyError) as e:
        # Parameters are read in tasks, of which often all fail: one has been told of.
        logging.getLogger("asyncio").addFilter(_OTHERS)
        # They carry pages of context.
        reason = next(iter(str(e).splitlines()), type(e).__name__)[:_MAX_REASON]
        raise errors.DataError(describe(reason)) from e


class _Others(logging.Filter):
    """Drops the tracebacks of tasks that failed beside the one that an error tells of."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "never retrieved" not in record.getMessage()


_OTHERS = _Others()
_report = sys.unraisablehook


def _report_unless_late(unraisable: "sys.UnraisableHookArgs") -> None:
    # A read that ended after the loop of its task.
    if "Event loop is closed" not in str(unraisable.exc_value):
        _report(unraisable)
