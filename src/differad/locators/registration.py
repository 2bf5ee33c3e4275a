"""Lay a reference onto a target: the simplest motion that explains how the two differ in pose, or none.

Tried in order: a change of size alone, a shift (phase correlation of the edges), an affine map and a homography (SIFT
matches, RANSAC, then ECC refinement). Quality is the correlation of softened edge strength after the reference was laid
onto the target: light does not move it, another part scores near zero. Knows nothing of defects or boxes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.images import RGB
from differad.locators.calibration import REGISTERING, Registering

Grey = NDArray[np.uint8]
Edges = NDArray[np.float32]
Matrix = NDArray[np.float64]

# Registration looks at pictures no longer than this; sub-pixel estimates keep the error under a pixel of larger ones.
WORKING_SIDE = 640
_EDGE_SIGMA = 1.0
_LEAST_SIDE, _LEAST_TILE = 32, 16
# Grey levels of structure under which a surface is plain: sensor noise of 10 levels leaves 1.4 at this softness.
_PLAIN = 1.5
_PLAIN_SIGMA = 2.0
_LEAST_MATCHES = 12
# A freer motion is taken for this much more correlation: under it, it only follows noise.
_WORTH = 0.005


@dataclass(frozen=True, eq=False)
class Registration:
    """How the reference lies on the target.

    `matrix` (3, 3) maps reference pixels to target pixels (pixel centres at whole numbers); `model` names the motion;
    `quality` in [-1, 1] is the correlation of edges after it. `accepted` is False where no motion explains the pair;
    `matrix` is then the best guess.
    """

    matrix: Matrix
    model: str
    quality: float
    accepted: bool


def register(reference: Grey, target: Grey, limits: Registering = REGISTERING) -> Registration:
    """Find the motion from `reference` (H, W) to `target` (H', W').

    A plain surface, or a picture under 32 pixels, has nothing to register by: it is laid on by size alone, with
    quality 0, and accepted where both are plain (but for a defect in the target), or of the same size.
    """
    down_reference, down_target = _shrink(reference), _shrink(target)
    scale = resizing(reference.shape, down_reference.shape)
    unscale = np.linalg.inv(resizing(target.shape, down_target.shape))
    found = _register_small(down_reference, down_target, limits)
    return Registration(unscale @ found.matrix @ scale, found.model, found.quality, found.accepted)


def grey(image: RGB) -> Grey:
    """An image (H, W, 3) or (H, W) in grey levels (H, W), as `register` takes it."""
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def warp(
    picture: NDArray[np.uint8], matrix: Matrix, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """`picture` laid onto (H, W) `shape`, and the (H, W) mask of the pixels that it covers."""
    height, width = shape
    if picture.shape[:2] == shape and np.allclose(matrix, np.eye(3), atol=1e-3):
        return picture, np.ones(shape, np.bool_)
    moved = cv2.warpPerspective(
        picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    inside = np.full(picture.shape[:2], 255, np.uint8)
    covered = cv2.warpPerspective(inside, matrix, (width, height), flags=cv2.INTER_NEAREST)
    return moved, covered > 0


def _register_small(reference: Grey, target: Grey, limits: Registering) -> Registration:
    """As `register`, on pictures of working size; motions are sought between edges at half of that."""
    resize = resizing(reference.shape, target.shape)
    if min(*reference.shape, *target.shape) < _LEAST_SIDE:
        return Registration(resize, "size", 0.0, reference.shape == target.shape)
    if _contrast(reference, np.std) < _PLAIN:
        return Registration(resize, "size", 0.0, _contrast(target, _robust_spread) < _PLAIN)
    there, here = _halve(_edges(reference)), _halve(_edges(target))
    down = resizing(reference.shape, there.shape)
    up = np.linalg.inv(resizing(target.shape, here.shape))
    rough = (np.linalg.inv(up) @ matrix @ np.linalg.inv(down) for matrix in _from_features(reference, target))
    best = Registration(resize, "size", -1.0, False)
    for model, matrix, stop in _ladder(there, here, rough, limits):
        if not _is_sane(matrix, there.shape, here.shape):
            continue
        quality = _quality(there, here, matrix)
        if quality > best.quality + _WORTH or (best.model == "size" and quality > best.quality):
            best = Registration(up @ matrix @ down, model, quality, quality >= limits.accept)
        if best.quality >= stop:
            break
    return best


def _ladder(
    there: Edges, here: Edges, rough: Iterable[Matrix], limits: Registering
) -> Iterator[tuple[str, Matrix, float]]:
    """Motions from simple to free, each with the quality at which dearer ones need not be computed."""
    resize = resizing(there.shape, here.shape)
    yield "size", resize, math.inf
    # Stretched edges are a copy of their own, and `phaseCorrelate` writes into what it is given: see `_shift`.
    stretched = _lay(there, resize, here.shape)
    shift = _shift(stretched, here if stretched is there else here.copy()) @ resize
    yield "shift", shift, math.inf
    for start in chain([shift], rough):
        affine = _refine(there, here, start, cv2.MOTION_AFFINE)
        if affine is not None:
            yield "affine", affine, math.inf
        bent = _refine(there, here, start if affine is None else affine, cv2.MOTION_HOMOGRAPHY, near=affine is not None)
        if bent is not None:
            yield "homography", bent, limits.enough


def _from_features(reference: Grey, target: Grey) -> Iterator[Matrix]:
    """Rough poses by SIFT matches: the similarity and the homography that most of them agree on."""
    matches = _match(reference, target)
    if matches is None:
        return
    points, seen = matches
    rough, inliers = cv2.estimateAffinePartial2D(points, seen, method=cv2.RANSAC, ransacReprojThreshold=3.0)
    if rough is not None and int(inliers.sum()) >= _LEAST_MATCHES:
        square = np.vstack([rough, [0.0, 0.0, 1.0]])
        if _is_sane(square, reference.shape, target.shape):
            yield square
    bent, inliers = cv2.findHomography(points, seen, cv2.RANSAC, 3.0)
    if bent is None or int(inliers.sum()) < _LEAST_MATCHES:
        return
    if _is_sane(bent, reference.shape, target.shape):
        yield bent


def _shrink(picture: Grey) -> Grey:
    """Not longer than WORKING_SIDE, unless that would leave a strip too thin to register."""
    height, width = picture.shape
    factor = max(WORKING_SIDE / max(height, width), _LEAST_SIDE / min(height, width))
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _contrast(picture: Grey, spread: Callable[[Edges], Any]) -> float:
    """Grey levels of structure between a few pixels and a few dozen, by the given measure of spread."""
    soft = cv2.GaussianBlur(picture, (0, 0), _PLAIN_SIGMA).astype(np.float32)
    return float(spread(soft - cv2.blur(soft, (33, 33))))


def _robust_spread(values: Edges) -> float:
    return 1.4826 * float(np.median(np.abs(values)))


def resizing(source: tuple[int, ...], sink: tuple[int, ...]) -> Matrix:
    """The map of pixel centres that stretches `source` (H, W) to `sink` (H, W)."""
    y, x = sink[0] / source[0], sink[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _edges(picture: Grey) -> Edges:
    """Softened edge strength (H, W); soft enough that a residual half pixel costs little."""
    soft = cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.float32)
    across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    # Not cv2.magnitude: its last bit depends on where in memory the result lies, and the pose found would with it.
    strength = np.sqrt(across * across + down * down)
    return np.asarray(cv2.GaussianBlur(strength, (0, 0), _EDGE_SIGMA))


def _lay(edges: Edges, matrix: Matrix, shape: tuple[int, ...]) -> Edges:
    if edges.shape == shape and np.array_equal(matrix, np.eye(3)):
        return edges
    return np.asarray(cv2.warpPerspective(edges, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR))


def _shift(there: Edges, here: Edges) -> Matrix:
    """The shift between two edge maps of one size. Writes into both.

    Where no padding is needed (sides that are products of 2, 3 and 5), OpenCV multiplies its inputs by the window in place.
    Windowed alike, two maps of one size keep their correlation, and every constant was calibrated with it.
    """
    window = cv2.createHanningWindow((here.shape[1], here.shape[0]), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(there, here, window)
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _match(reference: Grey, target: Grey) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Points (N, 2) of the reference and where the target shows the same, by SIFT and Lowe's ratio."""
    detector = cv2.SIFT.create(nfeatures=800)
    points, descriptors = detector.detectAndCompute(reference, None)
    seen, others = detector.detectAndCompute(target, None)
    if descriptors is None or others is None or min(len(points), len(seen)) < _LEAST_MATCHES:
        return None
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descriptors, others, k=2)
    good = [first for first, second in candidates if first.distance < 0.85 * second.distance]
    if len(good) < _LEAST_MATCHES:
        return None
    return (
        np.array([points[match.queryIdx].pt for match in good], np.float32),
        np.array([seen[match.trainIdx].pt for match in good], np.float32),
    )


