"""Synthetic pairs of two parts of one kind that cannot be aligned; the second perhaps has a defect.

The two parts are not two shots of one part. They come from different positions of a surface, and contrast, tone, scale and
sharpness differ a little between them. Each has its own light, clouds and marks of use, which are no defects. Seams and rims
run through both at about the same position. The images may differ in size, up to strips of 1 : 2.6.
`siblings` takes two pieces of one sheet under the usual nuisance; this module varies all that may differ between normal parts.
All bounds were set by judgement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from differad.synthesis.camera import REFERENCE_NUISANCE, Nuisance, capture, render, sample_view
from differad.synthesis.fills import FILLS, ForeignMaterial
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import SyntheticPair
from differad.synthesis.regions import REGIONS, blob, stroke
from differad.synthesis.siblings import LAYOUTS, SURFACES
from differad.synthesis.textures import Image, generate_texture, smooth_noise

# Fills and the regions that suit them. Rearranged texture is excluded, since it cannot be told from the normal part.
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
# Bounds of the longer side as shares of the usual size, and of its ratio to the shorter side.
SMALLEST, LARGEST, SLIMMEST = 160 / 448, 720 / 448, 2.6
VISIBLE_LEVELS, ATTEMPTS = 20, 20
# Share of the image's pixels that a defect must change: a dot of 9 pixels in 448 x 448.
VISIBLE_SHARE = 3e-4


@dataclass(frozen=True)
class PartType:
    """Common properties of parts of one kind: the sheet that they are cropped from, seams, rims, and how soiled they are.

    `grey` means no colour; `marks` is the expected number of marks, `clouds` the amplitude of uneven shade in grey levels,
    `spread` in [0, 1] how much parts differ.
    """

    sheet: Image
    grey: bool
    seams: list[tuple[int, float, float, float]]
    rims: list[tuple[int, float, float]]
    marks: float
    clouds: float
    spread: float


def generate_unaligned(
    rng: np.random.Generator, anomalous: bool, size: int = 448, surfaces: Sequence[str] = SURFACES
) -> SyntheticPair:
    """One pair of a `category` from `surfaces`, its longer side 0.36 to 1.6 times `size` pixels."""
    long = int(np.exp(rng.uniform(np.log(round(SMALLEST * size)), np.log(round(LARGEST * size)))))
    short = round(long / np.exp(rng.uniform(0, np.log(SLIMMEST))))
    shape = (long, short) if rng.random() < 0.5 else (short, long)
    margin = max(12, long // 11)
    name, defect = str(rng.choice(surfaces)), ""
    part_type = sample_part_type(rng, name, long + 2 * margin)
    first, second = (make_part(rng, part_type, shape, margin) for _ in range(2))
    reference_view = sample_view(rng, long, margin, REFERENCE_NUISANCE)
    color_cast = 0.0 if part_type.grey else 0.06
    view = sample_view(rng, long, margin, Nuisance(shift=0.05 * long, angle=3, scale=0.05, color_cast=color_cast))
    rows, columns = slice(shape[0]), slice(shape[1])
    clean = rendered = render(second, view, binary=False)[rows, columns]
    mask = np.zeros(shape, bool)
    for _ in range(ATTEMPTS if anomalous else 0):
        defect, damaged = damage(rng, second, shape, margin)
        rendered = render(damaged, view, binary=False)[rows, columns]
        mask = np.abs(rendered - clean).max(axis=2) >= VISIBLE_LEVELS
        if mask.sum() >= VISIBLE_SHARE * mask.size:
            break
    whole = np.zeros((long, long, 3), np.float32)
    whole[rows, columns] = rendered
    reference = capture(render(first, reference_view, binary=False), reference_view, binary=False)[
        crop(rng, shape, part_type)
    ]
    target = capture(whole, view, binary=False)[rows, columns]
    pair = SyntheticPair(np.ascontiguousarray(reference), np.ascontiguousarray(target), mask, np.eye(3), name)
    return replace(pair, kind=defect) if mask.any() else pair


def sample_part_type(rng: np.random.Generator, name: str, side: int) -> PartType:
    """A random kind of part of surface `name`, for parts of `side` pixels."""
    sheet = NORMALS[name](rng, 2 * side)
    if rng.random() < 0.3:
        layout, share = NORMALS[str(rng.choice(LAYOUTS))](rng, side), rng.uniform(0.3, 0.6)
        sheet = sheet * (1 - share) + np.tile(layout, (2, 2, 1)) * share
    grey = bool(rng.random() < 0.6)
    if grey:
        sheet = np.repeat(sheet.mean(axis=2, keepdims=True), 3, axis=2)
    mean = sheet.mean(axis=(0, 1))
    sheet = mean + np.exp(rng.uniform(np.log(0.3), np.log(1.2))) * (sheet - mean)
    seams = [
        (int(rng.integers(2)), rng.uniform(0.1, 0.9), rng.uniform(0.01, 0.3), rng.uniform(-60, 60))
        for _ in range(int(rng.integers(1, 5)) if rng.random() < 0.5 else 0)
    ]
    rims = [
        (int(rng.integers(4)), rng.uniform(0.02, 0.12), rng.uniform(0, 255))
        for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.4 else 0)
    ]
    return PartType(
        sheet, grey, seams, rims, float(rng.choice([0, 3, 12])), clouds=rng.uniform(0, 12), spread=rng.uniform(0.3, 1)
    )


def make_part(rng: np.random.Generator, part_type: PartType, shape: tuple[int, int], margin: int) -> Image:
    """One normal part (side, side, 3), of which the image shows `shape` (rows, columns) from `margin` on."""
    part = _piece(rng, part_type)
    level = part.mean(axis=(0, 1))
    part = level + np.float32(np.exp(0.2 * part_type.spread * rng.uniform(-1, 1))) * (part - level)
    part += part_type.clouds * smooth_noise(rng, part.shape[:2], *[len(part) * rng.uniform(0.1, 0.4)] * 2)[..., None]
    reach = np.array(shape, float)
    for axis, position, width, change in part_type.seams:
        _add_band(part, axis, margin + reach[axis] * (position + 0.02 * rng.normal()), reach[axis] * width, change)
    for _ in range(rng.poisson(part_type.marks)):
        part = _mark(rng, part, shape, margin)
    for edge, width, level in part_type.rims:
        axis, far = edge % 2, edge >= 2
        end = margin + reach[axis] * (width + 0.015 * rng.normal())
        start, stop = (0, end) if not far else (margin + reach[axis] - (end - margin), len(part))
        span = [slice(None)] * 2
        span[axis] = slice(max(0, round(start)), round(stop))
        part[tuple(span)] = level + 0.3 * (part[tuple(span)] - level)
    part = cv2.GaussianBlur(part, (0, 0), 0.1 + 0.6 * part_type.spread * rng.random())
    tone = 255 * (np.clip(part, 0, 255) / 255) ** np.exp(0.2 * part_type.spread * rng.uniform(-1, 1))
    return np.ascontiguousarray(tone, dtype=np.float32)


def damage(rng: np.random.Generator, part: Image, shape: tuple[int, int], margin: int) -> tuple[str, Image]:
    """Name of a defect, and the part with that defect somewhere inside the image."""
    name = str(rng.choice(list(DEFECTS)))
    region = str(rng.choice(DEFECTS[name]))
    longest = 0.6 if region == "line" else 0.3
    radius = min(shape) * np.exp(rng.uniform(np.log(0.04), np.log(longest)))
    center = margin + np.array([rng.uniform(0.03, 0.97) * shape[1], rng.uniform(0.03, 0.97) * shape[0]])
    if name == "crack":
        width = max(1, round(max(shape) / 448 * rng.uniform(1, 5)))
        coverage = stroke(rng, len(part), center, 2 * radius, width)[..., None]
        change = rng.choice([-1, -1, 1]) * rng.uniform(30, 110)
        return name, np.asarray(np.clip(part + change * coverage, 0, 255), dtype=np.float32)
    coverage = REGIONS[region](rng, len(part), center, radius)
    return name, FILLS[name](rng, part, coverage, ForeignMaterial(generate_texture))


def crop(rng: np.random.Generator, shape: tuple[int, int], part_type: PartType) -> tuple[slice, slice]:
    """Rows and columns of the reference's part in its image: as many as the target's, or another size without seams and rims."""
    if part_type.seams or part_type.rims or rng.random() < 0.5:
        return slice(shape[0]), slice(shape[1])
    rows, columns = (slice(max(96, round(side * rng.uniform(0.7, 1.4)))) for side in shape)
    return rows, columns


def _piece(rng: np.random.Generator, part_type: PartType) -> Image:
    """A random square of the sheet, at about the same scale."""
    whole = len(part_type.sheet)
    side = round(whole / 2 * np.exp(0.12 * part_type.spread * rng.uniform(-1, 1)))
    x, y = rng.integers(0, whole - side + 1, 2)
    piece = part_type.sheet[y : y + side, x : x + side].astype(np.float32)
    return np.asarray(cv2.resize(piece, (whole // 2, whole // 2), interpolation=cv2.INTER_LINEAR))


def _add_band(part: Image, axis: int, middle: float, width: float, change: float) -> None:
    """Make a band across the part lighter or darker, with edges about two pixels soft."""
    along = np.arange(len(part), dtype=np.float32)
    inside = 1 / (1 + np.exp(np.clip(np.abs(along - middle) - width / 2, -30, 30)))
    part += np.float32(change) * (inside[:, None, None] if axis == 0 else inside[None, :, None])


def _mark(rng: np.random.Generator, part: Image, shape: tuple[int, int], margin: int) -> Image:
    """A faint speck or streak that is no defect."""
    center = margin + np.array([rng.uniform(0, shape[1]), rng.uniform(0, shape[0])])
    size = np.exp(rng.uniform(np.log(1.5), np.log(max(1.5, 0.04 * max(shape)))))
    coverage = blob(rng, len(part), center, size) if rng.random() < 0.6 else stroke(rng, len(part), center, 4 * size, 1)
    return np.asarray(part + np.float32(rng.choice([-1, 1]) * rng.uniform(6, 22)) * coverage[..., None])
