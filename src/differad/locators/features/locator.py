"""`features`: distance of every target patch to the nearest reference patch, on a frozen backbone, without training.

The reference need not be aligned with the target: another normal sample will do. If `difference` can align it, that locator gives
the boxes, exact to a pixel, and both decide how likely each is a defect; otherwise the map of distances decides alone.
Every constant was calibrated on synthetic pairs (`calibration`).

Knows nothing of materials or defect classes. Its map covers the whole image at once, so that only `difference` finds specks.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes
from differad.core import Location, Pair
from differad.images import RGB, ImageSource, digest, read_images
from differad.locators.difference import Candidate, Comparison, DifferenceLocator, DifferenceOptions
from differad.locators.embedded import EmbeddedLocator
from differad.locators.features.backbone import Backbone, Features, resize_to_area
from differad.locators.features.calibration import (
    DECISION_CONSTANTS,
    SCORING_CONSTANTS,
    DecisionConstants,
    ScoringConstants,
)
from differad.locators.features.efficientnet import MULTIPLE
from differad.locators.features.nearest import combine_distances, distances, self_distance
from differad.locators.features.regions import Map, Region, regions
from differad.locators.features.weights import BACKBONE
from differad.locators.odds import MIN_PROBABILITY, logit, sigmoid
from differad.locators.remembered import LRUCache
from differad.locators.threads import usable_cores
from differad.options import check_option, check_parts, option, replace_shared

# References whose features are cached: a line compares one normal sample with thousands of others. Under 1 MB each.
_CACHED_REFERENCES = 8
# The peak of a candidate is taken in a crop of 640 pixels if its level's longer side is above 960, both in pixels of that level,
# for at most 3 candidates: each crop takes as long as the whole images.
_MAX_WHOLE, _CROP_SIDE, _MAX_CROPS = 960, 640, 3


# `difference` as a part: every group that it finds is a box; its probability is computed here.
FUSED = DifferenceOptions(threshold=0.0)


@dataclass(frozen=True)
class FeaturesOptions:
    """What a user may want other than the calibrated defaults.

    Options of `difference` start from `FUSED`, as in `FeaturesOptions(difference=replace(FUSED, tolerance=3))`.
    """

    threshold: float = option(DECISION_CONSTANTS.threshold, "a region counts as a defect from this probability on")
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
        valid = ("auto", "opencv", "onnxruntime")
        check_option("runtime", self.runtime, self.runtime in valid, "auto, opencv or onnxruntime")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class FeaturesLocator(EmbeddedLocator):
    """Compares patches with the nearest patch of the reference; needs no training and no download.

    `references` are further normal samples beside each pair's own; a patch is compared with the nearest of all.
    """

    name = "features"
    weights = (BACKBONE,)

    def __init__(
        self,
        options: FeaturesOptions | None = None,
        *,
        references: Sequence[ImageSource] = (),
        scoring: ScoringConstants = SCORING_CONSTANTS,
        deciding: DecisionConstants = DECISION_CONSTANTS,
    ) -> None:
        self.options = options or FeaturesOptions()
        self.scoring = scoring
        self.deciding = deciding
        self._backbone = Backbone(self.options.runtime)
        self._difference = DifferenceLocator(replace_shared(self.options, "difference"))
        self._extra_references = [self._patches(pixels) for pixels in read_images(*references)]
        self._reference_cache: LRUCache[bytes, list[Features]] = LRUCache(_CACHED_REFERENCES)

    def with_options(self, options: FeaturesOptions) -> Self:
        """This locator with other options, sharing what it has loaded and, with the same runtime, its cache."""
        other = super().with_options(options)
        other._difference = self._difference.with_options(replace_shared(options, "difference"))
        if options.runtime != self.options.runtime:
            # Features of another runtime are equal only within rounding.
            other._backbone = Backbone(options.runtime)
            other._reference_cache = LRUCache(_CACHED_REFERENCES)
        return other

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target differs from the reference."""
        with ThreadPoolExecutor(self.options.workers or usable_cores()) as pool:
            difference = pool.submit(self._difference.align, reference, target) if self.options.fuse else None
            score = self._score(reference, target, pool)
            comparison = difference.result() if difference else None
        return self._decide(comparison, score, (target.shape[1], target.shape[0]))

    def compare_aligned(self, reference: RGB, target: RGB) -> Location | None:
        """As `compare` if the reference can be aligned to the target, else None."""
        comparison = self._difference.align(reference, target)
        if not self._is_answer(comparison):
            return None
        score, size = self.score(reference, target), (target.shape[1], target.shape[0])
        return self._decide(comparison if self.options.fuse else None, score, size)

    def anomaly_map(self, pair: Pair) -> NDArray[np.float32]:
        """How far each target pixel is from the reference, (H, W), 0 the same and about 1 unrelated. Raises ImageError.

        From features alone; the map of `difference` has another unit and exists only for pairs that register.
        """
        reference, target = read_images(pair.reference, pair.target)
        score = self.score(reference, target)
        return np.asarray(cv2.resize(score, (target.shape[1], target.shape[0])), dtype=np.float32)

    def score(self, reference: RGB, target: RGB) -> Map:
        """The same map (h, w) in cells of 8 pixels of the resized target."""
        with ThreadPoolExecutor(self.options.workers or usable_cores()) as pool:
            return self._score(reference, target, pool)

    def _score(self, reference: RGB, target: RGB, pool: ThreadPoolExecutor) -> Map:
        patches = pool.submit(self._patches, target)
        banks = [self._reference(reference), *self._extra_references]
        return self._map(patches.result(), banks, pool)

    def _map(self, target: list[Features], banks: Sequence[list[Features]], pool: ThreadPoolExecutor) -> Map:
        s = self.scoring
        strides = [
            (patches, [bank[stride] for bank in banks], pool.submit(self_distance, patches, s.reach))
            for stride, patches in enumerate(target)
        ]
        by_stride = [(*distances(patches, bank, s.reach), to_itself.result()) for patches, bank, to_itself in strides]
        return np.asarray(cv2.GaussianBlur(combine_distances(by_stride, s), (0, 0), s.smooth))

    def _reference(self, image: RGB) -> list[Features]:
        """The reference's features, computed once for the same pixels."""
        return self._reference_cache.recall(digest(image), lambda: self._patches(image))

    def _patches(self, image: RGB) -> list[Features]:
        return self._backbone.patches(resize_to_area(image, self.scoring.side))

    def _is_answer(self, comparison: Comparison) -> bool:
        return comparison.registration.accepted or self.options.difference.on_refusal == "overlay"

    def _decide(self, comparison: Comparison | None, score: Map, size: tuple[int, int]) -> Location:
        return (
            self._fused_answer(comparison, score, size)
            if comparison and self._is_answer(comparison)
            else self._map_answer(score, size)
        )

    def _map_answer(self, score: Map, size: tuple[int, int]) -> Location:
        """The answer of the map alone."""
        d = self.deciding
        found_regions = regions(score, size, cut=d.cut, gap=d.gap, max_regions=self.options.max_boxes)
        probabilities = np.array([self._probability(region) for region in found_regions])
        peak = found_regions[0].peak
        message = f"The reference was not aligned; patches were compared with the nearest of it (peak {peak:.2f})."
        return self._answer(np.array([region.box for region in found_regions]), probabilities, message)

    def _probability(self, region: Region) -> float:
        d = self.deciding
        peak, contrast = region_features(region)
        return sigmoid(d.bias + d.peak * peak + d.contrast * contrast)

    def _fused_answer(self, comparison: Comparison, score: Map, size: tuple[int, int]) -> Location:
        """The answer for an aligned reference: boxes of `difference`, probabilities of both."""
        d = self.deciding
        least, max_boxes = self.options.difference.threshold, self.options.difference.max_boxes
        candidates = [one for one in comparison.candidates if one.probability >= least][:max_boxes]
        comparison = replace(comparison, candidates=candidates)
        boxes, peaks = self._difference.boxes(comparison, size), self.peaks(comparison, score)
        probabilities = [
            sigmoid(d.fused_bias + d.fused_difference * logit(one.probability) + d.fused_peak * math.log(peak))
            for one, peak in zip(candidates, peaks, strict=True)
        ]
        return self._answer(boxes, np.array(probabilities), comparison.alignment_text)

    def peaks(self, comparison: Comparison, score: Map) -> list[float]:
        """The highest value of a map within each candidate's box.

        `score` (h, w) is the map of the whole images. For the likeliest candidates of larger levels the map of a crop at their
        level's size is computed.
        """
        height, width = comparison.target.shape[:2]
        result = []
        for number, one in enumerate(comparison.candidates):
            if number < _MAX_CROPS and one.share * max(height, width) > _MAX_WHOLE:
                result.append(self._peak_in_crop(comparison, one))
            else:
                result.append(peak_within(score, one.box, (width, height)))
        return result

    def _peak_in_crop(self, comparison: Comparison, candidate: Candidate) -> float:
        height, width = comparison.target.shape[:2]
        left, top, right, bottom = _window(candidate.box, round(_CROP_SIDE / candidate.share), (width, height))
        target = comparison.target[top:bottom, left:right]
        to_reference = np.linalg.inv(comparison.registration.matrix)
        corners = np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], np.float64)
        moved = cv2.perspectiveTransform(corners, to_reference)[0]
        low, high = np.floor(moved.min(axis=0)).astype(int), np.ceil(moved.max(axis=0)).astype(int)
        low, high = np.maximum(low, 0), np.minimum(high, comparison.reference.shape[1::-1])
        if (high - low < 2 * MULTIPLE).any():
            # The reference does not show this region.
            return 1.0
        reference = comparison.reference[low[1] : high[1], low[0] : high[0]]
        with ThreadPoolExecutor(self.options.workers or usable_cores()) as pool:
            score = self._map(self._patches(_rgb(target)), [self._patches(_rgb(reference))], pool)
        return peak_within(score, candidate.box - [left, top, left, top], (right - left, bottom - top))

    def _answer(self, boxes: Boxes, probabilities: NDArray[np.float64], message: str) -> Location:
        order = np.argsort(-probabilities, kind="stable")
        kept = order[probabilities[order] >= self.options.threshold][: self.options.max_boxes]
        counted = f"{len(kept)} region(s) differ." if len(kept) else "Nothing differs beyond noise."
        return Location(
            boxes=boxes[kept],
            scores=probabilities[kept],
            confidence=float(probabilities.max(initial=0.0)),
            reasoning=f"{message} {counted}",
            threshold=self.options.threshold,
        )


