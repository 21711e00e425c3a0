"""A thread-safe cache that drops the least recently used values.

It bounds the number of open files and the memory of decompressed pages.
"""

import collections
from collections.abc import Callable, Hashable
import threading
from typing import Generic, TypeVar

V = TypeVar("V")


class BoundedCache(Generic[V]):
    """Keeps values by key, up to a total weight.

    A value that is dropped while in use stays alive until its user releases it.
    """

    def __init__(self, max_weight: float, weigh: Callable[[V], float] = lambda _: 1) -> None:
        """Create an empty cache.

        Args:
            max_weight: Largest sum of the weights. A single value above it is kept alone.
            weigh: Returns the weight of a value, for example its bytes. By default each counts 1.
        """
        self._max_weight = max_weight
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: collections.OrderedDict[Hashable, tuple[V, float]] = collections.OrderedDict()
        self._weight = 0.0

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of `key`, and make it on a miss.

        `make` runs outside the lock, so two threads may make the same value. Both then receive the first one.
        """
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
