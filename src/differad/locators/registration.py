"""Align a reference to a target: the simplest motion that explains how the two differ in pose, or none.

Tried in order: a change of size alone, a shift (phase correlation of the edges), an affine map and a homography (SIFT
matches, RANSAC, then ECC refinement). Quality is the correlation of blurred edge strength after the alignment: illumination
hardly affects it, another part scores near zero. Knows nothing of defects or boxes.
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
from differad.locators.calibration import REGISTRATION_CONSTANTS, RegistrationConstants

Grey = NDArray[np.uint8]
Edges = NDArray[np.float32]
Matrix = NDArray[np.float64]

# Registration works on images with a longer side of at most this; sub-pixel estimates keep the error of larger ones small.
WORKING_SIDE = 640
_EDGE_SIGMA = 1.0
_MIN_SIDE, _MIN_TILE = 32, 16
# Grey levels of structure below which a surface is plain: sensor noise of 10 levels leaves 1.4 after this blur.
_PLAIN_LEVELS = 1.5
_PLAIN_SIGMA = 2.0
_MIN_MATCHES = 12
# A motion with more parameters is taken only if it gains this much correlation: a smaller gain is noise.
_MIN_GAIN = 0.005


@dataclass(frozen=True, eq=False)
class Registration:
    """The motion that aligns the reference to the target.

    `matrix` (3, 3) maps reference pixels to target pixels (pixel centres at whole numbers); `model` names the motion;
    `quality` in [-1, 1] is the correlation of edges after it. `accepted` is False if no motion explains the pair;
    `matrix` is then the best guess.
    """

    matrix: Matrix
    model: str
    quality: float
    accepted: bool


def register(reference: Grey, target: Grey, limits: RegistrationConstants = REGISTRATION_CONSTANTS) -> Registration:
    """Find the motion from `reference` (H, W) to `target` (H', W').

    A plain surface, or an image below 32 pixels, has nothing to register by: it is aligned by size alone, with
    quality 0, and accepted if both are plain (apart from a defect in the target), or of the same size.
    """
    down_reference, down_target = _shrink(reference), _shrink(target)
    scale = resizing(reference.shape, down_reference.shape)
    unscale = np.linalg.inv(resizing(target.shape, down_target.shape))
    small = _register_shrunk(down_reference, down_target, limits)
    return Registration(unscale @ small.matrix @ scale, small.model, small.quality, small.accepted)


def grey(image: RGB) -> Grey:
    """An image (H, W, 3) or (H, W) in grey levels (H, W), as `register` takes it."""
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def warp(
    image: NDArray[np.uint8], matrix: Matrix, shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """`image` warped to `shape` (H, W), and the mask (H, W) of the pixels that it covers."""
    height, width = shape
    if image.shape[:2] == shape and np.allclose(matrix, np.eye(3), atol=1e-3):
        return image, np.ones(shape, np.bool_)
    moved = cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.full(image.shape[:2], 255, np.uint8)
    covered = cv2.warpPerspective(inside, matrix, (width, height), flags=cv2.INTER_NEAREST)
    return moved, covered > 0


def _register_shrunk(reference: Grey, target: Grey, limits: RegistrationConstants) -> Registration:
    """As `register`, for images of working size; motions are estimated between edges at half of it."""
    resize = resizing(reference.shape, target.shape)
    if min(*reference.shape, *target.shape) < _MIN_SIDE:
        return Registration(resize, "size", 0.0, reference.shape == target.shape)
    if _contrast(reference, np.std) < _PLAIN_LEVELS:
        return Registration(resize, "size", 0.0, _contrast(target, _robust_spread) < _PLAIN_LEVELS)
    reference_edges, target_edges = _halve(_edges(reference)), _halve(_edges(target))
    down = resizing(reference.shape, reference_edges.shape)
    up = np.linalg.inv(resizing(target.shape, target_edges.shape))
    rough = (np.linalg.inv(up) @ matrix @ np.linalg.inv(down) for matrix in _poses_from_sift(reference, target))
    best = Registration(resize, "size", -1.0, False)
    for model, matrix, stop in _candidate_motions(reference_edges, target_edges, rough, limits):
        if not _is_sane(matrix, reference_edges.shape, target_edges.shape):
            continue
        quality = _quality(reference_edges, target_edges, matrix)
        if quality > best.quality + _MIN_GAIN or (best.model == "size" and quality > best.quality):
            best = Registration(up @ matrix @ down, model, quality, quality >= limits.accept)
        if best.quality >= stop:
            break
    return best


def _candidate_motions(
    reference_edges: Edges, target_edges: Edges, rough: Iterable[Matrix], limits: RegistrationConstants
) -> Iterator[tuple[str, Matrix, float]]:
    """Motions from few to many parameters, each with the quality from which the following, slower ones are not computed."""
    resize = resizing(reference_edges.shape, target_edges.shape)
    yield "size", resize, math.inf
    # `phaseCorrelate` writes into its inputs (see `_shift`); stretched edges are a copy already.
    stretched = _warp_edges(reference_edges, resize, target_edges.shape)
    shift = _shift(stretched, target_edges if stretched is reference_edges else target_edges.copy()) @ resize
    yield "shift", shift, math.inf
    for start in chain([shift], rough):
        affine = _refine(reference_edges, target_edges, start, cv2.MOTION_AFFINE)
        if affine is not None:
            yield "affine", affine, math.inf
        homography = _refine(
            reference_edges,
            target_edges,
            start if affine is None else affine,
            cv2.MOTION_HOMOGRAPHY,
            near=affine is not None,
        )
        if homography is not None:
            yield "homography", homography, limits.enough


def _poses_from_sift(reference: Grey, target: Grey) -> Iterator[Matrix]:
    """Rough poses from SIFT matches: the similarity and the homography that most matches agree on."""
    matches = _match(reference, target)
    if matches is None:
        return
    points, target_points = matches
    rough, inliers = cv2.estimateAffinePartial2D(points, target_points, method=cv2.RANSAC, ransacReprojThreshold=3.0)
    if rough is not None and int(inliers.sum()) >= _MIN_MATCHES:
        similarity = np.vstack([rough, [0.0, 0.0, 1.0]])
        if _is_sane(similarity, reference.shape, target.shape):
            yield similarity
    homography, inliers = cv2.findHomography(points, target_points, cv2.RANSAC, 3.0)
    if homography is None or int(inliers.sum()) < _MIN_MATCHES:
        return
    if _is_sane(homography, reference.shape, target.shape):
        yield homography


def _shrink(image: Grey) -> Grey:
    """The image with a longer side of at most WORKING_SIDE, or larger where its shorter side would be too thin to register."""
    height, width = image.shape
    factor = max(WORKING_SIDE / max(height, width), _MIN_SIDE / min(height, width))
    if factor >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _contrast(image: Grey, spread: Callable[[Edges], Any]) -> float:
    """Grey levels of structure at scales from a few pixels to a few dozen, by a measure of spread."""
    soft = cv2.GaussianBlur(image, (0, 0), _PLAIN_SIGMA).astype(np.float32)
    return float(spread(soft - cv2.blur(soft, (33, 33))))


def _robust_spread(values: Edges) -> float:
    return 1.4826 * float(np.median(np.abs(values)))


def resizing(source: tuple[int, ...], sink: tuple[int, ...]) -> Matrix:
    """The matrix (3, 3) of pixel centres that resizes `source` (H, W) to `sink` (H, W)."""
    y, x = sink[0] / source[0], sink[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _edges(image: Grey) -> Edges:
    """Blurred edge strength (H, W); blurred enough that a residual of half a pixel costs little."""
    soft = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
    across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    # Not cv2.magnitude: its last bit depends on the memory address of the result, and so would the pose.
    strength = np.sqrt(across * across + down * down)
    return np.asarray(cv2.GaussianBlur(strength, (0, 0), _EDGE_SIGMA))


def _warp_edges(edges: Edges, matrix: Matrix, shape: tuple[int, ...]) -> Edges:
    if edges.shape == shape and np.array_equal(matrix, np.eye(3)):
        return edges
    return np.asarray(cv2.warpPerspective(edges, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR))


def _shift(reference_edges: Edges, target_edges: Edges) -> Matrix:
    """The shift between two edge maps of one size. Writes into both.

    Without padding (sides that are products of 2, 3 and 5), OpenCV multiplies its inputs by the window in place. Both maps are
    windowed alike, so that their correlation stays, and every constant was calibrated with it.
    """
    window = cv2.createHanningWindow((target_edges.shape[1], target_edges.shape[0]), cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(reference_edges, target_edges, window)
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _match(reference: Grey, target: Grey) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Matching points (N, 2) of the reference and of the target, by SIFT and Lowe's ratio test."""
    detector = cv2.SIFT.create(nfeatures=800)
    points, descriptors = detector.detectAndCompute(reference, None)
    target_points, target_descriptors = detector.detectAndCompute(target, None)
    if descriptors is None or target_descriptors is None or min(len(points), len(target_points)) < _MIN_MATCHES:
        return None
    candidates = cv2.BFMatcher(cv2.NORM_L2).knnMatch(descriptors, target_descriptors, k=2)
    good = [first for first, second in candidates if first.distance < 0.85 * second.distance]
    if len(good) < _MIN_MATCHES:
        return None
    return (
        np.array([points[match.queryIdx].pt for match in good], np.float32),
        np.array([target_points[match.trainIdx].pt for match in good], np.float32),
    )


