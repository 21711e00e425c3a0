"""What a person may ask of a run while it goes on. Asked from any thread; the control loop takes it between two ticks."""

from collections.abc import Mapping
import signal
import threading
from typing import Any

from realman.arrays import Image
from realman.arrays import JointVec
from realman.runtime.chunks import ChunkPolicy
from realman.runtime.client import Prediction


class Steering:
    """The wishes of the moment.

    Attributes:
        prompt: Task text that the next request carries; None leaves it to the server's default.
        is_paused: The arms shall brake and hold.
        is_ending: The run shall end at the next tick, after braking.
        is_stopping: The arms shall be stopped now, whatever the loop waits for.
    """

    def __init__(self, prompt: str | None = None) -> None:
        """Wish for nothing but to go on with a task."""
        self.prompt = prompt
        self.is_paused = False
        self.is_ending = False
        self.is_stopping = False

    def toggle_pause(self) -> None:
        """Pause, or go on."""
        self.is_paused = not self.is_paused

    def end(self) -> None:
        """End the run in good order."""
        self.is_ending = True

    def stop(self) -> None:
        """Interrupt the main thread wherever it is, so that the arms are stopped even while it waits for a server."""
        self.is_stopping = True
        # To that thread alone: another one's system call would be interrupted instead.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class SteeredPolicy:
    """A policy that is asked with the prompt of the moment, whatever its player was made with."""

    def __init__(self, policy: ChunkPolicy, steering: Steering) -> None:
        """Ask `policy` for what `steering` wants."""
        self._policy = policy
        # The same, for what only some policies can do.
        self._any: Any = policy
        self._steering = steering

    @property
    def action_chunk(self) -> int:
        """Steps to execute of each prediction."""
        return self._policy.action_chunk

    @property
    def fps(self) -> float:
        """Rate of the policy's steps, Hz."""
        return float(self._any.fps)

    def require_rtc(self) -> None:
        """Raise `ServerError` unless the policy's chunks can go on from the previous one."""
        self._any.require_rtc()

    def infer(
        self, state: JointVec, images: Mapping[str, Image], prompt: str | None = None, *more: Any, **options: Any
    ) -> Prediction:
        """Return the next actions; `prompt` gives way to the present one, whatever else is asked is handed on."""
        return self._any.infer(state, images, self._steering.prompt, *more, **options)
