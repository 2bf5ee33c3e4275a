"""Normal parts: procedural surfaces and parts of many kinds, or images from a folder.

`NORMALS` is the table of procedural kinds; each function returns (size, size, 3) float32 grey levels. Knows nothing of defects
or cameras.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.data.masks import read_labels
from differad.errors import InputError
from differad.images import read_image
from differad.synthesis.boards import generate_layout, sample_style, shade
from differad.synthesis.textures import TEXTURES, Image, generate_texture

PartGenerator = Callable[[np.random.Generator, int], Image]
Color = NDArray[np.float32]
SEGMENTS = "_segments"
IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789-/."
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_PLAIN)


def cloud(rng: np.random.Generator, size: int, scale: float) -> Image:
    """Smooth noise (size, size) of about unit variance with blobs `scale` pixels wide, sampled coarsely and enlarged."""
    side = max(2, round(size / scale) + 2)
    coarse = rng.standard_normal((side, side)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder except segment maps, in a fixed order. Raises InputError if there is none."""
    paths = [
        Path(path) / name
        for path, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in IMAGE_ENDINGS and not Path(name).stem.endswith(SEGMENTS)
    ]
    if not paths:
        raise InputError(f"{folder}: no images below it; expected PNG, JPEG, TIFF, BMP or WebP files")
    return sorted(paths)


def crop_object(rng: np.random.Generator, path: Path) -> tuple[Image, NDArray[np.bool_]] | None:
    """An object (h, w, 3) of a photograph and its mask (h, w); None without a `NAME_segments.png` beside it that marks one.

    Each value of that map except 0 is one object; those over a quarter or under a thousandth of the image are ignored.
    Raises ImageError, InputError.
    """
    segments = path.with_name(f"{path.stem}{SEGMENTS}.png")
    if not segments.exists():
        return None
    image = read_image(path)
    labels = read_labels(segments, (image.shape[1], image.shape[0]))
    values, counts = np.unique(labels, return_counts=True)
    candidates = values[(values > 0) & (counts < labels.size / 4) & (counts > labels.size / 1000)]
    if not len(candidates):
        return None
    mask = labels == rng.choice(candidates)
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = np.s_[y : y + height, x : x + width]
    return image[window].astype(np.float32), mask[window]


def crop_square(rng: np.random.Generator, image: Image, size: int) -> Image:
    """A random square of (H, W, 3), at least half the shorter side, resized to `size`."""
    height, width = image.shape[:2]
    side = round(min(height, width) * rng.uniform(0.5, 1.0))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    piece = image[y : y + side, x : x + side]
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(np.clip(cv2.resize(piece, (size, size), interpolation=interpolation), 0, 255), dtype=np.float32)


def crop_photograph(rng: np.random.Generator, size: int, paths: list[Path]) -> Image:
    """A random square of one of `paths`, mirrored half of the time. Raises ImageError."""
    image = read_image(paths[int(rng.integers(len(paths)))])
    mirrored = image[:, ::-1] if rng.random() < 0.5 else image
    return crop_square(rng, np.ascontiguousarray(mirrored), size)


def _board(rng: np.random.Generator, size: int) -> Image:
    return shade(generate_layout(rng, size), sample_style(rng))


def _wood(rng: np.random.Generator, size: int) -> Image:
    """Rings around a far axis, seen along the grain, with pores."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    along = x if rng.random() < 0.5 else y
    across = (y if along is x else x) + 0.04 * along
    rings = across / np.float32(rng.uniform(6, 18)) + rng.uniform(0.5, 1.6) * cloud(rng, size, size / 3)
    pores = cv2.resize(rng.standard_normal((size, max(2, size // 24))).astype(np.float32), (size, size))
    grey = 0.5 + 0.32 * np.sin(2 * np.pi * rings) + 0.06 * (pores if along is x else pores.T)
    return _between(grey, rng.uniform((60, 35, 15), (120, 75, 45)), rng.uniform((150, 105, 65), (225, 180, 130)))


def _machined(rng: np.random.Generator, size: int) -> Image:
    """Turned metal: fine concentric grooves with a highlight that depends on the angle."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    middle = rng.uniform(-0.3, 1.3, 2) * size
    radius, angle = np.hypot(x - middle[0], y - middle[1]), np.arctan2(y - middle[1], x - middle[0])
    profile = rng.standard_normal(2 * size).astype(np.float32)
    grooves = np.interp(radius * np.float32(rng.uniform(0.4, 1.0)), np.arange(2 * size), profile).astype(np.float32)
    light = np.cos(2 * (angle - rng.uniform(0, np.pi)))
    grey = 0.5 + 0.2 * light + 0.09 * grooves
    return _between(grey, np.full(3, rng.uniform(40, 90)), np.full(3, rng.uniform(170, 240)))


