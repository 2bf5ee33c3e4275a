"""Two pictures that lie on each other, compared: light equalised, range envelopes, noise, groups of what is left.

Pure functions on arrays. Knows nothing of registration, options or probabilities.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB

Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Both pictures are softened by this before they are compared: single noisy pixels and JPEG ripples are no difference.
_SOFTEN = 0.8
# Light is fitted at an eighth of the size, over windows of a third of the longer side, with gains of at most 2.
_LIGHT_SHRINK, _LIGHT_WINDOW, _LIGHT_GAIN = 8, 3, 2.0
# A small pixel is far off from three robust deviations on, but not for less than 10 grey levels.
_LIGHT_OFF, _LIGHT_LEAST_OFF = 3.0, 10.0
# Variance (grey levels squared) under which a window is flat and only its offset is fitted.
_FLAT = 25.0
# Bending: windows of a fifth of the longer side, at most 3 pixels; residuals beyond 40 levels pull no harder, and where
# edges are weaker than a level per pixel (squared, mean over the window) nothing bends.
_BEND_WINDOW, _BEND_REACH, _BEND_CLIP, _BEND_RIDGE = 5, 3.0, 40.0, 1.0

# Pixels are edges from this share of the steepest step on, and from this many grey levels; of them this quantile is noise,
# what lies above may be defect.
_EDGE_SHARE, _EDGE_LEAST, _EDGE_QUANTILE = 0.25, 10.0, 0.98


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring differences.

    `box` (4,) encloses them in pixels; `peak` is the largest difference, `mass` their sum over the low threshold, in
    units of noise; `thickness` is the radius in pixels of the largest disc that fits inside.
    """

    box: NDArray[np.float64]
    peak: float
    mass: float
    thickness: float


def soften(*pictures: RGB) -> tuple[Picture, ...]:
    """Float pictures, lightly blurred; (H, W) where all of them are grey, which costs a third, else (H, W, 3)."""
    grey = all(np.array_equal(p[..., 0], p[..., 1]) and np.array_equal(p[..., 0], p[..., 2]) for p in pictures)
    chosen = (np.ascontiguousarray(p[..., 0]) if grey else p for p in pictures)
    return tuple(np.asarray(cv2.GaussianBlur(p, (0, 0), _SOFTEN), dtype=np.float32) for p in chosen)


