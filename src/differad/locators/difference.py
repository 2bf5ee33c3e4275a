"""`difference`: the classical locator. Lay the reference on the target, equalise the light, see what is left.

A target pixel is different by how far it leaves the range of reference values within a tolerance around it, and the
other way round, so that an edge that moved by a pixel is no difference while a missing wire is one. What is left is
counted in units of the pair's own noise, thresholded with hysteresis and grouped; each group's chance of being a defect comes from
a logistic curve that was fitted on synthetic pairs, as every constant here (benchmarks/calibrate_difference.py). A
reference that does not lie on the target in any pose is refused, and the reasoning says so.

Knows nothing of materials or defect classes, and compares one pair at a time.
"""

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, clip, no_boxes
from differad.core import Location, Pair
from differad.errors import LocatorError, OptionError
from differad.images import RGB, read_image
from differad.locators.base import Outcome, attempt
from differad.locators.registration import Registration, register, warp

Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]
Grey = NDArray[np.uint8]


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DifferenceOptions:
    """What a user may want other than the calibrated defaults."""

    threshold: float = _option(0.5, "a group counts as a defect from this probability on")
    tolerance: int = _option(2, "an edge may lie this many pixels off without being a difference")
    margin: float = _option(0.0078, "boxes grow by this share of the longer side: labels are drawn with a margin")
    max_boxes: int = _option(20, "at most this many boxes, best first")
    max_side: int = _option(2048, "longer pictures are shrunk to this: bounds time and memory")
    workers: int = _option(0, "threads of locate_many; 0 takes one per usable core")

    def __post_init__(self) -> None:
        _check("threshold", self.threshold, 0 <= self.threshold <= 1, "a probability in [0, 1]")
        _check("tolerance", self.tolerance, 0 <= self.tolerance <= 50, "0 to 50 pixels")
        _check("margin", self.margin, 0 <= self.margin <= 0.25, "a share in [0, 0.25]")
        _check("max_boxes", self.max_boxes, self.max_boxes >= 1, "at least 1")
        _check("max_side", self.max_side, self.max_side >= 64, "at least 64 pixels")
        _check("workers", self.workers, self.workers >= 0, "0 or more")


@dataclass(frozen=True)
class Constants:
    """What benchmarks/calibrate_difference.py finds on synthetic pairs."""

    low: float = 3.0
    high: float = 6.0
    floor: float = 6.0
    gap_share: float = 0.01
    bias: float = -8.0
    peak_weight: float = 1.0
    mass_weight: float = 1.0


CONSTANTS = Constants()


@dataclass(frozen=True, eq=False)
class _Group:
    """Neighbouring differences: their tight box (4,) and their odds of being a defect (logit)."""

    box: NDArray[np.float64]
    logit: float


