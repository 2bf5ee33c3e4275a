"""Compare a reference and a target at several sizes: small sizes show large and faint defects, large sizes show specks.

The smallest level has one size for all larger images, so that a resized image is compared at that size again. The flow found at
one level initialises the next. Large levels are compared in strips, so that memory stays bounded. Knows nothing of probabilities
or boxes.
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
    Illumination,
    Image,
    Mask,
    edge_mask,
    edge_noise,
    erode_mask,
    estimate_flow,
    fit_illumination,
    gaussian_blur,
    morphological_gradient,
    robust_deviation,
    tolerance_difference,
    upsample_rows,
    warp_by_flow,
)
from differad.locators.registration import Matrix, resizing, warp
from differad.locators.resolution import shrink
from differad.locators.threads import one_thread_each, usable_cores

# The longer side, in pixels, of the smallest level. Images up to 1.1 times as large have this level alone.
SMALLEST, _LITTLE = 640, 1.1
# Small images are enlarged by at most this factor.
_MAX_ENLARGEMENT = 2.5
# Pixels per strip, about ...
STRIP_PIXELS = 1 << 19
# ... plus the rows at each end that the blur reads (flow and tolerance add theirs).
_BLUR_RADIUS = 4
# Number of values, about, whose median is the noise.
_NOISE_SAMPLES = 1 << 20


@dataclass(frozen=True, eq=False)
class Level:
    """The two images at one size. `matrix` (3, 3) maps reference pixels to target pixels; `share` is the level's size divided
    by the largest level's. Images are (H, W) if both are grey, else (H, W, 3).
    """

    reference: RGB
    target: RGB
    matrix: Matrix
    share: float


@dataclass(frozen=True, eq=False)
class Residual:
    """The residual at one level: the difference of each target pixel (H, W), in grey levels, and the noise of the pair.

    `spread` is the noise of plain areas, `edges` the noise along edges, which `at_edges` (H, W) marks, and `contrast` the
    standard deviation of the reference. `flow` (h, w, 2) is the estimated displacement.
    """

    difference: RGB
    at_edges: Mask
    spread: float
    edges: float
    contrast: float
    flow: Image


def levels(reference: RGB, target: RGB, matrix: Matrix) -> Iterator[Level]:
    """The images at each level, smallest first: from a longer side of 640 pixels to their own size, in even steps of about two.

    Smaller images are enlarged to 640 pixels, by at most 2.5.
    """
    larger = max(target.shape[:2]) / SMALLEST
    whole = Level(reference, target, matrix, 1.0)
    if larger < 1:
        yield _resized(whole, min(_MAX_ENLARGEMENT, 1 / larger))
        return
    steps = max(round(math.log2(larger)), int(larger > _LITTLE))
    pyramid = [whole]
    for _ in range(steps):
        smaller = _resized(pyramid[-1], larger ** (-1 / steps))
        # A thin image is not shrunk below the width that it needs.
        if smaller.share < pyramid[-1].share:
            pyramid.append(smaller)
    yield from reversed(pyramid)


def _resized(level: Level, step: float) -> Level:
    """The same images with sides `step` times as long."""
    reference, target = (_resize(image, step) for image in (level.reference, level.target))
    of_reference, of_target = (
        resizing(level.reference.shape, reference.shape),
        resizing(level.target.shape, target.shape),
    )
    share = level.share * max(target.shape[:2]) / max(level.target.shape[:2])
    return Level(reference, target, of_target @ level.matrix @ np.linalg.inv(of_reference), share)


def _resize(image: RGB, step: float) -> RGB:
    if step < 1:
        return shrink(image, step)
    size = round(image.shape[1] * step), round(image.shape[0] * step)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def residuals(each: Iterable[Level], tolerance: int, workers: int = 0) -> Iterator[tuple[Level, Residual]]:
    """Each level, smallest first, with its residual; the flow of one level initialises the next."""
    start, before = None, 1.0
    for level in each:
        result = residual(
            level, tolerance, None if start is None else start * np.float32(level.share / before), workers
        )
        yield level, result
        start, before = result.flow, level.share


def residual(level: Level, tolerance: int, start: Image | None = None, workers: int = 0) -> Residual:
    """The residual of a level; `start` is the flow (h, w, 2) of the level before, in pixels of this one."""
    moved, covered = warp(level.reference, level.matrix, level.target.shape[:2])
    illumination = fit_illumination(moved, level.target, covered)
    flow = estimate_flow(moved, level.target, covered, illumination, start)
    height, count = level.target.shape[0], _rows(level.target)
    rows = [(top, min(top + count, height)) for top in range(0, height, count)]

    def compare(span: tuple[int, int]) -> "_Strip":
        return _strip(moved, level.target, covered, illumination, flow, tolerance, span)

    strips = list(_map(compare, rows, workers or usable_cores()))
    difference, gradient = (np.concatenate([getattr(s, name) for s in strips]) for name in ("difference", "gradient"))
    difference[~erode_mask(covered, tolerance + 1)] = 0
    spread = robust_deviation(np.concatenate([s.residuals for s in strips]))
    at_edges = edge_mask(gradient)
    return Residual(difference, at_edges, spread, edge_noise(difference, at_edges & covered), _deviation(strips), flow)


@dataclass(frozen=True, eq=False)
class _Strip:
    """The result of one strip: `difference` and `gradient` (h, W), a sample of residuals, and sums (3,) over the samples of the
    aligned reference: their number, their values and their squares."""

    difference: RGB
    gradient: RGB
    residuals: NDArray[np.int16]
    sums: NDArray[np.float64]


def _strip(
    moved: RGB,
    target: RGB,
    covered: Mask,
    illumination: Illumination,
    flow: Image,
    tolerance: int,
    span: tuple[int, int],
) -> _Strip:
    height, width = target.shape[:2]
    top, bottom = span
    reach = _BLUR_RADIUS + tolerance + 1 + math.ceil(float(np.abs(flow[..., 1]).max()))
    first, last = max(0, top - reach), min(height, bottom + reach)
    target_rows, aligned = gaussian_blur(target[first:last]), gaussian_blur(moved[first:last])
    aligned = warp_by_flow(aligned, upsample_rows(flow, aligned.shape[:2], height, first))
    aligned = illumination.apply(aligned, height, first, cv2.CV_8U)
    inner = np.s_[top - first : bottom - first]
    difference, gradient = (
        tolerance_difference(target_rows, aligned, tolerance)[inner],
        morphological_gradient(aligned)[inner],
    )
    target_rows, aligned = target_rows[inner], aligned[inner]
    every = max(1, height * width // _NOISE_SAMPLES)
    shown = covered[top:bottom:2, ::every]
    residuals = np.subtract(target_rows[::2, ::every], aligned[::2, ::every], dtype=np.int16)[shown]
    mean, deviation = (values.ravel() for values in cv2.meanStdDev(aligned))
    return _Strip(
        difference,
        gradient,
        residuals,
        aligned.shape[0] * width * np.array([len(mean), mean.sum(), (mean**2 + deviation**2).sum()]),
    )


def _deviation(strips: list[_Strip]) -> float:
    """The standard deviation of all samples of the aligned reference."""
    count, total, squares = np.sum([s.sums for s in strips], axis=0)
    return math.sqrt(max(0.0, squares / count - (total / count) ** 2))


def _rows(image: RGB) -> int:
    """Rows per strip: an even number, since every second row is sampled."""
    return max(64, int(STRIP_PIXELS // image.shape[1] // 2 * 2))


def _map(function: Callable[[Any], Any], items: list[Any], workers: int) -> Iterator[Any]:
    workers = min(workers, len(items))
    if workers == 1:
        yield from map(function, items)
        return
    with one_thread_each(workers), ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)
