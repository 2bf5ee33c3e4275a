"""Two images compared at several sizes, large ones in strips."""

import cv2
import numpy as np
import pytest

from differad.locators import levels as levels_module
from differad.locators.levels import levels, residual, residuals
from differad.synthesis.pairs import make_pair


@pytest.fixture(scope="module")
def pair():
    synthetic = make_pair(np.random.default_rng(5), "board", size=700)
    return synthetic.reference, synthetic.target


def test_levels_go_from_one_size_to_the_images_own_and_map_points_alike(pair):
    matrix = np.array([[1.01, 0.02, 3.0], [-0.01, 0.99, -5.0], [1e-5, 0, 1]])
    reference, target = (cv2.resize(image, (1792, 1792)) for image in pair)
    pyramid = list(levels(reference, target, matrix))
    assert [level.target.shape[0] for level in pyramid] == [640, 1792]
    assert pyramid[-1].target is target
    # The centre of pixel x is at x + 0.5.
    small, corner = pyramid[0], np.array([[[600.0, 100.0]]])
    assert small.share == pytest.approx(640 / 1792)
    at_small = cv2.perspectiveTransform((corner + 0.5) * small.share - 0.5, small.matrix)
    at_large = cv2.perspectiveTransform(corner, matrix)
    assert np.allclose(at_small, (at_large + 0.5) * small.share - 0.5)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (640, [640]),
        (700, [700]),  # hardly larger
        (720, [640, 720]),
        (1280, [640, 1280]),
        (2560, [640, 1280, 2560]),
        (448, [640]),
        (256, [640]),
        (100, [250]),  # 2.5 times as large, no more
    ],
)
def test_the_smallest_level_has_one_size(side, expected):
    image = np.zeros((side, side), np.uint8)
    assert [len(level.target) for level in levels(image, image, np.eye(3))] == expected


def test_a_strip_has_no_level_that_it_is_too_narrow_for():
    strip = np.zeros((60, 2560), np.uint8)
    assert [level.share for level in levels(strip, strip, np.eye(3))] == [1.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_strips_give_what_the_whole_gives(pair, monkeypatch, workers):
    (level,) = (one for one in levels(*pair, np.eye(3)) if one.share == 1)
    monkeypatch.setattr(levels_module, "STRIP_PIXELS", 1 << 20)
    whole = residual(level, 2, workers=1)
    monkeypatch.setattr(levels_module, "STRIP_PIXELS", 1 << 16)
    strips = residual(level, 2, workers=workers)
    assert np.array_equal(strips.flow, whole.flow)
    # Illumination and flow are upsampled strip by strip, at positions rounded to a 32nd of a pixel of their maps: a few samples
    # round the other way, by one level, or more where edges are steep.
    differ = strips.difference.astype(int) - whole.difference
    assert np.mean(differ != 0) < 0.02
    assert np.abs(differ).mean() < 0.02
    assert strips.contrast == pytest.approx(whole.contrast, rel=1e-3)
    assert strips.spread == pytest.approx(whole.spread, rel=0.01)


def test_the_flow_of_one_level_initialises_the_next(pair):
    reference = cv2.resize(pair[0], (1280, 1280))
    shift = np.array([[1.0, 0, 5.0], [0, 1, 0], [0, 0, 1]])  # more than the flow of one level
    target = cv2.warpPerspective(reference, shift, (1280, 1280))
    (_, _), (large, initialised) = residuals(levels(reference, target, np.eye(3)), 1, workers=1)
    alone = residual(large, 1, workers=1)
    inner = np.s_[100:1180, 100:1180]
    assert initialised.difference[inner].mean() < 0.8 * alone.difference[inner].mean()
