"""Convert samples of any depth to 8 bits, by one scale for all compared images. Knows nothing about files.

A file of 16 bits rarely states how many of them its camera uses. The scale is therefore estimated from the values, but not
from the brightest ones: one in a thousand may exceed it (hot pixels, glints) and is clipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.errors import ImageError

Samples = NDArray[Any]
BIT_DEPTHS = (8, 10, 12, 14, 16)
# Sensors have up to about this share of hot pixels; a glint of fewer pixels is still white after clipping.
CLIPPED_SHARE = 1e-3
# From this number of samples on, a single one is always allowed to be clipped.
_FEW_SAMPLES = 100
# Shares of the full scale by which sharpening and interpolation of floats exceed it, and fall below zero.
_OVERSHOOT, _UNDERSHOOT = 0.1, 0.01
# Floats up to the first are shares of 1, over-exposed above 1; from the second on they are levels. Values between are too
# bright for shares and nearly black for levels.
_BRIGHTEST_SHARE, _DARKEST_LEVELS = 2.0, 16.0
_STRIP_SAMPLES = 1 << 22


@dataclass(frozen=True, eq=False)
class Decoded:
    """Samples (H, W, 1) grey or (H, W, 3) RGB, upright. `stated_bits` is their depth if the file states it.

    `alpha` (H, W) in any depth, 0 transparent. `is_inverted`: 0 is white.
    """

    values: Samples
    name: str
    stated_bits: int | None = None
    alpha: Samples | None = None
    is_premultiplied: bool = False
    is_inverted: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it has 8 bits already, so that its RGB does not depend on the other compared images."""
        return bool(self.values.dtype == np.uint8)


def to_rgb(images: Sequence[Decoded]) -> list[NDArray[np.uint8]]:
    """Each image as contiguous (H, W, 3) uint8; one that already is so is returned itself, not copied.

    Raises ImageError for samples that are no light intensities.
    """
    ranges = [None if image.is_plain else _check(image) for image in images]
    plain = [image.values for image, span in zip(images, ranges, strict=True) if span is None]
    rules = _rules([image for image, span in zip(images, ranges, strict=True) if span], [r for r in ranges if r], plain)
    next_rules = iter(rules)
    return [
        _convert(image, None if span is None else next(next_rules)) for image, span in zip(images, ranges, strict=True)
    ]


@dataclass(frozen=True)
class _Range:
    """Range of an image's values: the depth that holds them, and whether they may be shares of 1 or levels."""

    bits: int
    may_be_shares: bool
    may_be_levels: bool


_Rule = Callable[[Samples], Samples]


def _check(image: Decoded) -> _Range:
    values, name = image.values, image.name
    if values.dtype.kind not in "iuf":
        raise ImageError(f"{name}: samples of type {values.dtype}; expected integers or floats")
    is_float = values.dtype.kind == "f"
    if is_float:
        bad = values.size - int(np.count_nonzero(np.isfinite(values)))
        if bad:
            raise ImageError(f"{name}: {bad} samples are NaN or infinite; expected light intensities, so replace them")
    bits = image.stated_bits or next((b for b in BIT_DEPTHS if _fits(values, _full_scale(b, is_float))), 0)
    may_be_shares = is_float and _fits(values, _BRIGHTEST_SHARE)
    full = 1.0 if may_be_shares else 2.0**bits
    low, high = float(values.min()), float(values.max())
    if high < 0 or (low < 0 and not _fits(-values.astype(np.float32), _UNDERSHOOT * full)):
        raise ImageError(f"{name}: samples below 0, down to {low:g}; expected light intensities, from 0 on")
    if not bits:
        raise ImageError(f"{name}: samples up to {high:g} are deeper than 16 bits; export it with 8 or 16 bits")
    may_be_levels = not is_float or high == 0 or not _fits(values, _DARKEST_LEVELS)
    return _Range(bits, may_be_shares, may_be_levels)


def _full_scale(bits: int, is_float: bool) -> float:
    return (2.0**bits - 1) * (1 + _OVERSHOOT if is_float else 1)


def _fits(values: Samples, limit: float) -> bool:
    """Whether at most the clipped share of the values exceeds `limit`."""
    allowed = max(int(values.size * CLIPPED_SHARE), int(values.size >= _FEW_SAMPLES))
    return int(np.count_nonzero(values > limit)) <= allowed


