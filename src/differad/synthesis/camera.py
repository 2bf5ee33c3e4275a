"""Changes from camera, fixture and file format that are no defects: pose, light, blur, noise, JPEG.

`View` holds one random sample of all of them. A part with and without a defect, rendered in the same view, differs by the
defect alone, so masks are exact. Knows nothing of defects.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.synthesis.textures import Image, smooth_noise

Matrix = NDArray[np.float64]
# A Gaussian is cut off after this many of its widths.
_BLUR_REACH = 2.5


@dataclass(frozen=True)
class Nuisance:
    """Upper bounds of what `sample_view` draws; lengths in pixels of the image, light in shares or grey levels.

    `shimmer` and `swell` are noise and offset of a binary scan's threshold as shares of the full range, `etch` how far
    edges of copper move, `jpeg` the share of images that are compressed.
    """

    shift: float = 6.0
    angle: float = 1.5
    scale: float = 0.015
    perspective: float = 0.0
    gain: float = 0.2
    offset: float = 15.0
    gradient: float = 0.15
    color_cast: float = 0.06
    blur: float = 0.9
    noise: float = 4.0
    shimmer: float = 0.12
    swell: float = 0.25
    elastic_warp: float = 2.0
    etch: float = 1.5
    jpeg: float = 0.5


# Bounds for the reference: all differences between the two images are drawn for the target.
REFERENCE_NUISANCE = Nuisance(
    shift=0.0,
    angle=0.0,
    scale=0.0,
    gain=0.0,
    offset=0.0,
    gradient=0.0,
    color_cast=0.0,
    blur=0.6,
    noise=2.0,
    swell=0.0,
    elastic_warp=0.0,
    etch=0.0,
)


@dataclass(frozen=True, eq=False)
class View:
    """One sample of a camera's pose, light, noise and compression.

    `pose` (3, 3) maps pixels of the part to pixels of the image, up to `elastic_warp` (H, W, 2), the displacement in pixels
    by feed and lens. `gain` (H, W), `color_cast` (3,) and `offset` are light and its colour; `noise` (H, W, 1 or 3) is in
    grey levels; a binary scan adds `edge` (H, W), as a share of the full range, before it thresholds. `etch` (h, w) is the
    displacement of this part's edges in pixels. `jpeg` is a quality or None.
    """

    pose: Matrix
    elastic_warp: Image
    gain: Image
    color_cast: Image
    offset: float
    blur: float
    noise: Image
    edge: Image
    etch: Image
    jpeg: int | None

    @cached_property
    def light(self) -> Image:
        """The factor (H, W, 3) on each channel."""
        return np.asarray(cv2.merge([self.gain * share for share in self.color_cast]), dtype=np.float32)

    @cached_property
    def source(self) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Position in the part that each pixel shows, as OpenCV's fixed-point maps; all images in this view share them."""
        size = self.gain.shape[0]
        grid = self.elastic_warp.copy()
        grid[..., 0] += np.arange(size, dtype=np.float32)
        grid[..., 1] += np.arange(size, dtype=np.float32)[:, None]
        positions = cv2.perspectiveTransform(grid.reshape(-1, 1, 2), np.linalg.inv(self.pose)).reshape(size, size, 2)
        whole, rest = cv2.convertMaps(positions, None, cv2.CV_16SC2)
        return np.asarray(whole, np.int16), np.asarray(rest, np.uint16)


def sample_view(rng: np.random.Generator, size: int, margin: int, nuisance: Nuisance) -> View:
    """A view that shows `size` x `size` pixels of a part `margin` pixels larger on each side."""
    direction = rng.uniform(0, 2 * np.pi)
    across = (np.arange(size) / size - 0.5).astype(np.float32)
    slope = nuisance.gradient * rng.uniform(-1, 1)
    ramp = across * np.cos(direction) + (across * np.sin(direction))[:, None]
    gain = 1 + nuisance.gain * rng.uniform(-1, 1) + slope * ramp
    noise = _sensor_noise(rng, (size, size, 1 if rng.random() < 0.5 else 3))
    return View(
        pose=_sample_pose(rng, size, margin, nuisance),
        elastic_warp=_sample_elastic_warp(rng, size, nuisance.elastic_warp),
        gain=gain.astype(np.float32),
        color_cast=(1 + nuisance.color_cast * rng.uniform(-1, 1, 3)).astype(np.float32),
        offset=nuisance.offset * rng.uniform(-1, 1),
        blur=max(0.1, rng.uniform(min(0.4, nuisance.blur), nuisance.blur)),
        noise=noise * np.float32(rng.uniform(min(0.5, nuisance.noise), nuisance.noise)),
        edge=_sample_edge(rng, size, nuisance),
        etch=_sample_etch(rng, size + 2 * margin, nuisance.etch),
        jpeg=int(rng.integers(75, 96)) if rng.random() < nuisance.jpeg else None,
    )


