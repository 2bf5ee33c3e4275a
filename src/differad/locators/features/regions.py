"""From a map to boxes: one box for each region above the background. Knows nothing of features or probabilities."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
# The map is upsampled by this factor before it is thresholded, so that edges between two cells are located.
_UPSAMPLING = 2
# The quantile that stands for the background: a peak's ratio to it is more informative than that to the median.
_BACKGROUND_QUANTILE = 0.9
# Cells this near to a region belong to its slope and are no other defect.
_SUPPRESSED_CELLS = 2


@dataclass(frozen=True, eq=False)
class Region:
    """A region of a map: its box (4,) in pixels of the target, its peak, and the 90 % quantile of the map."""

    box: NDArray[np.float64]
    peak: float
    background: float


def regions(score: Map, size: tuple[int, int], *, cut: float, gap: float, max_regions: int) -> list[Region]:
    """At most `max_regions` regions of (h, w) `score`, highest first, as boxes in (width, height).

    Each is thresholded at the share `cut` of the way from the map's median to its peak: a defect's edge is between the
    background and the defect itself, however strong both are. Pieces up to twice `gap` cells apart are one region, since a
    crack is not equally strong along its length. The highest region is always returned.
    """
    median, background = float(np.median(score)), float(np.quantile(score, _BACKGROUND_QUANTILE))
    fine = cv2.resize(score, None, fx=_UPSAMPLING, fy=_UPSAMPLING, interpolation=cv2.INTER_CUBIC)
    left = fine.copy()
    results: list[Region] = []
    while len(results) < max_regions:
        position = np.unravel_index(int(left.argmax()), left.shape)
        peak = float(left[position])
        if not np.isfinite(peak) or (results and peak <= background):
            break
        within = fine >= median + cut * (peak - median)
        _, labels = cv2.connectedComponents(_dilated(within & np.isfinite(left), gap))
        region = within & (labels == labels[position])
        region[position] = True
        left[_dilated(region, _SUPPRESSED_CELLS) > 0] = -np.inf
        results.append(Region(_box(region, size), peak, background))
    return results


def _dilated(mask: NDArray[np.bool_], cells: float) -> NDArray[np.uint8]:
    side = 2 * round(cells * _UPSAMPLING) + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), dtype=np.uint8)


def _box(region: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    x, y = size[0] / region.shape[1], size[1] / region.shape[0]
    return np.array([columns[0] * x, rows[0] * y, (columns[-1] + 1) * x, (rows[-1] + 1) * y])