def _refine(there: Edges, here: Edges, matrix: Matrix, motion: int, *, near: bool = False) -> Matrix | None:
    """`matrix` moved to the nearest maximum of the enhanced correlation coefficient; None where it diverges.

    At half of the edges' size, whose wide maxima reach farther, then at all of it; at that alone where the start is `near`.
    """
    own = there, here
    for small_there, small_here in (own,) if near else ((_halve(there), _halve(here)), own):
        down = resizing(there.shape, small_there.shape)
        up = resizing(small_here.shape, here.shape)
        found = _ecc(small_there, small_here, np.linalg.inv(up) @ matrix @ np.linalg.inv(down), motion)
        if found is None or not _is_sane(found, small_there.shape, small_here.shape):
            return None
        matrix = up @ found @ down
    return matrix


def _ecc(there: Edges, here: Edges, matrix: Matrix, motion: int) -> Matrix | None:
    start = np.linalg.inv(matrix)
    start = (start / start[2, 2]).astype(np.float32)
    start = start if motion == cv2.MOTION_HOMOGRAPHY else start[:2].copy()
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
    try:
        _, found = cv2.findTransformECC(here, there, start, motion, stop, None, 1)
    except cv2.error:
        return None
    square = (found if motion == cv2.MOTION_HOMOGRAPHY else np.vstack([found, [0.0, 0.0, 1.0]])).astype(np.float64)
    return np.linalg.inv(square) if abs(np.linalg.det(square)) > 1e-3 else None


