"""A queue that serves its clients in turn.

A client that sends a lot does not make the others wait.
"""

import collections
from collections.abc import Hashable
import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First in, first out per client, and round robin between clients.

    All methods are thread-safe.
    """

    def __init__(self) -> None:
        # Clients in the order of their next turn.
        self._waiting: collections.OrderedDict[Hashable, collections.deque[Item]] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._waiting.values()))

    def put(self, client: Hashable, item: Item) -> None:
        """Add an item behind those of the same client."""
        with self._changed:
            self._waiting.setdefault(client, collections.deque()).append(item)
            self._changed.notify()

    def close(self) -> None:
        """Let `take` return None once the queue is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> Item | None:
        """Wait for the next item.

        Returns:
            The item, or None when the queue is closed and empty.
        """
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            return self._pop()

    def take_waiting(self, limit: int) -> list[Item]:
        """Return up to `limit` more items without waiting."""
        with self._changed:
            return [self._pop() for _ in range(min(limit, sum(map(len, self._waiting.values()))))]

    def _pop(self) -> Item:
        client, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[client] = items  # behind all others
        return item
