"""How far each patch of a target is from the nearest patch of the references, and how alone it is among its own kind.

After PatchCore (Roth et al., "Towards total recall in industrial anomaly detection", 2022), with one reference in place
of a training set. Two searches: over the whole reference, for parts that lie anywhere, and within a window around the
same place, which sees what is right in kind and wrong in place. A third looks at the target alone: what returns elsewhere in it
is its make rather than a defect, though the reference may not show it. Pure functions on arrays; knows nothing of pictures, boxes
or options.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.locators.features.backbone import Features
from differad.locators.features.calibration import Scoring

Distances = NDArray[np.float32]


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
        outside = ~near(target.shape[1], reference.shape[1], reach)
        rows = near(target.shape[0], reference.shape[0], reach)
        for y, patches in enumerate(target):
            similar = np.matmul(patches, bank)  # (rows of the reference, patches of this row, columns of the reference)
            np.maximum(whole[y], similar.max(axis=0).max(axis=1), out=whole[y])
            best = similar[rows[y]].max(axis=0)
            best[outside] = -1.0
            np.maximum(window[y], best.max(axis=1), out=window[y])
    return _distance(whole), _distance(window)


def solitude(target: Features, reach: float) -> Distances:
    """(h, w) Euclidean distances of normalised patches (h, w, C) to the nearest of the same picture beyond `reach`."""
    closest = np.empty(target.shape[:2], np.float32)
    bank = np.ascontiguousarray(target.transpose(0, 2, 1))
    own_columns, own_rows = (near(count, count, reach) for count in (target.shape[1], target.shape[0]))
    for y, patches in enumerate(target):
        similar = np.matmul(patches, bank)
        beside = similar[own_rows[y]].max(axis=0)
        beside[own_columns] = -1.0
        closest[y] = np.maximum(similar[~own_rows[y]].max(axis=0).max(axis=1), beside.max(axis=1))
    return _distance(closest)


def scored(found: Sequence[tuple[Distances, Distances, Distances]], scoring: Scoring) -> Distances:
    """One map (h, w) at the finest stride from each stride's distances: whole, window, and of the target alone.

    The three are joined by a weighted geometric mean, so that what the reference shows exactly scores 0, strides by their mean.
    """
    height, width = found[0][0].shape
    total = np.zeros((height, width), np.float32)
    for whole, window, alone in found:
        apart = (1 - scoring.window) * whole + scoring.window * window
        total += cv2.resize(apart ** (1 - scoring.own) * alone**scoring.own, (width, height))
    return np.asarray(total / (len(found) * _border((height, width), scoring.edge, scoring.fade)), dtype=np.float32)


def _border(shape: tuple[int, int], edge: float, fade: float) -> Distances:
    """By how much distances (h, w) grow towards the border, where patches are cut off and have fewer like themselves.

    `fade` is a share of the mean side, as every picture is resized to one area.
    """
    rows, columns = (np.minimum(np.arange(count), np.arange(count)[::-1]) for count in shape)
    inwards = np.minimum(rows[:, None], columns) / (shape[0] * shape[1]) ** 0.5
    return np.asarray(1 + edge * np.exp(-inwards / fade), dtype=np.float32)


def near(count: int, others: int, reach: float) -> NDArray[np.bool_]:
    """(count, others): which of `others` places lie within `reach` of each of `count`, both as shares; the nearest always."""
    here, there = (np.arange(count) + 0.5) / count, (np.arange(others) + 0.5) / others
    apart = np.abs(here[:, None] - there)
    return np.asarray(apart <= np.maximum(reach, apart.min(axis=1, keepdims=True)))


def _distance(similarity: Distances) -> Distances:
    squared = 2 - 2 * similarity
    # Under this, two identical pictures differ by rounding alone.
    return np.asarray(np.sqrt(np.where(squared < _ROUNDING, 0, squared)), dtype=np.float32)


_ROUNDING = 4e-6
