"""How far each patch of a target is from the nearest patch of the references, in units of the reference's own noise.

After PatchCore (Roth et al., "Towards total recall in industrial anomaly detection", 2022), with one reference in place
of a training set. Two searches: over the whole reference, for parts that lie anywhere, and within a window around the
same place, which sees what is right in kind and wrong in place. Noise is what augmented copies of the reference show against
it. Pure functions on arrays; knows nothing of pictures, boxes or options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.locators.features.backbone import Features

Distances = NDArray[np.float32]


@dataclass(frozen=True)
class Floors:
    """Distances that noise reaches, one number per stride: over the whole reference, and within the window."""

    whole: tuple[float, ...]
    window: tuple[float, ...]


def distances(target: Features, references: Sequence[Features], reach: float) -> tuple[Distances, Distances]:
    """(h, w) Euclidean distances of normalised patches (h, w, C) to the nearest: of all, and within `reach`.

    `reach` is a share of height and width; places are compared as shares, so that sizes may differ. Rows are taken one by
    one: the whole matrix of two large pictures would take 100 MB, and products this small stay on one thread, where BLAS
    threads of their own would fight with those that share out pictures.
    """
    whole = np.full(target.shape[:2], -1.0, np.float32)
    window = whole.copy()
    for reference in references:
        bank = np.ascontiguousarray(reference.transpose(0, 2, 1))
        outside = ~_near(target.shape[1], reference.shape[1], reach)
        rows = _near(target.shape[0], reference.shape[0], reach)
        for y, patches in enumerate(target):
            similar = np.matmul(patches, bank)  # (rows of the reference, patches of this row, columns of the reference)
            np.maximum(whole[y], similar.max(axis=0).max(axis=1), out=whole[y])
            best = similar[rows[y]].max(axis=0)
            best[outside] = -1.0
            np.maximum(window[y], best.max(axis=1), out=window[y])
    return _distance(whole), _distance(window)


def floors(
    copies: Sequence[Sequence[Features]], reference: Sequence[Features], *, reach: float, quantile: float
) -> Floors:
    """The `quantile` of what copies of the reference, each a list of strides, show against it."""
    found = []
    for stride, own in enumerate(reference):
        # Every other row and column: neighbouring patches overlap, and it takes a quarter of the time.
        step = 2 if stride == 0 else 1
        both = [distances(copy[stride][::step, ::step], [own], reach) for copy in copies]
        found.append([float(np.quantile(np.concatenate([b[i].ravel() for b in both]), quantile)) for i in (0, 1)])
    return Floors(tuple(f[0] for f in found), tuple(f[1] for f in found))


def scored(found: Sequence[tuple[Distances, Distances]], noise: Floors) -> Distances:
    """One map (h, w) at the finest stride, 1 about where noise ends: the mean over strides and both searches."""
    height, width = found[0][0].shape
    total = np.zeros((height, width), np.float32)
    for stride, both in enumerate(found):
        for distance, floor in zip(both, (noise.whole[stride], noise.window[stride]), strict=True):
            total += cv2.resize(distance / np.float32(max(floor, _LEAST_UNIT)), (width, height))
    return total / np.float32(2 * len(found))


# Under this, features of two identical pictures differ by rounding alone.
_LEAST_UNIT = 0.02


def _near(count: int, others: int, reach: float) -> NDArray[np.bool_]:
    """(count, others): which of `others` places lie within `reach` of each of `count`, both as shares; the nearest always."""
    here, there = (np.arange(count) + 0.5) / count, (np.arange(others) + 0.5) / others
    apart = np.abs(here[:, None] - there)
    return np.asarray(apart <= np.maximum(reach, apart.min(axis=1, keepdims=True)))


def _distance(similarity: Distances) -> Distances:
    return np.asarray(np.sqrt(np.maximum(2 - 2 * similarity, 0)), dtype=np.float32)
