"""A reference and a target compared at several sizes: large and faint defects show at the small ones, specks at the large.

The smallest level has one size for all images that are larger, so that a resized image is compared at the same size again. The
smooth displacement found at one level is where the next starts from, and large levels are compared in strips, so that memory
stays bounded. Knows nothing of probabilities or boxes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.locators.comparison import (
    Image,
    Light,
    Mask,
    bend,
    displace,
    edge_mask,
    edge_noise,
    enlarged,
    excess,
    fit_light,
    inside,
    robust_deviation,
    soften,
    steepness,
)
from differad.locators.registration import Matrix, resizing, warp
from differad.locators.resolution import shrink
from differad.locators.threads import one_thread_each, usable_cores

# The longer side, in pixels, of the smallest level; images that are larger by no more than a little have no other.
SMALLEST, _LITTLE = 640, 1.1
# Small images are enlarged by no more than this.
_LARGEST_STEP = 2.5
# Strips hold about this many pixels ...
STRIP_PIXELS = 1 << 19
# ... and as many rows more at each end as blurring and bending look beyond it.
_SOFTEN_REACH = 4
# Values from which a median is taken.
_NOISE_SAMPLES = 1 << 20


@dataclass(frozen=True, eq=False)
class Level:
    """The two images at one size. `matrix` (3, 3) maps reference pixels to target pixels, `share` is the level's size by the
    largest one's. Images are (H, W) where both are grey, else (H, W, 3).
    """

    reference: RGB
    target: RGB
    matrix: Matrix
    share: float


@dataclass(frozen=True, eq=False)
class Residual:
    """What is left at one level: how far each target pixel is off, (H, W), in grey levels, and the pair's own noise.

    `spread` is that of plain areas, `edges` what is usual along edges, which `at_edges` (H, W) marks, `contrast` the reference's
    standard deviation; `field` is the displacement that was found.
    """

    over: RGB
    at_edges: Mask
    spread: float
    edges: float
    contrast: float
    field: Image


def levels(reference: RGB, target: RGB, matrix: Matrix) -> Iterator[Level]:
    """The images at each level, smallest first: from a longer side of 640 pixels to their own in even steps of about two.

    Smaller images are enlarged to that, 2.5 times at most.
    """
    larger = max(target.shape[:2]) / SMALLEST
    whole = Level(reference, target, matrix, 1.0)
    if larger < 1:
        yield _resized(whole, min(_LARGEST_STEP, 1 / larger))
        return
    steps = max(round(math.log2(larger)), int(larger > _LITTLE))
    found = [whole]
    for _ in range(steps):
        smaller = _resized(found[-1], larger ** (-1 / steps))
        # A strip keeps the width that it needs.
        if smaller.share < found[-1].share:
            found.append(smaller)
    yield from reversed(found)


def _resized(level: Level, step: float) -> Level:
    """The same images with sides `step` times as long."""
    reference, target = (_resize(image, step) for image in (level.reference, level.target))
    there, here = resizing(level.reference.shape, reference.shape), resizing(level.target.shape, target.shape)
    share = level.share * max(target.shape[:2]) / max(level.target.shape[:2])
    return Level(reference, target, here @ level.matrix @ np.linalg.inv(there), share)


def _resize(image: RGB, step: float) -> RGB:
    if step < 1:
        return shrink(image, step)
    size = round(image.shape[1] * step), round(image.shape[0] * step)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def residuals(each: Iterable[Level], tolerance: int, workers: int = 0) -> Iterator[tuple[Level, Residual]]:
    """Each level, smallest first, with what differs at it; the displacement found at one is where the next starts from."""
    start, before = None, 1.0
    for one in each:
        found = residual(one, tolerance, None if start is None else start * np.float32(one.share / before), workers)
        yield one, found
        start, before = found.field, one.share


def residual(level: Level, tolerance: int, start: Image | None = None, workers: int = 0) -> Residual:
    """What differs at a level; `start` is the displacement (h, w, 2) found at the level before."""
    moved, covered = warp(level.reference, level.matrix, level.target.shape[:2])
    light = fit_light(moved, level.target, covered)
    field = bend(moved, level.target, covered, light, start)
    height, count = level.target.shape[0], _rows(level.target)
    rows = [(top, min(top + count, height)) for top in range(0, height, count)]

    def compare(span: tuple[int, int]) -> "_Strip":
        return _strip(moved, level.target, covered, light, field, tolerance, span)

    strips = list(_map(compare, rows, workers or usable_cores()))
    over, steep = (np.concatenate([getattr(s, name) for s in strips]) for name in ("over", "steep"))
    over[~inside(covered, tolerance + 1)] = 0
    spread = robust_deviation(np.concatenate([s.off for s in strips]))
    at_edges = edge_mask(steep)
    return Residual(over, at_edges, spread, edge_noise(over, at_edges & covered), _deviation(strips), field)


@dataclass(frozen=True, eq=False)
class _Strip:
    """What one strip gives: `over` and `steep` (h, W), a sample of residuals, and the sums (3,) of the aligned reference's
    samples: their number, they, and their squares."""

    over: RGB
    steep: RGB
    off: NDArray[np.int16]
    sums: NDArray[np.float64]


def _strip(
    moved: RGB, target: RGB, covered: Mask, light: Light, field: Image, tolerance: int, span: tuple[int, int]
) -> _Strip:
    height, width = target.shape[:2]
    top, bottom = span
    reach = _SOFTEN_REACH + tolerance + 1 + math.ceil(float(np.abs(field[..., 1]).max()))
    first, last = max(0, top - reach), min(height, bottom + reach)
    here, there = soften(target[first:last]), soften(moved[first:last])
    there = displace(there, enlarged(field, there.shape[:2], height, first))
    there = light.on(there, height, first, cv2.CV_8U)
    own = np.s_[top - first : bottom - first]
    over, steep = excess(here, there, tolerance)[own], steepness(there)[own]
    here, there = here[own], there[own]
    every = max(1, height * width // _NOISE_SAMPLES)
    shown = covered[top:bottom:2, ::every]
    off = np.subtract(here[::2, ::every], there[::2, ::every], dtype=np.int16)[shown]
    mean, deviation = (values.ravel() for values in cv2.meanStdDev(there))
    return _Strip(
        over, steep, off, there.shape[0] * width * np.array([len(mean), mean.sum(), (mean**2 + deviation**2).sum()])
    )


def _deviation(strips: list[_Strip]) -> float:
    """The standard deviation of all samples of the aligned reference."""
    count, total, squares = np.sum([s.sums for s in strips], axis=0)
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))


def _rows(image: RGB) -> int:
    """Rows of a strip: an even number, since every other row is sampled."""
    return max(64, int(STRIP_PIXELS // image.shape[1] // 2 * 2))


def _map(function: Callable[[Any], Any], items: list[Any], workers: int) -> Iterator[Any]:
    workers = min(workers, len(items))
    if workers == 1:
        yield from map(function, items)
        return
    with one_thread_each(workers), ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)
