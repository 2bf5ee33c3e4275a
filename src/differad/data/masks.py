"""Masks of defects, and the boxes around their marked regions.

A mask is data, not a photograph: an index, an alpha value or a sample marks a pixel, not its displayed brightness.
"""

import warnings
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from differad.boxes import Boxes, as_boxes
from differad.decoding import load, load_deep, opened, strips, upright
from differad.errors import ImageError, InputWarning
from differad.headers import Header

Mask = NDArray[np.bool_]
Samples = NDArray[Any]
# The strokes of one annotated defect may be disconnected; gaps up to this share of the longer side are closed.
GAP_SHARE = 0.02
# Half of the full scale: lossy compression blurs the edges between 0 and 255 and rings around them.
_HALF = 128
# Ringing in a black area stays below the first level; a grey square of the second side (pixels) is no blurred edge.
_RINGING, _FLAT_SIDE = 32, 5
# A marked share of at least this, covering the whole border or touching all edges, is rarely a defect.
_BORDERED_SHARE, _TOUCHING_SHARE = 0.5, 0.9


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> Mask:
    """A mask file as (H, W) bool, upright; it must have its image's `size` (width, height).

    Marked are, in a palette image, all indices except 0 and transparent ones; with alpha, every pixel that is not fully
    transparent, or if alpha is uniform, by colour; in lossy files (JPEG, WebP), samples from half of the full scale on; in
    all others, samples other than 0. A mask that marks nearly everything gives an InputWarning. Raises ImageError.
    """
    return _read(path, str(path), size)


def decode_mask(content: bytes, name: str, size: tuple[int, int] | None = None) -> Mask:
    """Like `read_mask`, from the bytes of a file; `name` is used in messages. Raises ImageError."""
    return _read(content, name, size)


def read_labels(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.int64]:
    """A label map (H, W): 0 where `read_mask` marks nothing, else a number for each index, value or colour.

    Raises ImageError, also for a lossy file, whose values are blurred.
    """
    name = str(path)
    with opened(path, name) as (file, header):
        _check_size(header, name, size)
        if header.is_lossy:
            raise ImageError(f"{name}: lossy {header.format}; expected a lossless map of objects, so export it as PNG")
        marked, values = _marked_pixels(file, header, name)
    labels = np.zeros(marked.shape, np.int64)
    for channel in range(values.shape[2]):
        labels = labels * 65_536 + values[:, :, channel].astype(np.int64)
    return np.ascontiguousarray(upright(np.where(marked, labels, 0), header.orientation))


def _read(source: str | Path | bytes, name: str, size: tuple[int, int] | None) -> Mask:
    with opened(source, name) as (file, header):
        _check_size(header, name, size)
        marked, _ = _marked_pixels(file, header, name)
    mask = np.ascontiguousarray(upright(marked, header.orientation))
    _warn_if_inverted(mask, name)
    return mask


def _check_size(header: Header, name: str, size: tuple[int, int] | None) -> None:
    if size is not None and header.size != tuple(size):
        actual, expected = ("x".join(str(side) for side in sides) for sides in (header.size, size))
        raise ImageError(f"{name}: mask of {actual} pixels; expected {expected} as its image has, so export it again")


def _marked_pixels(file: BinaryIO, header: Header, name: str) -> tuple[Mask, Samples]:
    """The marked pixels (H, W), in stored orientation, and the samples (H, W, C) that decide."""
    if header.is_deep:
        return _deep_marks(load_deep(file, header, name), header, name)
    image = load(file, header, name)
    if image.mode == "P":
        return _palette_marks(image)
    values, alpha = _colours(image, name)
    if alpha is not None and _is_informative(alpha):
        return alpha > 0, values
    return (_bright(values, name) if header.is_lossy else _coloured(values)), values


def _deep_marks(samples: Samples, header: Header, name: str) -> tuple[Mask, Samples]:
    if header.is_inverted:
        raise ImageError(f"{name}: mask of {header.bits} bits whose 0 is white; export it so that 0 is background")
    if samples.dtype.kind == "f" and not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise ImageError(f"{name}: {bad} samples of the mask are NaN or infinite; expected 0 for background")
    colours = samples[:, :, :1] if header.channels < 3 else samples[:, :, :3]
    alpha = None
    if header.key and header.channels == 1:
        alpha = samples[:, :, 0] != header.key[0]
    elif header.has_alpha and samples.shape[2] in (2, 4):
        alpha = samples[:, :, -1]
    return (alpha > 0 if alpha is not None and _is_informative(alpha) else _coloured(colours)), colours


