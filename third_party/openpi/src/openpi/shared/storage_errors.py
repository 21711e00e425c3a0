"""Turns the storage libraries' errors about damaged files into one line.

These libraries report a missing or truncated file with many lines and tracebacks.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import sys

from openpi.shared import errors

_MAX_REASON = 300
_TASK_FAILURES = ("never retrieved", "unhandled exception during asyncio.run() shutdown")
_LATE_READS = ("Event loop is closed", "Encountered error while reading array index")


@contextlib.contextmanager
def explained(describe: Callable[[str], str]) -> Iterator[None]:
    """Turn errors of reading a checkpoint into one that a user understands.

    Args:
        describe: Builds the message from the reason.

    Raises:
        DataError: The checkpoint cannot be read.
    """
    sys.unraisablehook = _report_unless_late
    # Parameters are read in tasks. Often all of them fail, and one is reported. The filter stays after a failure, because some
    # tasks end only with the process.
    logging.getLogger("asyncio").addFilter(_OTHER_FAILURES)
    try:
        yield
        logging.getLogger("asyncio").removeFilter(_OTHER_FAILURES)
    except errors.UserError:
        raise
    except Exception as e:
        # An array that cannot be read raises a bare Exception, whose cause says what happened.
        is_bare = type(e) is Exception
        if not is_bare and not isinstance(e, OSError | ValueError | KeyError):
            raise
        # The first line suffices. The rest is pages of context.
        cause = (e.__cause__ or e) if is_bare else e
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)[:_MAX_REASON]
        raise errors.DataError(describe(reason)) from e


class _DropOtherFailures(logging.Filter):
    """Drops the tracebacks of all failed tasks but the reported one."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(words in message for words in _TASK_FAILURES)


_OTHER_FAILURES = _DropOtherFailures()
_report = sys.unraisablehook


def _report_unless_late(unraisable: "sys.UnraisableHookArgs") -> None:
    # A late read ended after the event loop of its task, or nobody waits for it because another one failed first.
    if not str(unraisable.exc_value).startswith(_LATE_READS):
        _report(unraisable)
