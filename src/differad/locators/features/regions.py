"""From a map of distances to scored regions. Pure functions on arrays; knows nothing of features or probabilities."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a map that stands out: its box (4,) in pixels of the target, its peak, and the map's median."""

    box: NDArray[np.float64]
    peak: float
    usual: float


def regions(score: Map, size: tuple[int, int], *, cut: float, least: float, most: int) -> list[Region]:
    """At most `most` regions of (h, w) `score` that peak at `least` or more, highest first, as boxes in (width, height).

    Each is cut where the map has fallen to the share `cut` of the way from its median to that region's peak: a defect's
    edge lies between what is usual and the defect itself, however strong both are. The highest region is always given.
    """
    usual = float(np.median(score))
    left = score.copy()
    found: list[Region] = []
    while len(found) < most:
        place = np.unravel_index(int(left.argmax()), left.shape)
        peak = float(left[place])
        if not np.isfinite(peak) or (found and peak < least):
            break
        within = (left > usual + cut * (peak - usual)).astype(np.uint8)
        _, labels = cv2.connectedComponents(within)
        own = labels == labels[place] if within[place] else np.zeros(score.shape, np.bool_)
        own[place] = True
        # A neighbour of what was taken is its slope, not another defect.
        left[cv2.dilate(own.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0] = -np.inf
        found.append(Region(_box(own, size), peak, usual))
    return found


def _box(own: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
    x, y = size[0] / own.shape[1], size[1] / own.shape[0]
    return np.array([columns[0] * x, rows[0] * y, (columns[-1] + 1) * x, (rows[-1] + 1) * y])
