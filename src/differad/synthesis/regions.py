"""Regions of defects as coverage (size, size) float32 in [0, 1] around a centre.

`REGIONS` is the table that defects choose from; Perlin noise as in the published synthesis of the method. Knows nothing of
fills.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Coverage = NDArray[np.float32]
Point = NDArray[np.float64]
# Corners of shapes are drawn at a sixteenth of a pixel.
_SUBPIXEL_BITS = 4


def blob(rng: np.random.Generator, size: int, center: Point, radius: float) -> Coverage:
    """A ragged spot as coverage (size, size) in [0, 1]."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    bumps = np.sum([rng.uniform(0, 0.5 / k) * np.sin(k * angles + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4)], 0)
    stretch = np.array([1.0, rng.uniform(0.4, 1.0)])[rng.permutation(2)]
    points = center + (radius * (1 + bumps))[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1) * stretch
    return _filled(size, points)


def stroke(rng: np.random.Generator, size: int, center: Point, length: float, width: int) -> Coverage:
    """A bent line through `center` as coverage (size, size) in [0, 1]."""
    heading = rng.uniform(0, 2 * np.pi)
    points = [center - length / 2 * np.array([np.cos(heading), np.sin(heading)])]
    for _ in range(4):
        heading += rng.normal(0, 0.35)
        points.append(points[-1] + length / 4 * np.array([np.cos(heading), np.sin(heading)]))
    coverage = np.zeros((size, size), np.float32)
    corners = np.rint(np.array(points) * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.polylines(coverage, [corners], False, 1.0, width, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return coverage


def polygon(rng: np.random.Generator, size: int, center: Point, radius: float) -> Coverage:
    """A convex or star-shaped polygon of 3 to 8 corners."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    reach = radius * rng.uniform(0.55, 1.0, len(angles))
    return _filled(size, center + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))


def rectangle(rng: np.random.Generator, size: int, center: Point, radius: float) -> Coverage:
    """A rotated rectangle whose sides differ by up to a factor of three."""
    half = radius * np.array([1.0, rng.uniform(0.33, 1.0)])[rng.permutation(2)]
    turn = rng.uniform(0, np.pi) if rng.random() < 0.5 else 0.0
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return _filled(size, center + (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ axes)


def perlin(rng: np.random.Generator, size: int, center: Point, radius: float) -> Coverage:
    """The largest component of thresholded gradient noise within `radius` of the centre."""
    side = max(8, min(size, round(2 * radius)))
    field = perlin_noise(rng, side, cells=int(rng.integers(2, 5)))
    y, x = np.mgrid[:side, :side] / side - 0.5
    field -= 1.2 * np.hypot(x, y).astype(np.float32)  # fades towards the rim, so that no edge is straight
    inside = (field > np.quantile(field, rng.uniform(0.55, 0.8))).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
    if count > 1:
        inside = (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    return _placed(cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 0.6), size, center)


def line(rng: np.random.Generator, size: int, center: Point, radius: float) -> Coverage:
    """A bent stroke of 1 to a few pixels: scratches and cracks."""
    width = max(1, round(radius * rng.uniform(0.04, 0.14)))
    return stroke(rng, size, center, 2 * radius, width)


def dots(rng: np.random.Generator, size: int, center: Point, radius: float) -> Coverage:
    """Two to six pinholes close to each other."""
    coverage = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(2, 7))):
        position = center + rng.uniform(-0.6, 0.6, 2) * radius
        coverage = np.maximum(coverage, blob(rng, size, position, max(1.2, radius * rng.uniform(0.1, 0.22))))
    return coverage


def perlin_noise(rng: np.random.Generator, side: int, cells: int) -> Coverage:
    """Gradient noise (side, side) with `cells` lattice cells along each side; Perlin, "Improving noise" (2002)."""
    angles = rng.uniform(0, 2 * np.pi, (cells + 1, cells + 1)).astype(np.float32)
    across = np.linspace(0, cells, side, endpoint=False, dtype=np.float32)
    cell = across.astype(int)
    inner = across - cell
    fade = inner**3 * (inner * (inner * 6 - 15) + 10)

    def corner(down: int, right: int) -> Coverage:
        angle = angles[np.ix_(cell + down, cell + right)]
        return np.asarray(np.cos(angle) * (inner[None, :] - right) + np.sin(angle) * (inner[:, None] - down))

    top = corner(0, 0) + fade[None, :] * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + fade[None, :] * (corner(1, 1) - corner(1, 0))
    return np.asarray(top + fade[:, None] * (bottom - top), dtype=np.float32)


def _filled(size: int, points: Point) -> Coverage:
    coverage = np.zeros((size, size), np.float32)
    corners = np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(coverage, [corners], 1.0, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    return coverage


def _placed(patch: Coverage, size: int, center: Point) -> Coverage:
    """`patch` inserted into an empty (size, size) with its middle at `center`, cropped at the border."""
    coverage = np.zeros((size, size), np.float32)
    side = len(patch)
    left, top = (round(float(c)) - side // 2 for c in center)
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    if x1 < x2 and y1 < y2:
        coverage[y1:y2, x1:x2] = patch[y1 - top : y2 - top, x1 - left : x2 - left]
    return coverage


REGIONS: dict[str, Callable[[np.random.Generator, int, Point, float], Coverage]] = {
    "blob": blob,
    "polygon": polygon,
    "rectangle": rectangle,
    "perlin": perlin,
    "line": line,
    "dots": dots,
}
