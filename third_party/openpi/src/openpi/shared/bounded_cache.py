"""A thread-safe cache that forgets what was used longest ago: keeps open files and decompressed pages bounded."""

import collections
from collections.abc import Callable, Hashable
import threading
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """Values by key, up to a total weight; a value that is dropped while in use lives on until its user lets go."""

    def __init__(self, max_weight: float, weigh: Callable[[V], float] = lambda _: 1) -> None:
        """Create an empty cache.

        Args:
            max_weight: Largest sum of the weights kept. One value heavier than it is kept alone.
            weigh: Weight of a value, for example its bytes; by default each counts 1.
        """
        self._max_weight = max_weight
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: collections.OrderedDict[Hashable, tuple[V, float]] = collections.OrderedDict()
        self._weight = 0.0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of `key`, made on a miss (outside the lock: two threads may make the same one)."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        weight = self._weigh(value)
        with self._lock:
            if key in self._values:
                return self._values[key][0]
            self._values[key] = (value, weight)
            self._weight += weight
            while self._weight > self._max_weight and len(self._values) > 1:
                _, (_, dropped) = self._values.popitem(last=False)
                self._weight -= dropped
        return value
