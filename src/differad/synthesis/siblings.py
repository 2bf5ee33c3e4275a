"""Two parts of one kind that are not the same part: their surface is alike, yet nothing lies on the same place.

So a line shows a good part beside the next one. What may differ between two good parts is drawn into both: uneven shade,
dirt, the width of a rim. Knows nothing of defects or cameras.
"""

import cv2
import numpy as np

from differad.synthesis.normals import NORMALS, Draw, cloud
from differad.synthesis.textures import Picture

# Kinds of which two pieces look alike; pieces of a label or a board have nothing in common but their style.
SURFACES = ("brushed", "woven", "grain", "wood", "machined", "perforated", "striped", "tiled")
# What both parts may carry at the same place, over a surface of their own.
LAYOUTS = ("printed", "assembled", "board")


def draw_siblings(rng: np.random.Generator, draw: Draw, size: int) -> tuple[Picture, Picture]:
    """Two parts (size, size, 3) of the surface that `draw` draws."""
    sheet = draw(rng, 2 * size)
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


def _with_specks(rng: np.random.Generator, part: Picture, expected: float) -> Picture:
    """Dirt of a pixel or two, so common that it is no defect."""
    for _ in range(rng.poisson(expected)):
        x, y = (int(v) for v in rng.integers(0, len(part), 2))
        change = float(rng.choice([-1, 1]) * rng.uniform(15, 60))
        level = np.clip(part[y, x] + change, 0, 255)
        cv2.circle(part, (x, y), int(rng.integers(0, 2)), tuple(float(v) for v in level), -1, cv2.LINE_AA)
    return part


def _with_rim(part: Picture, widths: np.ndarray[tuple[int, ...], np.dtype[np.float64]], level: float) -> Picture:
    """The part before a background of grey `level`, seen for shares `widths` of the side: left, top, right, bottom."""
    left, top, right, bottom = (round(float(width) * len(part)) for width in widths)
    inside = np.zeros(part.shape[:2], np.float32)
    inside[top : len(part) - bottom, left : len(part) - right] = 1
    edge = cv2.GaussianBlur(inside, (0, 0), 1.0)[..., None]
    return np.asarray(part * edge + np.float32(level) * (1 - edge), dtype=np.float32)