class DifferenceLocator:
    """Registers, compares, thresholds; needs no training and no download."""

    name = "difference"

    def __init__(self, options: DifferenceOptions | None = None, constants: Constants = CONSTANTS) -> None:
        self.options = options or DifferenceOptions()
        self.constants = constants

    def locate(self, pair: Pair) -> Location:
        """Where the target differs from the reference. Raises ImageError, LocatorError."""
        start = time.perf_counter()
        reference, target = read_image(pair.reference), read_image(pair.target)
        try:
            location = self._locate(reference, target)
        except cv2.error as error:
            raise LocatorError(
                f"pair {pair.id!r}: OpenCV cannot compare it ({error}); check the two pictures"
            ) from None
        return replace(location, model=self.name, seconds=time.perf_counter() - start)

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order; at most two pairs per worker are read ahead."""
        workers = self.options.workers or len(os.sched_getaffinity(0))
        waiting: deque[Future[Outcome]] = deque()
        with _one_thread_each(workers), ThreadPoolExecutor(workers) as pool:
            for pair in pairs:
                waiting.append(pool.submit(attempt, self, pair))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _locate(self, reference: RGB, target: RGB) -> Location:
        height, width = target.shape[:2]
        reference, _ = _bounded(reference, self.options.max_side)
        target, factor = _bounded(target, self.options.max_side)
        registration = register(_grey(reference), _grey(target))
        if not registration.accepted:
            return _refusal(registration)
        score = self.difference(reference, target, registration)
        groups = self._groups(score)
        return self._answer(groups, registration, (width, height), factor)

    def difference(self, reference: RGB, target: RGB, registration: Registration) -> Picture:
        """How far each target pixel is off, (H, W), in units of the pair's own noise."""
        moved, covered = warp(reference, registration.matrix, target.shape[:2])
        here, there = (_soften(p) for p in _channels(target, moved))
        there = _equalise(there, here)
        excess = _excess(here, there, self.options.tolerance)
        excess[~covered] = 0
        return np.asarray(excess / max(_noise(here - there, covered), self.constants.floor))

    def _groups(self, score: Picture) -> list[_Group]:
        reach = 2 * self.options.tolerance + 1
        weak = (score > self.constants.low).astype(np.uint8)
        if not weak.any():
            return []
        weak = cv2.dilate(weak, np.ones((reach, reach), np.uint8))
        gap = max(1, round(self.constants.gap_share * max(score.shape)))
        joined = cv2.morphologyEx(weak, cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
        _, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
        groups = []
        for label, (x, y, w, h, _) in enumerate(stats[1:], start=1):
            own = labels[y : y + h, x : x + w] == label
            values = score[y : y + h, x : x + w][own]
            if values.max() >= self.constants.high:
                groups.append(_Group(np.array([x, y, x + w, y + h], np.float64), self._logit(values)))
        return sorted(groups, key=lambda group: -group.logit)

    def _logit(self, values: Picture) -> float:
        peak = math.log(float(values.max()))
        mass = math.log(float(values[values > self.constants.low].sum()))
        return self.constants.bias + self.constants.peak_weight * peak + self.constants.mass_weight * mass

    def _answer(
        self, groups: list[_Group], registration: Registration, size: tuple[int, int], factor: float
    ) -> Location:
        chances = np.array([_sigmoid(group.logit) for group in groups])
        kept = np.flatnonzero(chances >= self.options.threshold)[: self.options.max_boxes]
        margin = self.options.margin * max(size)
        grow = np.array([-margin, -margin, margin, margin])
        boxes: Boxes = clip(np.array([groups[i].box / factor + grow for i in kept]).reshape(-1, 4), *size)
        how = f"The reference was laid on by {registration.model} (edge correlation {registration.quality:.2f})."
        found = f"{len(kept)} region(s) differ." if len(kept) else "Nothing differs beyond noise."
        return Location(
            boxes=boxes,
            scores=chances[kept],
            confidence=float(chances.max()) if len(chances) else 0.0,
            reasoning=f"{how} {found}",
        )


def _check(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise OptionError(f"{name}={value}: expected {expected}")


def _refusal(registration: Registration) -> Location:
    return Location(
        boxes=no_boxes(),
        confidence=None,
        valid=False,
        reasoning=f"The reference does not register with the target "
        f"(best edge correlation {registration.quality:.2f}).",
    )


@contextmanager
def _one_thread_each(workers: int) -> Iterator[None]:
    """OpenCV's own threads off while several workers run: they would fight over the cores."""
    before = cv2.getNumThreads()
    if workers > 1:
        cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _bounded(picture: RGB, max_side: int) -> tuple[RGB, float]:
    """The picture no longer than `max_side`, and the factor that it was shrunk by."""
    height, width = picture.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return picture, 1.0
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)), factor


def _grey(picture: RGB) -> Grey:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))


def _channels(*pictures: RGB) -> tuple[NDArray[np.uint8], ...]:
    """One channel each where all pictures are grey: a third of the work."""
    if all(np.array_equal(p[..., 0], p[..., 1]) and np.array_equal(p[..., 0], p[..., 2]) for p in pictures):
        return tuple(np.ascontiguousarray(p[..., 0]) for p in pictures)
    return pictures


def _soften(picture: NDArray[np.uint8]) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), dtype=np.float32)


def _equalise(there: Picture, here: Picture) -> Picture:
    """`there` with its light made that of `here`: a local gain and offset, fitted over windows far wider than a defect.

    He, Sun, Tang, "Guided image filtering" (2013), with the reference as the guide.
    """
    height, width = here.shape[:2]
    small = (max(1, width // 8), max(1, height // 8))
    guide, seen = (cv2.resize(p, small, interpolation=cv2.INTER_AREA) for p in (there, here))
    window = max(3, max(small) // 3)

    def mean(p: Picture) -> Picture:
        return np.asarray(cv2.blur(p, (window, window), borderType=cv2.BORDER_REFLECT))

    guide_mean, seen_mean = mean(guide), mean(seen)
    spread = mean(guide * guide) - guide_mean**2
    shared = mean(guide * seen) - guide_mean * seen_mean
    gain = np.clip((shared + 25.0) / (spread + 25.0), 0.5, 2.0)
    offset = seen_mean - gain * guide_mean
    gain, offset = (cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in (gain, offset))
    return np.asarray(gain * there + offset, dtype=np.float32)


def _excess(here: Picture, there: Picture, tolerance: int) -> Picture:
    """How far (H, W) either picture leaves the other's range within `tolerance` pixels; the largest of the channels."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    added = cv2.max(here - cv2.dilate(there, disc), cv2.erode(there, disc) - here)
    missing = cv2.max(there - cv2.dilate(here, disc), cv2.erode(here, disc) - there)
    excess = np.maximum(cv2.max(added, missing), 0)
    return np.asarray(excess if excess.ndim == 2 else excess.max(axis=2))


def _noise(residual: Picture, covered: Mask) -> float:
    """Robust standard deviation of what light and pose do not explain, in grey levels."""
    values = residual[covered]
    return 1.4826 * float(np.median(np.abs(values))) if values.size else 0.0


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -30.0), 30.0)))