def _refine(
    reference_edges: Edges, target_edges: Edges, matrix: Matrix, motion: int, *, near: bool = False
) -> Matrix | None:
    """`matrix` refined to the nearest maximum of the enhanced correlation coefficient; None if it diverges.

    First at half of the edges' size, where maxima are wider, then at full size; at full size only if the start is `near`.
    """
    full = reference_edges, target_edges
    for small_reference, small_target in (full,) if near else ((_halve(reference_edges), _halve(target_edges)), full):
        down = resizing(reference_edges.shape, small_reference.shape)
        up = resizing(small_target.shape, target_edges.shape)
        refined = _ecc(small_reference, small_target, np.linalg.inv(up) @ matrix @ np.linalg.inv(down), motion)
        if refined is None or not _is_sane(refined, small_reference.shape, small_target.shape):
            return None
        matrix = up @ refined @ down
    return matrix


def _ecc(reference_edges: Edges, target_edges: Edges, matrix: Matrix, motion: int) -> Matrix | None:
    start = np.linalg.inv(matrix)
    start = (start / start[2, 2]).astype(np.float32)
    start = start if motion == cv2.MOTION_HOMOGRAPHY else start[:2].copy()
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
    try:
        _, inverse = cv2.findTransformECC(target_edges, reference_edges, start, motion, stop, None, 1)
    except cv2.error:
        return None
    square = (inverse if motion == cv2.MOTION_HOMOGRAPHY else np.vstack([inverse, [0.0, 0.0, 1.0]])).astype(np.float64)
    return np.linalg.inv(square) if abs(np.linalg.det(square)) > 1e-3 else None


