"""The resolution of an image: the size to which it can be shrunk without loss of detail.

A camera's 20 megapixels, a lens out of focus and an enlargement all hold fewer details than pixels. The locators count lengths
in pixels of images at the size that their edges resolve, so that an enlarged image is compared as the original is. Knows
nothing of registration or of defects.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.locators.comparison import channel_mean

# Standard deviation in pixels of the blur at which images are compared: edges about as narrow as pixels can show.
SHARP = 0.65
# Blur is measured by how much the largest gradients (the top 2 %) fall from the first of these Gaussian blurs to the second. The
# first hides noise and the steps of an enlargement. At least 50 pixels need a squared gradient of 4 (grey levels per pixel,
# squared).
_BLURS, _STEEPEST, _MIN_GRADIENT, _MIN_PIXELS = (1.0, 2.0), 0.02, 4.0, 50
# Blurs up to this one are measured well; above it the image is halved first. A step of one pixel has a variance of 1/12 itself.
_MAX_BLUR, _STEP_VARIANCE = 2.0, 1 / 12
# Images are not shrunk below these sides, which the fits of illumination and pose need.
_MIN_LONG, _MIN_SHORT = 256, 64
# Resolutions differ clearly from this ratio on.
_CLEAR_RATIO = 1.4
# Blur is measured in at most 8 x 8 tiles of 192 pixels.
_TILES, _TILE = 8, 192
# Nearest neighbour measures distances from a pixel's corner (0) or from its centre (1 half pixel).
_CENTERS = (0, 1)
# Enlargements by nearest neighbour below this factor repeat too few rows to be told from coincidence.
_MIN_REPEAT = 1.2
_MIN_DIFFERENT = 0.5


def resolved_share(image: RGB) -> float:
    """The share (0, 1] to which the sides of an image (H, W, 3) or (H, W) can be shrunk without loss of detail.

    1 for an image without edges.
    """
    share = 1.0
    while True:
        blur = _edge_blur(image)
        if blur is not None and (blur <= _MAX_BLUR or min(image.shape[:2]) < 2 * _MIN_SHORT):
            return share * min(1.0, SHARP / blur)
        if min(image.shape[:2]) < 2 * _MIN_SHORT:
            return 1.0
        height, width = image.shape[:2]
        image, share = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), share / 2


def at_common_resolution(reference: RGB, target: RGB, max_side: int) -> tuple[RGB, RGB]:
    """Both images shrunk to the coarser resolution of the two, and the target's longer side to `max_side` pixels at most.

    Both are assumed to show the same field of view. An image that need not be shrunk is returned itself.
    """
    target_share, reference_share, ratio = _shares(reference, target)
    common = min(target_share, reference_share, max_side / max(target.shape[:2]))
    return shrink(reference, common / ratio), shrink(target, common)


def matched(reference: RGB, target: RGB) -> tuple[RGB, RGB]:
    """The finer of the two shrunk to the resolution of the other if they differ clearly; else both unchanged."""
    target_share, reference_share, ratio = _shares(reference, target)
    if target_share > _CLEAR_RATIO * reference_share:
        return reference, shrink(target, reference_share)
    if reference_share > _CLEAR_RATIO * target_share:
        return shrink(reference, target_share / ratio), target
    return reference, target


def _shares(reference: RGB, target: RGB) -> tuple[float, float, float]:
    """The shares of the target's size that target and reference resolve, and the reference's size divided by the target's."""
    ratio = (reference.shape[0] * reference.shape[1] / (target.shape[0] * target.shape[1])) ** 0.5
    return resolved_share(target), resolved_share(reference) * ratio, ratio


def shrink(image: RGB, share: float) -> RGB:
    """The image with its sides times `share`, by area averages; its sides stay at least 256 and 64 pixels."""
    height, width = image.shape[:2]
    share = max(share, _MIN_LONG / max(height, width), _MIN_SHORT / min(height, width))
    if share >= 1:
        return image
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def without_repeats(image: RGB) -> RGB:
    """The original of an image that was enlarged by nearest neighbour, or the image itself.

    The result holds every sample, so nothing is lost: a row or column is left out only if all repeats of an enlargement
    equal the one before.
    """
    height, width = image.shape[:2]
    if min(height, width) < _MIN_SHORT:
        return image
    rows, columns = (_changes(image, axis) for axis in (0, 1))
    if max(rows.mean(), columns.mean()) > 1 / _MIN_REPEAT:
        return image
    # Rows of a plain area equal each other anyway: most rows of the original must differ.
    most = min(height / _MIN_REPEAT, rows.sum() / _MIN_DIFFERENT, columns.sum() / _MIN_DIFFERENT * height / width)
    for small in range(_MIN_SHORT, int(most) + 1):
        across = round(width * small / height)
        for center in _CENTERS:
            sources = [_NearestNeighbour(count, length, center) for count, length in ((small, height), (across, width))]
            if all(source.explains(changes) for source, changes in zip(sources, (rows, columns), strict=True)):
                return np.ascontiguousarray(image[sources[0].last_copies()][:, sources[1].last_copies()])
    return image


