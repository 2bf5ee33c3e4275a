"""`auto`, the embedded default: `features` where the reference can be aligned to the target, otherwise `tiny`.

If the two can be aligned, `features` is exact, since `difference` then gives its boxes, and it finds several defects. `tiny` was
trained for parts in another pose. The choice depends on the registration alone. Knows nothing of how either works.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from differad.core import Location, Pair
from differad.images import RGB
from differad.locators.difference import DifferenceOptions
from differad.locators.embedded import EmbeddedLocator
from differad.locators.features import FUSED, FeaturesLocator, FeaturesOptions
from differad.locators.tiny import WEIGHTS, TinyLocator, TinyOptions
from differad.options import check_option, check_parts, option, replace_shared

_PARTS = ("features", "tiny")


@dataclass(frozen=True)
class AutoOptions:
    """What a user may want other than the calibrated defaults.

    Options of `difference` start from `FUSED`, as in `AutoOptions(difference=replace(FUSED, tolerance=3))`.
    """

    threshold: float | None = option(
        None,
        "a target counts as abnormal from this probability on; none: features.threshold and tiny.threshold",
    )
    max_boxes: int = option(5, "at most this many boxes, best first")
    workers: int = option(0, "threads; 0 takes one per usable core")
    difference: DifferenceOptions = option(
        FUSED, "how aligned images are compared; its threshold is 0: `features` decides", shared=("workers",)
    )
    features: FeaturesOptions = option(
        FeaturesOptions(),
        "what answers where the images can be aligned",
        shared=("max_boxes", "workers", "difference"),
    )
    tiny: TinyOptions = option(TinyOptions(), "what answers where they cannot", shared=("workers",))

    def __post_init__(self) -> None:
        check_parts(self)
        probable = self.threshold is None or 0 <= self.threshold <= 1
        check_option("threshold", self.threshold, probable, "a probability in [0, 1]")
        check_option("max_boxes", self.max_boxes, self.max_boxes >= 1, "at least 1")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")
        for name, default in (("features", FeaturesOptions.threshold), ("tiny", TinyOptions.threshold)):
            threshold = getattr(self, name).threshold
            alone = self.threshold is None or threshold == default
            check_option(f"{name}.threshold", threshold, alone, f"none beside threshold={self.threshold} for both")


class AutoLocator(EmbeddedLocator):
    """`features` where the reference can be aligned to the target, `tiny` elsewhere, with the policy in `folder`."""

    name = "auto"

    def __init__(self, options: AutoOptions | None = None, *, folder: str | Path = WEIGHTS) -> None:
        self._features, self._tiny = FeaturesLocator(), TinyLocator(folder=folder)
        self.name = self._tiny.name.replace(TinyLocator.name, type(self).name, 1)
        self.weights = (*self._features.weights, *self._tiny.weights)
        self._take(options or AutoOptions())

    def compare(self, reference: RGB, target: RGB) -> Location:
        """The answer of `features` if the images can be aligned, else that of `tiny`."""
        aligned = self._features.compare_aligned(reference, target)
        return self._tiny.compare(reference, target) if aligned is None else aligned

    def with_options(self, options: AutoOptions) -> Self:
        """This locator with other options, sharing what it has loaded and its cache."""
        other = super().with_options(options)
        other._take(options)
        return other

    def calibrate(self, normals: Iterable[Pair], false_alarms: float = 0.05) -> Self:
        """As of every embedded locator; the one threshold found replaces those of `features` and `tiny`."""
        features = replace(self.options.features, threshold=FeaturesOptions.threshold)
        tiny = replace(self.options.tiny, threshold=TinyOptions.threshold)
        shared = self.with_options(replace(self.options, features=features, tiny=tiny))
        return super(AutoLocator, shared).calibrate(normals, false_alarms)

    def _take(self, options: AutoOptions) -> None:
        """Pass the options on to the two locators."""
        self.options = options
        features, tiny = (replace_shared(options, name) for name in _PARTS)
        if options.threshold is not None:
            features, tiny = (replace(one, threshold=options.threshold) for one in (features, tiny))
        self._features = self._features.with_options(features)
        self._tiny = self._tiny.with_options(tiny)