def equalise(there: Picture, here: Picture, covered: Mask) -> Picture:
    """`there` with its light made that of `here`: a local gain and offset, fitted over windows far wider than a defect.

    He, Sun, Tang, "Guided image filtering" (2013), with the reference as the guide, weighted by what it covers. Fitted
    twice: what the first fit leaves far off has no say in the second, or a large defect would cast a halo around itself.
    """
    height, width = here.shape[:2]
    small = max(1, width // _LIGHT_SHRINK), max(1, height // _LIGHT_SHRINK)
    guide, seen, weight = (_small(p, small) for p in (there, here, covered.astype(np.float32)))
    gain, offset = _fit_light(guide, seen, weight)
    off = np.abs(seen - gain * guide - offset)
    off = off if off.ndim == 2 else off.max(axis=2)
    bound = max(_LIGHT_LEAST_OFF, _LIGHT_OFF * noise(off, weight > 0))
    gain, offset = _fit_light(guide, seen, weight * (off < bound))
    gain, offset = (cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in (gain, offset))
    return np.asarray(gain * there + offset, dtype=np.float32)


def _fit_light(guide: Picture, seen: Picture, weight: Picture) -> tuple[Picture, Picture]:
    """Gain and offset at each pixel that make `guide` most like `seen` over the window around it."""
    window = max(3, max(guide.shape[:2]) // _LIGHT_WINDOW)
    weight = weight if guide.ndim == 2 else weight[..., None]

    def total(p: Picture) -> Picture:
        summed = cv2.blur(p, (window, window), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(summed if summed.ndim == p.ndim else summed[..., None])

    share = np.maximum(total(weight), 1e-6)
    guide_mean, seen_mean = total(weight * guide) / share, total(weight * seen) / share
    spread = total(weight * guide * guide) / share - guide_mean**2
    shared = total(weight * guide * seen) / share - guide_mean * seen_mean
    gain = np.clip((shared + _FLAT) / (spread + _FLAT), 1 / _LIGHT_GAIN, _LIGHT_GAIN).astype(np.float32)
    return gain, np.asarray(seen_mean - gain * guide_mean, dtype=np.float32)


def bend(there: Picture, here: Picture, covered: Mask) -> Picture:
    """The smooth displacement (H, W, 2) in pixels that still separates `there` from `here` after registration.

    Lucas and Kanade's least squares over wide windows, twice, at half the size. Only edges of the reference count, over
    windows several times a defect: what the target has and the reference has not pulls at nothing.
    """
    height, width = here.shape[:2]
    small = max(1, width // 2), max(1, height // 2)
    source, sink, weight = (_small(_flat(p), small) for p in (there, here, covered.astype(np.float32)))
    window = max(3, max(small) // _BEND_WINDOW)
    field = np.zeros((*source.shape, 2), np.float32)
    for _ in range(2):
        moved = displace(source, field)
        dx, dy = (cv2.Sobel(moved, cv2.CV_32F, i, 1 - i, scale=1 / 8) for i in (1, 0))
        off = np.clip(sink - moved, -_BEND_CLIP, _BEND_CLIP)
        sums = [
            cv2.blur(weight * a * b, (window, window)) for a, b in ((dx, dx), (dy, dy), (dx, dy), (dx, off), (dy, off))
        ]
        xx, yy, xy, xo, yo = sums
        xx, yy = xx + _BEND_RIDGE, yy + _BEND_RIDGE
        scale = 1 / (xx * yy - xy * xy)
        field += np.stack([(yy * xo - xy * yo) * scale, (xx * yo - xy * xo) * scale], axis=-1)
        field = np.clip(field, -_BEND_REACH / 2, _BEND_REACH / 2)
    return np.asarray(2 * cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR))


def displace(picture: Picture, field: Picture) -> Picture:
    """`picture` read at each pixel plus `field` (H, W, 2)."""
    looked = field.astype(np.float32)
    looked[..., 0] += np.arange(field.shape[1], dtype=np.float32)
    looked[..., 1] += np.arange(field.shape[0], dtype=np.float32)[:, None]
    return np.asarray(cv2.remap(picture, looked, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _small(picture: Picture, size: tuple[int, int]) -> Picture:
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _flat(picture: Picture) -> Picture:
    return picture if picture.ndim == 2 else np.asarray(picture.mean(axis=2))


def excess(here: Picture, there: Picture, tolerance: int) -> Picture:
    """How far (H, W) either picture leaves the other's range within `tolerance` pixels; the largest of the channels.

    One direction finds what was added, the other what is missing, however thin it was.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    added = np.maximum(here - cv2.dilate(there, disc), cv2.erode(there, disc) - here)
    missing = np.maximum(there - cv2.dilate(here, disc), cv2.erode(here, disc) - there)
    over = np.maximum(np.maximum(added, missing), 0)
    return np.asarray(over if over.ndim == 2 else over.max(axis=2))


def inside(covered: Mask, reach: int) -> Mask:
    """Pixels whose whole neighbourhood the reference covers: nearer the rim an edge may have come in from outside."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    eroded = cv2.erode(covered.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(eroded > 0)


def noise(residual: Picture, covered: Mask) -> float:
    """Robust standard deviation of what light and pose do not explain, in grey levels; every other row will do."""
    values = residual[::2][covered[::2]]
    return 1.4826 * float(np.median(np.abs(values))) if values.size else 0.0


def edge_noise(over: Picture, there: Picture, covered: Mask) -> float:
    """What moved and ragged edges leave in this pair, in grey levels: a high quantile of `over` along its edges.

    A defect holds a small share of a picture's edges, so it hardly moves the quantile. 0 where nothing has an edge.
    """
    grey = _flat(there)
    steep = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    at_edges = over[(steep > max(_EDGE_LEAST, _EDGE_SHARE * float(steep.max()))) & covered]
    return float(np.quantile(at_edges, _EDGE_QUANTILE)) if at_edges.size else 0.0


def group(score: Picture, *, low: float, high: float, grow: int, gap: int) -> list[Group]:
    """Connected regions over `low` that reach `high` somewhere, grown by `grow` pixels, joined over gaps of `gap`.

    The envelope takes `tolerance` pixels off every region; growing by as much gives them back.
    """
    weak = (score > low).astype(np.uint8)
    if not weak.any():
        return []
    depth = cv2.distanceTransform(weak, cv2.DIST_L2, 3)
    wide = cv2.dilate(weak, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8))
    joined = cv2.dilate(wide, np.ones((gap + 1, gap + 1), np.uint8)) if gap else wide
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    labels[wide == 0] = 0
    groups = []
    for label, (rows, columns) in enumerate(_slices(labels, count), start=1):
        own = (labels[rows, columns] == label) & (weak[rows, columns] > 0)
        values = score[rows, columns][own]
        if values.size and values.max() >= high:
            box = np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)
            thickness = float(depth[rows, columns][own].max())
            groups.append(Group(box, float(values.max()), float(values.sum()), thickness))
    return groups


def _slices(labels: NDArray[np.int32], count: int) -> list[tuple[slice, slice]]:
    """Rows and columns that each label 1 .. count - 1 spans."""
    ys, xs = np.nonzero(labels)
    own = labels[ys, xs]
    low = np.full((count, 2), np.iinfo(np.int64).max)
    high = np.zeros((count, 2), np.int64)
    for axis, values in enumerate((ys, xs)):
        np.minimum.at(low[:, axis], own, values)
        np.maximum.at(high[:, axis], own, values + 1)
    return [(slice(a[0], b[0]), slice(a[1], b[1])) for a, b in zip(low[1:].tolist(), high[1:].tolist(), strict=True)]
