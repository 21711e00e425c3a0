"""Makes text from elsewhere safe to show.

Text that a client or a file chose can hold line breaks that forge log lines, and sequences that steer a terminal. Everything
of that kind passes through here before it reaches a log.
"""

import logging
import time
import traceback

MAX_CHARS = 500


def printable(text: object, max_chars: int = MAX_CHARS) -> str:
    r"""Return a text as one line of visible characters.

    All others are escaped as in Python (`\n`, `\x1b`, `\u202e`). Letters of any language stay as they are.

    Args:
        text: Anything with a text form.
        max_chars: The rest is cut off, and an ellipsis shows it.
    """
    # Cut first, because the text may be large.
    raw = str(text)
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw[: max_chars + 1])
    return line if len(line) <= max_chars else line[: max_chars - 3] + "..."


class PrintableRecords(logging.Filter):
    """Makes the messages and tracebacks of a logger printable.

    Add it to a logger that writes about what clients sent. Formatters use the traceback that a record already has.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the record, and let it pass."""
        record.msg, record.args = printable(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None:
            # Indented, so that no line of an error's message looks like a record of its own.
            lines = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
            record.exc_text = "\n".join(f"  {printable(line)}" for line in lines)
        return True


class StrangerRecords(PrintableRecords):
    """Keeps strangers from filling a log.

    Add it to a logger that reports connections that are none of a client, with all that they sent. It lets one line per
    second pass, without a traceback.
    """

    def __init__(self) -> None:
        """Begin without a record."""
        super().__init__()
        self._next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the record, and let one per second pass."""
        if record.levelno < logging.WARNING:
            return super().filter(record)
        now_s = time.monotonic()
        if now_s < self._next_s:
            return False
        self._next_s = now_s + 1.0
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.msg, record.args = f"{record.getMessage()} ({type(error).__name__}: {error})", ()
            record.exc_info = None
        return super().filter(record)