def _perforated(rng: np.random.Generator, size: int) -> Image:
    """A plate with a grid of holes, straight or staggered."""
    pitch = rng.uniform(14, 34)
    radius = pitch * rng.uniform(0.2, 0.4)
    image = np.asarray(rng.uniform(110, 220) + 5 * cloud(rng, size, 40), dtype=np.float32)
    stagger = pitch / 2 if rng.random() < 0.5 else 0.0
    start = rng.uniform(0, pitch, 2)
    hole = rng.uniform(5, 60)
    for row in range(int(size / pitch) + 2):
        for column in range(int(size / pitch) + 2):
            position = start + (np.array([column, row]) - 0.5) * pitch + np.array([stagger * (row % 2), 0])
            center = tuple(int(v) for v in np.rint(position * 16))
            cv2.circle(image, center, round(radius * 16), hole, -1, cv2.LINE_AA, shift=4)
    return _tinted(rng, image)


def _striped(rng: np.random.Generator, size: int) -> Image:
    """Cloth or film with coloured stripes, one way or crossed."""
    count = int(rng.integers(2, 5))
    colours = rng.uniform(40, 235, (count, 3)).astype(np.float32)
    widths = rng.uniform(5, 30, count)
    order = np.repeat(np.arange(count), np.maximum(widths.astype(int), 3))
    line = colours[order[(np.arange(size) + int(rng.integers(len(order)))) % len(order)]]
    image: Image = np.broadcast_to(line[:, None], (size, size, 3))
    if rng.random() < 0.4:
        image = np.asarray((image + image.transpose(1, 0, 2)) / 2, dtype=np.float32)
    weave = np.sin(np.arange(size) * np.float32(2 * np.pi / rng.uniform(2.5, 5)))
    return np.asarray(image * (1 + 0.06 * weave[None, :, None] * weave[:, None, None]), dtype=np.float32)


