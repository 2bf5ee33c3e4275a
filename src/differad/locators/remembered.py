"""The last few things that were worked out, by what they were worked out from: a line shows one good part for hours.

Knows nothing of what it holds.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Self, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """At most `most` values; what was not used for longest goes first. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Remembered[Key, Value]":
        # Copies of a locator or a processor share it: a lock cannot be copied, and nothing would be gained.
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        # Another process gets an empty one: values are worked out there once more, and a lock cannot be sent.
        return type(self), (self.most,)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def get(self, key: Key) -> Value | None:
        """The value, which counts as used now; None where it is not, or no longer, known."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def recall(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value, made and kept where it is not known; two threads that ask at once may both make it."""
        known = self.get(key)
        if known is None:
            known = make()
            self.keep(key, known)
        return known

    def keep(self, key: Key, value: Value) -> None:
        """Remember a value, as used now."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)
