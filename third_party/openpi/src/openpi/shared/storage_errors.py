"""What the storage libraries raise on files that are missing or cut off, as one line."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import sys

from openpi.shared import errors

_MAX_REASON = 300
_OF_TASKS = ("never retrieved", "unhandled exception during asyncio.run() shutdown")
_LATE = ("Event loop is closed", "Encountered error while reading array index")


@contextlib.contextmanager
def explained(describe: Callable[[str], str]) -> Iterator[None]:
    """Turn errors of reading a checkpoint into one that a user understands.

    Args:
        describe: Makes the message out of the reason.

    Raises:
        DataError: The checkpoint cannot be read.
    """
    sys.unraisablehook = _report_unless_late
    # Parameters are read in tasks, of which often all fail: one is told of. Stays after a failure, as some end with the process.
    logging.getLogger("asyncio").addFilter(_OTHERS)
    try:
        yield
        logging.getLogger("asyncio").removeFilter(_OTHERS)
    except errors.UserError:
        raise
    except Exception as e:
        # An array that cannot be read is told of by a bare Exception, behind which is what happened.
        is_bare = type(e) is Exception
        if not is_bare and not isinstance(e, OSError | ValueError | KeyError):
            raise
        # They carry pages of context.
        cause = (e.__cause__ or e) if is_bare else e
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)[:_MAX_REASON]
        raise errors.DataError(describe(reason)) from e


class _Others(logging.Filter):
    """Drops the tracebacks of tasks that failed beside the one that an error tells of."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(words in message for words in _OF_TASKS)


_OTHERS = _Others()
_report = sys.unraisablehook


def _report_unless_late(unraisable: "sys.UnraisableHookArgs") -> None:
    # A read that ended after the loop of its task, or that nobody waits for as another one failed first.
    if not str(unraisable.exc_value).startswith(_LATE):
        _report(unraisable)
