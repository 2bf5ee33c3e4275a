"""Masks of defects, and the boxes around what they mark."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes
from differad.images import read_image


def read_mask(path: str | Path) -> NDArray[np.bool_]:
    """A mask file as (H, W) bool: True where any channel is not black. Raises ImageError."""
    return np.asarray(read_image(path).any(axis=2))


def boxes_from_mask(mask: NDArray[np.bool_], min_pixels: int = 1) -> Boxes:
    """A box around each 8-connected region of `mask` (H, W) of at least `min_pixels`: (N, 4) pixels, largest first."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    regions = stats[1:]
    regions = regions[regions[:, cv2.CC_STAT_AREA] >= min_pixels]
    regions = regions[np.argsort(-regions[:, cv2.CC_STAT_AREA], kind="stable")]
    x, y, width, height = regions[:, :4].T
    return as_boxes(np.stack([x, y, x + width, y + height], axis=1))
