"""Pair features, the input of the embedded policy: how each target patch differs from the nearest reference patches.

Both images run through the frozen backbone; nothing here is trained. A row belongs to a patch of 16 x 16 pixels of the resized
target: its four cells of stride 8, then its cell of stride 16. A cell holds the squared difference to the nearest reference
patch, channel by channel, and distances: to the nearest reference patch anywhere, within a tenth of the sides and within a
thirtieth; from that nearest patch to the rest of the reference (repeated texture is expected); from the reference patches around
the same position to the nearest of the target (missing parts); and, if the reference can be aligned to the target, the difference
of pixels. NumPy and OpenCV; knows nothing of policies, text or boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.locators.comparison import Image
from differad.locators.difference import DifferenceLocator
from differad.locators.features.backbone import Backbone, Features
from differad.locators.features.nearest import window_mask
from differad.locators.registration import grey, register

PairFeatures = NDArray[np.float32]
PATCH = 16
# Area in pixels to which images are resized, as nearly as their shape allows.
AREA = 384 * 384
# Channels of the backbone at strides 8 and 16.
FINE, COARSE = 40, 112
# Half sides of the two windows around a position, as shares of height and width.
REACHES = (0.1, 0.033)
# A reference patch is compared with its own image beyond this share of the sides.
SELF_REACH = 0.06
# Distances of each cell besides its channels: whole, two windows, self-distance, missing, aligned pixels.
DISTANCES = 6
# Quantiles of the reference's self-distance, repeated in every cell: how varied a normal sample is.
QUANTILES = (0.5, 0.9, 0.99)
# Plus a flag: whether the reference could be aligned.
CELL_EXTRA = DISTANCES + len(QUANTILES) + 1
WIDTH = 4 * (FINE + CELL_EXTRA) + COARSE + CELL_EXTRA
# Distances are at most 2; squared differences of single channels are small and are scaled to the same order.
CHANNEL_GAIN = 16.0
# Pixels differ from three units of noise on; this times log(1 + difference) is of the order of a distance.
_PIXEL_GAIN = 0.7


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """One stride of a reference: its patches (h, w, C) and their distances (h, w) to the nearest of the same image."""

    patches: Features
    self_distance: Features


def reference_features(backbone: Backbone, image: RGB) -> list[ReferenceFeatures]:
    """Strides 8 and 16 of a resized reference (H, W, 3), sides multiples of 16."""
    return [ReferenceFeatures(patches, _self_distance(patches)) for patches in backbone.patches(image)]


def aligned_difference(reference: RGB, target: RGB) -> Image | None:
    """Difference of each target pixel from the aligned reference, (H, W), in units of the pair's noise.

    Images are (H, W, 3). None if no motion aligns the reference to the target.
    """
    registration = register(grey(reference), grey(target))
    return DifferenceLocator().difference(reference, target, registration) if registration.accepted else None


def pair_features(
    target: Sequence[Features], reference: Sequence[ReferenceFeatures], pixels: Image | None = None
) -> PairFeatures:
    """Rows (H / 16, W / 16, WIDTH) for the `backbone.patches` of a target; `pixels` is its `aligned_difference`."""
    fine, coarse = (
        _compare(patches_row, reference_stride, pixels)
        for patches_row, reference_stride in zip(target, reference, strict=True)
    )
    height, width = coarse.shape[:2]
    cells = fine[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).transpose(0, 2, 1, 3, 4)
    return np.concatenate([cells.reshape(height, width, -1), coarse], axis=-1)


def _compare(target: Features, reference: ReferenceFeatures, pixels: Image | None) -> PairFeatures:
    """(h, w, C + CELL_EXTRA) of one stride."""
    patches = reference.patches
    rows, columns, channels = patches.shape
    bank = np.ascontiguousarray(patches.reshape(-1, channels).T)
    features = np.empty((*target.shape[:2], channels + CELL_EXTRA), np.float32)
    reverse = np.full((rows, columns), -1.0, np.float32)
    windows = [(window_mask(len(target), rows, r), ~window_mask(target.shape[1], columns, r)) for r in REACHES]
    self_distance = reference.self_distance.ravel()
    for y, patches_row in enumerate(target):
        similarity = patches_row @ bank
        best = similarity.argmax(axis=1)
        features[y, :, channels] = _distance(np.take_along_axis(similarity, best[:, None], axis=1)[:, 0])
        features[y, :, channels + 3] = self_distance[best]
        chosen = patches.reshape(-1, channels)[best]
        grid = similarity.reshape(-1, rows, columns)
        for number, (beside, outside) in enumerate(windows):
            part = grid[:, beside[y]].copy()
            part[np.broadcast_to(outside[:, None], part.shape)] = -1.0
            features[y, :, channels + 1 + number] = _distance(part.max(axis=(1, 2)))
            if number == 0:
                reverse[beside[y]] = np.maximum(reverse[beside[y]], part.max(axis=0))
                if channels == FINE:
                    flat = part.reshape(len(patches_row), -1).argmax(axis=1)
                    chosen = patches[beside[y]].reshape(-1, channels)[flat]
        features[y, :, :channels] = CHANNEL_GAIN * (patches_row - chosen) ** 2
    features[..., channels + 4] = cv2.resize(_distance(reverse), (target.shape[1], len(target)))
    features[..., channels + 5] = 0.0 if pixels is None else cell_maxima(pixels, target.shape[:2])
    features[..., channels + DISTANCES : -1] = np.quantile(reference.self_distance, QUANTILES)
    features[..., -1] = pixels is not None
    return features


def cell_maxima(pixels: Image, shape: tuple[int, ...]) -> Features:
    """The maximum of `pixels` in each of (h, w) cells, scaled to the order of distances."""
    rows, columns = shape
    blocks = pixels.reshape(rows, len(pixels) // rows, columns, pixels.shape[1] // columns)
    return np.asarray(_PIXEL_GAIN * np.log1p(blocks.max(axis=(1, 3))), dtype=np.float32)


def _self_distance(patches: Features) -> Features:
    """Distance (h, w) of each patch to the nearest of the same image outside its surroundings."""
    rows, columns, channels = patches.shape
    bank = np.ascontiguousarray(patches.reshape(-1, channels).T)
    near_rows, near_columns = window_mask(rows, rows, SELF_REACH), window_mask(columns, columns, SELF_REACH)
    result = np.empty((rows, columns), np.float32)
    for y, patches_row in enumerate(patches):
        similarity = (patches_row @ bank).reshape(columns, rows, columns)
        blocked = near_columns[:, None, :] & near_rows[y][None, :, None]
        similarity[blocked] = -1.0
        result[y] = _distance(similarity.max(axis=(1, 2)))
    return result


def _distance(similarity: Features) -> Features:
    return np.asarray(np.sqrt(np.maximum(2 - 2 * similarity, 0)), dtype=np.float32)
