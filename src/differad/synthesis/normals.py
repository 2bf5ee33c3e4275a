"""Good parts to draw defects on: procedural surfaces and parts of many kinds, or pictures from a folder.

`NORMALS` is the table of procedural kinds; each function draws (size, size, 3) float32 grey levels. Knows nothing of defects or
cameras.
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
from differad.synthesis.boards import draw_layout, draw_style, shade
from differad.synthesis.textures import TEXTURES, Picture, draw_texture

Draw = Callable[[np.random.Generator, int], Picture]
Color = NDArray[np.float32]
SEGMENTS = "_segments"
PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789-/."
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_PLAIN)


def cloud(rng: np.random.Generator, size: int, scale: float) -> Picture:
    """Smooth noise (size, size) of about unit variance whose blobs are `scale` pixels wide, drawn small and enlarged."""
    side = max(2, round(size / scale) + 2)
    coarse = rng.standard_normal((side, side)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def list_pictures(folder: Path) -> list[Path]:
    """Every picture below a folder but for maps of segments, in a fixed order. Raises InputError where there is none."""
    found = [
        Path(path) / name
        for path, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in PICTURE_ENDINGS and not Path(name).stem.endswith(SEGMENTS)
    ]
    if not found:
        raise InputError(f"{folder}: no pictures below it; expected PNG, JPEG, TIFF, BMP or WebP files")
    return sorted(found)


def cut_object(rng: np.random.Generator, path: Path) -> tuple[Picture, NDArray[np.bool_]] | None:
    """An object (h, w, 3) of a photograph and its mask (h, w), where `NAME_segments.png` beside it marks any.

    Each value of that map but 0 is one object; those over a quarter or under a thousandth of the picture are left alone.
    Raises ImageError, InputError.
    """
    beside = path.with_name(f"{path.stem}{SEGMENTS}.png")
    if not beside.exists():
        return None
    picture = read_image(path)
    labels = read_labels(beside, (picture.shape[1], picture.shape[0]))
    values, counts = np.unique(labels, return_counts=True)
    fitting = values[(values > 0) & (counts < labels.size / 4) & (counts > labels.size / 1000)]
    if not len(fitting):
        return None
    mask = labels == rng.choice(fitting)
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = np.s_[y : y + height, x : x + width]
    return picture[window].astype(np.float32), mask[window]


def crop_square(rng: np.random.Generator, picture: Picture, size: int) -> Picture:
    """A square of at least half the shorter side, somewhere in (H, W, 3), resized to `size`."""
    height, width = picture.shape[:2]
    side = round(min(height, width) * rng.uniform(0.5, 1.0))
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    piece = picture[y : y + side, x : x + side]
    how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return np.asarray(np.clip(cv2.resize(piece, (size, size), interpolation=how), 0, 255), dtype=np.float32)


def photograph(rng: np.random.Generator, size: int, paths: list[Path]) -> Picture:
    """A square out of one of `paths`, mirrored by chance. Raises ImageError."""
    picture = read_image(paths[int(rng.integers(len(paths)))])
    mirrored = picture[:, ::-1] if rng.random() < 0.5 else picture
    return crop_square(rng, np.ascontiguousarray(mirrored), size)


def _board(rng: np.random.Generator, size: int) -> Picture:
    return shade(draw_layout(rng, size), draw_style(rng))


def _wood(rng: np.random.Generator, size: int) -> Picture:
    """Rings around a far axis, seen along the grain, with pores."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    along = x if rng.random() < 0.5 else y
    across = (y if along is x else x) + 0.04 * along
    rings = across / np.float32(rng.uniform(6, 18)) + rng.uniform(0.5, 1.6) * cloud(rng, size, size / 3)
    pores = cv2.resize(rng.standard_normal((size, max(2, size // 24))).astype(np.float32), (size, size))
    grey = 0.5 + 0.32 * np.sin(2 * np.pi * rings) + 0.06 * (pores if along is x else pores.T)
    return _between(grey, rng.uniform((60, 35, 15), (120, 75, 45)), rng.uniform((150, 105, 65), (225, 180, 130)))


def _machined(rng: np.random.Generator, size: int) -> Picture:
    """Turned metal: fine concentric grooves with a highlight that turns with the angle."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    middle = rng.uniform(-0.3, 1.3, 2) * size
    radius, angle = np.hypot(x - middle[0], y - middle[1]), np.arctan2(y - middle[1], x - middle[0])
    profile = rng.standard_normal(2 * size).astype(np.float32)
    grooves = np.interp(radius * np.float32(rng.uniform(0.4, 1.0)), np.arange(2 * size), profile).astype(np.float32)
    light = np.cos(2 * (angle - rng.uniform(0, np.pi)))
    grey = 0.5 + 0.2 * light + 0.09 * grooves
    return _between(grey, np.full(3, rng.uniform(40, 90)), np.full(3, rng.uniform(170, 240)))


def _perforated(rng: np.random.Generator, size: int) -> Picture:
    """A plate with a grid of holes, straight or staggered."""
    pitch = rng.uniform(14, 34)
    radius = pitch * rng.uniform(0.2, 0.4)
    picture = np.asarray(rng.uniform(110, 220) + 5 * cloud(rng, size, 40), dtype=np.float32)
    stagger = pitch / 2 if rng.random() < 0.5 else 0.0
    start = rng.uniform(0, pitch, 2)
    hole = rng.uniform(5, 60)
    for row in range(int(size / pitch) + 2):
        for column in range(int(size / pitch) + 2):
            place = start + (np.array([column, row]) - 0.5) * pitch + np.array([stagger * (row % 2), 0])
            center = tuple(int(v) for v in np.rint(place * 16))
            cv2.circle(picture, center, round(radius * 16), hole, -1, cv2.LINE_AA, shift=4)
    return _tinted(rng, picture)


def _striped(rng: np.random.Generator, size: int) -> Picture:
    """Cloth or film with coloured stripes, one way or crossed."""
    count = int(rng.integers(2, 5))
    colours = rng.uniform(40, 235, (count, 3)).astype(np.float32)
    widths = rng.uniform(5, 30, count)
    order = np.repeat(np.arange(count), np.maximum(widths.astype(int), 3))
    line = colours[order[(np.arange(size) + int(rng.integers(len(order)))) % len(order)]]
    picture: Picture = np.broadcast_to(line[:, None], (size, size, 3))
    if rng.random() < 0.4:
        picture = np.asarray((picture + picture.transpose(1, 0, 2)) / 2, dtype=np.float32)
    weave = np.sin(np.arange(size) * np.float32(2 * np.pi / rng.uniform(2.5, 5)))
    return np.asarray(picture * (1 + 0.06 * weave[None, :, None] * weave[:, None, None]), dtype=np.float32)


def _lettered(rng: np.random.Generator, size: int) -> Picture:
    """A label: printed lines of text, bars and a frame."""
    paper, ink = (230.0, 30.0) if rng.random() < 0.7 else (40.0, 220.0)
    picture = np.full((size, size), paper, np.uint8)
    y = int(rng.integers(14, 34))
    while y < size:
        scale = rng.uniform(0.35, 1.1)
        text = "".join(rng.choice(list(_LETTERS), int(rng.integers(3, 16))))
        font = int(rng.choice(_FONTS))
        cv2.putText(
            picture, text, (int(rng.integers(0, size // 4)), y), font, scale, ink, 1 + (scale > 0.8), cv2.LINE_AA
        )
        y += round(26 * scale) + int(rng.integers(2, 12))
    if rng.random() < 0.5:
        left, top = (int(v) for v in rng.integers(0, size // 2, 2))
        bars = np.repeat(rng.random(40) < 0.5, rng.integers(1, 4, 40))[: size - left]
        picture[top : top + size // 6, left : left + len(bars)] = np.where(bars, ink, paper).astype(np.uint8)
    return _tinted(rng, picture.astype(np.float32) + 3 * cloud(rng, size, 30))


def _tiled(rng: np.random.Generator, size: int) -> Picture:
    """Tiles, bricks or cells in joints, each of a slightly different shade."""
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


def _assembled(rng: np.random.Generator, size: int) -> Picture:
    """A plate that carries parts: screws, chips, caps and connectors."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = rng.uniform(20, 200, 3)
    picture += 3 * cloud(rng, size, 30)[..., None]
    for _ in range(int(rng.integers(6, 22))):
        center = rng.uniform(0, size, 2)
        (_screw if rng.random() < 0.4 else _component)(rng, picture, center, rng.uniform(6, 26))
    return picture


def _screw(rng: np.random.Generator, picture: Picture, center: NDArray[np.float64], radius: float) -> None:
    x, y = (round(float(v)) for v in center)
    level = rng.uniform(120, 230)
    cv2.circle(picture, (x, y), round(radius), (level * 0.5,) * 3, -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), round(radius * 0.85), (level,) * 3, -1, cv2.LINE_AA)
    angle = rng.uniform(0, np.pi)
    for turn in (0.0, np.pi / 2)[: int(rng.integers(1, 3))]:
        tip = 0.6 * radius * np.array([np.cos(angle + turn), np.sin(angle + turn)])
        ends = [tuple(int(v) for v in np.rint(center + sign * tip)) for sign in (-1, 1)]
        cv2.line(picture, ends[0], ends[1], (level * 0.3,) * 3, max(1, round(radius / 5)), cv2.LINE_AA)


def _component(rng: np.random.Generator, picture: Picture, center: NDArray[np.float64], radius: float) -> None:
    half = radius * np.array([1.0, rng.uniform(0.35, 1.0)])[rng.permutation(2)]
    low, high = (tuple(int(v) for v in np.rint(center + sign * half)) for sign in (-1, 1))
    colour = tuple(float(v) for v in rng.uniform(10, 240, 3))
    cv2.rectangle(picture, low, high, tuple(0.6 * v for v in colour), -1)
    cv2.rectangle(picture, (low[0] + 1, low[1] + 1), (high[0] - 2, high[1] - 2), colour, -1)
    if radius > 12:
        text = "".join(rng.choice(list(_LETTERS), 3))
        ink = (235.0,) * 3 if sum(colour) < 380 else (20.0,) * 3
        stamp = np.zeros(picture.shape[:2], np.uint8)
        cv2.putText(stamp, text, (low[0] + 3, high[1] - 4), cv2.FONT_HERSHEY_PLAIN, radius / 18, 255, 1, cv2.LINE_AA)
        picture += (stamp / np.float32(255))[..., None] * (np.array(ink, np.float32) - picture)


def _between(grey: Picture, dark: NDArray[np.float64], bright: NDArray[np.float64]) -> Picture:
    """(H, W) shares as colours between two (3,) ends."""
    low, high = dark.astype(np.float32), bright.astype(np.float32)
    return np.asarray(np.clip(low + grey[..., None] * (high - low), 0, 255), dtype=np.float32)


def _tinted(rng: np.random.Generator, grey: Picture) -> Picture:
    tint = rng.uniform(0.65, 1.0, 3).astype(np.float32) if rng.random() < 0.6 else np.ones(3, np.float32)
    return np.asarray(np.clip(grey[..., None] * tint, 0, 255), dtype=np.float32)


NORMALS: dict[str, Draw] = {
    **{name: partial(draw_texture, name=name) for name in TEXTURES},
    "board": _board,
    "wood": _wood,
    "machined": _machined,
    "perforated": _perforated,
    "striped": _striped,
    "lettered": _lettered,
    "tiled": _tiled,
    "assembled": _assembled,
}
