"""`features`: distance of every target patch to the nearest reference patch, on a frozen backbone, without training.

The reference need not lie on the target: another good part will do. Where `difference` can lay it on, that locator gives the
boxes, being exact to a pixel, and both decide how likely each is a defect; where it refuses, the map of distances does alone.
Every constant was calibrated on synthetic pairs (`calibration`).

Knows nothing of materials or defect classes; looks at a picture whole, so that specks are found by `difference` only.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes
from differad.core import Location, Pair
from differad.images import RGB, ImageSource, digest, read_images
from differad.locators.difference import DifferenceLocator, DifferenceOptions
from differad.locators.embedded import Embedded
from differad.locators.features.backbone import Backbone, Features, fit
from differad.locators.features.calibration import DECIDING, SCORING, Deciding, Scoring
from differad.locators.features.nearest import distances, scored, solitude
from differad.locators.features.regions import Map, Region, regions
from differad.locators.features.weights import BACKBONE
from differad.locators.odds import SURE, logistic, logit
from differad.locators.remembered import Remembered
from differad.locators.threads import usable_cores
from differad.options import check_option, check_parts, option, replace_shared

# References remembered: a line shows one good part beside thousands of others. Under 1 MB each.
_REMEMBERED = 8


# `difference` as a part: every group that it finds is a box; how likely each is a defect is decided here.
FUSED = DifferenceOptions(threshold=0.0)


@dataclass(frozen=True)
class FeaturesOptions:
    """What a user may want other than the calibrated defaults.

    Options of `difference` start from `FUSED`, as in `FeaturesOptions(difference=replace(FUSED, tolerance=3))`.
    """

    threshold: float = option(DECIDING.threshold, "a region counts as a defect from this probability on")
    max_boxes: int = option(5, "at most this many boxes, best first")
    fuse: bool = option(True, "where the reference can be aligned to the target, let `difference` draw the boxes")
    runtime: Literal["auto", "opencv", "onnxruntime"] = option(
        "auto", "opencv, onnxruntime (faster, an extra), or auto: the faster one installed"
    )
    workers: int = option(0, "threads; 0 takes one per usable core")
    difference: DifferenceOptions = option(
        FUSED, "how `difference` finds the boxes; its threshold is 0: `features` decides", shared=("workers",)
    )

    def __post_init__(self) -> None:
        check_parts(self)
        check_option("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability in [0, 1]")
        check_option("max_boxes", self.max_boxes, self.max_boxes >= 1, "at least 1")
        known = ("auto", "opencv", "onnxruntime")
        check_option("runtime", self.runtime, self.runtime in known, "auto, opencv or onnxruntime")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class FeaturesLocator(Embedded):
    """Compares patches with the nearest patch of the reference; needs no training and no download.

    `references` are further good parts, compared with beside each pair's own; a patch counts by the nearest of all.
    """

    name = "features"
    weights = (BACKBONE,)

    def __init__(
        self,
        options: FeaturesOptions | None = None,
        *,
        references: Sequence[ImageSource] = (),
        scoring: Scoring = SCORING,
        deciding: Deciding = DECIDING,
    ) -> None:
        self.options = options or FeaturesOptions()
        self.scoring = scoring
        self.deciding = deciding
        self._backbone = Backbone(self.options.runtime)
        self._difference = DifferenceLocator(replace_shared(self.options, "difference"))
        self._further = [self._patches(pixels) for pixels in read_images(*references)]
        self._remembered: Remembered[bytes, list[Features]] = Remembered(_REMEMBERED)

    def with_options(self, options: FeaturesOptions) -> Self:
        """This locator with other options, sharing what it has loaded and, with the same runtime, its cache."""
        other = super().with_options(options)
        other._difference = self._difference.with_options(replace_shared(options, "difference"))
        if options.runtime != self.options.runtime:
            # Another runtime's features are the same only within rounding.
            other._backbone = Backbone(options.runtime)
            other._remembered = Remembered(_REMEMBERED)
        return other

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target differs from the reference."""
        with ThreadPoolExecutor(self.options.workers or usable_cores()) as pool:
            difference = pool.submit(self._difference.compare, reference, target) if self.options.fuse else None
            score = self._score(reference, target, pool)
            aligned = difference.result() if difference else None
        size = target.shape[1], target.shape[0]
        return self._fused(aligned, score, size) if aligned is not None and aligned.valid else self._alone(score, size)

    def compare_aligned(self, reference: RGB, target: RGB) -> Location | None:
        """As `compare` where the reference can be aligned to the target, None where it cannot."""
        aligned = self._difference.compare(reference, target)
        if not aligned.valid:
            return None
        score, size = self.score(reference, target), (target.shape[1], target.shape[0])
        return self._fused(aligned, score, size) if self.options.fuse else self._alone(score, size)

    def anomaly_map(self, pair: Pair) -> NDArray[np.float32]:
        """How far each target pixel is from the reference, (H, W), 0 the same and about 1 unrelated. Raises ImageError.

        Of features alone; the map of `difference` has its own unit and exists for pairs that register only.
        """
        reference, target = read_images(pair.reference, pair.target)
        score = self.score(reference, target)
        return np.asarray(cv2.resize(score, (target.shape[1], target.shape[0])), dtype=np.float32)

    def score(self, reference: RGB, target: RGB) -> Map:
        """The same map at 8 pixels of the resized target a cell, (h, w)."""
        with ThreadPoolExecutor(self.options.workers or usable_cores()) as pool:
            return self._score(reference, target, pool)

    def _score(self, reference: RGB, target: RGB, pool: ThreadPoolExecutor) -> Map:
        s = self.scoring
        seen = pool.submit(self._patches, target)
        banks = [self._reference(reference), *self._further]
        strides = [
            (patches, [bank[stride] for bank in banks], pool.submit(solitude, patches, s.reach))
            for stride, patches in enumerate(seen.result())
        ]
        found = [(*distances(patches, own, s.reach), alone.result()) for patches, own, alone in strides]
        return np.asarray(cv2.GaussianBlur(scored(found, s), (0, 0), s.smooth))

    def _reference(self, picture: RGB) -> list[Features]:
        """The reference's features, computed once for the same pixels."""
        return self._remembered.recall(digest(picture), lambda: self._patches(picture))

    def _patches(self, picture: RGB) -> list[Features]:
        return self._backbone.patches(fit(picture, self.scoring.side))

    def _alone(self, score: Map, size: tuple[int, int]) -> Location:
        """The answer of the map alone."""
        d = self.deciding
        found = regions(score, size, cut=d.cut, gap=d.gap, most=self.options.max_boxes)
        chances = np.array([self._chance(region) for region in found])
        told = (
            f"The reference was not laid on; patches were compared with the nearest of it (peak {found[0].peak:.2f})."
        )
        return self._answer(np.array([region.box for region in found]), chances, told)

    def _chance(self, region: Region) -> float:
        d = self.deciding
        peak, contrast = evidence(region)
        return logistic(d.bias + d.peak * peak + d.contrast * contrast)

    def _fused(self, laid_on: Location, score: Map, size: tuple[int, int]) -> Location:
        """The answer where the reference registers: boxes of `difference`, chances of both."""
        d = self.deciding
        peaks = [peak_within(score, box, size) for box in laid_on.boxes]
        chances = [
            logistic(d.fused_bias + d.fused_difference * logit(chance) + d.fused_peak * math.log(peak))
            for chance, peak in zip(laid_on.scores, peaks, strict=True)
        ]
        # Its first sentence says how the reference was laid on; what follows counts with another threshold.
        told = f"{laid_on.reasoning.partition('). ')[0]})."
        return self._answer(laid_on.boxes, np.array(chances), told)

    def _answer(self, boxes: Boxes, chances: NDArray[np.float64], told: str) -> Location:
        order = np.argsort(-chances, kind="stable")
        kept = order[chances[order] >= self.options.threshold][: self.options.max_boxes]
        found = f"{len(kept)} region(s) differ." if len(kept) else "Nothing differs beyond noise."
        return Location(
            boxes=boxes[kept],
            scores=chances[kept],
            confidence=float(chances.max(initial=0.0)),
            reasoning=f"{told} {found}",
            threshold=self.options.threshold,
        )


def evidence(region: Region) -> tuple[float, float]:
    """What the chance of a region is computed from: logarithms of its peak and of how far that stands out of the map."""
    return math.log(max(region.peak, SURE)), math.log(max(region.peak, SURE) / max(region.usual, SURE))


def peak_within(score: Map, box: NDArray[np.float64], size: tuple[int, int]) -> float:
    """The highest value of (h, w) `score` within a box (4,) of a picture of (width, height)."""
    x, y = score.shape[1] / size[0], score.shape[0] / size[1]
    left, top = int(box[0] * x), int(box[1] * y)
    right, bottom = max(left + 1, math.ceil(box[2] * x)), max(top + 1, math.ceil(box[3] * y))
    return max(SURE, float(score[top:bottom, left:right].max(initial=0.0)))
