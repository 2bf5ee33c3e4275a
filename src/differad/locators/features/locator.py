"""`features`: distance of every target patch to the nearest reference patch, on a frozen backbone, without training.

The reference need not lie on the target: another good part will do. Where `difference` can lay it on, that locator gives the
boxes, being exact to a pixel, and both decide how likely each is a defect; where it refuses, the map of distances does alone.
Every constant was calibrated on synthetic pairs (`calibration`).

Knows nothing of materials or defect classes; looks at a picture whole, so that specks are found by `difference` only.
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
from differad.locators.embedded import Embedded
from differad.locators.features.backbone import Backbone, Features, fit
from differad.locators.features.calibration import DECIDING, SCORING, Deciding, Scoring
from differad.locators.features.efficientnet import MULTIPLE
from differad.locators.features.nearest import distances, scored, solitude
from differad.locators.features.regions import Map, Region, regions
from differad.locators.features.weights import BACKBONE
from differad.locators.odds import SURE, logistic, logit
from differad.locators.remembered import Remembered
from differad.locators.threads import usable_cores
from differad.options import check_option, check_parts, option, replace_shared

# References remembered: a line shows one good part beside thousands of others. Under 1 MB each.
_REMEMBERED = 8
# Candidates of levels with a longer side than this are looked up in a crop of the other side, both in pixels of their level, but
# no more than so many: each takes as long as the whole images.
_WHOLE, _CROP, _CROPS = 960, 640, 3


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
            difference = pool.submit(self._difference.align, reference, target) if self.options.fuse else None
            score = self._score(reference, target, pool)
            found = difference.result() if difference else None
        return self._decide(found, score, (target.shape[1], target.shape[0]))

    def compare_aligned(self, reference: RGB, target: RGB) -> Location | None:
        """As `compare` where the reference can be aligned to the target, None where it cannot."""
        found = self._difference.align(reference, target)
        if not self._is_answer(found):
            return None
        score, size = self.score(reference, target), (target.shape[1], target.shape[0])
        return self._decide(found if self.options.fuse else None, score, size)

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
        own = pool.submit(self._patches, target)
        banks = [self._reference(reference), *self._further]
        return self._map(own.result(), banks, pool)

    def _map(self, target: list[Features], banks: Sequence[list[Features]], pool: ThreadPoolExecutor) -> Map:
        s = self.scoring
        strides = [
            (patches, [bank[stride] for bank in banks], pool.submit(solitude, patches, s.reach))
            for stride, patches in enumerate(target)
        ]
        found = [(*distances(patches, own, s.reach), alone.result()) for patches, own, alone in strides]
        return np.asarray(cv2.GaussianBlur(scored(found, s), (0, 0), s.smooth))

    def _reference(self, picture: RGB) -> list[Features]:
        """The reference's features, computed once for the same pixels."""
        return self._remembered.recall(digest(picture), lambda: self._patches(picture))

    def _patches(self, picture: RGB) -> list[Features]:
        return self._backbone.patches(fit(picture, self.scoring.side))

    def _is_answer(self, found: Comparison) -> bool:
        return found.registration.accepted or self.options.difference.on_refusal == "overlay"

    def _decide(self, found: Comparison | None, score: Map, size: tuple[int, int]) -> Location:
        return self._fused(found, score, size) if found and self._is_answer(found) else self._alone(score, size)

    def _alone(self, score: Map, size: tuple[int, int]) -> Location:
        """The answer of the map alone."""
        d = self.deciding
        found = regions(score, size, cut=d.cut, gap=d.gap, most=self.options.max_boxes)
        chances = np.array([self._chance(region) for region in found])
        message = (
            f"The reference was not aligned; patches were compared with the nearest of it (peak {found[0].peak:.2f})."
        )
        return self._answer(np.array([region.box for region in found]), chances, message)

    def _chance(self, region: Region) -> float:
        d = self.deciding
        peak, contrast = evidence(region)
        return logistic(d.bias + d.peak * peak + d.contrast * contrast)

    def _fused(self, found: Comparison, score: Map, size: tuple[int, int]) -> Location:
        """The answer where the reference can be aligned: boxes of `difference`, probabilities of both."""
        d = self.deciding
        least, most = self.options.difference.threshold, self.options.difference.max_boxes
        found = replace(found, candidates=[one for one in found.candidates if one.probability >= least][:most])
        boxes, peaks = self._difference.boxes(found, size), self.peaks(found, score)
        probabilities = [
            logistic(d.fused_bias + d.fused_difference * logit(one.probability) + d.fused_peak * math.log(peak))
            for one, peak in zip(found.candidates, peaks, strict=True)
        ]
        return self._answer(boxes, np.array(probabilities), found.described)

    def peaks(self, found: Comparison, score: Map) -> list[float]:
        """The highest value of a map within each candidate's box.

        Of the whole images' map (h, w), `score`; the likeliest candidates of levels too large for it are looked up in the map
        of a crop at their level's size.
        """
        height, width = found.target.shape[:2]
        result = []
        for number, one in enumerate(found.candidates):
            if number < _CROPS and one.share * max(height, width) > _WHOLE:
                result.append(self._peak_in_crop(found, one))
            else:
                result.append(peak_within(score, one.box, (width, height)))
        return result

    def _peak_in_crop(self, found: Comparison, candidate: Candidate) -> float:
        height, width = found.target.shape[:2]
        left, top, right, bottom = _window(candidate.box, round(_CROP / candidate.share), (width, height))
        target = found.target[top:bottom, left:right]
        there = np.linalg.inv(found.registration.matrix)
        corners = np.array([[[left, top], [right, top], [right, bottom], [left, bottom]]], np.float64)
        moved = cv2.perspectiveTransform(corners, there)[0]
        low, high = np.floor(moved.min(axis=0)).astype(int), np.ceil(moved.max(axis=0)).astype(int)
        low, high = np.maximum(low, 0), np.minimum(high, found.reference.shape[1::-1])
        if (high - low < 2 * MULTIPLE).any():
            # The reference does not show this place.
            return 1.0
        reference = found.reference[low[1] : high[1], low[0] : high[0]]
        with ThreadPoolExecutor(self.options.workers or usable_cores()) as pool:
            score = self._map(self._patches(_rgb(target)), [self._patches(_rgb(reference))], pool)
        return peak_within(score, candidate.box - [left, top, left, top], (right - left, bottom - top))

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


def _window(box: NDArray[np.float64], side: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square of `side` pixels around a box (4,), larger where twice the box is, within (width, height): x1, y1, x2, y2."""
    sides = np.minimum(np.maximum(side, 2 * (box[2:] - box[:2])), size).round()
    low = np.clip((box[:2] + box[2:] - sides) / 2, 0, size - sides).round()
    return int(low[0]), int(low[1]), int(low[0] + sides[0]), int(low[1] + sides[1])


def _rgb(image: RGB) -> RGB:
    return np.asarray(image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
