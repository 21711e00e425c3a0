"""Keys during a run.

A thread reads single characters from the terminal. The terminal's settings are restored however the run ends.
"""

import atexit
import codecs
from collections.abc import Callable, Mapping
import os
import select
import sys
import threading
from types import TracebackType
from typing import Any

_POLL_S = 0.1
_ESCAPE = "\x1b"
_ERASE = ("\x7f", "\b")
_ENTER = ("\n", "\r")


class Keyboard:
    """Calls an action per key.

    Without a terminal, for example in a service, it does nothing.

    Attributes:
        typed: The line that is being typed. None while keys act.
    """

    def __init__(
        self,
        actions: Mapping[str, Callable[[], None]],
        line_key: str,
        on_line: Callable[[str], None],
        file: Any = None,
    ) -> None:
        """Define the keys. Nothing is read before the `with` block.

        Args:
            actions: The action of each key, called in the keyboard's thread.
            line_key: The key that begins a line of text. Enter ends the line, Escape drops it.
            on_line: Takes the line if it is not empty.
            file: Where keys come from. None is stdin.
        """
        self._actions = actions
        self._line_key = line_key
        self._on_line = on_line
        self._file = sys.stdin if file is None else file
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._before: list[Any] | None = None
        self._fd = -1
        self.typed: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether keys are being read."""
        return self._thread is not None

    def __enter__(self) -> "Keyboard":
        """Start to read keys, if there is a terminal."""
        try:
            import termios
            import tty
        except ImportError:  # Windows has no such terminals
            return self
        if self._file is None or self._file.closed or not self._file.isatty():
            return self
        self._fd = self._file.fileno()
        # A shell's background job that touches its terminal is suspended, and with it the control of the arms.
        if os.tcgetpgrp(self._fd) != os.getpgrp():
            return self
        self._before = termios.tcgetattr(self._fd)
        atexit.register(self._restore)
        # This mode keeps the signals, because Ctrl-C must always work.
        tty.setcbreak(self._fd)
        self._is_closing.clear()
        self._thread = threading.Thread(target=self._run, name="keyboard", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading and restore the terminal."""
        self._is_closing.set()
        try:
            thread, self._thread = self._thread, None
            if thread is not None and thread is not threading.current_thread():
                thread.join(10 * _POLL_S)
        finally:
            self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            import termios

            before, self._before = self._before, None
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
            atexit.unregister(self._restore)

    def _run(self) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while not self._is_closing.is_set():
            if not select.select([self._fd], [], [], _POLL_S)[0]:
                continue
            try:
                data = os.read(self._fd, 1024)
            except OSError:  # the terminal was closed
                return
            if not data:
                return
            self._take(decode(data))

    def _take(self, text: str) -> None:
        # An arrow or function key arrives as Escape with further characters. Ignore all of them.
        if text.startswith(_ESCAPE) and len(text) > 1:
            return
        for char in text:
            if self.typed is not None:
                self._type(char)
            elif char == self._line_key:
                self.typed = ""
            elif action := self._actions.get(char):
                action()

    def _type(self, char: str) -> None:
        assert self.typed is not None
        if char == _ESCAPE:
            self.typed = None
        elif char in _ERASE:
            self.typed = self.typed[:-1]
        elif char in _ENTER:
            line, self.typed = self.typed.strip(), None
            if line:
                self._on_line(line)
        elif char.isprintable():
            self.typed += char
