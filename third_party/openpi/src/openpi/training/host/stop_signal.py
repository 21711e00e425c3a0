"""Stop a run on SIGINT or SIGTERM without losing its steps.

The first signal asks the run to stop at the next step. A second one ends the process as usual.
"""

import logging
import signal
import threading
from types import FrameType
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context that records the first stop signal in `received`.

    The run then finishes its step, saves a checkpoint and exits.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        # Python delivers signals to the main thread only, so other threads install nothing.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        self._restore()
        logger.warning(
            "%s: saving a checkpoint, then exiting. Send it again to exit at once", signal.Signals(number).name
        )

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
