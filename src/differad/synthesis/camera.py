"""What a camera, a fixture and a file format do to a part that is not a defect: pose, light, blur, noise, JPEG.

`View` holds one drawing of all of them; the same view taken of a part with and without a defect differs by the defect
alone, which is where exact masks come from. Knows nothing of defects.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.synthesis.textures import Picture, smooth_noise

Matrix = NDArray[np.float64]
# A Gaussian is cut off after this many of its widths.
_BLUR_REACH = 2.5


@dataclass(frozen=True)
class Nuisance:
    """Upper bounds of what `draw_view` draws; lengths in pixels of the picture, light in shares or grey levels.

    `jpeg` is the share of pictures that are compressed.
    """

    shift: float = 6.0
    angle: float = 1.5
    scale: float = 0.015
    perspective: float = 0.0
    gain: float = 0.2
    offset: float = 15.0
    gradient: float = 0.15
    cast: float = 0.06
    blur: float = 0.9
    noise: float = 4.0
    shimmer: float = 0.12
    swell: float = 0.25
    wobble: float = 2.0
    etch: float = 1.5
    jpeg: float = 0.5


# How the reference is seen: all that may differ between two pictures is drawn into the second.
STILL = Nuisance(
    shift=0.0,
    angle=0.0,
    scale=0.0,
    gain=0.0,
    offset=0.0,
    gradient=0.0,
    cast=0.0,
    blur=0.6,
    noise=2.0,
    swell=0.0,
    wobble=0.0,
    etch=0.0,
)


@dataclass(frozen=True, eq=False)
class View:
    """One way of looking at a part.

    `pose` (3, 3) maps pixels of the drawn part to pixels of the picture, up to `wobble` (H, W, 2), the pixels by which
    feed and lens bend it; `gain` (H, W), `cast` (3,) and `offset` are light and its colour, `grain` (H, W, 1 or 3) is noise
    in grey levels, `edge` (H, W) what a binary scan adds, as a share of the full range, before it decides for black or
    white, `etch` (h, w) how far the edges of this very part lie off those of the reference's. `jpeg` is a quality or None.
    """

    pose: Matrix
    wobble: Picture
    gain: Picture
    cast: Picture
    offset: float
    blur: float
    grain: Picture
    edge: Picture
    etch: Picture
    jpeg: int | None

    @cached_property
    def light(self) -> Picture:
        """The factor (H, W, 3) on each channel."""
        return np.asarray(cv2.merge([self.gain * share for share in self.cast]), dtype=np.float32)

    @cached_property
    def source(self) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Where in the part each pixel looks, as OpenCV's fixed-point maps; every picture in this view shares them."""
        size = self.gain.shape[0]
        grid = self.wobble.copy()
        grid[..., 0] += np.arange(size, dtype=np.float32)
        grid[..., 1] += np.arange(size, dtype=np.float32)[:, None]
        looked = cv2.perspectiveTransform(grid.reshape(-1, 1, 2), np.linalg.inv(self.pose)).reshape(size, size, 2)
        whole, rest = cv2.convertMaps(looked, None, cv2.CV_16SC2)
        return np.asarray(whole, np.int16), np.asarray(rest, np.uint16)


def draw_view(rng: np.random.Generator, size: int, margin: int, nuisance: Nuisance) -> View:
    """A view that cuts `size` x `size` pixels out of a drawing `margin` pixels larger on each side."""
    direction = rng.uniform(0, 2 * np.pi)
    across = (np.arange(size) / size - 0.5).astype(np.float32)
    slope = nuisance.gradient * rng.uniform(-1, 1)
    ramp = across * np.cos(direction) + (across * np.sin(direction))[:, None]
    gain = 1 + nuisance.gain * rng.uniform(-1, 1) + slope * ramp
    noise = _sensor_noise(rng, (size, size, 1 if rng.random() < 0.5 else 3))
    return View(
        pose=_draw_pose(rng, size, margin, nuisance),
        wobble=_draw_wobble(rng, size, nuisance.wobble),
        gain=gain.astype(np.float32),
        cast=(1 + nuisance.cast * rng.uniform(-1, 1, 3)).astype(np.float32),
        offset=nuisance.offset * rng.uniform(-1, 1),
        blur=max(0.1, rng.uniform(min(0.4, nuisance.blur), nuisance.blur)),
        grain=noise * np.float32(rng.uniform(min(0.5, nuisance.noise), nuisance.noise)),
        edge=_draw_edge(rng, size, nuisance),
        etch=_draw_etch(rng, size + 2 * margin, nuisance.etch),
        jpeg=int(rng.integers(75, 96)) if rng.random() < nuisance.jpeg else None,
    )