def _lettered(rng: np.random.Generator, size: int) -> Image:
    """A label: printed lines of text, bars and a frame."""
    paper, ink = (230.0, 30.0) if rng.random() < 0.7 else (40.0, 220.0)
    image = np.full((size, size), paper, np.uint8)
    y = int(rng.integers(14, 34))
    while y < size:
        scale = rng.uniform(0.35, 1.1)
        text = "".join(rng.choice(list(_LETTERS), int(rng.integers(3, 16))))
        font = int(rng.choice(_FONTS))
        cv2.putText(image, text, (int(rng.integers(0, size // 4)), y), font, scale, ink, 1 + (scale > 0.8), cv2.LINE_AA)
        y += round(26 * scale) + int(rng.integers(2, 12))
    if rng.random() < 0.5:
        left, top = (int(v) for v in rng.integers(0, size // 2, 2))
        bars = np.repeat(rng.random(40) < 0.5, rng.integers(1, 4, 40))[: size - left]
        image[top : top + size // 6, left : left + len(bars)] = np.where(bars, ink, paper).astype(np.uint8)
    return _tinted(rng, image.astype(np.float32) + 3 * cloud(rng, size, 30))


def _tiled(rng: np.random.Generator, size: int) -> Image:
    """Tiles, bricks or cells with joints, each of a slightly different shade."""
    height, width = rng.uniform(16, 60, 2)
    offset = 0.5 if rng.random() < 0.5 else 0.0
    y, x = np.mgrid[:size, :size].astype(np.float32)
    row = np.floor(y / height)
    across = x / width + offset * (row % 2)
    column = np.floor(across)
    shades = rng.standard_normal((64, 64)).astype(np.float32)[row.astype(int) % 64, column.astype(int) % 64]
    joint = np.float32(rng.uniform(1.0, 2.5))
    gap = (y - row * height < joint) | ((across - column) * width < joint)
    grey = rng.uniform(110, 190) + rng.uniform(2, 12) * shades + 4 * cloud(rng, size, 12)
    return _tinted(rng, np.where(gap, np.float32(rng.uniform(30, 230)), grey.astype(np.float32)))


def _assembled(rng: np.random.Generator, size: int) -> Image:
    """A plate that carries parts: screws, chips, caps and connectors."""
    image = np.empty((size, size, 3), np.float32)
    image[:] = rng.uniform(20, 200, 3)
    image += 3 * cloud(rng, size, 30)[..., None]
    for _ in range(int(rng.integers(6, 22))):
        center = rng.uniform(0, size, 2)
        (_screw if rng.random() < 0.4 else _component)(rng, image, center, rng.uniform(6, 26))
    return image


def _screw(rng: np.random.Generator, image: Image, center: NDArray[np.float64], radius: float) -> None:
    x, y = (round(float(v)) for v in center)
    level = rng.uniform(120, 230)
    cv2.circle(image, (x, y), round(radius), (level * 0.5,) * 3, -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), round(radius * 0.85), (level,) * 3, -1, cv2.LINE_AA)
    angle = rng.uniform(0, np.pi)
    for turn in (0.0, np.pi / 2)[: int(rng.integers(1, 3))]:
        tip = 0.6 * radius * np.array([np.cos(angle + turn), np.sin(angle + turn)])
        ends = [tuple(int(v) for v in np.rint(center + sign * tip)) for sign in (-1, 1)]
        cv2.line(image, ends[0], ends[1], (level * 0.3,) * 3, max(1, round(radius / 5)), cv2.LINE_AA)


def _component(rng: np.random.Generator, image: Image, center: NDArray[np.float64], radius: float) -> None:
    half = radius * np.array([1.0, rng.uniform(0.35, 1.0)])[rng.permutation(2)]
    low, high = (tuple(int(v) for v in np.rint(center + sign * half)) for sign in (-1, 1))
    colour = tuple(float(v) for v in rng.uniform(10, 240, 3))
    cv2.rectangle(image, low, high, tuple(0.6 * v for v in colour), -1)
    cv2.rectangle(image, (low[0] + 1, low[1] + 1), (high[0] - 2, high[1] - 2), colour, -1)
    if radius > 12:
        text = "".join(rng.choice(list(_LETTERS), 3))
        ink = (235.0,) * 3 if sum(colour) < 380 else (20.0,) * 3
        letters = np.zeros(image.shape[:2], np.uint8)
        cv2.putText(letters, text, (low[0] + 3, high[1] - 4), cv2.FONT_HERSHEY_PLAIN, radius / 18, 255, 1, cv2.LINE_AA)
        image += (letters / np.float32(255))[..., None] * (np.array(ink, np.float32) - image)


def _between(grey: Image, dark: NDArray[np.float64], bright: NDArray[np.float64]) -> Image:
    """Colours (H, W, 3) interpolated by (H, W) between `dark` and `bright` (3,)."""
    low, high = dark.astype(np.float32), bright.astype(np.float32)
    return np.asarray(np.clip(low + grey[..., None] * (high - low), 0, 255), dtype=np.float32)


def _tinted(rng: np.random.Generator, grey: Image) -> Image:
    tint = rng.uniform(0.65, 1.0, 3).astype(np.float32) if rng.random() < 0.6 else np.ones(3, np.float32)
    return np.asarray(np.clip(grey[..., None] * tint, 0, 255), dtype=np.float32)


NORMALS: dict[str, PartGenerator] = {
    **{name: partial(generate_texture, name=name) for name in TEXTURES},
    "board": _board,
    "wood": _wood,
    "machined": _machined,
    "perforated": _perforated,
    "striped": _striped,
    "lettered": _lettered,
    "tiled": _tiled,
    "assembled": _assembled,
}
