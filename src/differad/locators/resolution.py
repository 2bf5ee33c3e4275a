"""How finely an image shows what it shows: the size it can be shrunk to and lose nothing.

A camera's 20 megapixels, a lens out of focus and an enlargement all hold fewer details than pixels. Lengths of the locators are
pixels of images at the size that their own edges ask for, so that an enlarged image is compared as the original was. Knows
nothing of registration or of defects.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.locators.comparison import channel_mean

# Standard deviation in pixels of the blur that images are compared at: edges about as narrow as pixels can show them.
SHARP = 0.65
# The blur is measured by how much flatter the steepest pixels get from one blur of these standard deviations to the other. The
# first hides noise and the stairs of an enlargement; fewer pixels of at least this slope (grey levels a pixel, squared) tell
# nothing.
_BLURS, _STEEPEST, _LEAST_STEEP, _LEAST_PIXELS = (1.0, 2.0), 0.02, 4.0, 50
# It is told well up to this one; beyond it the image is halved first. A step of one pixel has this variance of its own.
_WIDEST, _STEP_VARIANCE = 2.0, 1 / 12
# Images are not shrunk below these sides, which the fit of light and pose needs.
_LEAST_LONG, _LEAST_SHORT = 256, 64
# Resolutions differ plainly from this ratio on.
_PLAINLY = 1.4
# Tiles that are measured: at most so many each way, of so many pixels.
_TILES, _TILE = 8, 192
# A sample is copied to where it lies nearest, counted in half pixels from its corner or from its middle.
_CENTERS = (0, 1)
# Enlargements by nearest neighbour under this factor repeat too few rows to tell them from chance.
_LEAST_REPEAT = 1.2
_LEAST_DIFFERENT = 0.5


def resolved_share(image: RGB) -> float:
    """The share (0, 1] to which the sides of an image (H, W, 3) or (H, W) can be shrunk without loss of detail.

    1 of an image without an edge.
    """
    share = 1.0
    while True:
        blur = _edge_blur(image)
        if blur is not None and (blur <= _WIDEST or min(image.shape[:2]) < 2 * _LEAST_SHORT):
            return share * min(1.0, SHARP / blur)
        if min(image.shape[:2]) < 2 * _LEAST_SHORT:
            return 1.0
        height, width = image.shape[:2]
        image, share = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA), share / 2


def at_common_resolution(reference: RGB, target: RGB, max_side: int) -> tuple[RGB, RGB]:
    """Both images shrunk to the coarser resolution of the two, and the target's longer side to `max_side` pixels at most.

    Both are taken to show the same field of view. Either comes back itself where nothing is to be shrunk.
    """
    own, other, ratio = _shares(reference, target)
    common = min(own, other, max_side / max(target.shape[:2]))
    return shrink(reference, common / ratio), shrink(target, common)


def matched(reference: RGB, target: RGB) -> tuple[RGB, RGB]:
    """The finer of the two shrunk to the resolution of the other where they differ plainly; else both as they are."""
    own, other, ratio = _shares(reference, target)
    if own > _PLAINLY * other:
        return reference, shrink(target, other)
    if other > _PLAINLY * own:
        return shrink(reference, own / ratio), target
    return reference, target


def _shares(reference: RGB, target: RGB) -> tuple[float, float, float]:
    """The shares of the target's size that the target and the reference resolve, and the reference's size by the target's."""
    ratio = (reference.shape[0] * reference.shape[1] / (target.shape[0] * target.shape[1])) ** 0.5
    return resolved_share(target), resolved_share(reference) * ratio, ratio


def shrink(image: RGB, share: float) -> RGB:
    """The image with its sides at a share of theirs, by areas, not below 256 pixels of length or 64 of width."""
    height, width = image.shape[:2]
    share = max(share, _LEAST_LONG / max(height, width), _LEAST_SHORT / min(height, width))
    if share >= 1:
        return image
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def without_repeats(image: RGB) -> RGB:
    """The original of an image that was enlarged by nearest neighbour, or the image itself.

    What comes back holds every sample, so nothing can be lost: rows and columns are left out where a whole enlargement's
    worth of them equals the one before.
    """
    height, width = image.shape[:2]
    if min(height, width) < _LEAST_SHORT:
        return image
    rows, columns = (_changes(image, axis) for axis in (0, 1))
    if max(rows.mean(), columns.mean()) > 1 / _LEAST_REPEAT:
        return image
    # Rows of a plain area are equal in themselves: most rows of the original must differ.
    most = min(height / _LEAST_REPEAT, rows.sum() / _LEAST_DIFFERENT, columns.sum() / _LEAST_DIFFERENT * height / width)
    for small in range(_LEAST_SHORT, int(most) + 1):
        across = round(width * small / height)
        for center in _CENTERS:
            sources = [_Source(count, own, center) for count, own in ((small, height), (across, width))]
            if all(source.explains(own) for source, own in zip(sources, (rows, columns), strict=True)):
                return np.ascontiguousarray(image[sources[0].last_copies()][:, sources[1].last_copies()])
    return image


