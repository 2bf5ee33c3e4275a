"""Two different instances of one kind of part: the same surface, but no detail at the same position.

This is how two parts from a production line compare. Normal differences are drawn at random for both: uneven shade, dirt,
the width of a rim. Knows nothing of defects or cameras.
"""

import cv2
import numpy as np

from differad.synthesis.normals import NORMALS, PartGenerator, cloud
from differad.synthesis.textures import Image

# Kinds of which two pieces look alike; pieces of a label or a board share only their style.
SURFACES = ("brushed", "woven", "grain", "wood", "machined", "perforated", "striped", "tiled")
# Layouts that both parts may show at the same position, over different pieces of the surface.
LAYOUTS = ("printed", "assembled", "board")


def generate_instances(rng: np.random.Generator, generate: PartGenerator, size: int) -> tuple[Image, Image]:
    """Two parts (size, size, 3) of the surface that `generate` returns."""
    sheet = generate(rng, 2 * size)
    first, second = sheet[:size, :size], sheet[size:, size:]
    if rng.random() < 0.4:
        layout, share = NORMALS[str(rng.choice(LAYOUTS))](rng, size), np.float32(rng.uniform(0.3, 0.6))
        first, second = (piece * (1 - share) + layout * share for piece in (first, second))
    unevenness = rng.uniform(0, 0.12) if rng.random() < 0.5 else 0.0
    specks = rng.uniform(2, 40) if rng.random() < 0.4 else 0.0
    rim = rng.uniform(0.03, 0.2, 4) * (rng.random(4) < 0.5) if rng.random() < 0.35 else np.zeros(4)
    rim_level = rng.uniform(0, 80)
    pieces = []
    for piece in (first, second):
        part = piece * (1 + np.float32(unevenness) * cloud(rng, size, size / 3))[..., None]
        part = _with_specks(rng, np.ascontiguousarray(part, dtype=np.float32), specks)
        pieces.append(_with_rim(part, rim * rng.uniform(0.8, 1.2, 4), rim_level))
    return pieces[0], pieces[1]


def _with_specks(rng: np.random.Generator, part: Image, expected: float) -> Image:
    """Dirt of a pixel or two, so common that it is no defect."""
    for _ in range(rng.poisson(expected)):
        x, y = (int(v) for v in rng.integers(0, len(part), 2))
        change = float(rng.choice([-1, 1]) * rng.uniform(15, 60))
        level = np.clip(part[y, x] + change, 0, 255)
        cv2.circle(part, (x, y), int(rng.integers(0, 2)), tuple(float(v) for v in level), -1, cv2.LINE_AA)
    return part


def _with_rim(part: Image, widths: np.ndarray[tuple[int, ...], np.dtype[np.float64]], level: float) -> Image:
    """The part on a background of grey `level`, visible for shares `widths` of the side: left, top, right, bottom."""
    left, top, right, bottom = (round(float(width) * len(part)) for width in widths)
    inside = np.zeros(part.shape[:2], np.float32)
    inside[top : len(part) - bottom, left : len(part) - right] = 1
    edge = cv2.GaussianBlur(inside, (0, 0), 1.0)[..., None]
    return np.asarray(part * edge + np.float32(level) * (1 - edge), dtype=np.float32)
