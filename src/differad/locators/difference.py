"""`difference`: the classical locator. Align the reference to the target, normalise the illumination, threshold the difference.

Both images are resized to the resolution that they show, then compared at several sizes (levels.py). The difference of a target
pixel is how far it is outside the range of reference values within a tolerance around it, and the other way round: an edge that
moved by a pixel is no difference, a missing wire is one. Differences are divided by the noise of the pair, thresholded and
grouped. Each group's probability of being a defect comes from a logistic curve that was fitted on synthetic pairs, like every
constant here (`calibration`). A reference that cannot be aligned to the target is refused, and the reasoning says so.

Knows nothing of materials or defect classes, and compares one pair at a time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, grow, overlap_share, stretch
from differad.core import Location
from differad.images import RGB
from differad.locators.calibration import COMPARISON_CONSTANTS, ComparisonConstants
from differad.locators.comparison import Group, Image, group, squeeze_grey
from differad.locators.embedded import EmbeddedLocator
from differad.locators.levels import SMALLEST, Level, Residual, levels, residual, residuals
from differad.locators.odds import sigmoid
from differad.locators.registration import Registration, grey, register
from differad.locators.resolution import at_common_resolution
from differad.options import check_option, option

# Two boxes mark the same region if this share of the smaller one is inside the other.
_SAME = 0.5
_REMEDY = "No answer; --model features compares parts that cannot be aligned."


@dataclass(frozen=True)
class DifferenceOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float = option(COMPARISON_CONSTANTS.threshold, "a group counts as a defect from this probability on")
    tolerance: int = option(
        COMPARISON_CONSTANTS.tolerance,
        "an edge may be this far off without being a difference; in pixels of the target as it is compared: shrunk to what its "
        "edges resolve, so that it grows with an enlarged image",
    )
    margin: float = option(
        COMPARISON_CONSTANTS.margin,
        "boxes grow on each side by this share of the longer side of the target: labels have a margin",
    )
    max_boxes: int = option(20, "at most this many boxes, best first")
    on_refusal: Literal["refuse", "overlay"] = option(
        "refuse", "a reference that does not register: give no answer, or compare with the best guess all the same"
    )
    max_side: int = option(8192, "in pixels: a target with a longer side is shrunk to it; bounds time and memory")
    workers: int = option(0, "threads of locate_many; 0 takes one per usable core")

    def __post_init__(self) -> None:
        check_option("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability in [0, 1]")
        check_option("tolerance", self.tolerance, 0 <= self.tolerance <= 50, "0 to 50 pixels")
        check_option("margin", self.margin, 0 <= self.margin <= 0.25, "a share in [0, 0.25]")
        check_option("max_boxes", self.max_boxes, self.max_boxes >= 1, "at least 1")
        check_option("on_refusal", self.on_refusal, self.on_refusal in ("refuse", "overlay"), "refuse or overlay")
        check_option("max_side", self.max_side, self.max_side >= 64, "at least 64 pixels")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class DifferenceLocator(EmbeddedLocator):
    """Registers, compares, thresholds; needs no training and no download."""

    name = "difference"

    def __init__(
        self, options: DifferenceOptions | None = None, constants: ComparisonConstants = COMPARISON_CONSTANTS
    ) -> None:
        self.options = options or DifferenceOptions()
        self.constants = constants

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target differs from the reference; not comparable if the two cannot be aligned."""
        comparison = self.align(reference, target)
        return self._answer(comparison, (target.shape[1], target.shape[0]))

    def align(self, reference: RGB, target: RGB) -> "Comparison":
        """All candidates, before any threshold, at the resolution that both images have."""
        reference, target = squeeze_grey(reference, target)
        full_shape = target.shape
        reference, target = at_common_resolution(reference, target, self.options.max_side)
        registration = register(grey(reference), grey(target))
        candidates: list[Candidate] = []
        if registration.accepted or self.options.on_refusal == "overlay":
            candidates = distinct(list(self._candidates(reference, target, registration)))
        return Comparison(reference, target, registration, candidates, stretch(target.shape, full_shape))

    def _candidates(self, reference: RGB, target: RGB, registration: Registration) -> "Iterator[Candidate]":
        """Groups of differences at every level, in pixels of the target (H, W[, 3])."""
        by_level = residuals(
            levels(reference, target, registration.matrix), self.options.tolerance, self.options.workers
        )
        for level, left in by_level:
            to_target = stretch(level.target.shape, target.shape)
            c, unit, grow = self.constants, self._unit(left, registration), self.options.tolerance
            for one in group(
                left.difference, unit, left.at_edges, low=c.low, high=c.high, core=c.core, grow=grow, gap=c.gap
            ):
                logit = np.dot([c.bias, c.mean, c.thickness, c.ragged], group_features(one, level))
                yield Candidate(one.box * to_target, sigmoid(float(logit)), level.share)

    def difference(self, reference: RGB, target: RGB, registration: Registration) -> Image:
        """The difference of each target pixel, (H, W), in units of the pair's noise, at the images' own size."""
        reference, target = squeeze_grey(reference, target)
        level = Level(reference, target, registration.matrix, 1.0)
        left = residual(level, self.options.tolerance, workers=self.options.workers)
        return left.difference.astype(np.float32) / np.float32(self._unit(left, registration))

    def _unit(self, left: Residual, registration: Registration) -> float:
        """Grey levels of a unit of noise; see `noise_scale`.

        Without an accepted registration the residual is no measure of noise: it would hide every difference.
        """
        spread, edges = (left.spread, left.edges) if registration.accepted else (0.0, 0.0)
        return noise_scale(self.constants, spread, edges, left.contrast)

    def boxes(self, comparison: "Comparison", size: tuple[int, int]) -> Boxes:
        """Boxes (N, 4) of all candidates, with the margin that labels have, in pixels of a target of (width, height)."""
        boxes = np.array([one.box for one in comparison.candidates]).reshape(-1, 4)
        return grow(boxes * comparison.stretch, self.options.margin, *size)

    def _answer(self, comparison: "Comparison", size: tuple[int, int]) -> Location:
        accepted = comparison.registration.accepted
        if not accepted and self.options.on_refusal == "refuse":
            return Location(comparable=False, reasoning=f"{comparison.alignment_text} {_REMEDY}")
        probabilities = np.array([one.probability for one in comparison.candidates])
        kept = np.flatnonzero(probabilities >= self.options.threshold)[: self.options.max_boxes]
        counted = f"{len(kept)} region(s) differ." if len(kept) else "Nothing differs beyond noise."
        return Location(
            boxes=self.boxes(comparison, size)[kept],
            scores=probabilities[kept],
            confidence=float(probabilities.max(initial=0.0)) if accepted else None,
            reasoning=f"{comparison.alignment_text} {counted}",
            threshold=self.options.threshold,
        )