def region_features(region: Region) -> tuple[float, float]:
    """The inputs of a region's logistic curve: log peak, and log of the peak's ratio to the background."""
    return math.log(max(region.peak, MIN_PROBABILITY)), math.log(
        max(region.peak, MIN_PROBABILITY) / max(region.background, MIN_PROBABILITY)
    )


def peak_within(score: Map, box: NDArray[np.float64], size: tuple[int, int]) -> float:
    """The highest value of `score` (h, w) within a box (4,) of an image of (width, height)."""
    x, y = score.shape[1] / size[0], score.shape[0] / size[1]
    left, top = int(box[0] * x), int(box[1] * y)
    right, bottom = max(left + 1, math.ceil(box[2] * x)), max(top + 1, math.ceil(box[3] * y))
    return max(MIN_PROBABILITY, float(score[top:bottom, left:right].max(initial=0.0)))


def _window(box: NDArray[np.float64], side: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square of `side` pixels around a box (4,), or twice the box if that is larger, within (width, height): x1, y1, x2, y2."""
    sides = np.minimum(np.maximum(side, 2 * (box[2:] - box[:2])), size).round()
    low = np.clip((box[:2] + box[2:] - sides) / 2, 0, size - sides).round()
    return int(low[0]), int(low[1]), int(low[0] + sides[0]), int(low[1] + sides[1])


def _rgb(image: RGB) -> RGB:
    return np.asarray(image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
