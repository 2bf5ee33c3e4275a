"""From a change map to box proposals. NumPy and OpenCV; knows nothing of networks."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Number of proposed boxes; each becomes one reference token of the language model.
PROPOSALS = 4
# A box around each peak is thresholded at these shares of it.
_CUTS = (0.5, 0.2)
_PEAKS = PROPOSALS // len(_CUTS)


def proposals(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes around the highest peaks of a map (h, w), (PROPOSALS, 6): x1, y1, x2, y2 as shares, peak and mean logit over 4."""
    probability = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    left = probability.copy()
    boxes = []
    for _ in range(_PEAKS):
        peak = np.unravel_index(int(left.argmax()), left.shape)
        for cut in _CUTS:
            _, labels = cv2.connectedComponents((left >= cut * left[peak]).astype(np.uint8))
            region = labels == labels[peak]
            rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] / np.array(probability.shape[::-1] * 2)
            boxes.append([*box, logits[peak] / 4, logits[region].mean() / 4])
        left[cv2.dilate(region.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0] = 0
    return np.array(boxes, dtype=np.float32)
