"""A thread-safe cache of the values used last: an inspection line shows one normal sample for hours.

Knows nothing of what it holds.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Self, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """At most `most` values; the least recently used one is dropped first. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LRUCache[Key, Value]":
        # Copies of a locator or a processor share the cache: a lock cannot be copied, and a second cache would gain nothing.
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        # Another process gets an empty cache and computes its values again: a lock cannot be pickled.
        return type(self), (self.most,)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def get(self, key: Key) -> Value | None:
        """The value, marked as used; None if it is not cached."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def recall(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value, computed by `make` and cached if it is missing; two threads that ask at once may both compute it."""
        value = self.get(key)
        if value is None:
            value = make()
            self.keep(key, value)
        return value

    def keep(self, key: Key, value: Value) -> None:
        """Cache a value, marked as used."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)
