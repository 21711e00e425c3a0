"""High follow: targets at the policy's rate become commands at the controller's.

Commands lie on straight lines from one target to the next.
"""

from collections.abc import Callable
import threading
import time

import numpy as np

from realman.arrays import JointVec
from realman.errors import RobotError
from realman.pacing import Pacer

_CLOSE_WAIT_S = 1.0


class Interpolator:
    """Position of the command between one target and the next.

    Each leg takes one period of the targets.
    """

    def __init__(self, start: JointVec, period_s: float, now_s: float) -> None:
        self._start = start
        self._goal = start
        self._since_s = now_s
        self._period_s = period_s

    def set_goal(self, goal: JointVec, now_s: float) -> None:
        """Start a new leg at the current command."""
        self._start = self.at(now_s)
        self._goal = goal
        self._since_s = now_s

    def at(self, now_s: float) -> JointVec:
        """Return the command at a time: the goal after the leg."""
        share = min(max((now_s - self._since_s) / self._period_s, 0.0), 1.0)
        return self._start + share * (self._goal - self._start)


class CommandStream:
    """A thread that sends the interpolated command at a steady rate.

    It ends when it is halted or a send fails.
    """

    def __init__(
        self, send: Callable[[JointVec], None], start: JointVec, max_speed: JointVec, fps: float, rate_hz: float
    ) -> None:
        """Describe the stream. Nothing is sent before the first target.

        Args:
            send: Sends one command to both arms.
            start: Current position of the arms.
            max_speed: Largest speed, units of `start` per second. It holds even if targets come faster than `fps`.
            fps: Rate of targets, Hz.
            rate_hz: Rate of commands, Hz.
        """
        self._send = send
        self._command = np.array(start)
        self._max_step = max_speed / rate_hz
        self._rate_hz = rate_hz
        self._lock = threading.Lock()
        self._interpolator = Interpolator(np.array(start), 1.0 / fps, time.monotonic())
        self._is_halted = threading.Event()
        self._error: RobotError | None = None
        self._thread = threading.Thread(target=self._run, name="high follow", daemon=True)
        self.num_late = 0
        """Number of commands that left late. The controller expects a steady period."""

    def set_target(self, target: JointVec) -> None:
        """Take the next target. The first one starts the thread.

        Raises:
            RobotError: A command could not be sent since the last call.
        """
        if self._error:
            raise self._error
        with self._lock:
            self._interpolator.set_goal(target.copy(), time.monotonic())
        if not self._thread.is_alive() and not self._is_halted.is_set():
            self._thread.start()

    def halt(self) -> None:
        """Send no further command and wait for the thread to end."""
        self._is_halted.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_WAIT_S)

    def _run(self) -> None:
        pacer = Pacer(self._rate_hz)
        while not self._is_halted.is_set():
            with self._lock:
                wanted = self._interpolator.at(time.monotonic())
            self._command = np.clip(wanted, self._command - self._max_step, self._command + self._max_step)
            try:
                self._send(self._command)
            except RobotError as e:
                self._error = e
                return
            pacer.wait()
            self.num_late = pacer.late_ticks
