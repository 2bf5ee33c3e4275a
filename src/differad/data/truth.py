"""Checks whether the true boxes and the mask of a pair can belong to its target.

Boxes of the original size on a shrunk target, and boxes in fractions of the image, look valid, but every score against them
would be silently wrong. Knows nothing about manifests and metrics.
"""

from pathlib import Path

import numpy as np

from differad.boxes import Boxes, area, clip, to_list
from differad.core import Pair
from differad.errors import ImageError, ManifestError
from differad.images import image_size

# Annotated boxes may extend a little past the edge; with less of its area inside, a box belongs to another image size.
MIN_INSIDE = 0.5


def check_boxes(pair: Pair, size: tuple[int, int] | None) -> Boxes | None:
    """The true boxes (N, 4) of a pair clipped to its target of `size` (width, height) pixels; None if it has none.

    Without a size only fractions are detected. Raises ManifestError for a box in fractions of the image, or one with less than
    half of its area inside the target.
    """
    if pair.boxes is None or len(pair.boxes) == 0:
        return pair.boxes
    fractions = are_fractions(pair.boxes)
    if fractions.any():
        raise ManifestError(
            f"{_name(pair)}: box {_first(pair.boxes, fractions)} is within 0..1, like fractions of the image; expected pixels"
            f" of the target{_size_text(size)}, so multiply x1 and x2 by its width, y1 and y2 by its height"
        )
    if size is None:
        return pair.boxes
    inside = clip(pair.boxes, *size)
    outside = area(inside) < MIN_INSIDE * area(pair.boxes)
    if outside.any():
        raise ManifestError(
            f"{_name(pair)}: box {_first(pair.boxes, outside)} (x1, y1, x2, y2) is at least half outside the target"
            f"{_size_text(size)}; expected pixels of the target as it is on disk, so scale the boxes as the image was scaled"
        )
    return inside


def check_mask(pair: Pair, size: tuple[int, int] | None) -> None:
    """Compare the size of a pair's mask with its target of `size` (width, height), from the mask's header.

    A mask that cannot be opened is not checked here. Raises ManifestError if the two differ.
    """
    if pair.mask is None or size is None:
        return
    try:
        width, height = image_size(pair.mask)
    except ImageError:
        return
    if (width, height) != size:
        raise ManifestError(
            f"{_name(pair)}: mask {pair.mask} is {width}x{height}; expected {size[0]}x{size[1]} like the target, so give the "
            "mask of this image, or resize both"
        )


def are_fractions(boxes: Boxes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which boxes (N, 4) are within 0..1 and have a fractional coordinate, shape (N,) bool: no box in pixels has."""
    small = np.all((boxes >= 0) & (boxes <= 1), axis=-1)
    return np.asarray(small & np.any(boxes != np.round(boxes), axis=-1))


def _name(pair: Pair) -> str:
    where = f" ({pair.target})" if isinstance(pair.target, str | Path) else ""
    return f"pair {pair.id!r}{where}"


def _size_text(size: tuple[int, int] | None) -> str:
    return "" if size is None else f" of {size[0]}x{size[1]}"


def _first(boxes: Boxes, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[float]:
    first: list[float] = to_list(boxes[chosen], 4)[0]
    return first
