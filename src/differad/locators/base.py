"""The protocol of every locator. Knows nothing of any model, of files of predictions or of metrics."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from differad.core import Location, Pair
from differad.errors import DifferadError, LocatorError
from differad.memory import REMEDY

Outcome = Location | DifferadError


class Locator(Protocol):
    """Says where a target differs from its reference in a way that matters."""

    @property
    def name(self) -> str:
        """The name in results: the value of `--model`."""
        ...

    def locate(self, pair: Pair) -> Location:
        """Locate one pair. Raises DifferadError when the pair cannot be answered (a broken image, a server down)."""
        ...

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream of pairs in order, one outcome each, with bounded memory.

        A pair that cannot be answered yields its error as a value, so that one bad pair never stops the others.
        Batching and concurrency happen inside.
        """
        ...


def attempt(locator: Locator, pair: Pair) -> Outcome:
    """`locator.locate(pair)`; a DifferadError is returned as a value, and so is a lack of memory."""
    try:
        return locator.locate(pair)
    except DifferadError as error:
        # A stored error would keep alive the images of every stack frame in its traceback.
        error.__context__ = None
        return error.with_traceback(None)
    except MemoryError:
        return LocatorError(f"{pair.label}: not enough memory; {REMEDY}")


def locate_concurrently(
    locator: Locator, pairs: Iterable[Pair], workers: int, give_up: Callable[[], None] = lambda: None
) -> Iterator[Outcome]:
    """Outcomes of `attempt` in the order of `pairs`, made by `workers` threads that run at most two pairs each ahead.

    If the stream is left early, by Ctrl-C too, it waits for the running pairs; `give_up` is called first, to end them sooner.
    """
    waiting: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for pair in pairs:
            waiting.append(pool.submit(attempt, locator, pair))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        give_up()
        pool.shutdown(cancel_futures=True)