def _rules(images: Sequence[Decoded], ranges: Sequence[_Range], plain: Sequence[Samples]) -> list[_Rule]:
    """The conversion of each image of more than 8 bits to 8 bits."""
    floats = [span for image, span in zip(images, ranges, strict=True) if image.values.dtype.kind == "f"]
    # Black floats fit any scale, so they do not decide.
    are_shares = any(span.may_be_shares and not span.may_be_levels for span in floats)
    are_levels = any(span.may_be_levels and not span.may_be_shares for span in floats)
    if are_shares and are_levels:
        names = ", ".join(image.name for image in images)
        raise ImageError(
            f"{names}: floats up to 1 beside floats of far higher levels; expected one scale for all of them"
        )
    if not are_shares and not are_levels and any(not span.may_be_levels for span in floats):
        image = next(i for i, span in zip(images, ranges, strict=True) if not span.may_be_levels)
        raise ImageError(
            f"{image.name}: floats up to {float(image.values.max()):g} are no shares of 1 and too dark for 0 to 255; scale them"
            " to 0 to 1"
        )
    is_share = [image.values.dtype.kind == "f" and not are_levels for image in images]
    levels = [(image, span) for image, span, share in zip(images, ranges, is_share, strict=True) if not share]
    bits = _common_bits(levels, plain)
    return [
        _from_shares if share else _from_levels(image.stated_bits or bits)
        for image, share in zip(images, is_share, strict=True)
    ]


def _common_bits(levels: Sequence[tuple[Decoded, _Range]], plain: Sequence[Samples]) -> int:
    """The common depth of all images that do not state theirs: the smallest that holds them.

    If there are images of 8 bits, it is the depth, at least this one, with the most similar brightness: the smallest depth
    would be four times too bright for dark data.
    """
    smallest = max((span.bits for _, span in levels), default=8)
    undeclared = [image.values for image, _ in levels if image.stated_bits is None]
    plain_brightness = _mean(plain, 255)
    if not (undeclared and plain_brightness >= 1):
        return smallest
    depths = [bits for bits in BIT_DEPTHS if bits >= smallest]
    brightness = {bits: _mean(undeclared, 2**bits - 1) * 2.0 ** (8 - bits) for bits in depths}
    return min(depths, key=lambda bits: abs(np.log(max(brightness[bits], 1e-3) / plain_brightness)))


def _mean(images: Sequence[Samples], limit: int) -> float:
    """Mean of the images' means, of values clipped to [0, limit]; 0 without images."""
    means = [
        np.mean([np.clip(strip, 0, limit).mean(dtype=np.float64) for strip in np.array_split(values, _strips(values))])
        for values in images
    ]
    return float(np.mean(means)) if means else 0.0


def _strips(values: Samples) -> int:
    return max(1, min(len(values), values.size // _STRIP_SAMPLES))


def _from_shares(values: Samples) -> Samples:
    return np.clip(np.rint(values.astype(np.float32) * 255), 0, 255).astype(np.uint8)


def _from_levels(bits: int) -> _Rule:
    return lambda values: np.clip(np.floor(values.astype(np.float64) / 2.0 ** (bits - 8)), 0, 255).astype(np.uint8)


def _convert(image: Decoded, rule: _Rule | None) -> NDArray[np.uint8]:
    values = image.values
    is_final = rule is None and image.alpha is None and not image.is_inverted
    if is_final and values.shape[2] == 3 and values.flags.c_contiguous:
        return values
    rgb = np.empty((*values.shape[:2], 3), np.uint8)
    shares = None if image.alpha is None else _alpha_bits(image.alpha)
    rows = max(1, len(values) // _strips(values))
    for top in range(0, len(values), rows):
        strip = values[top : top + rows] if rule is None else rule(values[top : top + rows])
        strip = 255 - strip if image.is_inverted else strip
        if shares is not None and image.alpha is not None:
            strip = _over_white(
                strip, image.alpha[top : top + rows, :, None] * (255.0 / shares), image.is_premultiplied
            )
        if strip.shape[2] == 1:  # NumPy takes five times as long to copy grey to three channels
            cv2.cvtColor(np.ascontiguousarray(strip), cv2.COLOR_GRAY2RGB, dst=rgb[top : top + rows])
        else:
            rgb[top : top + rows] = strip
    return rgb


def _alpha_bits(alpha: Samples) -> float:
    """The value of opaque pixels: the full scale of the smallest depth that holds all values."""
    highest = float(alpha.max())
    scales = [1.0] * (alpha.dtype.kind == "f") + [2.0**bits - 1 for bits in BIT_DEPTHS]
    return next((scale for scale in scales if highest <= scale), highest)


def _over_white(colour: Samples, alpha: Samples, is_premultiplied: bool) -> Samples:
    share = alpha / 255.0
    composited = colour + 255 * (1 - share) if is_premultiplied else colour * share + 255 * (1 - share)
    return np.clip(np.rint(composited), 0, 255).astype(np.uint8)
