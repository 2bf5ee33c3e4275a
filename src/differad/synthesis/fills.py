"""Appearance of defects: each fill takes an image and a coverage and returns a changed copy.

Images are (H, W, 3) float32 grey levels, coverages (H, W) float32 alpha masks in [0, 1]. `ForeignMaterial` supplies material from
elsewhere: another texture, or a defect from other data. Knows nothing of cameras or of how strong a change must be.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.synthesis.regions import Coverage
from differad.synthesis.textures import Image, smooth_noise

Bool = NDArray[np.bool_]
# Gaussian half width of the rim of a stain or dent, as a share of the region's size.
_SOFT_RIM = 0.18
# OpenCV's Poisson blending fails on pieces with fewer pixels inside their rim.
_MIN_CLONED = 3


@dataclass(frozen=True, eq=False)
class ForeignMaterial:
    """Source of foreign material.

    `texture(rng, size)` returns an image (size, size, 3) of another surface; `defect(rng)`, None without a bank of real or
    synthetic defects, returns a crop (h, w, 3) and its mask (h, w).
    """

    texture: Callable[[np.random.Generator, int], Image]
    defect: Callable[[np.random.Generator], tuple[Image, Bool]] | None = None


Fill = Callable[[np.random.Generator, Image, Coverage, ForeignMaterial], Image]


def foreign_texture(rng: np.random.Generator, part: Image, coverage: Coverage, foreign: ForeignMaterial) -> Image:
    """The region shows another surface."""
    return _blend(part, foreign.texture(rng, len(part)), coverage)


def shifted(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """Another brightness or colour, with unchanged structure."""
    change = _step(rng, 25, 100)
    if rng.random() < 0.5:
        change = change * rng.uniform(-0.6, 1.0, 3)
    return _blend(part, part + change.astype(np.float32), coverage)


def stained(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """A translucent, uneven film with a soft rim: oil, water, burn marks."""
    soft = _gaussian_blur(coverage)
    tint = rng.uniform(0.25, 0.75, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.25, 0.7))
    cloud = np.clip(0.8 + 0.2 * smooth_noise(rng, coverage.shape, 5, 5), 0.3, 1)
    return _blend(part, part * tint.astype(np.float32), soft * cloud)


def scratched(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """A groove: dark on one side, lit on the other."""
    depth = rng.uniform(40, 110)
    lit = cv2.warpAffine(coverage, np.array([[1, 0, 1], [0, 1, 1]], np.float32), coverage.shape[::-1])
    sign = rng.choice([-1.0, 1.0])
    return _clip(
        part
        - np.float32(sign * depth) * coverage[..., None]
        + np.float32(0.5 * sign * depth) * _uncovered(lit, coverage)
    )


def pierced(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """Holes: nearly black, or what shines through."""
    level = rng.uniform(0, 25) if rng.random() < 0.75 else rng.uniform(225, 255)
    return _blend(part, np.full_like(part, level), coverage)


def smeared(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """The structure is blurred, in all directions or along one."""
    reach = int(rng.integers(4, 10))
    if rng.random() < 0.5:
        return _blend(part, cv2.GaussianBlur(part, (0, 0), reach / 2), coverage)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    tip = np.rint(reach + reach * np.array([np.cos(angle), np.sin(angle)])).astype(int)
    cv2.line(kernel, (2 * reach - int(tip[0]), 2 * reach - int(tip[1])), (int(tip[0]), int(tip[1])), 1.0)
    return _blend(part, cv2.filter2D(part, -1, kernel / kernel.sum()), coverage)


def missing(_rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """The region is removed and filled in from its surroundings (Telea's inpainting)."""
    window = _window(coverage, 8)
    piece, hole = part[window], (coverage[window] > 0.05).astype(np.uint8)
    closed = cv2.inpaint(np.rint(piece).astype(np.uint8), hole, 3, cv2.INPAINT_TELEA)
    result = part.copy()
    result[window] = _blend(piece, closed.astype(np.float32), coverage[window])
    return result


def duplicated(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """The region shows a copy of another region of the same part."""
    height, width = coverage.shape
    dx, dy = (int(rng.choice([-1, 1]) * rng.integers(side // 6, side // 2)) for side in (width, height))
    return _blend(part, np.roll(part, (dy, dx), axis=(0, 1)), coverage)


def turned(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """The region's content is rotated in its place."""
    ys, xs = np.nonzero(coverage > 0.5)
    middle = (float(xs.mean()), float(ys.mean())) if len(xs) else (0.0, 0.0)
    angle = rng.uniform(30, 150) * rng.choice([-1, 1])
    motion = cv2.getRotationMatrix2D(middle, float(angle), 1.0)
    return _blend(part, _moved(part, motion), coverage)


def shoved(rng: np.random.Generator, part: Image, coverage: Coverage, foreign: ForeignMaterial) -> Image:
    """The region's content is displaced by a share of its size; its old position is filled in."""
    size = float(np.sqrt((coverage > 0.5).sum()))
    direction = rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(0.35, 0.8) * size * np.array([np.cos(direction), np.sin(direction)])
    motion = np.array([[1, 0, x], [0, 1, y]], np.float32)
    moved_coverage = cv2.warpAffine(coverage, motion, coverage.shape[::-1])
    return _blend(missing(rng, part, coverage, foreign), _moved(part, motion), moved_coverage)


def warped(rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """The structure is warped: dents, folds, pulled threads."""
    window = _window(coverage, 12)
    piece, soft = part[window], _gaussian_blur(coverage)[window]
    reach = rng.uniform(4, 10)
    field = [smooth_noise(rng, soft.shape, 5, 5) * soft * np.float32(reach) for _ in range(2)]
    y, x = np.mgrid[: soft.shape[0], : soft.shape[1]].astype(np.float32)
    result = part.copy()
    result[window] = cv2.remap(piece, x + field[0], y + field[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return result


def transplanted(rng: np.random.Generator, part: Image, coverage: Coverage, foreign: ForeignMaterial) -> Image:
    """A defect from other data, scaled by 0.6 to 1.4 and inserted by Poisson blending (Perez et al., 2003).

    Without a bank of defects a piece of another surface in the region's shape is inserted instead.
    """
    crop, mask = _foreign_crop(rng, coverage, foreign)
    inner = _middle(mask, part.shape)
    crop, mask = crop[inner], mask[inner]
    if min(cv2.boundingRect(mask[1:-1, 1:-1].astype(np.uint8))[2:]) < _MIN_CLONED:
        return part
    ys, xs = np.nonzero(coverage > 0.5)
    center = np.array([xs.mean(), ys.mean()]) if len(xs) else np.array(coverage.shape[::-1]) / 2
    half = np.array(mask.shape[::-1]) // 2 + 2
    x, y = (int(v) for v in np.clip(np.rint(center), half, np.array(coverage.shape[::-1]) - half))
    source = np.rint(np.clip(crop, 0, 255)).astype(np.uint8)
    background = np.rint(np.clip(part, 0, 255)).astype(np.uint8)
    mode = cv2.NORMAL_CLONE if rng.random() < 0.7 else cv2.MIXED_CLONE
    return np.asarray(cv2.seamlessClone(source, background, mask.astype(np.uint8) * 255, (x, y), mode), np.float32)


def stark(_rng: np.random.Generator, part: Image, coverage: Coverage, _foreign: ForeignMaterial) -> Image:
    """Maximal contrast, visible on any part: black where the part is bright, white where it is dark."""
    opposite = np.where(part.mean(axis=2, keepdims=True) < 128, np.float32(255), np.float32(0))
    return _blend(part, np.asarray(np.broadcast_to(opposite, part.shape)), coverage)


def _foreign_crop(rng: np.random.Generator, coverage: Coverage, foreign: ForeignMaterial) -> tuple[Image, Bool]:
    if foreign.defect is None:
        window = _window(coverage, 1)
        return foreign.texture(rng, len(coverage))[window], np.asarray(coverage[window] > 0.3)
    crop, mask = foreign.defect(rng)
    scale = rng.uniform(0.6, 1.4)
    size = tuple(max(3, round(side * scale)) for side in mask.shape[::-1])
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return crop, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _middle(mask: Bool, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Window of a crop's middle, at most half as large as the part: Poisson blending needs a margin around it."""
    starts = [max(0, (side - whole // 2) // 2) for side, whole in zip(mask.shape, shape, strict=False)]
    return tuple(slice(s, s + min(side, w // 2)) for s, side, w in zip(starts, mask.shape, shape, strict=False))  # type: ignore[return-value]


def _blend(part: Image, fill: Image, coverage: Coverage) -> Image:
    return _clip(part + coverage[..., None] * (fill - part))


def _clip(part: Image) -> Image:
    return np.asarray(np.clip(part, 0, 255), dtype=np.float32)


def _step(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float64]:
    return np.full(3, rng.choice([-1, 1]) * rng.uniform(low, high))


def _uncovered(wider: Coverage, coverage: Coverage) -> Image:
    return np.asarray(np.maximum(wider - coverage, 0)[..., None], dtype=np.float32)


def _gaussian_blur(coverage: Coverage) -> Coverage:
    sigma = max(1.0, _SOFT_RIM * float(np.sqrt((coverage > 0.5).sum())))
    return np.asarray(cv2.GaussianBlur(coverage, (0, 0), sigma))


def _moved(part: Image, motion: NDArray[np.floating]) -> Image:
    size = part.shape[1], part.shape[0]
    return np.asarray(cv2.warpAffine(part, motion, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def _window(coverage: Coverage, around: int) -> tuple[slice, slice]:
    """Rows and columns with any coverage, extended by `around` pixels; all of them if there is none."""
    rows, columns = (np.flatnonzero((coverage > 0).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(None), slice(None)
    return (
        slice(max(0, int(rows[0]) - around), int(rows[-1]) + 1 + around),
        slice(max(0, int(columns[0]) - around), int(columns[-1]) + 1 + around),
    )


FILLS: dict[str, Fill] = {
    "texture": foreign_texture,
    "shifted": shifted,
    "stained": stained,
    "scratched": scratched,
    "pierced": pierced,
    "smeared": smeared,
    "missing": missing,
    "duplicated": duplicated,
    "turned": turned,
    "shoved": shoved,
    "warped": warped,
    "transplanted": transplanted,
    "stark": stark,
}
