"""What the embedded policy sees: for every patch of the target, how it differs from the nearest patches of the reference.

Both pictures run through the frozen backbone; nothing here is trained. A row of evidence belongs to a patch of 16 x 16 pixels
of the resized target: its four cells of stride 8, then its cell of stride 16. A cell holds, channel by channel, the squared
difference to the nearest reference patch, and distances: to the nearest patch anywhere, within a tenth of the sides and
within a thirtieth; how far that nearest patch is from the rest of the reference (what repeats there is no surprise
here); how far the reference patches around the same place are from the nearest of the target (what is missing); and, where
the reference can be laid on the target, how far pixels differ there. NumPy and OpenCV; knows nothing of policies, text or boxes.
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
from differad.locators.features.nearest import near
from differad.locators.registration import grey, register

Evidence = NDArray[np.float32]
PATCH = 16
# Pixels of area that pictures are resized to, as nearly as their shape allows.
AREA = 384 * 384
# Channels of the backbone at strides 8 and 16.
FINE, COARSE = 40, 112
# Half sides of the two windows around a place, as shares of height and width.
REACHES = (0.1, 0.033)
# Own neighbours within this share of the sides do not count when a reference patch is compared with its own picture.
SELF_REACH = 0.06
# What each cell says beside its channels: whole, two windows, rarity, missing, and pixels laid on each other.
DISTANCES = 6
# Quantiles of the reference's own rarity, repeated in every cell: how varied a good part is.
QUANTILES = (0.5, 0.9, 0.99)
# And whether the reference could be laid on.
CELL_EXTRA = DISTANCES + len(QUANTILES) + 1
WIDTH = 4 * (FINE + CELL_EXTRA) + COARSE + CELL_EXTRA
# Distances are at most 2; squared differences of single channels are small and are brought to the same order.
CHANNEL_GAIN = 16.0
# Pixels differ from three units of noise on; the logarithm of one more than that, by this, is of the order of a distance.
_PIXEL_GAIN = 0.7


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """One stride of a reference: its patches (h, w, C) and how far each is from the nearest of its own picture (h, w)."""

    patches: Features
    rarity: Features


def reference_features(backbone: Backbone, picture: RGB) -> list[ReferenceFeatures]:
    """Strides 8 and 16 of a resized reference (H, W, 3), sides multiples of 16."""
    return [ReferenceFeatures(patches, _rarity(patches)) for patches in backbone.patches(picture)]


def laid_on(reference: RGB, target: RGB) -> Image | None:
    """How far each pixel of the target (H, W, 3) is from the reference on its place, (H, W), in units of the pair's noise.

    None where no motion lays the reference on the target.
    """
    registration = register(grey(reference), grey(target))
    return DifferenceLocator().difference(reference, target, registration) if registration.accepted else None


def evidence(
    target: Sequence[Features], reference: Sequence[ReferenceFeatures], pixels: Image | None = None
) -> Evidence:
    """Rows (H / 16, W / 16, WIDTH) of a target whose `backbone.patches` are `target`, `pixels` its `laid_on`."""
    fine, coarse = (_compare(own, other, pixels) for own, other in zip(target, reference, strict=True))
    height, width = coarse.shape[:2]
    cells = fine[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).transpose(0, 2, 1, 3, 4)
    return np.concatenate([cells.reshape(height, width, -1), coarse], axis=-1)


def _compare(target: Features, reference: ReferenceFeatures, pixels: Image | None) -> Evidence:
    """(h, w, C + CELL_EXTRA) of one stride."""
    patches = reference.patches
    rows, columns, channels = patches.shape
    bank = np.ascontiguousarray(patches.reshape(-1, channels).T)
    found = np.empty((*target.shape[:2], channels + CELL_EXTRA), np.float32)
    reverse = np.full((rows, columns), -1.0, np.float32)
    windows = [(near(len(target), rows, r), ~near(target.shape[1], columns, r)) for r in REACHES]
    rarity = reference.rarity.ravel()
    for y, own in enumerate(target):
        similar = own @ bank
        best = similar.argmax(axis=1)
        found[y, :, channels] = _distance(np.take_along_axis(similar, best[:, None], axis=1)[:, 0])
        found[y, :, channels + 3] = rarity[best]
        chosen = patches.reshape(-1, channels)[best]
        grid = similar.reshape(-1, rows, columns)
        for number, (beside, outside) in enumerate(windows):
            part = grid[:, beside[y]].copy()
            part[np.broadcast_to(outside[:, None], part.shape)] = -1.0
            found[y, :, channels + 1 + number] = _distance(part.max(axis=(1, 2)))
            if number == 0:
                reverse[beside[y]] = np.maximum(reverse[beside[y]], part.max(axis=0))
                if channels == FINE:
                    flat = part.reshape(len(own), -1).argmax(axis=1)
                    chosen = patches[beside[y]].reshape(-1, channels)[flat]
        found[y, :, :channels] = CHANNEL_GAIN * (own - chosen) ** 2
    found[..., channels + 4] = cv2.resize(_distance(reverse), (target.shape[1], len(target)))
    found[..., channels + 5] = 0.0 if pixels is None else steepest(pixels, target.shape[:2])
    found[..., channels + DISTANCES : -1] = np.quantile(reference.rarity, QUANTILES)
    found[..., -1] = pixels is not None
    return found


def steepest(pixels: Image, shape: tuple[int, ...]) -> Features:
    """The largest difference within each of (h, w) cells, brought to the order of distances."""
    rows, columns = shape
    blocks = pixels.reshape(rows, len(pixels) // rows, columns, pixels.shape[1] // columns)
    return np.asarray(_PIXEL_GAIN * np.log1p(blocks.max(axis=(1, 3))), dtype=np.float32)


def _rarity(patches: Features) -> Features:
    """Distance (h, w) of each patch to the nearest of the same picture outside its own surroundings."""
    rows, columns, channels = patches.shape
    bank = np.ascontiguousarray(patches.reshape(-1, channels).T)
    near_rows, near_columns = near(rows, rows, SELF_REACH), near(columns, columns, SELF_REACH)
    result = np.empty((rows, columns), np.float32)
    for y, own in enumerate(patches):
        similar = (own @ bank).reshape(columns, rows, columns)
        blocked = near_columns[:, None, :] & near_rows[y][None, :, None]
        similar[blocked] = -1.0
        result[y] = _distance(similar.max(axis=(1, 2)))
    return result


def _distance(similarity: Features) -> Features:
    return np.asarray(np.sqrt(np.maximum(2 - 2 * similarity, 0)), dtype=np.float32)