def see(part: Picture, view: View, *, binary: bool) -> Picture:
    """The picture before noise and compression, (H, W, 3) float32 in [0, 255]."""
    # Grey levels of the part are never below 0; eight bits of them are moved and blurred at a third of the time.
    seen = cv2.remap(cv2.convertScaleAbs(part), *view.source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    side = 2 * math.ceil(_BLUR_REACH * view.blur) + 1
    seen = cv2.GaussianBlur(seen, (side, side), view.blur)
    if binary:
        return np.where(seen + 255 * view.edge[..., None] > 127.5, np.float32(255), np.float32(0))
    lit = cv2.multiply(seen, view.light, dtype=cv2.CV_32F)
    lit += np.float32(view.offset)
    return np.asarray(np.clip(lit, 0, 255, out=lit), dtype=np.float32)


def develop(seen: Picture, view: View, *, binary: bool) -> RGB:
    """The file that the camera writes: noise (a binary scan has none), 8 bits, JPEG."""
    grain = np.broadcast_to(np.float32(0) if binary else view.grain, seen.shape)
    pixels = cv2.add(seen, np.ascontiguousarray(grain), dtype=cv2.CV_8U)  # rounds and saturates in one pass
    if view.jpeg is None:
        return np.asarray(pixels, dtype=np.uint8)
    blue_first = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, view.jpeg])
    return np.asarray(cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _sensor_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Picture:
    """Noise of unit variance: the sum of four uniform bytes, which nobody tells from a Gaussian at a third of its time."""
    drawn = np.frombuffer(rng.bytes(4 * int(np.prod(shape))), np.uint8).reshape(4, *shape)
    total = np.add(drawn[0], drawn[1], dtype=np.uint16)
    total += drawn[2]
    total += drawn[3]
    deviation = np.sqrt(4 * (256**2 - 1) / 12)
    return np.asarray((total.astype(np.float32) - np.float32(4 * 127.5)) * np.float32(1 / deviation))


def _draw_pose(rng: np.random.Generator, size: int, margin: int, nuisance: Nuisance) -> Matrix:
    center = size / 2 + margin
    turn = np.eye(3)
    turn[:2] = cv2.getRotationMatrix2D(
        (center, center), nuisance.angle * rng.uniform(-1, 1), 1 + nuisance.scale * rng.uniform(-1, 1)
    )
    move = np.eye(3)
    move[:2, 2] = nuisance.shift * rng.uniform(-1, 1, 2) - margin
    tilt = np.eye(3)
    tilt[2, :2] = nuisance.perspective * rng.uniform(-1, 1, 2) / size
    return np.asarray(move @ turn @ tilt)


def _draw_edge(rng: np.random.Generator, size: int, nuisance: Nuisance) -> Picture:
    """Kept under half the range: a scanner's threshold moves edges, it does not strew specks over plain areas."""
    if nuisance.shimmer == nuisance.swell == 0:
        return np.zeros((size, size), np.float32)
    field = nuisance.shimmer * smooth_noise(rng, (size, size), 0.8, 0.8) + nuisance.swell * rng.uniform(-1, 1)
    return np.asarray(np.clip(field, -0.45, 0.45), dtype=np.float32)


def _draw_wobble(rng: np.random.Generator, size: int, bound: float) -> Picture:
    """A displacement field that bends over an eighth of the picture, two standard deviations of it within `bound`."""
    if bound == 0:
        return np.zeros((size, size, 2), np.float32)
    coarse = [smooth_noise(rng, (32, 32), 4, 4) for _ in range(2)]
    fields = [cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC) for field in coarse]
    return np.asarray(np.stack(fields, axis=-1) * np.float32(bound / 2 * rng.uniform(0, 1)), dtype=np.float32)


def _draw_etch(rng: np.random.Generator, size: int, bound: float) -> Picture:
    """How far each edge lies outside its place, in pixels: ragged over 1 to 5 pixels, two deviations within `bound`."""
    if bound == 0:
        return np.zeros((size, size), np.float32)
    ragged = smooth_noise(rng, (size, size), *[rng.uniform(1, 5)] * 2)
    return np.asarray(np.float32(bound / 2 * rng.uniform(0, 1)) * ragged, dtype=np.float32)
