"""Drawn pairs of two good parts of one kind, which nothing can lay on each other; the second perhaps with a defect.

Two parts of one kind are not two shots of one part. They are cut from other places of a surface, whose contrast, tone,
scale and sharpness differ a little from part to part; each has its own light, clouds and marks of use that are no defect;
seams and rims run through both at about the same place; the pictures may have other sizes, up to strips of 1 : 2.6.
Where `siblings` draws two pieces of one sheet for the usual camera, all that may differ between good parts is drawn here.
All bounds were set by judgement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from differad.synthesis.camera import STILL, Nuisance, develop, draw_view, see
from differad.synthesis.fills import FILLS, Foreign
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import SyntheticPair
from differad.synthesis.regions import REGIONS, blob, stroke
from differad.synthesis.siblings import LAYOUTS, SURFACES
from differad.synthesis.textures import Picture, draw_texture, smooth_noise

# What a defect is: a fill, and regions that suit it. Rearranged texture is left out: nobody could point at it.
DEFECTS = {
    "crack": ("line",),
    "scratched": ("line",),
    "shifted": ("blob", "polygon", "perlin"),
    "stained": ("perlin", "blob"),
    "pierced": ("dots", "blob"),
    "texture": ("blob", "polygon", "rectangle", "perlin"),
    "smeared": ("blob", "rectangle", "perlin"),
    "missing": ("blob", "rectangle"),
    "transplanted": ("blob", "perlin"),
}
# Longer sides, as shares of the usual size, and by how much the shorter may fall behind.
SMALLEST, LARGEST, SLIMMEST = 160 / 448, 720 / 448, 2.6
VISIBLE_LEVELS, ATTEMPTS = 20, 20
# Pixels that a defect must change, as a share of the picture: a dot of 9 pixels in 448 x 448.
VISIBLE_SHARE = 3e-4


@dataclass(frozen=True)
class Kind:
    """What parts of one kind share: the sheet they are cut from, seams, and how soiled they are."""

    sheet: Picture
    grey: bool
    seams: list[tuple[int, float, float, float]]
    rims: list[tuple[int, float, float]]
    marks: float
    clouds: float
    spread: float


def draw_unaligned(
    rng: np.random.Generator, anomalous: bool, size: int = 448, surfaces: Sequence[str] = SURFACES
) -> SyntheticPair:
    """One pair whose `category` is one of `surfaces`; its longer side is 0.36 to 1.6 times `size` pixels."""
    long = int(np.exp(rng.uniform(np.log(round(SMALLEST * size)), np.log(round(LARGEST * size)))))
    short = round(long / np.exp(rng.uniform(0, np.log(SLIMMEST))))
    shape = (long, short) if rng.random() < 0.5 else (short, long)
    margin = max(12, long // 11)
    name, defect = str(rng.choice(surfaces)), ""
    kind = draw_kind(rng, name, long + 2 * margin)
    first, second = (make_part(rng, kind, shape, margin) for _ in range(2))
    still = draw_view(rng, long, margin, STILL)
    cast = 0.0 if kind.grey else 0.06
    view = draw_view(rng, long, margin, Nuisance(shift=0.05 * long, angle=3, scale=0.05, cast=cast))
    rows, columns = slice(shape[0]), slice(shape[1])
    clean = seen = see(second, view, binary=False)[rows, columns]
    mask = np.zeros(shape, bool)
    for _ in range(ATTEMPTS if anomalous else 0):
        defect, damaged = damage(rng, second, shape, margin)
        seen = see(damaged, view, binary=False)[rows, columns]
        mask = np.abs(seen - clean).max(axis=2) >= VISIBLE_LEVELS
        if mask.sum() >= VISIBLE_SHARE * mask.size:
            break
    whole = np.zeros((long, long, 3), np.float32)
    whole[rows, columns] = seen
    reference = develop(see(first, still, binary=False), still, binary=False)[crop(rng, shape, kind)]
    target = develop(whole, view, binary=False)[rows, columns]
    pair = SyntheticPair(np.ascontiguousarray(reference), np.ascontiguousarray(target), mask, np.eye(3), name)
    return replace(pair, kind=defect) if mask.any() else pair


def draw_kind(rng: np.random.Generator, name: str, side: int) -> Kind:
    """A kind of part, of which pieces of `side` pixels can be made."""
    sheet = NORMALS[name](rng, 2 * side)
    if rng.random() < 0.3:
        layout, share = NORMALS[str(rng.choice(LAYOUTS))](rng, side), rng.uniform(0.3, 0.6)
        sheet = sheet * (1 - share) + np.tile(layout, (2, 2, 1)) * share
    grey = bool(rng.random() < 0.6)
    if grey:
        sheet = np.repeat(sheet.mean(axis=2, keepdims=True), 3, axis=2)
    usual = sheet.mean(axis=(0, 1))
    sheet = usual + np.exp(rng.uniform(np.log(0.3), np.log(1.2))) * (sheet - usual)
    seams = [
        (int(rng.integers(2)), rng.uniform(0.1, 0.9), rng.uniform(0.01, 0.3), rng.uniform(-60, 60))
        for _ in range(int(rng.integers(1, 5)) if rng.random() < 0.5 else 0)
    ]
    rims = [
        (int(rng.integers(4)), rng.uniform(0.02, 0.12), rng.uniform(0, 255))
        for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.4 else 0)
    ]
    return Kind(
        sheet, grey, seams, rims, float(rng.choice([0, 3, 12])), clouds=rng.uniform(0, 12), spread=rng.uniform(0.3, 1)
    )


def make_part(rng: np.random.Generator, kind: Kind, shape: tuple[int, int], margin: int) -> Picture:
    """One good part (side, side, 3) of a kind, of which a camera will see `shape` from `margin` on."""
    part = _piece(rng, kind)
    level = part.mean(axis=(0, 1))
    part = level + np.float32(np.exp(0.2 * kind.spread * rng.uniform(-1, 1))) * (part - level)
    part += kind.clouds * smooth_noise(rng, part.shape[:2], *[len(part) * rng.uniform(0.1, 0.4)] * 2)[..., None]
    reach = np.array(shape, float)
    for axis, place, width, change in kind.seams:
        _lay_band(part, axis, margin + reach[axis] * (place + 0.02 * rng.normal()), reach[axis] * width, change)
    for _ in range(rng.poisson(kind.marks)):
        part = _mark(rng, part, shape, margin)
    for edge, width, level in kind.rims:
        axis, far = edge % 2, edge >= 2
        end = margin + reach[axis] * (width + 0.015 * rng.normal())
        start, stop = (0, end) if not far else (margin + reach[axis] - (end - margin), len(part))
        span = [slice(None)] * 2
        span[axis] = slice(max(0, round(start)), round(stop))
        part[tuple(span)] = level + 0.3 * (part[tuple(span)] - level)
    part = cv2.GaussianBlur(part, (0, 0), 0.1 + 0.6 * kind.spread * rng.random())
    tone = 255 * (np.clip(part, 0, 255) / 255) ** np.exp(0.2 * kind.spread * rng.uniform(-1, 1))
    return np.ascontiguousarray(tone, dtype=np.float32)


def damage(rng: np.random.Generator, part: Picture, shape: tuple[int, int], margin: int) -> tuple[str, Picture]:
    """A defect's name, and the part with it somewhere in what the camera sees."""
    name = str(rng.choice(list(DEFECTS)))
    region = str(rng.choice(DEFECTS[name]))
    longest = 0.6 if region == "line" else 0.3
    radius = min(shape) * np.exp(rng.uniform(np.log(0.04), np.log(longest)))
    center = margin + np.array([rng.uniform(0.03, 0.97) * shape[1], rng.uniform(0.03, 0.97) * shape[0]])
    if name == "crack":
        width = max(1, round(max(shape) / 448 * rng.uniform(1, 5)))
        cover = stroke(rng, len(part), center, 2 * radius, width)[..., None]
        change = rng.choice([-1, -1, 1]) * rng.uniform(30, 110)
        return name, np.asarray(np.clip(part + change * cover, 0, 255), dtype=np.float32)
    cover = REGIONS[region](rng, len(part), center, radius)
    return name, FILLS[name](rng, part, cover, Foreign(draw_texture))


