"""When commands are sent, however late the targets come.

`realman/robots/rm65/wire_path.py` makes the commands, which keep the site's limits.
"""

from collections.abc import Callable
import threading
import time

from realman.arrays import JointVec
from realman.errors import RobotError
from realman.pacing import MIN_PERIOD_SHARE
from realman.pacing import Clock
from realman.pacing import Pacer
from realman.robots.limits import MotionLimits
from realman.robots.rm65.wire_path import WirePath

_CLOSE_WAIT_S = 1.0
_LOCK_WAIT_S = 0.1
_GRACE_PERIODS = 0.4
"""How much later than a period a target may come before the arms brake, in periods."""
_SLOW_SEND_PERIODS = 0.1
"""A send that takes longer was held up, so its command left when it returned, in periods."""
_SILENT_PERIODS = 4.0
_SILENT_S = 0.045
"""After so long without a command, and so many periods, the arms stand still at the last one."""


class CommandStream:
    """Sends commands to both arms, and brakes them while no target comes.

    It uses a thread of its own, so a control loop that hangs never leaves the arms at speed. It ends when it is halted
    or a send fails.
    """

    def __init__(
        self,
        send: Callable[[JointVec], None],
        start: JointVec,
        limits: MotionLimits,
        *,
        fps: float,
        rate_hz: float | None = None,
        joint_range: tuple[JointVec, JointVec] | None = None,
        clock: Clock = time,
    ) -> None:
        """Describe the stream. Nothing is sent before the first target.

        Args:
            send: Sends one command to both arms.
            start: Current position of the arms.
            limits: What every command keeps, at the rate of the commands.
            fps: Rate of targets, Hz.
            rate_hz: Rate of commands, Hz. None sends each target at once, and commands of its own only while a target is
                late.
            joint_range: Ends of the range that the controllers allow.
            clock: Where time comes from.
        """
        self._send = send
        self._rate_hz = rate_hz or fps
        self._is_steady = rate_hz is not None
        self._path = WirePath(start, limits.per_tick(self._rate_hz, joint_range), fps, self._rate_hz)
        self._clock = clock
        self._sent_s = float("-inf")
        self._grace_periods = _GRACE_PERIODS
        self._changed = threading.Condition()
        self._is_halted = threading.Event()
        self._error: RobotError | None = None
        run = self._run_steadily if self._is_steady else self._run_when_late
        self._thread = threading.Thread(target=run, name=f"commands at {self._rate_hz:g} Hz", daemon=True)
        self.num_late = 0
        """Number of commands that left late. The controller expects a steady period."""

    def set_target(self, target: JointVec) -> JointVec:
        """Take the next target. The first one starts the thread.

        Returns:
            What was sent. If commands have a rate of their own, the target.

        Raises:
            RobotError: A command could not be sent, now or since the last call.
        """
        with self._changed:
            if self._error:
                raise self._error
            if not self._is_steady:
                # Two commands in one period would be twice the speed. The lock keeps the thread from sending meanwhile.
                early_s = self._sent_s + MIN_PERIOD_SHARE / self._rate_hz - self._clock.monotonic()
                if early_s > 0:
                    self._clock.sleep(early_s)
            self._path.add(target)
            sent = target
            if not self._is_steady:
                sent = self._next()
                self._send(sent)
                self._note_slow_send()
                self._grace_periods = _GRACE_PERIODS
                self._changed.notify_all()
        if not self._thread.is_alive() and not self._is_halted.is_set():
            self._thread.start()
        return sent

    def shut(self) -> None:
        """Start no further command, and return at once."""
        self._is_halted.set()

    def halt(self) -> None:
        """Send no further command and wait for the thread to end."""
        self.shut()
        # A send that hangs keeps the lock. A stop must not wait for it.
        if self._changed.acquire(timeout=_LOCK_WAIT_S):
            self._changed.notify_all()
            self._changed.release()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_WAIT_S)

    def _next(self) -> JointVec:
        """Return the next command. The caller holds the lock and sends it."""
        now_s = self._clock.monotonic()
        # To continue at the old speed would jerk the arms twice: they have stopped already.
        if now_s - self._sent_s > max(_SILENT_S, _SILENT_PERIODS / self._rate_hz):
            self._path.stand()
        self._sent_s = now_s
        return self._path.step()

    def _run_steadily(self) -> None:
        pacer, num_slow = Pacer(self._rate_hz, self._clock), 0
        while not self._is_halted.is_set():
            with self._changed:
                command = self._next()
            # Without the lock: a send that hangs must not hold up the loop, whose watchdogs notice it.
            if not self._try_send(command):
                return
            if self._note_slow_send():
                num_slow += 1
                pacer.restart()
            pacer.wait()
            self.num_late = pacer.late_ticks + num_slow

    def _run_when_late(self) -> None:
        with self._changed:
            while not self._is_halted.is_set():
                due_s = self._sent_s + (1.0 + self._grace_periods) / self._rate_hz - self._clock.monotonic()
                if self._path.is_at_rest:
                    self._changed.wait()
                elif due_s > 0:
                    self._changed.wait(due_s)
                elif self._try_send(self._next()):
                    self._note_slow_send()
                    self._grace_periods = 0.0
                else:
                    return

    def _note_slow_send(self) -> bool:
        """Return whether the send was held up.

        If it was, the next period counts from its end.
        """
        now_s = self._clock.monotonic()
        is_slow = now_s - self._sent_s > _SLOW_SEND_PERIODS / self._rate_hz
        if is_slow:
            self._sent_s = now_s
        return is_slow

    def _try_send(self, command: JointVec) -> bool:
        try:
            self._send(command)
        except RobotError as e:
            self._error = e
            return False
        return True
