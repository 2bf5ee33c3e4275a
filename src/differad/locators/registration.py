"""Lay a reference onto a target: the simplest motion that explains how the two differ in pose, or none.

Tried in order: a change of size alone, a shift (phase correlation of the edges), an affine map and a homography (SIFT
matches, RANSAC, then ECC refinement). Quality is the correlation of softened edge strength after the reference was laid
onto the target: light does not move it, another part scores near zero. Knows nothing of defects or boxes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Edges = NDArray[np.float32]
Matrix = NDArray[np.float64]

# Registration looks at pictures no longer than this; sub-pixel estimates keep the error under a pixel of larger ones.
WORKING_SIDE = 640
# Calibrated by benchmarks/calibrate_difference.py on synthetic pairs ("registration").
ENOUGH = 0.80  # a motion this good is not improved upon
ACCEPT = 0.45  # nothing below this is the same part in a pose that the ladder knows
WORTH = 0.02  # what a motion with more freedom must gain to be preferred
_EDGE_SIGMA = 1.5
_LEAST_SIDE = 16
_LEAST_MATCHES = 12


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


def register(reference: Grey, target: Grey) -> Registration:
    """Find the motion from `reference` (H, W) to `target` (H', W').

    A pair where either picture shows no edge, or is smaller than 16 pixels, has nothing to register by: it is laid on
    by size alone and accepted where both are featureless.
    """
    down_reference, down_target = _shrink(reference), _shrink(target)
    scale = _resizing(reference.shape, down_reference.shape)
    unscale = np.linalg.inv(_resizing(target.shape, down_target.shape))
    found = _register_small(down_reference, down_target)
    return Registration(unscale @ found.matrix @ scale, found.model, found.quality, found.accepted)


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


def _register_small(reference: Grey, target: Grey) -> Registration:
    resize = _resizing(reference.shape, target.shape)
    if min(*reference.shape, *target.shape) < _LEAST_SIDE:
        return Registration(resize, "size", 0.0, reference.shape == target.shape)
    there, here = _edges(reference), _edges(target)
    if not there.any() or not here.any():
        return Registration(resize, "size", 0.0, not there.any() and not here.any())
    best = Registration(resize, "size", -1.0, False)
    for model, matrix in _ladder(reference, target, there, here):
        quality = _quality(there, here, matrix)
        if quality > best.quality + (WORTH if best.quality >= ACCEPT else 0.0):
            best = Registration(matrix, model, quality, quality >= ACCEPT)
        if model != "size" and best.quality >= ENOUGH:
            break
    return best


def _ladder(reference: Grey, target: Grey, there: Edges, here: Edges) -> Iterator[tuple[str, Matrix]]:
    """Motions from simple to free; the dear ones are only computed when asked for."""
    resize = _resizing(reference.shape, target.shape)
    yield "size", resize
    yield "shift", _shift(_lay(there, resize, here.shape), here) @ resize
    matches = _match(reference, target)
    if matches is None:
        return
    points, seen = matches
    rough, inliers = cv2.estimateAffinePartial2D(points, seen, method=cv2.RANSAC, ransacReprojThreshold=3.0)
    if rough is not None and int(inliers.sum()) >= _LEAST_MATCHES:
        square = np.vstack([rough, [0.0, 0.0, 1.0]])
        if _is_sane(square, reference.shape):
            yield "affine", _refine(there, here, square, cv2.MOTION_AFFINE)
    bent, inliers = cv2.findHomography(points, seen, cv2.RANSAC, 3.0)
    if bent is not None and int(inliers.sum()) >= _LEAST_MATCHES and _is_sane(bent, reference.shape):
        yield "homography", _refine(there, here, bent, cv2.MOTION_HOMOGRAPHY)


def _shrink(picture: Grey) -> Grey:
    height, width = picture.shape
    factor = WORKING_SIDE / max(height, width)
    if factor >= 1:
        return picture
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _resizing(source: tuple[int, ...], sink: tuple[int, ...]) -> Matrix:
    """The map of pixel centres that stretches `source` (H, W) to `sink` (H, W)."""
    y, x = sink[0] / source[0], sink[1] / source[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _edges(picture: Grey) -> Edges:
    """Softened edge strength (H, W); soft enough that a residual pixel costs little."""
    soft = cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.float32)
    strength = cv2.magnitude(cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1))
    return np.asarray(cv2.GaussianBlur(strength, (0, 0), _EDGE_SIGMA))


def _lay(edges: Edges, matrix: Matrix, shape: tuple[int, ...]) -> Edges:
    if edges.shape == shape and np.array_equal(matrix, np.eye(3)):
        return edges
    return np.asarray(cv2.warpPerspective(edges, matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR))


def _shift(there: Edges, here: Edges) -> Matrix:
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


def _refine(there: Edges, here: Edges, matrix: Matrix, motion: int) -> Matrix:
    """`matrix` moved to the nearest maximum of the enhanced correlation coefficient; unchanged where it diverges."""
    start = np.linalg.inv(matrix).astype(np.float32)
    start /= start[2, 2]
    start = start if motion == cv2.MOTION_HOMOGRAPHY else start[:2]
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
    try:
        _, found = cv2.findTransformECC(here, there, start, motion, stop, None, 1)
    except cv2.error:
        return matrix
    square = found if motion == cv2.MOTION_HOMOGRAPHY else np.vstack([found, [0.0, 0.0, 1.0]])
    return np.asarray(np.linalg.inv(square.astype(np.float64)))


def _is_sane(matrix: Matrix, shape: tuple[int, ...]) -> bool:
    """Whether a map keeps the picture's corners in front of the camera and in order."""
    height, width = shape
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float64)
    if (np.hstack([corners[0], np.ones((4, 1))]) @ matrix[2] <= 0.2).any():
        return False
    moved = cv2.perspectiveTransform(corners, matrix).astype(np.float32)
    return bool(cv2.isContourConvex(moved)) and cv2.contourArea(moved, True) > 0.1 * width * height


def _quality(there: Edges, here: Edges, matrix: Matrix) -> float:
    """Correlation of edge strength where the reference covers the target, times the covered share's shortfall.

    A match of a small corner proves little: coverage under half is paid for in proportion.
    """
    inside = _lay(np.ones_like(there), matrix, here.shape) > 0.99
    count = int(inside.sum())
    if count < _LEAST_SIDE**2:
        return -1.0
    moved = _lay(there, matrix, here.shape)[inside]
    seen = here[inside]
    moved, seen = moved - moved.mean(), seen - seen.mean()
    energy = float(np.sqrt(np.dot(moved, moved) * np.dot(seen, seen)))
    if energy == 0:
        return -1.0
    return float(np.dot(moved, seen)) / energy * min(1.0, 2 * count / inside.size)
