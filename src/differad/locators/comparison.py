"""Two pictures that lie on each other, compared: light equalised, range envelopes, noise, groups of what is left.

Pure functions on arrays. Knows nothing of registration, options or probabilities.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB

Image = NDArray[np.float32]
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
# It is fitted at no more than this side: windows so wide place it to a small part of a pixel.
_BEND_SIDE = 1024

# Pixels are edges from this share of the steepest step on, and from this many grey levels; of a tile's this quantile is noise,
# what lies above may be defect, and so is all of the tiles beyond those that hold most edges. There are so many tiles each way.
_EDGE_SHARE, _EDGE_LEAST, _EDGE_QUANTILE, _EDGE_MOST, _EDGE_TILES = 0.25, 10.0, 0.98, 2 / 3, 8
_EDGE_SAMPLES = 500_000
# Standard deviations of a normal distribution by the median of absolute values.
_DEVIATION = 1.4826


@dataclass(frozen=True, eq=False)
class Group:
    """Neighbouring differences.

    `box` (4,) encloses the stronger ones in pixels; `mean` is their mean over the low threshold, in units of noise;
    `thickness` is the radius in pixels of the largest disc that fits inside; `at_edges` is the share of them that lie on edges.
    """

    box: NDArray[np.float64]
    mean: float
    thickness: float
    at_edges: float


@dataclass(frozen=True, eq=False)
class Light:
    """What makes the reference as bright as the target: a gain and an offset for each place, both (h, w) or (h, w, 3)."""

    gain: Image
    offset: Image

    def on(self, there: Image | RGB, height: int, top: int = 0, depth: int = cv2.CV_32F) -> Any:
        """Rows of the reference (h, W[, 3]), the first of them `top` of `height`, in the target's light, in OpenCV's `depth`."""
        gain, offset = (enlarged(part, there.shape[:2], height, top) for part in (self.gain, self.offset))
        return cv2.add(cv2.multiply(there, gain, dtype=cv2.CV_32F), offset, dtype=depth)


def flat(reference: RGB, target: RGB) -> tuple[RGB, RGB]:
    """The images (H, W) where both of them are grey, which costs a third, else themselves, (H, W, 3)."""
    # A few rows decide for nearly all that are not.
    for step in (64, 1):
        rows = [image[::step] for image in (reference, target)]
        if any((r[..., 0] != r[..., 1]).any() or (r[..., 0] != r[..., 2]).any() for r in rows):
            return reference, target
    return np.ascontiguousarray(reference[..., 0]), np.ascontiguousarray(target[..., 0])


def soften(image: RGB) -> RGB:
    """The image (H, W) or (H, W, 3) lightly blurred."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), _SOFTEN), dtype=np.uint8)


def enlarged(small: Image, shape: tuple[int, ...], height: int, top: int = 0) -> Image:
    """Rows from `top` on, of `shape` (h, W), of a map (h', w'[, C]) that is stretched to (`height`, W)."""
    rows, width = shape
    if rows == height:
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    x, y = small.shape[1] / width, small.shape[0] / height
    back = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2 + top * y]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(small, back, (width, rows), flags=how, borderMode=cv2.BORDER_REPLICATE))