def common_margins(reference: RGB, target: RGB) -> tuple[RGB, RGB, tuple[int, int]]:
    """Both images without the margins in which each has one colour alone, and where the target's rest begins: x, y.

    As much is cut from either, in shares of its sides, as is plain in both: that says nothing of the part.
    """
    cuts = [(*_plain_rows(image), *_plain_rows(image.transpose(1, 0, 2))) for image in (reference, target)]
    shares = [
        min(cut / image.shape[side // 2] for cut, image in zip(both, (reference, target), strict=True))
        for side, both in enumerate(zip(*cuts, strict=True))
    ]
    kept = [_inside(image.shape, shares) for image in (reference, target)]
    if any(min(rows.stop - rows.start, columns.stop - columns.start) < _LEAST_SHORT for rows, columns in kept):
        return reference, target, (0, 0)
    first, second = (image[rows, columns] for image, (rows, columns) in zip((reference, target), kept, strict=True))
    return np.ascontiguousarray(first), np.ascontiguousarray(second), (kept[1][1].start, kept[1][0].start)


def _plain_rows(image: RGB) -> tuple[int, int]:
    """How many rows at the top and at the bottom of (H, W, C) have the colour of their first pixel alone."""
    found = []
    for rows in (image, image[::-1]):
        other = next((y for y, row in enumerate(rows) if (row != rows[0, 0]).any()), 0)
        found.append(other)
    return found[0], found[1]


def _inside(shape: tuple[int, ...], shares: list[float]) -> tuple[slice, slice]:
    """The rows and columns that are left of (H, W) where shares of them go at the top, the bottom, the left and the right."""
    top, bottom, left, right = (round(share * shape[side // 2]) for side, share in enumerate(shares))
    return slice(top, shape[0] - bottom), slice(left, shape[1] - right)


def _edge_blur(image: RGB) -> float | None:
    """Standard deviation in pixels of the blur of the image's steepest edges; None where it has hardly any."""
    tiles = _tiles(image)
    steep, flatter = (
        np.concatenate([_squared_gradient(cv2.GaussianBlur(tile, (0, 0), width)) for tile in tiles]) for width in _BLURS
    )
    chosen = steep >= max(_LEAST_STEEP, float(np.quantile(steep, 1 - _STEEPEST)) if steep.size else 0.0)
    if chosen.sum() < _LEAST_PIXELS:
        return None
    gain = float(steep[chosen].mean()) / max(float(flatter[chosen].mean()), 1e-6)
    # A blur of s makes a step's slope 1 / s: between r and R more it falls by (s^2 + R^2) / (s^2 + r^2) in squares (after Zhuo
    # and Sim, "Defocus map estimation from a single image", 2011).
    first, second = (width**2 for width in _BLURS)
    return math.sqrt(max((second - gain * first) / max(gain - 1, 1e-3) - _STEP_VARIANCE, 0.01))


def _tiles(image: RGB) -> list[NDArray[np.float32]]:
    """Mean of the channels of tiles spread over the image, all of it where it is small."""
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
    """Which rows (axis 0) or columns (axis 1) differ from the one before; the first does not."""
    image = image if image.ndim == 3 else image[..., None]
    image = image if axis == 0 else image.transpose(1, 0, 2)
    # A few samples of each decide for nearly all images that every one differs.
    few = image[:, :: max(1, image.shape[1] // 64)]
    differ = (few[1:] != few[:-1]).any(axis=(1, 2))
    if differ.mean() <= 1 / _LEAST_REPEAT:
        differ = np.array([bool((a != b).any()) for a, b in zip(image[1:], image[:-1], strict=True)])
    return np.concatenate([[False], differ])


class _Source:
    """Which of `small` rows nearest neighbour copies to each of `large`.

    Where two are as near, rounding decides, differently in each library, so that a tie may go to either.
    """

    def __init__(self, small: int, large: int, center: int) -> None:
        self._row, rest = np.divmod((2 * np.arange(large) + center) * small, 2 * large)
        self._tie = rest == 0

    def explains(self, changes: NDArray[np.bool_]) -> bool:
        """Whether the image changes (large,) only from one row's copies to the next one's."""
        inside = np.flatnonzero(changes[1:] & (np.diff(self._row) == 0)) + 1
        return bool((self._tie[inside - 1] & ~changes[inside - 1]).all())

    def last_copies(self) -> NDArray[np.int64]:
        """The last copy of each row, which is no tie: a tie is always the first."""
        return np.flatnonzero(np.diff(self._row, append=self._row[-1] + 1) > 0)