@dataclass(frozen=True, eq=False)
class Candidate:
    """A region that differs: its box (4,) in pixels of the compared target, its probability of being a defect, and its level's
    size as a share of the target's."""

    box: NDArray[np.float64]
    probability: float
    share: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two images (H, W[, 3]) at their common resolution, their registration, and the candidates, most likely first.

    `stretch` (4,) converts boxes to pixels of the full target.
    """

    reference: RGB
    target: RGB
    registration: Registration
    candidates: list[Candidate]
    stretch: NDArray[np.float64]

    @property
    def alignment_text(self) -> str:
        """How the reference was aligned, or that it could not be, in a sentence."""
        quality, model = f"{self.registration.quality:.2f}", self.registration.model
        if self.registration.accepted:
            return f"The reference was aligned by {model} (edge correlation {quality})."
        return f"The reference does not register with the target (best edge correlation {quality}, by {model})."


def distinct(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates, most likely first, without those that mostly overlap a likelier one."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: -c.probability):
        boxes = np.array([other.box for other in kept]).reshape(-1, 4)
        if not (overlap_share(one.box, boxes) > _SAME).any():
            kept.append(one)
    return kept


def group_features(group: Group, level: Level) -> tuple[float, float, float, float]:
    """The inputs (4,) of the logistic curve for a group: 1, log mean, log thickness, share at edges by log size.

    Raggedness of edges belongs to the part and has more pixels in a larger image; a speck away from edges does not change.
    """
    height, width = level.target.shape[:2]
    larger = max(0.0, math.log(math.sqrt(height * width) / SMALLEST))
    return 1.0, math.log(group.mean), math.log(group.thickness), group.at_edges * larger


def noise_scale(constants: ComparisonConstants, spread: float, edges: float, contrast: float) -> float:
    """Grey levels per unit of noise: the largest of the noise on plain areas, that along edges, and a share of the contrast."""
    return max(spread, constants.floor, constants.edge * edges, constants.contrast * contrast)
