"""Geometry of axis-aligned boxes, written once.

A set of boxes is a float array of shape (N, 4): `x1, y1, x2, y2`, x2 and y2 exclusive, in whatever unit the caller
uses for both arguments (pixels or thousandths). No box at all is shape (0, 4). Functions broadcast over leading axes:
`iou(a[:, None], b)` is the (N, M) matrix of all pairs.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from differad.errors import InputError

Boxes = NDArray[np.float64]


def as_boxes(values: ArrayLike | None) -> Boxes:
    """Copy `values` to shape (N, 4); None, [] and the like become (0, 4). Raises InputError on any other shape."""
    if values is None:
        return no_boxes()
    boxes = np.array(values, dtype=np.float64)
    if boxes.size == 0:
        return no_boxes()
    if boxes.ndim == 1:
        boxes = boxes[None]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"boxes of shape {boxes.shape}: expected (N, 4) as x1, y1, x2, y2")
    if not np.isfinite(boxes).all():
        raise InputError("boxes hold a number that is not finite: expected pixels as x1, y1, x2, y2")
    return boxes


def no_boxes() -> Boxes:
    """The empty set, shape (0, 4): it means "nothing abnormal" everywhere except in an answer's text."""
    return np.empty((0, 4), dtype=np.float64)


def area(boxes: Boxes) -> NDArray[np.float64]:
    """Area of each box, shape (...,); 0 if the corners are reversed or touch, infinite on overflow."""
    with np.errstate(over="ignore"):
        sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
        return np.asarray(sides[..., 0] * sides[..., 1])


def centers(boxes: Boxes) -> NDArray[np.float64]:
    """Centre of each box as (..., 2): x, y."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0


def diagonals(boxes: Boxes) -> NDArray[np.float64]:
    """Length of each box's diagonal, shape (...,)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return np.asarray(np.hypot(sides[..., 0], sides[..., 1]))


def iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection over union of `a` with `b`, broadcast to shape (...,); 0 where the union is empty."""
    intersection = _intersection(a, b)
    union = area(a) + area(b) - intersection
    return np.asarray(np.divide(intersection, union, out=np.zeros_like(union), where=union > 0))


def overlap_share(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Intersection of `a` with `b` over the smaller of the two areas, broadcast to shape (...,); 0 where that is empty."""
    intersection, smaller = _intersection(a, b), np.minimum(area(a), area(b))
    return np.asarray(np.divide(intersection, smaller, out=np.zeros_like(intersection), where=smaller > 0))


def _intersection(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Area that `a` and `b` share, broadcast to shape (...,)."""
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., 2:], b[..., 2:])
    sides = np.maximum(high - low, 0.0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def stretch(source: tuple[int, ...], sink: tuple[int, ...]) -> NDArray[np.float64]:
    """The factors (4,) that scale boxes from an image of shape `source` (H, W, ...) to one of shape `sink`."""
    return np.array([sink[1] / source[1], sink[0] / source[0]] * 2)


def is_degenerate(boxes: Boxes) -> NDArray[np.bool_]:
    """True where a box holds no area (x2 <= x1 or y2 <= y1), shape (...,)."""
    return np.asarray((boxes[..., 2] <= boxes[..., 0]) | (boxes[..., 3] <= boxes[..., 1]))


def order_corners(boxes: Boxes) -> Boxes:
    """The same rectangles with x1 <= x2 and y1 <= y2."""
    return np.concatenate(
        [np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])], axis=-1
    )


def clip(boxes: Boxes, width: float, height: float) -> Boxes:
    """Boxes clipped to an image of `width` x `height`; one wholly outside becomes degenerate."""
    return np.asarray(np.clip(boxes, 0.0, np.array([width, height, width, height], dtype=np.float64)))


def grow(boxes: Boxes, margin: float, width: int, height: int) -> Boxes:
    """Boxes (N, 4) extended on each side by `margin` times the image's longer side, clipped to the image."""
    pixels = margin * max(width, height)
    return clip(boxes + np.array([-pixels, -pixels, pixels, pixels]), width, height)


def scale(boxes: Boxes, x: float, y: float) -> Boxes:
    """Boxes with their x coordinates multiplied by `x` and their y coordinates by `y`."""
    return boxes * np.array([x, y, x, y], dtype=np.float64)


def enclosing(boxes: Boxes) -> Boxes:
    """The smallest box around all of `boxes`, shape (1, 4); (0, 4) for none."""
    if len(boxes) == 0:
        return no_boxes()
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]


def to_list(boxes: Boxes, digits: int = 2) -> list[list[Any]]:
    """Boxes as JSON-ready lists; whole numbers become integers, others are rounded to `digits` decimals."""
    return [[int(v) if v == int(v) else round(v, digits) for v in row] for row in boxes.tolist()]
