"""What a defect does to the part it covers: each fill takes a picture and a coverage and returns a changed copy.

Pictures are (H, W, 3) float32 grey levels, coverages (H, W) float32 in [0, 1]. `Foreign` brings what the part itself does not
have: another texture, or a defect cut from other data. Knows nothing of cameras or of how strong a change must be.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.synthesis.regions import Stamp
from differad.synthesis.textures import Picture, smooth_noise

Bool = NDArray[np.bool_]
# Gaussian half width of the rim of a stain or dent, as a share of the region's size.
_SOFT_RIM = 0.18
# OpenCV's Poisson blending fails on pieces with less than this many pixels within their rim.
_LEAST_CLONED = 3


@dataclass(frozen=True, eq=False)
class Foreign:
    """Where foreign material comes from.

    `texture(rng, size)` draws a picture (size, size, 3) of another surface; `defect(rng)`, where there is a bank of real or
    drawn defects, gives a crop (h, w, 3) and its mask (h, w).
    """

    texture: Callable[[np.random.Generator, int], Picture]
    defect: Callable[[np.random.Generator], tuple[Picture, Bool]] | None = None


Fill = Callable[[np.random.Generator, Picture, Stamp, Foreign], Picture]


def foreign_texture(rng: np.random.Generator, part: Picture, cover: Stamp, foreign: Foreign) -> Picture:
    """The region shows another surface."""
    return _blend(part, foreign.texture(rng, len(part)), cover)


def shifted(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """Another brightness or colour, structure kept."""
    change = _step(rng, 25, 100)
    if rng.random() < 0.5:
        change = change * rng.uniform(-0.6, 1.0, 3)
    return _blend(part, part + change.astype(np.float32), cover)


def stained(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """A translucent, uneven film with a soft rim: oil, water, burn marks."""
    soft = _soften(cover)
    tint = rng.uniform(0.25, 0.75, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0.25, 0.7))
    cloud = np.clip(0.8 + 0.2 * smooth_noise(rng, cover.shape, 5, 5), 0.3, 1)
    return _blend(part, part * tint.astype(np.float32), soft * cloud)


def scratched(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """A groove: dark on one side, lit on the other."""
    depth = rng.uniform(40, 110)
    lit = cv2.warpAffine(cover, np.array([[1, 0, 1], [0, 1, 1]], np.float32), cover.shape[::-1])
    sign = rng.choice([-1.0, 1.0])
    return _clip(
        part - np.float32(sign * depth) * cover[..., None] + np.float32(0.5 * sign * depth) * _rest(lit, cover)
    )


def pierced(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """Holes: nearly black, or what shines through."""
    level = rng.uniform(0, 25) if rng.random() < 0.75 else rng.uniform(225, 255)
    return _blend(part, np.full_like(part, level), cover)


def smeared(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """The structure is blurred away, in all directions or along one."""
    reach = int(rng.integers(4, 10))
    if rng.random() < 0.5:
        return _blend(part, cv2.GaussianBlur(part, (0, 0), reach / 2), cover)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    angle = rng.uniform(0, np.pi)
    tip = np.rint(reach + reach * np.array([np.cos(angle), np.sin(angle)])).astype(int)
    cv2.line(kernel, (2 * reach - int(tip[0]), 2 * reach - int(tip[1])), (int(tip[0]), int(tip[1])), 1.0)
    return _blend(part, cv2.filter2D(part, -1, kernel / kernel.sum()), cover)


def missing(_rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """What stood there is gone; the surroundings close over it (Telea's inpainting)."""
    window = _window(cover, 8)
    piece, hole = part[window], (cover[window] > 0.05).astype(np.uint8)
    closed = cv2.inpaint(np.rint(piece).astype(np.uint8), hole, 3, cv2.INPAINT_TELEA)
    result = part.copy()
    result[window] = _blend(piece, closed.astype(np.float32), cover[window])
    return result


def duplicated(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """The region shows a copy of another place of the same part."""
    height, width = cover.shape
    dx, dy = (int(rng.choice([-1, 1]) * rng.integers(side // 6, side // 2)) for side in (width, height))
    return _blend(part, np.roll(part, (dy, dx), axis=(0, 1)), cover)


def turned(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """The piece sits in its place, but turned."""
    ys, xs = np.nonzero(cover > 0.5)
    middle = (float(xs.mean()), float(ys.mean())) if len(xs) else (0.0, 0.0)
    angle = rng.uniform(30, 150) * rng.choice([-1, 1])
    motion = cv2.getRotationMatrix2D(middle, float(angle), 1.0)
    return _blend(part, _moved(part, motion), cover)


def shoved(rng: np.random.Generator, part: Picture, cover: Stamp, foreign: Foreign) -> Picture:
    """The piece has moved: its place is closed over, and it lies a part of its own size farther."""
    size = float(np.sqrt((cover > 0.5).sum()))
    direction = rng.uniform(0, 2 * np.pi)
    x, y = rng.uniform(0.35, 0.8) * size * np.array([np.cos(direction), np.sin(direction)])
    motion = np.array([[1, 0, x], [0, 1, y]], np.float32)
    there = cv2.warpAffine(cover, motion, cover.shape[::-1])
    return _blend(missing(rng, part, cover, foreign), _moved(part, motion), there)


def warped(rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """The structure is bent: dents, folds, drawn threads."""
    window = _window(cover, 12)
    piece, soft = part[window], _soften(cover)[window]
    reach = rng.uniform(4, 10)
    field = [smooth_noise(rng, soft.shape, 5, 5) * soft * np.float32(reach) for _ in range(2)]
    y, x = np.mgrid[: soft.shape[0], : soft.shape[1]].astype(np.float32)
    result = part.copy()
    result[window] = cv2.remap(piece, x + field[0], y + field[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return result


def transplanted(rng: np.random.Generator, part: Picture, cover: Stamp, foreign: Foreign) -> Picture:
    """A defect cut from other data, 0.6 to 1.4 times its size, joined by Poisson blending (Perez et al., 2003).

    Without a bank of defects a piece of another surface is cut along the region instead.
    """
    crop, mask = _cut(rng, cover, foreign)
    inner = _fitting(mask, part.shape)
    crop, mask = crop[inner], mask[inner]
    if min(cv2.boundingRect(mask[1:-1, 1:-1].astype(np.uint8))[2:]) < _LEAST_CLONED:
        return part
    ys, xs = np.nonzero(cover > 0.5)
    place = np.array([xs.mean(), ys.mean()]) if len(xs) else np.array(cover.shape[::-1]) / 2
    half = np.array(mask.shape[::-1]) // 2 + 2
    x, y = (int(v) for v in np.clip(np.rint(place), half, np.array(cover.shape[::-1]) - half))
    source = np.rint(np.clip(crop, 0, 255)).astype(np.uint8)
    background = np.rint(np.clip(part, 0, 255)).astype(np.uint8)
    mode = cv2.NORMAL_CLONE if rng.random() < 0.7 else cv2.MIXED_CLONE
    return np.asarray(cv2.seamlessClone(source, background, mask.astype(np.uint8) * 255, (x, y), mode), np.float32)


def stark(_rng: np.random.Generator, part: Picture, cover: Stamp, _foreign: Foreign) -> Picture:
    """Black where the part is bright, white where it is dark: what shows on anything."""
    opposite = np.where(part.mean(axis=2, keepdims=True) < 128, np.float32(255), np.float32(0))
    return _blend(part, np.asarray(np.broadcast_to(opposite, part.shape)), cover)


def _cut(rng: np.random.Generator, cover: Stamp, foreign: Foreign) -> tuple[Picture, Bool]:
    if foreign.defect is None:
        window = _window(cover, 1)
        return foreign.texture(rng, len(cover))[window], np.asarray(cover[window] > 0.3)
    crop, mask = foreign.defect(rng)
    scale = rng.uniform(0.6, 1.4)
    size = tuple(max(3, round(side * scale)) for side in mask.shape[::-1])
    crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return crop, cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def _fitting(mask: Bool, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The middle of a crop, at most half as large as the part: Poisson blending needs room around it."""
    starts = [max(0, (side - whole // 2) // 2) for side, whole in zip(mask.shape, shape, strict=False)]
    return tuple(slice(s, s + min(side, w // 2)) for s, side, w in zip(starts, mask.shape, shape, strict=False))  # type: ignore[return-value]


def _blend(part: Picture, fill: Picture, cover: Stamp) -> Picture:
    return _clip(part + cover[..., None] * (fill - part))


def _clip(part: Picture) -> Picture:
    return np.asarray(np.clip(part, 0, 255), dtype=np.float32)


def _step(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float64]:
    return np.full(3, rng.choice([-1, 1]) * rng.uniform(low, high))


def _rest(wider: Stamp, cover: Stamp) -> Picture:
    return np.asarray(np.maximum(wider - cover, 0)[..., None], dtype=np.float32)


def _soften(cover: Stamp) -> Stamp:
    sigma = max(1.0, _SOFT_RIM * float(np.sqrt((cover > 0.5).sum())))
    return np.asarray(cv2.GaussianBlur(cover, (0, 0), sigma))


def _moved(part: Picture, motion: NDArray[np.floating]) -> Picture:
    size = part.shape[1], part.shape[0]
    return np.asarray(cv2.warpAffine(part, motion, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))


def _window(cover: Stamp, around: int) -> tuple[slice, slice]:
    """Rows and columns that a coverage touches, `around` pixels wider; all of them where it touches none."""
    rows, columns = (np.flatnonzero((cover > 0).any(axis=axis)) for axis in (1, 0))
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
