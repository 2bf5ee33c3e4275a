"""From a map to boxes: what stands out of it, each as one box. Pure functions; knows nothing of features or of chances."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
# Cells are split this often each way before they are cut: an edge between two of them then has its place.
_FINER = 2
# What most of a part stays under: how far a peak stands out of it says more than how far it stands out of the middle.
_HIGH = 0.9
# A neighbour this many cells off what was taken is its slope, not another defect.
_SLOPE = 2


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a map that stands out: its box (4,) in pixels of the target, its peak, and what 90 % of the map stay under."""

    box: NDArray[np.float64]
    peak: float
    usual: float


def regions(score: Map, size: tuple[int, int], *, cut: float, gap: float, most: int) -> list[Region]:
    """At most `most` regions of (h, w) `score`, highest first, as boxes in (width, height).

    Each is cut where the map has fallen to the share `cut` of the way from its median to that region's peak: a defect's
    edge lies between what is usual and the defect itself, however strong both are. Pieces up to twice `gap` cells apart are
    one region, since a crack is not equally strong along its length. The highest region is always given.
    """
    middle, usual = float(np.median(score)), float(np.quantile(score, _HIGH))
    fine = cv2.resize(score, None, fx=_FINER, fy=_FINER, interpolation=cv2.INTER_CUBIC)
    left = fine.copy()
    found: list[Region] = []
    while len(found) < most:
        place = np.unravel_index(int(left.argmax()), left.shape)
        peak = float(left[place])
        if not np.isfinite(peak) or (found and peak <= usual):
            break
        within = fine >= middle + cut * (peak - middle)
        _, labels = cv2.connectedComponents(_widened(within & np.isfinite(left), gap))
        own = within & (labels == labels[place])
        own[place] = True
        left[_widened(own, _SLOPE) > 0] = -np.inf
        found.append(Region(_box(own, size), peak, usual))
    return found


def _widened(mask: NDArray[np.bool_], cells: float) -> NDArray[np.uint8]:
    side = 2 * round(cells * _FINER) + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), dtype=np.uint8)


def _box(own: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    x, y = size[0] / own.shape[1], size[1] / own.shape[0]
    return np.array([columns[0] * x, rows[0] * y, (columns[-1] + 1) * x, (rows[-1] + 1) * y])
