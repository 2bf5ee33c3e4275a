"""Procedural surfaces: brushed metal, woven cloth, cast grain and printed tiles as (H, W, 3) float32 grey levels.

Knows nothing of defects, cameras or pairs.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
# Correlation length in pixels of coarsely sampled noise, so that linear enlargement is not visible.
_FINEST = 4.0


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_x: float, scale_y: float) -> Image:
    """Gaussian noise of unit variance, (H, W), correlated over `scale_x` and `scale_y` pixels.

    Noise that is smooth over many pixels is sampled coarsely and enlarged: it looks the same in a fraction of the time.
    """
    shrink = max(1, int(min(scale_x, scale_y) / _FINEST))
    rows, columns = (-(-side // shrink) for side in shape)
    noise = rng.standard_normal((rows, columns), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=max(scale_x / shrink, 0.1), sigmaY=max(scale_y / shrink, 0.1))
    if shrink > 1:
        noise = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    spread = float(noise.std())
    return np.asarray(noise / spread if spread > 0 else noise, dtype=np.float32)


def generate_texture(rng: np.random.Generator, size: int, name: str | None = None) -> Image:
    """A surface (size, size, 3) in grey levels; `name` is a key of TEXTURES, None a random one."""
    name = str(rng.choice(list(TEXTURES))) if name is None else name
    grey = TEXTURES[name](rng, size)
    tint = rng.uniform(0.75, 1.0, 3) if rng.random() < 0.5 else np.ones(3)
    return np.asarray(np.clip(grey[..., None] * tint.astype(np.float32), 0, 255), dtype=np.float32)


def _brushed(rng: np.random.Generator, size: int) -> Image:
    level, contrast = rng.uniform(90, 170), rng.uniform(6, 18)
    lines = smooth_noise(rng, (size, size), rng.uniform(15, 60), rng.uniform(0.6, 1.2))
    return np.asarray(level + contrast * lines, dtype=np.float32)


def _woven(rng: np.random.Generator, size: int) -> Image:
    period, level, contrast = rng.uniform(6, 16), rng.uniform(90, 170), rng.uniform(15, 40)
    offset = smooth_noise(rng, (size, size), 25, 25) * rng.uniform(0.2, 0.8)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    threads = np.sin(2 * np.pi * (x + offset) / period) * np.sin(2 * np.pi * (y - offset) / period)
    return np.asarray(level + contrast * threads + 4 * smooth_noise(rng, (size, size), 1, 1), dtype=np.float32)


def _grain(rng: np.random.Generator, size: int) -> Image:
    image = np.full((size, size), rng.uniform(90, 170), np.float32)
    for scale in (1.0, 3.0, 9.0, 27.0):
        image += rng.uniform(3, 9) * smooth_noise(rng, (size, size), scale, scale)
    return image


def _printed(rng: np.random.Generator, size: int) -> Image:
    image = np.full((size, size), rng.uniform(120, 220), np.float32)
    for _ in range(rng.integers(15, 50)):
        x, y = (int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in rng.integers(4, 50, 2))
        thickness = -1 if rng.random() < 0.5 else int(rng.integers(1, 6))
        cv2.ellipse(image, (x, y), axes, rng.uniform(0, 180), 0, 360, rng.uniform(30, 240), thickness, cv2.LINE_AA)
    return np.asarray(image + 2 * smooth_noise(rng, (size, size), 1, 1), dtype=np.float32)


TEXTURES: dict[str, Callable[[np.random.Generator, int], Image]] = {
    "brushed": _brushed,
    "woven": _woven,
    "grain": _grain,
    "printed": _printed,
}