def fit_light(there: Image | RGB, here: Image | RGB, covered: Mask) -> Light:
    """The light that makes `there` most like `here`, both (H, W[, 3]): fitted over windows far wider than a defect.

    He, Sun, Tang, "Guided image filtering" (2013), with the reference as the guide, weighted by what it covers. Fitted
    twice: what the first fit leaves far off has no say in the second, or a large defect would cast a halo around itself.
    """
    height, width = here.shape[:2]
    small = max(1, width // _LIGHT_SHRINK), max(1, height // _LIGHT_SHRINK)
    guide, seen, weight = (_small(p, small).astype(np.float32) for p in (there, here, _shown(covered)))
    weight /= 255
    gain, offset = _fit_light(guide, seen, weight)
    off = np.abs(seen - gain * guide - offset)
    off = off if off.ndim == 2 else off.max(axis=2)
    bound = max(_LIGHT_LEAST_OFF, _LIGHT_OFF * robust_deviation(off[weight > 0]))
    return Light(*_fit_light(guide, seen, weight * (off < bound)))


def _fit_light(guide: Image, seen: Image, weight: Image) -> tuple[Image, Image]:
    """Gain and offset at each pixel that make `guide` most like `seen` over the window around it."""
    window = max(3, max(guide.shape[:2]) // _LIGHT_WINDOW)
    weight = weight if guide.ndim == 2 else weight[..., None]

    def total(p: Image) -> Image:
        summed = cv2.blur(p, (window, window), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(summed if summed.ndim == p.ndim else summed[..., None])

    share = np.maximum(total(weight), 1e-6)
    guide_mean, seen_mean = total(weight * guide) / share, total(weight * seen) / share
    spread = total(weight * guide * guide) / share - guide_mean**2
    shared = total(weight * guide * seen) / share - guide_mean * seen_mean
    gain = np.clip((shared + _FLAT) / (spread + _FLAT), 1 / _LIGHT_GAIN, _LIGHT_GAIN).astype(np.float32)
    return gain, np.asarray(seen_mean - gain * guide_mean, dtype=np.float32)


def bend(there: Image | RGB, here: Image | RGB, covered: Mask, light: Light, start: Image | None = None) -> Image:
    """The smooth displacement (h, w, 2), in pixels of `here` (H, W[, 3]), that still separates the two after registration.

    Lucas and Kanade's least squares over wide windows, twice, at half the size or less. Only edges of the reference count, over
    windows several times a defect: what the target has and the reference has not pulls at nothing. It departs from
    `start`, the displacement of the same two images at another size, by at most _BEND_REACH pixels.
    """
    height, width = here.shape[:2]
    shrink = max(2.0, max(height, width) / _BEND_SIDE)
    small = max(1, int(width / shrink)), max(1, int(height / shrink))
    lit = light.on(_small(there, small).astype(np.float32), small[1])
    source, sink, weight = (channel_mean(_small(p, small).astype(np.float32)) for p in (lit, here, _shown(covered)))
    weight /= 255
    window = max(3, round(max(small) / _BEND_WINDOW / math.sqrt(2)))
    first = np.zeros((*source.shape, 2), np.float32)
    if start is not None:
        first = enlarged(start, source.shape, small[1]) / np.float32(shrink)
    field = first
    for _ in range(2):
        moved = displace(source, field)
        dx, dy = (cv2.Sobel(moved, cv2.CV_32F, i, 1 - i, scale=1 / 8) for i in (1, 0))
        off = np.clip(sink - moved, -_BEND_CLIP, _BEND_CLIP)
        # Twice a box: a box alone has negative frequencies, by which repeated steps would run away.
        sums = [
            cv2.blur(cv2.blur(weight * a * b, (window, window)), (window, window))
            for a, b in ((dx, dx), (dy, dy), (dx, dy), (dx, off), (dy, off))
        ]
        xx, yy, xy, xo, yo = sums
        xx, yy = xx + _BEND_RIDGE, yy + _BEND_RIDGE
        scale = 1 / (xx * yy - xy * xy)
        field = field + np.stack([(yy * xo - xy * yo) * scale, (xx * yo - xy * xo) * scale], axis=-1)
        field = np.clip(field, first - _BEND_REACH / shrink, first + _BEND_REACH / shrink)
    return np.asarray(shrink * field, dtype=np.float32)


def displace(image: NDArray[Any], field: Image) -> NDArray[Any]:
    """`image` (H, W[, 3]) read at each pixel plus `field` (H, W, 2)."""
    places = field + _grid(field.shape[:2])
    return np.asarray(cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _grid(shape: tuple[int, ...]) -> Image:
    """The place (H, W, 2) of each pixel: x, y."""
    rows, columns = shape
    across = np.broadcast_to(np.arange(columns, dtype=np.float32), shape)
    down = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], shape)
    return np.asarray(cv2.merge([across, down]))


def _shown(covered: Mask) -> RGB:
    return covered.view(np.uint8) * np.uint8(255)


def _small(image: Image | RGB, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def channel_mean(image: Image | RGB) -> Image:
    """Mean (H, W) of the channels, in the image's own type."""
    return np.asarray(image if image.ndim == 2 else cv2.transform(image, np.full((1, 3), 1 / 3, np.float32)))


def excess(here: RGB, there: RGB, tolerance: int) -> RGB:
    """How far (H, W) either image leaves the other's range within `tolerance` pixels; the largest of the channels.

    One direction finds what was added, the other what is missing, however thin it was.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    # Subtraction stops at 0: what lies within the other's range is no difference.
    over = cv2.subtract(here, cv2.dilate(there, disc))
    cv2.max(over, cv2.subtract(cv2.erode(there, disc), here), over)
    cv2.max(over, cv2.subtract(there, cv2.dilate(here, disc)), over)
    cv2.max(over, cv2.subtract(cv2.erode(here, disc), there), over)
    if over.ndim == 2:
        return np.asarray(over)
    red, green, blue = cv2.split(over)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def inside(covered: Mask, reach: int) -> Mask:
    """Pixels whose whole neighbourhood the reference covers: nearer the rim an edge may have come in from outside."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    eroded = cv2.erode(covered.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(eroded.view(np.bool_))


def robust_deviation(values: NDArray[Any]) -> float:
    """The standard deviation of normally distributed values about 0, by their median; 0 of none.

    Whole numbers stand for all that rounds to them, or the median would move in steps.
    """
    if not values.size:
        return 0.0
    size = np.abs(values)
    if size.dtype.kind == "f":
        return _DEVIATION * float(np.median(size))
    shares = np.cumsum(np.bincount(size.ravel())) / size.size
    return _DEVIATION * float(np.interp(0.5, [0.0, *shares], [0.0, *(np.arange(len(shares)) + 0.5)]))


def steepness(there: RGB) -> RGB:
    """Range (H, W) of grey levels within 3 x 3 pixels of (H, W[, 3])."""
    return np.asarray(cv2.morphologyEx(channel_mean(there), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))


def edge_mask(steep: RGB) -> Mask:
    """Where `steep` (H, W) is an edge beside the steepest of the image."""
    return np.asarray(steep > max(_EDGE_LEAST, _EDGE_SHARE * float(steep.max(initial=0))))


def edge_noise(over: RGB, at_edges: Mask) -> float:
    """What moved and ragged edges leave in this pair, in grey levels: a high quantile of `over` at edges, 0 without edges.

    It is taken tile by tile, and two thirds of the edges lie in tiles with no more: a large defect fills few tiles, so that it
    does not pass for the noise that hides it.
    """
    places = np.flatnonzero(at_edges)
    if not places.size:
        return 0.0
    # Some hundred thousand of them tell the quantile within a thousandth.
    places = places[:: max(1, places.size // _EDGE_SAMPLES)]
    height, width = over.shape
    ys, xs = np.divmod(places, width)
    tiles = ys * _EDGE_TILES // height * _EDGE_TILES + xs * _EDGE_TILES // width
    order = np.argsort(tiles, kind="stable")
    parts = np.split(over.ravel()[places][order], np.flatnonzero(np.diff(tiles[order])) + 1)
    found = np.array([np.quantile(part, _EDGE_QUANTILE) for part in parts])
    rising = np.argsort(found)
    reached = np.cumsum(np.array([len(part) for part in parts])[rising]) >= _EDGE_MOST * len(places)
    return float(found[rising][reached.argmax()])


def group(
    over: RGB | Image, unit: float, at_edges: Mask, *, low: float, high: float, core: float, grow: int, gap: int
) -> list[Group]:
    """Connected regions (H, W) over `low` units that reach `high` somewhere, grown by `grow`, joined over gaps of `gap` pixels.

    The envelope takes `tolerance` pixels off every region; growing by as much gives them back. `at_edges` (H, W) marks edges.
    A box encloses what reaches a share `core` of the group's strongest difference: faint noise that a gap joins to a defect at
    one size of the images, and not at another, does not move it.
    """
    weak = (over > low * unit).view(np.uint8)
    x, y, width, height = cv2.boundingRect(weak)
    if not width:
        return []
    # What is far from anything need not be searched; the rim leaves room to grow.
    rim = max(grow, gap) + 1
    left, top = max(0, x - rim), max(0, y - rim)
    part = np.s_[top : y + height + rim, left : x + width + rim]
    sides = np.array(over.shape[1::-1] * 2)
    weak, over, at_edges = weak[part], over[part], at_edges[part]
    depth = cv2.distanceTransform(weak, cv2.DIST_L2, 3)
    wide = cv2.dilate(weak, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8))
    joined = cv2.dilate(wide, np.ones((gap + 1, gap + 1), np.uint8)) if gap else wide
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    labels[wide == 0] = 0
    groups = []
    for label, place in enumerate(_slices(labels, count), start=1):
        own = (labels[place] == label) & (weak[place] > 0)
        values = over[place][own] / unit
        if values.size and values.max() >= high:
            strong = own & (over[place] >= core * float(values.max()) * unit)
            corner = np.array([place[1].start + left, place[0].start + top] * 2)
            box = np.clip(_enclosing(strong, grow) + corner, 0, sides)
            thickness, share = float(depth[place][own].max()), float(at_edges[place][own].mean())
            groups.append(Group(box, float(values.mean()), thickness, share))
    return groups


def _enclosing(mask: Mask, grow: int) -> NDArray[np.float64]:
    """The box (4,) around what (h, w) `mask` marks, `grow` pixels off on each side."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([xs[0] - grow, ys[0] - grow, xs[-1] + 1 + grow, ys[-1] + 1 + grow], np.float64)


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
