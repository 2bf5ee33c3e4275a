"""From a map of changes to the boxes that it proposes. NumPy and OpenCV; knows nothing of networks."""

import cv2
import numpy as np
from numpy.typing import NDArray

# Boxes proposed, each told to the language model by a token of the reference.
PROPOSALS = 4
# Around each peak, where the map has fallen to these shares of it.
_CUTS = (0.5, 0.2)
_PEAKS = PROPOSALS // len(_CUTS)


def proposals(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes around the highest peaks of a map (h, w), (PROPOSALS, 6): x1, y1, x2, y2 as shares, peak and mean logit over 4."""
    chance = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    left = chance.copy()
    found = []
    for _ in range(_PEAKS):
        place = np.unravel_index(int(left.argmax()), left.shape)
        for cut in _CUTS:
            _, labels = cv2.connectedComponents((left >= cut * left[place]).astype(np.uint8))
            own = labels == labels[place]
            rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] / np.array(chance.shape[::-1] * 2)
            found.append([*box, logits[place] / 4, logits[own].mean() / 4])
        left[cv2.dilate(own.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0] = 0
    return np.array(found, dtype=np.float32)
