"""Small versions of images, read as cheaply as the file allows, for comparing many of them.

A JPEG is decoded at an eighth, a quarter or half of its size. Thumbnails are square, so the aspect ratio is stored separately.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from differad.data.sources.sample import CropBox
from differad.errors import ImageError
from differad.images import RGB, read_image, read_reduced

SIDE = 32
# Minimum shorter side after a reduced read, so that resizing to SIDE averages at least 2 x 2 pixels.
_MIN_SIDE = 2 * SIDE


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """An image resized to `pixels` (SIDE, SIDE, 3) uint8 RGB, and its `aspect`, width divided by height."""

    pixels: RGB
    aspect: float


def read_thumbnail(path: Path, region: CropBox | None = None) -> Thumbnail:
    """The thumbnail of an image, or of `region` (x1, y1, x2, y2 in pixels) of it. Raises ImageError."""
    image = read_region(path, region) if region is not None else read_reduced(path, _MIN_SIDE)
    pixels = np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return Thumbnail(pixels, image.shape[1] / image.shape[0])


def read_region(path: Path, region: CropBox) -> RGB:
    """The part of an image inside x1, y1, x2, y2 (pixels, x2/y2 exclusive). Raises ImageError."""
    image = _read_recent(path)
    x1, y1, x2, y2 = region
    if not (0 <= x1 < x2 <= image.shape[1] and 0 <= y1 < y2 <= image.shape[0]):
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise ImageError(f"{path}: region {region} is not inside its {size} pixels; unpack the data set again")
    return image[y1:y2, x1:x2]


@lru_cache(maxsize=2)
def _read_recent(path: Path) -> RGB:
    """Read an image; the last two are cached, since a strip is read once for each of its tiles."""
    return read_image(path)
