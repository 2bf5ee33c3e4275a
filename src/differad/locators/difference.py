"""`difference`: the classical locator. Lay the reference on the target, equalise the light, see what is left.

A target pixel is different by how far it leaves the range of reference values within a tolerance around it, and the
other way round, so that an edge that moved by a pixel is no difference while a missing wire is one. What is left is
counted in units of the pair's own noise, thresholded with hysteresis and grouped; each group's chance of being a defect
comes from a logistic curve that was fitted on synthetic pairs, like every constant here (`calibration`). A reference
that does not lie on the target in any pose is refused, and the reasoning says so.

Knows nothing of materials or defect classes, and compares one pair at a time.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from differad.boxes import grow
from differad.core import Location
from differad.images import RGB
from differad.locators.calibration import COMPARING, Comparing
from differad.locators.comparison import (
    Group,
    Picture,
    bend,
    displace,
    edge_noise,
    equalise,
    excess,
    group,
    inside,
    noise,
    soften,
)
from differad.locators.embedded import Embedded
from differad.locators.odds import logistic
from differad.locators.registration import Registration, grey, register, warp
from differad.options import check_option, option

# A long strip shrunk to fewer pixels of width than this would lose its defects without a word.
_LEAST_SIDE = 64
_REMEDY = "No answer; --model features compares parts that do not lie on each other."


@dataclass(frozen=True)
class DifferenceOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float = option(COMPARING.threshold, "a group counts as a defect from this probability on")
    tolerance: int = option(
        COMPARING.tolerance,
        "an edge may be this far off without being a difference; in pixels of the target as it is compared: as given, "
        "or shrunk to max_side",
    )
    margin: float = option(
        COMPARING.margin,
        "boxes grow on each side by this share of the longer side of the target: labels are drawn with a margin",
    )
    max_boxes: int = option(20, "at most this many boxes, best first")
    on_refusal: Literal["refuse", "overlay"] = option(
        "refuse", "a reference that does not register: give no answer, or compare with the best guess all the same"
    )
    max_side: int = option(2048, "in pixels: an image with a longer side is shrunk to it; bounds time and memory")
    workers: int = option(0, "threads of locate_many; 0 takes one per usable core")

    def __post_init__(self) -> None:
        check_option("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability in [0, 1]")
        check_option("tolerance", self.tolerance, 0 <= self.tolerance <= 50, "0 to 50 pixels")
        check_option("margin", self.margin, 0 <= self.margin <= 0.25, "a share in [0, 0.25]")
        check_option("max_boxes", self.max_boxes, self.max_boxes >= 1, "at least 1")
        check_option("on_refusal", self.on_refusal, self.on_refusal in ("refuse", "overlay"), "refuse or overlay")
        check_option("max_side", self.max_side, self.max_side >= 64, "at least 64 pixels")
        check_option("workers", self.workers, self.workers >= 0, "0 or more")


class DifferenceLocator(Embedded):
    """Registers, compares, thresholds; needs no training and no download."""

    name = "difference"

    def __init__(self, options: DifferenceOptions | None = None, constants: Comparing = COMPARING) -> None:
        self.options = options or DifferenceOptions()
        self.constants = constants

    def compare(self, reference: RGB, target: RGB) -> Location:
        """Where the target differs from the reference; not comparable where the two cannot be aligned."""
        height, width = target.shape[:2]
        reference, _ = _bounded(reference, self.options.max_side)
        target, factor = _bounded(target, self.options.max_side)
        registration = register(grey(reference), grey(target))
        if not registration.accepted and self.options.on_refusal == "refuse":
            return Location(comparable=False, reasoning=f"{_told(registration)} {_REMEDY}")
        score = self.difference(reference, target, registration)
        groups = self._groups(score)
        return self._answer(groups, registration, (width, height), factor)

    def difference(self, reference: RGB, target: RGB, registration: Registration) -> Picture:
        """How far each target pixel is off, (H, W), in units of the pair's own noise.

        Where edges moved or are ragged, what that leaves counts as noise too; see `unit_of_noise`. Not where the
        reference does not register: there nothing lies on its place, and noise measured from it would explain all away.
        """
        tolerance = self.options.tolerance
        moved, covered = warp(reference, registration.matrix, target.shape[:2])
        here, there = soften(target, moved)
        there = equalise(there, here, covered)
        there = displace(there, bend(there, here, covered))
        over = excess(here, there, tolerance)
        over[~inside(covered, tolerance + 1)] = 0
        spread, edges = 0.0, 0.0
        if registration.accepted:
            spread, edges = noise(here - there, covered), edge_noise(over, there, covered)
        return over / np.float32(unit_of_noise(self.constants, spread, edges, float(there.std())))

    def _groups(self, score: Picture) -> list[Group]:
        gap = max(1, round(self.constants.gap * max(score.shape)))
        found = group(score, low=self.constants.low, high=self.constants.high, grow=self.options.tolerance, gap=gap)
        return sorted(found, key=lambda group: -self._chance(group))

    def _chance(self, group: Group) -> float:
        """How likely a group is a defect, by the logistic curve fitted on synthetic groups."""
        c = self.constants
        logit = c.bias + c.peak * math.log(group.peak) + c.mass * math.log(group.mass)
        return logistic(logit + c.thickness * math.log(group.thickness))

    def _answer(
        self, groups: list[Group], registration: Registration, size: tuple[int, int], factor: float
    ) -> Location:
        chances = np.array([self._chance(group) for group in groups])
        kept = np.flatnonzero(chances >= self.options.threshold)[: self.options.max_boxes]
        boxes = grow(np.array([groups[i].box / factor for i in kept]).reshape(-1, 4), self.options.margin, *size)
        found = f"{len(kept)} region(s) differ." if len(kept) else "Nothing differs beyond noise."
        return Location(
            boxes=boxes,
            scores=chances[kept],
            confidence=float(chances.max(initial=0.0)) if registration.accepted else None,
            reasoning=f"{_told(registration)} {found}",
            threshold=self.options.threshold,
        )


def unit_of_noise(constants: Comparing, spread: float, edges: float, contrast: float) -> float:
    """Grey levels that count as one unit: the largest of what this pair shows on plain areas, along edges, at all."""
    return max(spread, constants.floor, constants.edge * edges, constants.contrast * contrast)


def _told(registration: Registration) -> str:
    quality = f"edge correlation {registration.quality:.2f}"
    if registration.accepted:
        return f"The reference was laid on by {registration.model} ({quality})."
    return f"The reference does not register with the target (best {quality}, by {registration.model})."


def _bounded(picture: RGB, max_side: int) -> tuple[RGB, float]:
    """The image no longer than `max_side`, and the factor that it was shrunk by; a strip keeps `_LEAST_SIDE` pixels of width."""
    height, width = picture.shape[:2]
    factor = max(max_side / max(height, width), _LEAST_SIDE / min(height, width))
    if factor >= 1:
        return picture, 1.0
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)), factor
