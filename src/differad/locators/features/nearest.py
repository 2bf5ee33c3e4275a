"""Distance of each target patch to the nearest patch of the references, and to the nearest of the target itself.

After PatchCore (Roth et al., "Towards total recall in industrial anomaly detection", 2022), with one reference in place
of a training set. One search covers the whole reference, for parts in any pose. One covers a window around the same position, and
finds what is displaced. A third covers the target alone: texture that repeats elsewhere in the target is normal even if the
reference lacks it. Pure functions on arrays; knows nothing of images, boxes or options.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.locators.features.backbone import Features
from differad.locators.features.calibration import ScoringConstants

Distances = NDArray[np.float32]


def distances(target: Features, references: Sequence[Features], reach: float) -> tuple[Distances, Distances]:
    """Euclidean distances (h, w) of normalised patches (h, w, C) to the nearest: of all, and within `reach`.

    `reach` is a share of height and width; positions are compared as shares, so that sizes may differ. Rows are processed one by
    one: the whole matrix of two large images would take 100 MB, and products this small stay on one thread, where BLAS threads
    would compete with those of the workers.
    """
    whole = np.full(target.shape[:2], -1.0, np.float32)
    window = whole.copy()
    for reference in references:
        bank = np.ascontiguousarray(reference.transpose(0, 2, 1))
        outside = ~window_mask(target.shape[1], reference.shape[1], reach)
        rows = window_mask(target.shape[0], reference.shape[0], reach)
        for y, patches in enumerate(target):
            # (rows of the reference, patches of this row, columns of the reference)
            similarity = np.matmul(patches, bank)
            np.maximum(whole[y], similarity.max(axis=0).max(axis=1), out=whole[y])
            best = similarity[rows[y]].max(axis=0)
            best[outside] = -1.0
            np.maximum(window[y], best.max(axis=1), out=window[y])
    return _distance(whole), _distance(window)


def self_distance(target: Features, reach: float) -> Distances:
    """Euclidean distances (h, w) of normalised patches (h, w, C) to the nearest of the same image beyond `reach`."""
    closest = np.empty(target.shape[:2], np.float32)
    bank = np.ascontiguousarray(target.transpose(0, 2, 1))
    near_columns, near_rows = (window_mask(count, count, reach) for count in (target.shape[1], target.shape[0]))
    for y, patches in enumerate(target):
        similarity = np.matmul(patches, bank)
        beside = similarity[near_rows[y]].max(axis=0)
        beside[near_columns] = -1.0
        closest[y] = np.maximum(similarity[~near_rows[y]].max(axis=0).max(axis=1), beside.max(axis=1))
    return _distance(closest)


def combine_distances(
    by_stride: Sequence[tuple[Distances, Distances, Distances]], scoring: ScoringConstants
) -> Distances:
    """One map (h, w) at the finest stride from the distances of each stride: whole, window, and to the target itself.

    The three are combined by a weighted geometric mean, so that an exact match in the reference scores 0; strides by their mean.
    """
    height, width = by_stride[0][0].shape
    total = np.zeros((height, width), np.float32)
    for whole, window, to_itself in by_stride:
        distance = (1 - scoring.window) * whole + scoring.window * window
        total += cv2.resize(distance ** (1 - scoring.own) * to_itself**scoring.own, (width, height))
    return np.asarray(total / (len(by_stride) * _border((height, width), scoring.edge, scoring.fade)), dtype=np.float32)


def _border(shape: tuple[int, int], edge: float, fade: float) -> Distances:
    """The factor (h, w) by which distances grow towards the border, where patches are cut off and fewer are similar.

    `fade` is a share of the mean side, as every image is resized to one area.
    """
    rows, columns = (np.minimum(np.arange(count), np.arange(count)[::-1]) for count in shape)
    inwards = np.minimum(rows[:, None], columns) / (shape[0] * shape[1]) ** 0.5
    return np.asarray(1 + edge * np.exp(-inwards / fade), dtype=np.float32)


def window_mask(count: int, others: int, reach: float) -> NDArray[np.bool_]:
    """Mask (count, others) of the positions within `reach` of each other, as shares of the side; the nearest always counts."""
    centers, other_centers = (np.arange(count) + 0.5) / count, (np.arange(others) + 0.5) / others
    distance = np.abs(centers[:, None] - other_centers)
    return np.asarray(distance <= np.maximum(reach, distance.min(axis=1, keepdims=True)))


def _distance(similarity: Distances) -> Distances:
    squared = 2 - 2 * similarity
    # Below this, two identical images differ by rounding alone.
    return np.asarray(np.sqrt(np.where(squared < _ROUNDING, 0, squared)), dtype=np.float32)


_ROUNDING = 4e-6
