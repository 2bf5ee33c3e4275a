"""Procedural printed circuit boards: a layout of copper, and its colours.

A layout is (H, W) float32 in [0, 1], the share of copper in each pixel, so that a defect can be drawn into the copper
before an image is rendered. Knows nothing of defects, cameras or pairs.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Layer = NDArray[np.float32]
_ETCH_SIGMA = 1.5
_DIRECTIONS = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])


@dataclass(frozen=True)
class BoardStyle:
    """Appearance of a layout: RGB of board and copper in grey levels, and whether the scan is black and white."""

    board: tuple[float, float, float]
    copper: tuple[float, float, float]
    binary: bool


def sample_style(rng: np.random.Generator) -> BoardStyle:
    """A black-and-white scan, a grey scan or a coloured board."""
    kind = rng.choice(["binary", "grey", "colour"])
    if kind == "binary":
        dark_copper = rng.random() < 0.5
        board, copper = (255.0, 0.0) if dark_copper else (0.0, 255.0)
        return BoardStyle((board,) * 3, (copper,) * 3, binary=True)
    if kind == "grey":
        board, copper = rng.uniform(30, 90), rng.uniform(150, 220)
        return BoardStyle((board,) * 3, (copper,) * 3, binary=False)
    board_colour = rng.uniform((10, 60, 30), (40, 110, 70))
    copper_colour = rng.uniform((150, 120, 50), (220, 180, 110))
    return BoardStyle(tuple(board_colour), tuple(copper_colour), binary=False)


def generate_layout(rng: np.random.Generator, size: int) -> Layer:
    """Traces in bundles, pads, drilled rings and fills on a square of `size` pixels."""
    copper = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(2, 6)):
        _draw_fill(rng, copper)
    for _ in range(rng.integers(8, 16)):
        _draw_bundle(rng, copper)
    for _ in range(rng.integers(4, 16)):
        _draw_pad(rng, copper)
    return copper


def etch(layout: Layer, field: Layer) -> Layer:
    """The copper of a manufactured board: edges of `layout` moved outwards by `field` (H, W) pixels, plain areas unchanged.

    A step blurred by sigma has the slope 1 / (sigma sqrt(2 pi)) per pixel; adding `field` times that moves its middle.
    """
    slope = 1 / (_ETCH_SIGMA * math.sqrt(2 * math.pi))
    soft = cv2.GaussianBlur(layout, (0, 0), _ETCH_SIGMA)
    at_an_edge = 4 * soft * (1 - soft)
    moved = (soft + field * slope * at_an_edge - 0.5) / slope + 0.5
    return np.asarray(np.clip(moved, 0, 1), dtype=np.float32)


def shade(layout: Layer, style: BoardStyle) -> Layer:
    """The image of a layout, (H, W, 3) float32 in grey levels, before any camera."""
    board, copper = np.array(style.board, np.float32), np.array(style.copper, np.float32)
    return np.asarray(board + layout[..., None] * (copper - board), dtype=np.float32)


def _draw_fill(rng: np.random.Generator, copper: Layer) -> None:
    size = len(copper)
    x, y = rng.integers(0, size, 2)
    w, h = rng.integers(size // 10, size // 3, 2)
    cut = int(rng.integers(0, min(w, h) // 3))
    corners = [(x + cut, y), (x + w, y), (x + w, y + h - cut), (x + w - cut, y + h), (x, y + h), (x, y + cut)]
    cv2.fillPoly(copper, [np.array(corners, np.int32)], 1.0, cv2.LINE_AA)


def _draw_bundle(rng: np.random.Generator, copper: Layer) -> None:
    """Parallel traces with a few bends, with a gap around them that separates them from the copper below."""
    size = len(copper)
    width, gap, count = int(rng.integers(5, 18)), int(rng.integers(6, 18)), int(rng.integers(1, 6))
    heading = int(rng.integers(0, 8))
    points = [rng.uniform(0, size, 2)]
    for _ in range(rng.integers(1, 4)):
        points.append(points[-1] + _DIRECTIONS[heading] * rng.uniform(size / 6, size / 2))
        heading = (heading + int(rng.choice([-1, 1]))) % 8
    path = np.array(points)
    offsets = (np.arange(count) - (count - 1) / 2) * (width + gap)
    normal = np.array([-1.0, 1.0]) * (path[-1] - path[0])[::-1]
    normal /= max(float(np.hypot(*normal)), 1.0)
    lines = [np.rint(path + offset * normal).astype(np.int32) for offset in offsets]
    cv2.polylines(copper, lines, False, 0.0, width + 2 * gap, cv2.LINE_AA)
    cv2.polylines(copper, lines, False, 1.0, width, cv2.LINE_AA)


def _draw_pad(rng: np.random.Generator, copper: Layer) -> None:
    size = len(copper)
    x, y = (int(v) for v in rng.integers(0, size, 2))
    radius = int(rng.integers(10, 34))
    if rng.random() < 0.4:
        low, high = (x - radius, y - radius), (x + radius, y + radius)
        cv2.rectangle(copper, (low[0] - 6, low[1] - 6), (high[0] + 6, high[1] + 6), 0.0, -1)
        cv2.rectangle(copper, low, high, 1.0, -1)
    else:
        cv2.circle(copper, (x, y), radius + 6, 0.0, -1, cv2.LINE_AA)
        cv2.circle(copper, (x, y), radius, 1.0, -1, cv2.LINE_AA)
    if rng.random() < 0.6:
        cv2.circle(copper, (x, y), max(3, radius // 4), 0.0, -1, cv2.LINE_AA)
