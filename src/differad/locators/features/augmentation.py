"""Copies of a reference as another shot of the same part might show it: turned, moved, scaled, relit, noisy.

They tell how far patches lie apart that differ in nothing that matters. The bounds were set by judgement.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB

_ANGLE, _SHIFT, _SCALE = 4.0, 0.02, 0.03  # degrees, share of the longer side, share
_GAIN, _OFFSET, _NOISE = 0.15, 12.0, 3.0  # share, grey levels, grey levels


def copies(picture: RGB, count: int) -> list[RGB]:
    """`count` copies of (H, W, 3); the same ones for the same size, so that an answer can be repeated."""
    rng = np.random.default_rng(0)
    return [_copy(rng, picture) for _ in range(count)]


def _copy(rng: np.random.Generator, picture: RGB) -> RGB:
    height, width = picture.shape[:2]
    matrix: NDArray[np.float64] = cv2.getRotationMatrix2D(
        (width / 2, height / 2), _ANGLE * rng.uniform(-1, 1), 1 + _SCALE * rng.uniform(-1, 1)
    )
    matrix[:, 2] += _SHIFT * max(height, width) * rng.uniform(-1, 1, 2)
    moved = cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    lit = moved * (1 + _GAIN * rng.uniform(-1, 1)) + _OFFSET * rng.uniform(-1, 1)
    return np.asarray(np.clip(lit + rng.normal(0, _NOISE, (height, width, 1)), 0, 255), dtype=np.uint8)
