"""Compare two aligned images: normalise illumination, take range envelopes, measure noise, group the differences.

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

# Blur of both images before the comparison, in pixels: single noisy pixels and JPEG ripples are no difference.
_BLUR_SIGMA = 0.8
# Illumination is fitted at an eighth of the size, over windows of a third of the longer side, with gains of at most 2.
_ILLUMINATION_SHRINK, _ILLUMINATION_WINDOW, _MAX_GAIN = 8, 3, 2.0
# A pixel of the shrunk image is an outlier of the fit from three robust deviations on, and from 10 grey levels on.
_OUTLIER_DEVIATIONS, _MIN_OUTLIER = 3.0, 10.0
# Variance (grey levels squared) below which a window is flat: only its offset is fitted.
_FLAT_VARIANCE = 25.0
# Flow: windows of a fifth of the longer side, at most 3 pixels. Residuals are clipped to 40 levels. The ridge keeps the flow at
# 0 where edges are weaker than a level per pixel (squared, mean over the window).
_FLOW_WINDOW, _MAX_FLOW, _FLOW_CLIP, _FLOW_RIDGE = 5, 3.0, 40.0, 1.0
# The flow is estimated at no more than this side: windows this wide give it to a small part of a pixel.
_FLOW_SIDE = 1024

# Pixels are edges from a quarter of the largest gradient on, and from 10 grey levels on. The 98 % quantile of a tile's edges is
# noise, above it may be defect. So may be all tiles beyond those that hold two thirds of the edges. There are 8 x 8 tiles.
_EDGE_SHARE, _MIN_EDGE, _EDGE_QUANTILE, _EDGE_MAJORITY, _EDGE_TILES = 0.25, 10.0, 0.98, 2 / 3, 8
_EDGE_SAMPLES = 500_000
# Standard deviation of a normal distribution divided by its median absolute value.
_DEVIATION = 1.4826


@dataclass(frozen=True, eq=False)
class Group:
    """A group of neighbouring differences.

    `box` (4,) encloses the stronger ones, in pixels. `mean` is the mean of those above the low threshold, in units of noise.
    `thickness` is the radius in pixels of the largest disc that fits inside. `at_edges` is the share on edges.
    """

    box: NDArray[np.float64]
    mean: float
    thickness: float
    at_edges: float


@dataclass(frozen=True, eq=False)
class Illumination:
    """Gain and offset of each pixel that make the reference as bright as the target, both (h, w) or (h, w, 3)."""

    gain: Image
    offset: Image

    def apply(self, reference: Image | RGB, height: int, top: int = 0, depth: int = cv2.CV_32F) -> Any:
        """Rows of the reference (h, W[, 3]), from row `top` of `height` on, in the target's illumination and OpenCV's `depth`."""
        gain, offset = (upsample_rows(part, reference.shape[:2], height, top) for part in (self.gain, self.offset))
        return cv2.add(cv2.multiply(reference, gain, dtype=cv2.CV_32F), offset, dtype=depth)


def squeeze_grey(reference: RGB, target: RGB) -> tuple[RGB, RGB]:
    """The images as (H, W) if both are grey, which takes a third of the time; else unchanged, (H, W, 3)."""
    # A few rows suffice for nearly all images that are not grey.
    for step in (64, 1):
        rows = [image[::step] for image in (reference, target)]
        if any((r[..., 0] != r[..., 1]).any() or (r[..., 0] != r[..., 2]).any() for r in rows):
            return reference, target
    return np.ascontiguousarray(reference[..., 0]), np.ascontiguousarray(target[..., 0])


def gaussian_blur(image: RGB) -> RGB:
    """The image (H, W) or (H, W, 3), blurred a little."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), _BLUR_SIGMA), dtype=np.uint8)


def upsample_rows(small: Image, shape: tuple[int, ...], height: int, top: int = 0) -> Image:
    """Rows of `shape` (h, W), from `top` on, of a map (h', w'[, C]) resized to (`height`, W)."""
    rows, width = shape
    if rows == height:
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    x, y = small.shape[1] / width, small.shape[0] / height
    back = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2 + top * y]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(small, back, (width, rows), flags=how, borderMode=cv2.BORDER_REPLICATE))