def crop(rng: np.random.Generator, shape: tuple[int, int], kind: Kind) -> tuple[slice, slice]:
    """What the reference's picture shows of its part: as much as the target's, or, of a plain kind, another size."""
    if kind.seams or kind.rims or rng.random() < 0.5:
        return slice(shape[0]), slice(shape[1])
    rows, columns = (slice(max(96, round(side * rng.uniform(0.7, 1.4)))) for side in shape)
    return rows, columns


def _piece(rng: np.random.Generator, kind: Kind) -> Picture:
    """A square out of the sheet, from somewhere, at about the same scale."""
    whole = len(kind.sheet)
    side = round(whole / 2 * np.exp(0.12 * kind.spread * rng.uniform(-1, 1)))
    x, y = rng.integers(0, whole - side + 1, 2)
    piece = kind.sheet[y : y + side, x : x + side].astype(np.float32)
    return np.asarray(cv2.resize(piece, (whole // 2, whole // 2), interpolation=cv2.INTER_LINEAR))


def _lay_band(part: Picture, axis: int, middle: float, width: float, change: float) -> None:
    """Make a band across the part lighter or darker, with rims about two pixels soft."""
    along = np.arange(len(part), dtype=np.float32)
    inside = 1 / (1 + np.exp(np.clip(np.abs(along - middle) - width / 2, -30, 30)))
    part += np.float32(change) * (inside[:, None, None] if axis == 0 else inside[None, :, None])


def _mark(rng: np.random.Generator, part: Picture, shape: tuple[int, int], margin: int) -> Picture:
    """A faint speck or streak that is no defect."""
    center = margin + np.array([rng.uniform(0, shape[1]), rng.uniform(0, shape[0])])
    size = np.exp(rng.uniform(np.log(1.5), np.log(max(1.5, 0.04 * max(shape)))))
    cover = blob(rng, len(part), center, size) if rng.random() < 0.6 else stroke(rng, len(part), center, 4 * size, 1)
    return np.asarray(part + np.float32(rng.choice([-1, 1]) * rng.uniform(6, 22)) * cover[..., None])
