"""Masks of defects, and the boxes around what they mark."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes
from differad.images import read_image

# Strokes of one annotated defect break up into specks; gaps up to this share of the longer side are bridged.
GAP_SHARE = 0.02


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """A mask file as (H, W) bool: True where any channel is not black. Raises ImageError."""
    return np.asarray(read_image(path).any(axis=2))


def boxes_from_mask(mask: NDArray[np.bool_], gap: int | None = None) -> Boxes:
    """A box around each defect of `mask` (H, W): (N, 4) pixels, the one with the most marked pixels first.

    Regions with at most `gap` pixels of background between them are one defect; None takes 2 % of the longer side, 0
    keeps every 8-connected region on its own. A box encloses marked pixels only, tightly.
    """
    marked = mask.astype(np.uint8)
    gap = round(GAP_SHARE * max(mask.shape)) if gap is None else gap
    grown = cv2.dilate(marked, np.ones((gap + 1, gap + 1), np.uint8)) if gap else marked
    _, labels = cv2.connectedComponents(grown, connectivity=8)
    ys, xs = np.nonzero(marked)
    regions = [(xs[own], ys[own]) for own in _members(labels[ys, xs])]
    regions.sort(key=lambda region: -len(region[0]))
    return as_boxes([[x.min(), y.min(), x.max() + 1, y.max() + 1] for x, y in regions])


def _members(labels: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Indices of equal labels, grouped, in order of the label."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return [group for group in np.split(order, starts) if len(group)]