def fit_illumination(reference: Image | RGB, target: Image | RGB, covered: Mask) -> Illumination:
    """The illumination that makes `reference` most like `target`, both (H, W[, 3]): fitted over windows far wider than a defect.

    He, Sun, Tang, "Guided image filtering" (2013), with the reference as the guide, weighted by `covered` (H, W). Fitted
    twice: the second fit leaves out the outliers of the first, since a large defect would have a halo otherwise.
    """
    height, width = target.shape[:2]
    small = max(1, width // _ILLUMINATION_SHRINK), max(1, height // _ILLUMINATION_SHRINK)
    guide, values, weight = (_shrunk(p, small).astype(np.float32) for p in (reference, target, _as_bytes(covered)))
    weight /= 255
    gain, offset = _fit_gain_and_offset(guide, values, weight)
    error = np.abs(values - gain * guide - offset)
    error = error if error.ndim == 2 else error.max(axis=2)
    bound = max(_MIN_OUTLIER, _OUTLIER_DEVIATIONS * robust_deviation(error[weight > 0]))
    return Illumination(*_fit_gain_and_offset(guide, values, weight * (error < bound)))


def _fit_gain_and_offset(guide: Image, values: Image, weight: Image) -> tuple[Image, Image]:
    """Gain and offset at each pixel that make `guide` most like `values` over the window around it."""
    window = max(3, max(guide.shape[:2]) // _ILLUMINATION_WINDOW)
    weight = weight if guide.ndim == 2 else weight[..., None]

    def total(p: Image) -> Image:
        summed = cv2.blur(p, (window, window), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(summed if summed.ndim == p.ndim else summed[..., None])

    share = np.maximum(total(weight), 1e-6)
    guide_mean, values_mean = total(weight * guide) / share, total(weight * values) / share
    spread = total(weight * guide * guide) / share - guide_mean**2
    shared = total(weight * guide * values) / share - guide_mean * values_mean
    gain = np.clip((shared + _FLAT_VARIANCE) / (spread + _FLAT_VARIANCE), 1 / _MAX_GAIN, _MAX_GAIN).astype(np.float32)
    return gain, np.asarray(values_mean - gain * guide_mean, dtype=np.float32)


def estimate_flow(
    reference: Image | RGB, target: Image | RGB, covered: Mask, illumination: Illumination, start: Image | None = None
) -> Image:
    """The smooth flow (h, w, 2), in pixels of `target` (H, W[, 3]), that remains between the two after registration.

    Lucas and Kanade's least squares over wide windows, twice, at half the size or less. Only edges of the reference count, over
    windows several times as wide as a defect: a defect, which the reference does not have, has no effect. The flow differs from
    `start`, the flow of the same two images at another size, by at most _MAX_FLOW pixels.
    """
    height, width = target.shape[:2]
    shrink = max(2.0, max(height, width) / _FLOW_SIDE)
    small = max(1, int(width / shrink)), max(1, int(height / shrink))
    lit = illumination.apply(_shrunk(reference, small).astype(np.float32), small[1])
    source, sink, weight = (
        channel_mean(_shrunk(p, small).astype(np.float32)) for p in (lit, target, _as_bytes(covered))
    )
    weight /= 255
    window = max(3, round(max(small) / _FLOW_WINDOW / math.sqrt(2)))
    first = np.zeros((*source.shape, 2), np.float32)
    if start is not None:
        first = upsample_rows(start, source.shape, small[1]) / np.float32(shrink)
    flow = first
    for _ in range(2):
        moved = warp_by_flow(source, flow)
        dx, dy = (cv2.Sobel(moved, cv2.CV_32F, i, 1 - i, scale=1 / 8) for i in (1, 0))
        error = np.clip(sink - moved, -_FLOW_CLIP, _FLOW_CLIP)
        # Two box filters: the response of one is negative at some frequencies, where repeated steps would diverge.
        sums = [
            cv2.blur(cv2.blur(weight * a * b, (window, window)), (window, window))
            for a, b in ((dx, dx), (dy, dy), (dx, dy), (dx, error), (dy, error))
        ]
        xx, yy, xy, xo, yo = sums
        xx, yy = xx + _FLOW_RIDGE, yy + _FLOW_RIDGE
        scale = 1 / (xx * yy - xy * xy)
        flow = flow + np.stack([(yy * xo - xy * yo) * scale, (xx * yo - xy * xo) * scale], axis=-1)
        flow = np.clip(flow, first - _MAX_FLOW / shrink, first + _MAX_FLOW / shrink)
    return np.asarray(shrink * flow, dtype=np.float32)


def warp_by_flow(image: NDArray[Any], flow: Image) -> NDArray[Any]:
    """`image` (H, W[, 3]) sampled at each pixel plus `flow` (H, W, 2)."""
    positions = flow + _pixel_grid(flow.shape[:2])
    return np.asarray(cv2.remap(image, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _pixel_grid(shape: tuple[int, ...]) -> Image:
    """The coordinates (H, W, 2) of each pixel: x, y."""
    rows, columns = shape
    across = np.broadcast_to(np.arange(columns, dtype=np.float32), shape)
    down = np.broadcast_to(np.arange(rows, dtype=np.float32)[:, None], shape)
    return np.asarray(cv2.merge([across, down]))


def _as_bytes(covered: Mask) -> RGB:
    return covered.view(np.uint8) * np.uint8(255)


def _shrunk(image: Image | RGB, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def channel_mean(image: Image | RGB) -> Image:
    """Mean (H, W) of the channels, in the image's own type."""
    return np.asarray(image if image.ndim == 2 else cv2.transform(image, np.full((1, 3), 1 / 3, np.float32)))


def tolerance_difference(target: RGB, reference: RGB, tolerance: int) -> RGB:
    """How far (H, W) either image is outside the other's range within `tolerance` pixels; the maximum over the channels.

    One direction finds what was added, the other what is missing, however thin it is.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    # Subtraction saturates at 0: values within the other image's range are no difference.
    difference = cv2.subtract(target, cv2.dilate(reference, disc))
    cv2.max(difference, cv2.subtract(cv2.erode(reference, disc), target), difference)
    cv2.max(difference, cv2.subtract(reference, cv2.dilate(target, disc)), difference)
    cv2.max(difference, cv2.subtract(cv2.erode(target, disc), reference), difference)
    if difference.ndim == 2:
        return np.asarray(difference)
    red, green, blue = cv2.split(difference)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def erode_mask(covered: Mask, reach: int) -> Mask:
    """Pixels whose whole neighbourhood the reference covers: nearer to the border an edge may come from outside."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    eroded = cv2.erode(covered.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(eroded.view(np.bool_))


def robust_deviation(values: NDArray[Any]) -> float:
    """The standard deviation of normally distributed values about 0, by their median; 0 of none.

    An integer stands for all values that round to it: otherwise the median would move in steps.
    """
    if not values.size:
        return 0.0
    size = np.abs(values)
    if size.dtype.kind == "f":
        return _DEVIATION * float(np.median(size))
    shares = np.cumsum(np.bincount(size.ravel())) / size.size
    return _DEVIATION * float(np.interp(0.5, [0.0, *shares], [0.0, *(np.arange(len(shares)) + 0.5)]))


def morphological_gradient(image: RGB) -> RGB:
    """Range (H, W) of grey levels within 3 x 3 pixels of an image (H, W[, 3])."""
    return np.asarray(cv2.morphologyEx(channel_mean(image), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))


def edge_mask(gradient: RGB) -> Mask:
    """Pixels (H, W) where `gradient` (H, W) is an edge, relative to the largest gradient of the image."""
    return np.asarray(gradient > max(_MIN_EDGE, _EDGE_SHARE * float(gradient.max(initial=0))))


def edge_noise(difference: RGB, at_edges: Mask) -> float:
    """The noise of moved and ragged edges, in grey levels: a high quantile of `difference` (H, W) at edges, 0 without edges.

    The quantile is taken in each tile; two thirds of the edges are in tiles at or below the result. A large defect fills few
    tiles, so that it does not count as noise.
    """
    positions = np.flatnonzero(at_edges)
    if not positions.size:
        return 0.0
    # Some hundred thousand values give the quantile to a thousandth.
    positions = positions[:: max(1, positions.size // _EDGE_SAMPLES)]
    height, width = difference.shape
    ys, xs = np.divmod(positions, width)
    tiles = ys * _EDGE_TILES // height * _EDGE_TILES + xs * _EDGE_TILES // width
    order = np.argsort(tiles, kind="stable")
    parts = np.split(difference.ravel()[positions][order], np.flatnonzero(np.diff(tiles[order])) + 1)
    quantiles = np.array([np.quantile(part, _EDGE_QUANTILE) for part in parts])
    rising = np.argsort(quantiles)
    reached = np.cumsum(np.array([len(part) for part in parts])[rising]) >= _EDGE_MAJORITY * len(positions)
    return float(quantiles[rising][reached.argmax()])


def group(
    difference: RGB | Image, unit: float, at_edges: Mask, *, low: float, high: float, core: float, grow: int, gap: int
) -> list[Group]:
    """Connected regions (H, W) over `low` units that reach `high` somewhere, grown by `grow`, joined over gaps of `gap` pixels.

    `tolerance_difference` shrinks every region by its tolerance; `grow` restores that. `at_edges` (H, W) marks edges. A box
    encloses the pixels with at least a share `core` of the group's largest difference: faint noise that the gap joins to a defect
    at one size of the images, and not at another, does not move it.
    """
    weak = (difference > low * unit).view(np.uint8)
    x, y, width, height = cv2.boundingRect(weak)
    if not width:
        return []
    # Only the bounding box of all differences is searched, with a border to grow into.
    border = max(grow, gap) + 1
    left, top = max(0, x - border), max(0, y - border)
    part = np.s_[top : y + height + border, left : x + width + border]
    sides = np.array(difference.shape[1::-1] * 2)
    weak, difference, at_edges = weak[part], difference[part], at_edges[part]
    depth = cv2.distanceTransform(weak, cv2.DIST_L2, 3)
    wide = cv2.dilate(weak, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8))
    joined = cv2.dilate(wide, np.ones((gap + 1, gap + 1), np.uint8)) if gap else wide
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    labels[wide == 0] = 0
    groups = []
    for label, window in enumerate(_label_slices(labels, count), start=1):
        member = (labels[window] == label) & (weak[window] > 0)
        values = difference[window][member] / unit
        if values.size and values.max() >= high:
            strong = member & (difference[window] >= core * float(values.max()) * unit)
            corner = np.array([window[1].start + left, window[0].start + top] * 2)
            box = np.clip(_bounding_box(strong, grow) + corner, 0, sides)
            thickness, share = float(depth[window][member].max()), float(at_edges[window][member].mean())
            groups.append(Group(box, float(values.mean()), thickness, share))
    return groups


def _bounding_box(mask: Mask, grow: int) -> NDArray[np.float64]:
    """The box (4,) around the pixels of `mask` (h, w), grown by `grow` pixels on each side."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([xs[0] - grow, ys[0] - grow, xs[-1] + 1 + grow, ys[-1] + 1 + grow], np.float64)


def _label_slices(labels: NDArray[np.int32], count: int) -> list[tuple[slice, slice]]:
    """Row and column slices of each label 1 .. count - 1."""
    ys, xs = np.nonzero(labels)
    marked = labels[ys, xs]
    low = np.full((count, 2), np.iinfo(np.int64).max)
    high = np.zeros((count, 2), np.int64)
    for axis, values in enumerate((ys, xs)):
        np.minimum.at(low[:, axis], marked, values)
        np.maximum.at(high[:, axis], marked, values + 1)
    return [(slice(a[0], b[0]), slice(a[1], b[1])) for a, b in zip(low[1:].tolist(), high[1:].tolist(), strict=True)]
