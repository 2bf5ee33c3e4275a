"""The truth of the dense loss in the embedded policy's cold start: the share of each target cell that is abnormal."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch

from differad.boxes import as_boxes
from differad.data.masks import read_mask
from differad.images import image_size
from differad.locators.tiny.model import CELLS
from differad.locators.tiny.processor import to_rows

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]


class WithCoverage:
    """A collator that adds `coverage` (patches, 4): the share of each stride-8 cell that the mask covers.

    A pair without a mask uses its boxes instead. Rows of references are 0.
    """

    def __init__(self, collate: Collate) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch with its coverage."""
        batch = self._collate(rows)
        grids = batch["image_grid_thw"].tolist()
        parts = []
        for row, reference, (_, height, width) in zip(rows, grids[::2], grids[1::2], strict=True):
            parts += [np.zeros((int(np.prod(reference)), 4), np.float32), coverage_rows(row, height, width)]
        batch["coverage"] = torch.from_numpy(np.concatenate(parts))
        return batch


def coverage_rows(row: dict[str, Any], height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Shares (height * width, 4) of each patch's cells, patches in Qwen2-VL's order."""
    mask = _abnormal_mask(row)
    cells = cv2.resize(mask, (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
    patches = cells.reshape(height, 2, width, 2).transpose(0, 2, 1, 3).reshape(height, width, 4)
    return to_rows(patches)


def _abnormal_mask(row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mask of the abnormal area, (H, W) in [0, 1]."""
    if row["mask"]:
        return read_mask(row["mask"], image_size(row["target"])).astype(np.float32)
    if not len(row["boxes"]):
        return np.zeros((CELLS, CELLS), np.float32)
    size = image_size(row["target"])
    mask = np.zeros(size[::-1], np.float32)
    for x1, y1, x2, y2 in as_boxes(row["boxes"]):
        mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = 1
    return mask
