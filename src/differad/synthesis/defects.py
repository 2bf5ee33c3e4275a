"""Defects drawn into a part: into the copper of a board, or onto a surface.

Each function returns a changed copy; the caller finds the changed pixels. Knows nothing of cameras.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.synthesis.boards import Layer
from differad.synthesis.regions import Coverage, blob, stroke
from differad.synthesis.textures import Image, generate_texture, smooth_noise


def damage_board(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    """One defect of a random kind in the copper, at least `margin` pixels from the border."""
    return BOARD_DEFECTS[str(rng.choice(list(BOARD_DEFECTS)))](rng, copper, margin)


def damage_surface(rng: np.random.Generator, image: Image, margin: int) -> Image:
    """A scratch, a spot or a patch of another texture on a surface, at least `margin` pixels from the border."""
    size = len(image)
    center = rng.uniform(margin + 30, size - margin - 30, 2)
    kind = rng.choice(["scratch", "spot", "patch"])
    if kind == "scratch":
        coverage = stroke(rng, size, center, rng.uniform(25, 150), int(rng.integers(2, 6)))
    else:
        coverage = blob(rng, size, center, np.exp(rng.uniform(np.log(5), np.log(40))))
    coverage = coverage[..., None]
    darker_or_lighter = image + np.float32(rng.choice([-1, 1]) * rng.uniform(35, 110))
    fill = generate_texture(rng, size) if kind == "patch" else darker_or_lighter
    return np.asarray(np.clip(image * (1 - coverage) + fill * coverage, 0, 255), dtype=np.float32)


def _remove(copper: Layer, stamp: Coverage) -> Layer:
    return np.asarray(np.minimum(copper, 1 - stamp), dtype=np.float32)


def _add(copper: Layer, stamp: Coverage) -> Layer:
    return np.asarray(np.maximum(copper, stamp), dtype=np.float32)


def _pick(rng: np.random.Generator, mask: NDArray[np.bool_], margin: int) -> NDArray[np.float64]:
    """A random true pixel (x, y) inside the border; the image's centre if there is none."""
    inner = margin + 16
    ys, xs = np.nonzero(mask[inner:-inner, inner:-inner])
    if len(xs) == 0:
        return np.array([mask.shape[1] / 2, mask.shape[0] / 2])
    index = int(rng.integers(len(xs)))
    return np.array([xs[index] + inner, ys[index] + inner], dtype=np.float64)


def _edges(copper: Layer) -> NDArray[np.bool_]:
    return np.asarray(cv2.morphologyEx(copper, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0.5)


def _interior(copper: Layer, reach: int) -> NDArray[np.bool_]:
    """Pixels with copper everywhere within `reach` pixels."""
    return np.asarray(cv2.erode(copper, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0.5)


def _bite(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    return _remove(copper, blob(rng, len(copper), _pick(rng, _edges(copper), margin), rng.uniform(2.5, 11)))


def _spur(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    return _add(copper, blob(rng, len(copper), _pick(rng, _edges(copper), margin), rng.uniform(2.5, 11)))


def _hole(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    return _remove(copper, blob(rng, len(copper), _pick(rng, _interior(copper, 4), margin), rng.uniform(2.5, 11)))


def _island(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    return _add(copper, blob(rng, len(copper), _pick(rng, _interior(1 - copper, 4), margin), rng.uniform(2.5, 18)))


def _cut(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    center = _pick(rng, copper > 0.5, margin)
    return _remove(copper, stroke(rng, len(copper), center, rng.uniform(20, 45), int(rng.integers(2, 10))))


def _bridge(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    center = _pick(rng, copper < 0.5, margin)
    return _add(copper, stroke(rng, len(copper), center, rng.uniform(15, 45), int(rng.integers(2, 10))))


def _fade(rng: np.random.Generator, copper: Layer, margin: int) -> Layer:
    """Copper thinned over a larger ragged region."""
    region = blob(rng, len(copper), _pick(rng, copper > 0.5, margin), rng.uniform(15, 40))
    return _remove(copper, region * (smooth_noise(rng, copper.shape, 2, 2) > 0).astype(np.float32))


BOARD_DEFECTS: dict[str, Callable[[np.random.Generator, Layer, int], Layer]] = {
    "mousebite": _bite,
    "spur": _spur,
    "pinhole": _hole,
    "island": _island,
    "open": _cut,
    "short": _bridge,
    "erosion": _fade,
}
