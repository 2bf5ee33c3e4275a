"""Boxes drawn on images: the overlay of `locate --save` and the images of a report."""

import base64
from io import BytesIO

import cv2
import numpy as np
from PIL import Image

from differad.boxes import Boxes, as_boxes, scale
from differad.images import RGB

# Okabe and Ito's palette: distinguishable with any kind of colour vision, on dark and on light parts.
TRUTH_COLOR = (0, 158, 115)
PREDICTED_COLOR = (230, 100, 0)
HALO_COLOR = (255, 255, 255)
_LINE_SHARE = 1 / 250
# OpenCV draws at 32-bit positions; coordinates are clipped to this, which is outside of every image.
_MAX_COORDINATE = 10_000_000


def draw_boxes(image: RGB, truth: Boxes | None = None, predicted: Boxes | None = None, scores: object = None) -> RGB:
    """A copy of (H, W, 3) RGB with true boxes green and predicted ones orange, both (N, 4) pixels, with their scores.

    The line width is proportional to the image's size; a white rim makes lines visible on any background.
    """
    canvas = image.copy()
    width = max(2, round(max(image.shape[:2]) * _LINE_SHARE))
    truth, predicted = (as_boxes(boxes).clip(-_MAX_COORDINATE, _MAX_COORDINATE) for boxes in (truth, predicted))
    for boxes, color in ((truth, TRUTH_COLOR), (predicted, PREDICTED_COLOR)):
        for box in boxes:
            low, high = (tuple(int(v) for v in np.rint(corner)) for corner in (box[:2], box[2:] - 1))
            cv2.rectangle(canvas, low, high, HALO_COLOR, width + 2)
            cv2.rectangle(canvas, low, high, color, width)
    for box, score in zip(predicted, np.ravel(np.asarray(scores if scores is not None else [])), strict=False):
        _write_label(canvas, f"{score:.2f}", box[0], box[1], width)
    return canvas


def draw_no_answer(image: RGB) -> RGB:
    """A copy of (H, W, 3) RGB crossed out and marked "no answer": without that it would look like a normal part."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    line = max(2, round(max(height, width) * _LINE_SHARE))
    for color, thick in ((HALO_COLOR, line + 2), (PREDICTED_COLOR, line)):
        cv2.line(canvas, (0, 0), (width - 1, height - 1), color, thick, cv2.LINE_AA)
        cv2.line(canvas, (0, height - 1), (width - 1, 0), color, thick, cv2.LINE_AA)
    _write_label(canvas, "no answer", line, 0, line)
    return canvas


def thumbnail(image: RGB, max_side: int, truth: Boxes | None = None, predicted: Boxes | None = None) -> RGB:
    """The image with its boxes, reduced to `max_side`; boxes are drawn after the reduction, so that thin lines remain."""
    factor = min(1.0, max_side / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)) if factor < 1 else image
    x, y = size[0] / image.shape[1], size[1] / image.shape[0]
    return draw_boxes(small, *(scale(as_boxes(boxes), x, y) for boxes in (truth, predicted)))


def jpeg_data_url(image: RGB, quality: int = 82) -> str:
    """The image as a `data:` URL, so that a page needs no further file."""
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _write_label(canvas: RGB, text: str, x: float, y: float, width: int) -> None:
    size = 0.3 + 0.15 * width
    weight = max(1, width // 2)
    (_, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, weight)
    above = int(y) - base - width
    origin = int(x), above if above > height else int(y) + height + base + width
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, HALO_COLOR, weight + 3, cv2.LINE_AA)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, size, PREDICTED_COLOR, weight, cv2.LINE_AA)
