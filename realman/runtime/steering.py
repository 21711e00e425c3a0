"""What the operator may ask of a run in progress.

Any thread may ask. The control loop reacts between two ticks.
"""

from collections.abc import Mapping
import signal
import threading
from typing import Any

from realman.arrays import Image
from realman.arrays import JointVec
from realman.runtime.chunks import ChunkPolicy
from realman.runtime.client import Prediction


class Steering:
    """What the operator wants at this moment.

    Attributes:
        prompt: Task text for the next request. None lets the server use its default.
        is_paused: The arms must brake and hold.
        is_ending: The run must end at the next tick, after braking.
        is_stopping: The arms must stop now, even if the loop is waiting for something.
    """

    def __init__(self, prompt: str | None = None) -> None:
        self.prompt = prompt
        self.is_paused = False
        self.is_ending = False
        self.is_stopping = False

    def toggle_pause(self) -> None:
        """Pause or resume."""
        self.is_paused = not self.is_paused

    def end(self) -> None:
        """Brake and end the run at the next tick."""
        self.is_ending = True

    def stop(self) -> None:
        """Interrupt the main thread, so that the arms stop now.

        This also works while the main thread waits for a server.
        """
        self.is_stopping = True
        # Signal only that thread. Otherwise a system call of another thread could be interrupted instead.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


class SteeredPolicy:
    """A policy that always gets the operator's present prompt.

    It replaces the prompt that a player was made with.
    """

    def __init__(self, policy: ChunkPolicy, steering: Steering) -> None:
        self._policy = policy
        # The same policy without its type, for calls that only some policies support.
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
        """Raise `ServerError` unless the policy supports real-time chunking."""
        self._any.require_rtc()

    def infer(
        self, state: JointVec, images: Mapping[str, Image], prompt: str | None = None, *more: Any, **options: Any
    ) -> Prediction:
        """Return the next actions for the operator's present prompt.

        `prompt` is ignored. All other arguments are passed to the policy.
        """
        return self._any.infer(state, images, self._steering.prompt, *more, **options)
