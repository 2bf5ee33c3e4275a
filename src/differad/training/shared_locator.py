"""The policy in training as a locator shared by all processes: each locates its share of the pairs.

The main process reads manifests, scores and writes; the others return their results to it. A sharded model generates only if
all processes call it equally often, so then all enter `generate` together, with a blank pair where a process has none left.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState

from differad.core import Location, Pair
from differad.errors import DifferadError
from differad.locators.base import Outcome
from differad.training.peers import RaisingTogether, broadcast_from_main, gather_shares, take_share
from differad.training.policy import InMemoryLocator

Result = TypeVar("Result")
_BLANK_SIDE = 56


class SharedLocator:
    """The main process's view of `locator` on every process. `lockstep` is the model if it is sharded, else None."""

    def __init__(self, locator: InMemoryLocator, *, lockstep: Any = None) -> None:
        self.name, self.options = locator.name, locator.options
        self._locator, self._lockstep = locator, lockstep
        self._shared = False

    def on_main(self, task: Callable[["SharedLocator"], Result]) -> Result | None:
        """Run `task` on the main process and return its result; the others take part in its one `locate_many` and return None.

        Every process calls it once. Raises the error of `task` or of any share; PeerError if another process failed.
        """
        with RaisingTogether():
            if not PartialState().is_main_process:
                self._share(())
                return None
            try:
                return task(self)
            finally:
                if not self._shared:  # the others wait for pairs
                    self._share(())

    def locate(self, pair: Pair) -> Location:
        """As `locate_many` for one pair. Raises ImageError, LocatorError."""
        outcome = next(self.locate_many([pair]))
        if isinstance(outcome, DifferadError):
            raise outcome
        return outcome

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """All outcomes at once, in order. Call it once, on the main process, inside `on_main`."""
        return iter(self._share(tuple(pairs)))

    def _share(self, pairs: tuple[Pair, ...]) -> list[Outcome]:
        self._shared = True
        all_pairs: tuple[Pair, ...] = broadcast_from_main(pairs)
        with RaisingTogether():
            outcomes = self._locate(take_share(all_pairs), len(all_pairs))
        return gather_shares(outcomes)

    def _locate(self, share: list[Pair], total: int) -> list[Outcome]:
        if self._lockstep is None:
            return list(self._locator.locate_many(share))
        size, longest = self.options.batch_size, -(-total // PartialState().num_processes)
        with _in_step(self._lockstep):
            rounds = [self._round(share[begin : begin + size]) for begin in range(0, longest, size)]
        return [outcome for outcomes in rounds for outcome in outcomes]

    def _round(self, pairs: list[Pair]) -> list[Outcome]:
        """One batch that enters `generate` exactly once, even if none of its images can be read."""
        outcomes = list(self._locator.locate_many(pairs))
        if not any(isinstance(outcome, Location) for outcome in outcomes):
            blank = np.full((_BLANK_SIDE, _BLANK_SIDE, 3), 127, np.uint8)
            list(self._locator.locate_many([Pair(blank, blank)]))
        return outcomes


@contextmanager
def _in_step(model: Any) -> Iterator[None]:
    """Make `generate` continue until every process has finished; transformers does so by itself for some engines only."""
    model.generate = partial(model.generate, synced_gpus=PartialState().num_processes > 1)
    try:
        yield
    finally:
        del model.generate