def _halve(edges: Edges) -> Edges:
    size = (edges.shape[1] + 1) // 2, (edges.shape[0] + 1) // 2
    return np.asarray(cv2.resize(edges, size, interpolation=cv2.INTER_AREA))


def _is_sane(matrix: Matrix, shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether a map keeps the picture in front of the camera, unmirrored and near the size that stretching gives."""
    height, width = shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    depth = np.hstack([corners, np.ones((4, 1))]) @ matrix[2]
    if (depth <= 0.2 * depth.max()).any():
        return False
    moved = cv2.perspectiveTransform(corners[None], matrix).astype(np.float32)
    area = cv2.contourArea(moved, True) / (onto[0] * onto[1])
    return bool(cv2.isContourConvex(moved)) and 0.25 < area < 4


def _quality(there: Edges, here: Edges, matrix: Matrix) -> float:
    """Median correlation of edge strength over the tiles that show edges, less where few tiles are covered.

    Tiles, because one bright corner would carry a correlation of the whole; a match of a small part proves little, so
    under half the tiles count in proportion.
    """
    covered = _lay(np.ones_like(there), matrix, here.shape) > 0.99
    moved = _lay(there, matrix, here.shape)
    tile = max(_LEAST_TILE, min(here.shape) // 8)
    ours, theirs, inside = (_tiles(picture, tile) for picture in (here, moved, covered.astype(np.float32)))
    whole = inside.min(axis=1) > 0
    ours, theirs = (t - t.mean(axis=1, keepdims=True) for t in (ours, theirs))
    energy, their_energy = (ours**2).sum(axis=1), (theirs**2).sum(axis=1)
    busy = np.maximum(energy, their_energy) > 0.1 * np.mean(energy)
    if not (busy & whole).any():
        return -1.0
    product = np.sqrt(np.maximum(energy * their_energy, 1e-6))
    correlation = ((ours * theirs).sum(axis=1) / product)[busy & whole]
    share = float((busy & whole).sum() / busy.sum())
    return float(np.median(correlation)) * min(1.0, 2 * share)


def _tiles(picture: Edges, tile: int) -> NDArray[np.float32]:
    """(H, W) cut into (N, tile * tile); a remainder at the right and lower border is left out."""
    rows, columns = picture.shape[0] // tile, picture.shape[1] // tile
    cut = picture[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile)
    return np.asarray(cut.transpose(0, 2, 1, 3).reshape(rows * columns, tile * tile))