def common_margins(reference: RGB, target: RGB) -> tuple[RGB, RGB, tuple[int, int]]:
    """Both images without their margins of one colour, and the offset (x, y) of the rest of the target.

    Both are cropped by the same shares of their sides, as far as both are plain: such margins do not show the part.
    """
    cuts = [(*_plain_rows(image), *_plain_rows(image.transpose(1, 0, 2))) for image in (reference, target)]
    shares = [
        min(cut / image.shape[side // 2] for cut, image in zip(both, (reference, target), strict=True))
        for side, both in enumerate(zip(*cuts, strict=True))
    ]
    windows = [_inside(image.shape, shares) for image in (reference, target)]
    if any(min(rows.stop - rows.start, columns.stop - columns.start) < _MIN_SHORT for rows, columns in windows):
        return reference, target, (0, 0)
    first, second = (image[rows, columns] for image, (rows, columns) in zip((reference, target), windows, strict=True))
    return np.ascontiguousarray(first), np.ascontiguousarray(second), (windows[1][1].start, windows[1][0].start)


def _plain_rows(image: RGB) -> tuple[int, int]:
    """Number of rows at the top and at the bottom of (H, W, C) that have one colour, that of their first pixel."""
    counts = []
    for rows in (image, image[::-1]):
        first_other = next((y for y, row in enumerate(rows) if (row != rows[0, 0]).any()), 0)
        counts.append(first_other)
    return counts[0], counts[1]


def _inside(shape: tuple[int, ...], shares: list[float]) -> tuple[slice, slice]:
    """The rows and columns of (H, W) that remain if shares of them are cropped at the top, bottom, left and right."""
    top, bottom, left, right = (round(share * shape[side // 2]) for side, share in enumerate(shares))
    return slice(top, shape[0] - bottom), slice(left, shape[1] - right)


def _edge_blur(image: RGB) -> float | None:
    """Standard deviation in pixels of the blur of the image's sharpest edges; None if it has too few."""
    tiles = _tiles(image)
    steep, flatter = (
        np.concatenate([_squared_gradient(cv2.GaussianBlur(tile, (0, 0), width)) for tile in tiles]) for width in _BLURS
    )
    chosen = steep >= max(_MIN_GRADIENT, float(np.quantile(steep, 1 - _STEEPEST)) if steep.size else 0.0)
    if chosen.sum() < _MIN_PIXELS:
        return None
    gain = float(steep[chosen].mean()) / max(float(flatter[chosen].mean()), 1e-6)
    # After a blur of s a step has a slope of 1 / s. From a further blur of r to one of R the squared slope falls by
    # (s^2 + R^2) / (s^2 + r^2) (after Zhuo and Sim, "Defocus map estimation from a single image", 2011).
    first, second = (width**2 for width in _BLURS)
    return math.sqrt(max((second - gain * first) / max(gain - 1, 1e-3) - _STEP_VARIANCE, 0.01))


def _tiles(image: RGB) -> list[NDArray[np.float32]]:
    """Channel means of tiles spread over the image, or of the whole image if it is small."""
    height, width = image.shape[:2]
    tops, lefts = (_starts(length) for length in (height, width))
    tiles = [image[y : y + _span(height), x : x + _span(width)] for y in tops for x in lefts]
    return [channel_mean(tile.astype(np.float32)) for tile in tiles]


def _span(length: int) -> int:
    return length if length <= _TILES * _TILE else _TILE


def _starts(length: int) -> list[int]:
    if length <= _TILES * _TILE:
        return [0]
    return [int(at) for at in np.linspace(0, length - _TILE, _TILES)]


def _squared_gradient(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    across, down = tile[:-1, 1:] - tile[:-1, :-1], tile[1:, :-1] - tile[:-1, :-1]
    return np.asarray(across * across + down * down).ravel()


def _changes(image: RGB, axis: int) -> NDArray[np.bool_]:
    """Mask of the rows (axis 0) or columns (axis 1) that differ from the one before; False for the first."""
    image = image if image.ndim == 3 else image[..., None]
    image = image if axis == 0 else image.transpose(1, 0, 2)
    # A few samples of each suffice for nearly all images whose rows all differ.
    few = image[:, :: max(1, image.shape[1] // 64)]
    differ = (few[1:] != few[:-1]).any(axis=(1, 2))
    if differ.mean() <= 1 / _MIN_REPEAT:
        differ = np.array([bool((a != b).any()) for a, b in zip(image[1:], image[:-1], strict=True)])
    return np.concatenate([[False], differ])


class _NearestNeighbour:
    """The row of `small` that nearest neighbour copies to each row of `large`.

    Two rows may be equally near. Libraries round differently, so that such a tie may go to either.
    """

    def __init__(self, small: int, large: int, center: int) -> None:
        self._row, rest = np.divmod((2 * np.arange(large) + center) * small, 2 * large)
        self._tie = rest == 0

    def explains(self, changes: NDArray[np.bool_]) -> bool:
        """Whether an image with these changes (large,) changes only from the copies of one row to those of the next."""
        inside = np.flatnonzero(changes[1:] & (np.diff(self._row) == 0)) + 1
        return bool((self._tie[inside - 1] & ~changes[inside - 1]).all())

    def last_copies(self) -> NDArray[np.int64]:
        """The last copy of each row. It is never a tie: a tie is always the first copy."""
        return np.flatnonzero(np.diff(self._row, append=self._row[-1] + 1) > 0)