def _halve(edges: Edges) -> Edges:
    size = (edges.shape[1] + 1) // 2, (edges.shape[0] + 1) // 2
    return np.asarray(cv2.resize(edges, size, interpolation=cv2.INTER_AREA))


def _is_sane(matrix: Matrix, shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether a map keeps the image in front of the camera, unmirrored and near the size that resizing gives."""
    height, width = shape
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    depth = np.hstack([corners, np.ones((4, 1))]) @ matrix[2]
    if (depth <= 0.2 * depth.max()).any():
        return False
    moved = cv2.perspectiveTransform(corners[None], matrix).astype(np.float32)
    area = cv2.contourArea(moved, True) / (onto[0] * onto[1])
    return bool(cv2.isContourConvex(moved)) and 0.25 < area < 4


def _quality(reference_edges: Edges, target_edges: Edges, matrix: Matrix) -> float:
    """Median correlation of edge strength over the tiles that show edges, reduced if few tiles are covered.

    By tiles, since one bright corner would dominate a correlation of the whole image. A match of a small part proves
    little: below half of the tiles, the result is reduced in proportion.
    """
    covered = _warp_edges(np.ones_like(reference_edges), matrix, target_edges.shape) > 0.99
    moved = _warp_edges(reference_edges, matrix, target_edges.shape)
    tile = max(_MIN_TILE, min(target_edges.shape) // 8)
    target_tiles, reference_tiles, inside = (
        _tiles(image, tile) for image in (target_edges, moved, covered.astype(np.float32))
    )
    whole = inside.min(axis=1) > 0
    target_tiles, reference_tiles = (t - t.mean(axis=1, keepdims=True) for t in (target_tiles, reference_tiles))
    target_energy, reference_energy = (target_tiles**2).sum(axis=1), (reference_tiles**2).sum(axis=1)
    busy = np.maximum(target_energy, reference_energy) > 0.1 * np.mean(target_energy)
    if not (busy & whole).any():
        return -1.0
    product = np.sqrt(np.maximum(target_energy * reference_energy, 1e-6))
    correlation = ((target_tiles * reference_tiles).sum(axis=1) / product)[busy & whole]
    share = float((busy & whole).sum() / busy.sum())
    return float(np.median(correlation)) * min(1.0, 2 * share)


def _tiles(image: Edges, tile: int) -> NDArray[np.float32]:
    """(H, W) split into tiles (N, tile * tile); a remainder at the right and lower border is left out."""
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    tiles = image[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile)
    return np.asarray(tiles.transpose(0, 2, 1, 3).reshape(rows * columns, tile * tile))