def _palette_marks(image: Image.Image) -> tuple[Mask, Samples]:
    """Marked pixels by index. If index 0 does not occur, no index means background, so black colours do."""
    indices = np.asarray(image)
    opacity = np.full(256, 255, np.uint8)
    transparency = image.info.get("transparency", b"")
    if isinstance(transparency, int):
        opacity[transparency] = 0
    else:
        opacity[: len(transparency)] = np.frombuffer(transparency, np.uint8)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    marking = (np.arange(256) > 0) & (opacity > 0)
    if not (opacity[used] == 0).any():
        if 0 not in used:
            palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
            marking[: len(palette)] &= palette.any(axis=1)
    elif not marking[used].any():
        marking = opacity > 0  # index 0 on a transparent background is what was annotated
    return marking[indices], indices[:, :, None].astype(np.int16) + 1


def _colours(image: Image.Image, name: str) -> tuple[Samples, Samples | None]:
    """Samples (H, W, C) without alpha, and alpha (H, W) if there is any."""
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    is_grey = image.mode in ("1", "L", "LA", "La") and not has_alpha
    values = np.empty((image.height, image.width, 1 if is_grey else 3), np.uint8)
    alpha = np.empty((image.height, image.width), np.uint8) if has_alpha else None
    try:
        for rows, strip in strips(image):
            if alpha is not None:
                full = np.asarray((strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA"))
                values[rows], alpha[rows] = full[:, :, :3], full[:, :, 3]
            else:
                plain = np.asarray(strip.convert("L" if is_grey else "RGB"))
                values[rows] = plain[:, :, None] if is_grey else plain
    except ValueError as error:
        raise ImageError(f"{name}: mask of mode {image.mode} ({error}); export it as grey or RGB") from None
    return values, alpha


def _is_informative(alpha: Samples) -> bool:
    """Whether some pixels are fully transparent and others are not."""
    return bool((alpha == 0).any()) and bool(alpha.any())


def _coloured(values: Samples) -> Mask:
    return np.asarray(values.any(axis=2))


def _bright(values: Samples, name: str) -> Mask:
    """Marked pixels of a lossy mask. Raises ImageError for grey areas that are more than blurred edges."""
    brightest = values.max(axis=2)
    marked = np.asarray(brightest >= _HALF)
    grey = ((brightest >= _RINGING) & ~marked).astype(np.uint8)
    flat = cv2.erode(grey, np.ones((_FLAT_SIDE, _FLAT_SIDE), np.uint8), borderValue=0)
    if flat.any() or (grey.any() and not marked.any()):
        raise ImageError(
            f"{name}: lossy mask with grey areas, up to {int(brightest[grey > 0].max())} of 255; expected black and white, "
            "or a lossless PNG"
        )
    return marked


def _warn_if_inverted(mask: Mask, name: str) -> None:
    share = float(mask.mean())
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    covers = share >= _BORDERED_SHARE and all(edge.all() for edge in edges)
    touches = share >= _TOUCHING_SHARE and all(edge.any() for edge in edges)
    if covers or touches:
        message = (
            f"{name}: marks {int(100 * share)} % of the image and every edge of it; is it inverted? 0 is background"
        )
        # Always from this line, so that Python's filter shows the warning once per file.
        warnings.warn(message, InputWarning, stacklevel=1)


def boxes_from_mask(mask: Mask, gap: int | None = None) -> Boxes:
    """A box around each defect of `mask` (H, W): (N, 4) pixels, the one with the most marked pixels first.

    Regions with at most `gap` pixels of background between them are one defect; None means 2 % of the longer side, 0
    keeps every 8-connected region separate. Boxes enclose the marked pixels tightly.
    """
    marked = mask.astype(np.uint8)
    gap = round(GAP_SHARE * max(mask.shape)) if gap is None else gap
    grown = cv2.dilate(marked, np.ones((gap + 1, gap + 1), np.uint8)) if gap else marked
    _, labels = cv2.connectedComponents(grown, connectivity=8)
    ys, xs = np.nonzero(marked)
    regions = [(xs[indices], ys[indices]) for indices in _members(labels[ys, xs])]
    regions.sort(key=lambda region: -len(region[0]))
    return as_boxes([[x.min(), y.min(), x.max() + 1, y.max() + 1] for x, y in regions])


def _members(labels: NDArray[np.int32]) -> list[NDArray[np.intp]]:
    """Groups of indices with equal labels, in order of the label."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return [group for group in np.split(order, starts) if len(group)]
