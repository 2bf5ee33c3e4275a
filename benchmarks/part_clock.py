"""Measures the seconds of each part of some work, for benchmarks."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class PartClock:
    """Seconds by part; the time of a nested part counts only for that part.

    `wait` waits for a device before each reading of the clock. `cpu`: processor time of this process instead of wall-clock time.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None, *, cpu: bool = False) -> None:
        self.now = time.process_time if cpu else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = wait
        self._open: list[str] = []
        self._hooks: list[Any] = []
        self._last = self.now()

    def enter(self, part: str) -> None:
        self._mark()
        self._open.append(part)

    def leave(self) -> None:
        self._mark()
        self._open.pop()

    def _mark(self) -> None:
        self._wait()
        now = self.now()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.enter(name)
        yield
        self.leave()

    def follow(self, part: str | Callable[[dict[str, Any]], str], module: Any) -> None:
        """Time a module's forward passes until `unfollow`; the part may depend on a pass's keyword arguments."""

        def enter(_module: Any, _inputs: Any, kwargs: dict[str, Any]) -> None:
            self.enter(part if isinstance(part, str) else part(kwargs))

        self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._hooks.append(module.register_forward_hook(lambda *_: self.leave()))

    def unfollow(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
