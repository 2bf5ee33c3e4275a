"""`auto`, the embedded default: the pixels decide where two pictures lie on each other, the policy where they do not.

`features` is exact where the reference can be laid on the target, since `difference` then draws its boxes, and sees several
defects; for parts in another pose `tiny` was trained. Which of them answers depends on the registration alone. Knows
nothing of how either works.
"""

from dataclasses import dataclass
from typing import Any, Self

from differad.core import Location
from differad.images import RGB
from differad.locators.embedded import Embedded
from differad.locators.features import FeaturesLocator, FeaturesOptions
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


class AutoLocator(Embedded):
    """`features` where the reference can be laid on the target, `tiny` elsewhere."""

    name = "auto"

    def __init__(self, options: AutoOptions | None = None) -> None:
        self._features, self._tiny = FeaturesLocator(), TinyLocator()
        self.weights = (*self._features.weights, *self._tiny.weights)
        self._take(options or AutoOptions())

    def compare(self, reference: RGB, target: RGB) -> Location:
        """The answer of `features` where the images can be aligned, else that of `tiny`."""
        return self._features.compare_aligned(reference, target) or self._tiny.compare(reference, target)

    def with_options(self, options: AutoOptions) -> Self:
        """This locator with other options, sharing what it has loaded and what it remembers."""
        other = super().with_options(options)
        other._take(options)
        return other

    def _take(self, options: AutoOptions) -> None:
        """Hand the options on to the two that answer."""
        self.options = options
        own: dict[str, Any] = {"workers": options.workers}
        if options.threshold is not None:
            own["threshold"] = options.threshold
        self._features = self._features.with_options(FeaturesOptions(max_boxes=options.max_boxes, **own))
        self._tiny = self._tiny.with_options(TinyOptions(**own))
