"""`auto`, the embedded default: the pixels decide where two pictures lie on each other, the policy where they do not.

`features` is exact where the reference can be laid on the target, since `difference` then draws its boxes, and sees several
defects; for parts in another pose `tiny` was trained. Which of them answers depends on the registration alone. Knows
nothing of how either works.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from differad.core import Location, Pair
from differad.images import read_images
from differad.locators.base import Outcome, locate_concurrently
from differad.locators.conformal import conformal_threshold
from differad.locators.features import FeaturesLocator, FeaturesOptions
from differad.locators.threads import one_thread_each, usable_cores
from differad.locators.tiny import TinyLocator, TinyOptions
from differad.options import check_option, option


@dataclass(frozen=True)
class AutoOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float | None = option(
        None,
        "a target counts as abnormal from this probability on; none: what features and tiny were each calibrated to",
    )
    max_boxes: int = option(5, "at most this many boxes, best first")
    workers: int = option(0, "threads; 0 takes one per usable core")

    def __post_init__(self) -> None:
        probable = self.threshold is None or 0 <= self.threshold <= 1
        check_option("threshold", self.threshold, probable, "a probability in [0, 1]")
        check_option("max_boxes", self.max_boxes, self.max_boxes >= 1, "at least 1")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class AutoLocator:
    """`features` where the reference can be laid on the target, `tiny` elsewhere."""

    name = "auto"

    def __init__(self, options: AutoOptions | None = None) -> None:
        self.options = options or AutoOptions()
        features = FeaturesOptions(max_boxes=self.options.max_boxes, workers=self.options.workers)
        tiny = TinyOptions(workers=self.options.workers)
        if (threshold := self.options.threshold) is not None:
            features, tiny = replace(features, threshold=threshold), replace(tiny, threshold=threshold)
        self._features, self._tiny = FeaturesLocator(features), TinyLocator(tiny)

    def locate(self, pair: Pair) -> Location:
        """Where the target is abnormal. Raises ImageError, LocatorError."""
        start = time.perf_counter()
        reference, target = read_images(pair.reference, pair.target)
        seen = replace(pair, reference=reference, target=target)
        found = self._features.locate_laid_on(seen) or self._tiny.locate(seen)
        return replace(found, model=self.name, seconds=time.perf_counter() - start)

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order; at most two pairs per worker are read ahead."""
        workers = self.options.workers or usable_cores()
        with one_thread_each(workers):
            yield from locate_concurrently(AutoLocator(replace(self.options, workers=1)), pairs, workers)

    def calibrate(self, normals: Iterable[Pair], false_alarms: float = 0.05) -> "AutoLocator":
        """A locator whose threshold leaves a box on at most a share `false_alarms` of normal pairs like these.

        See `conformal_threshold`. Raises InputError for too few pairs, and the error of a pair that cannot be read.
        """
        return AutoLocator(replace(self.options, threshold=conformal_threshold(self, normals, false_alarms)))