def render(part: Image, view: View, *, binary: bool) -> Image:
    """The image before noise and compression, (H, W, 3) float32 in [0, 255]."""
    # Grey levels of the part are never below 0. Warping and blurring them in eight bits takes a third of the time.
    rendered = cv2.remap(cv2.convertScaleAbs(part), *view.source, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    side = 2 * math.ceil(_BLUR_REACH * view.blur) + 1
    rendered = cv2.GaussianBlur(rendered, (side, side), view.blur)
    if binary:
        return np.where(rendered + 255 * view.edge[..., None] > 127.5, np.float32(255), np.float32(0))
    lit = cv2.multiply(rendered, view.light, dtype=cv2.CV_32F)
    lit += np.float32(view.offset)
    return np.asarray(np.clip(lit, 0, 255, out=lit), dtype=np.float32)


def capture(rendered: Image, view: View, *, binary: bool) -> RGB:
    """The decoded file that the camera writes: noise (a binary scan has none), 8 bits, JPEG."""
    noise = np.broadcast_to(np.float32(0) if binary else view.noise, rendered.shape)
    pixels = cv2.add(rendered, np.ascontiguousarray(noise), dtype=cv2.CV_8U)  # rounds and saturates in one pass
    if view.jpeg is None:
        return np.asarray(pixels, dtype=np.uint8)
    blue_first = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, view.jpeg])
    return np.asarray(cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _sensor_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Image:
    """Noise of unit variance: the sum of four uniform bytes, close to a Gaussian in a third of its time."""
    uniform = np.frombuffer(rng.bytes(4 * int(np.prod(shape))), np.uint8).reshape(4, *shape)
    total = np.add(uniform[0], uniform[1], dtype=np.uint16)
    total += uniform[2]
    total += uniform[3]
    deviation = np.sqrt(4 * (256**2 - 1) / 12)
    return np.asarray((total.astype(np.float32) - np.float32(4 * 127.5)) * np.float32(1 / deviation))


def _sample_pose(rng: np.random.Generator, size: int, margin: int, nuisance: Nuisance) -> Matrix:
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


def _sample_edge(rng: np.random.Generator, size: int, nuisance: Nuisance) -> Image:
    """Offset of a scanner's threshold, below half the range: it moves edges and makes no specks in plain areas."""
    if nuisance.shimmer == nuisance.swell == 0:
        return np.zeros((size, size), np.float32)
    field = nuisance.shimmer * smooth_noise(rng, (size, size), 0.8, 0.8) + nuisance.swell * rng.uniform(-1, 1)
    return np.asarray(np.clip(field, -0.45, 0.45), dtype=np.float32)


def _sample_elastic_warp(rng: np.random.Generator, size: int, bound: float) -> Image:
    """A displacement field (size, size, 2), smooth over an eighth of the image, of which two standard deviations are within
    `bound` pixels.
    """
    if bound == 0:
        return np.zeros((size, size, 2), np.float32)
    coarse = [smooth_noise(rng, (32, 32), 4, 4) for _ in range(2)]
    fields = [cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC) for field in coarse]
    return np.asarray(np.stack(fields, axis=-1) * np.float32(bound / 2 * rng.uniform(0, 1)), dtype=np.float32)


def _sample_etch(rng: np.random.Generator, size: int, bound: float) -> Image:
    """Displacement of edges outwards (size, size) in pixels, correlated over 1 to 5 pixels, two deviations within `bound`."""
    if bound == 0:
        return np.zeros((size, size), np.float32)
    ragged = smooth_noise(rng, (size, size), *[rng.uniform(1, 5)] * 2)
    return np.asarray(np.float32(bound / 2 * rng.uniform(0, 1)) * ragged, dtype=np.float32)
