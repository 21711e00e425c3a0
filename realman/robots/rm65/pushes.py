"""Routing of state pushes from the SDK's callback to each arm.

The router can also pause the SDK's UDP thread. That thread walks the table of handles without a lock when a push says
that its arm has stopped, and `rm_delete_robot_arm` frees an entry before it removes it from the table. So the process
may crash when a stopped arm is released (1.1.6). The thread holds no handle while it is in the callback, so it waits
there during a release.
"""

from collections.abc import Callable, Iterator
import contextlib
import threading
import time
from typing import Any

from realman.robots.rm65 import sdk

_RECENT_S = 1.0
"""Pushes come every 5 to 20 ms. Without one for this long, no arm pushes and the SDK's thread waits for its socket."""
_ARRIVAL_S = 0.5
"""How long to wait for the next push. A busy machine is late."""
_LONGEST_PAUSE_S = 5.0
"""Longest pause of the SDK's thread. A release that hangs must not withhold the other arm's state forever."""


class PushRouter:
    """Passes each push to its arm's receiver, by the sender's address.

    The SDK has one callback for all arms.
    """

    def __init__(self) -> None:
        self._receivers: dict[bytes, Callable[[Any], None]] = {}
        self._callback: Any = None
        self._changed = threading.Condition()
        self._num_pauses = 0
        self._is_waiting = False
        self._newest_s = float("-inf")

    def add(self, address: str, receive: Callable[[Any], None]) -> None:
        """Call `receive` with each push from an IPv4 address.

        A push is an `rm_realtime_arm_joint_state_t`. The call happens in the SDK's thread.
        """
        with self._changed:
            self._receivers = {**self._receivers, address.encode(): receive}
            if self._callback is None:
                module = sdk.load()
                # Kept forever, because the SDK holds a bare pointer to it.
                self._callback = module.rm_realtime_arm_state_callback_ptr(self.deliver)
                module.rm_realtime_arm_state_call_back(self._callback)

    def remove(self, address: str) -> None:
        """Stop delivering pushes from an address."""
        with self._changed:
            self._receivers = {h: r for h, r in self._receivers.items() if h != address.encode()}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the SDK's UDP thread in the callback during the block.

        Pushes that arrive meanwhile are delivered afterwards.
        """
        with self._changed:
            self._num_pauses += 1
            if time.monotonic() - self._newest_s < _RECENT_S:
                self._changed.wait_for(lambda: self._is_waiting, _ARRIVAL_S)
        try:
            yield
        finally:
            with self._changed:
                self._num_pauses -= 1
                self._changed.notify_all()

    def deliver(self, push: Any) -> None:
        """Take one push. This is the SDK's callback."""
        with self._changed:
            self._newest_s = time.monotonic()
            if self._num_pauses:
                self._is_waiting = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._num_pauses, _LONGEST_PAUSE_S)
                self._is_waiting = False
            receive = self._receivers.get(push.arm_ip)
        if receive is not None:
            receive(push)


router = PushRouter()
"""The only router of the process."""
