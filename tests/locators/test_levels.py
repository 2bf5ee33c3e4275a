"""Two images compared at several sizes, large ones in strips."""

import cv2
import numpy as np
import pytest

from differad.locators import levels as levels_module
from differad.locators.levels import levels, residual
from differad.synthesis.pairs import make_pair


@pytest.fixture(scope="module")
def pair():
    drawn = make_pair(np.random.default_rng(5), "board", size=700)
    return drawn.reference, drawn.target


def test_each_level_is_half_of_the_next_and_maps_points_alike(pair):
    reference, target = pair
    matrix = np.array([[1.01, 0.02, 3.0], [-0.01, 0.99, -5.0], [1e-5, 0, 1]])
    found = list(levels(reference, target, matrix))
    assert [level.target.shape[0] for level in found] == [350, 700]
    assert [level.share for level in found] == [0.5, 1.0]
    assert found[-1].target is target
    # A pixel's centre lies at half its place among twice as many pixels, less a quarter.
    corner = np.array([[[600.0, 100.0]]])
    at_small = cv2.perspectiveTransform((corner + 0.5) / 2 - 0.5, found[0].matrix)
    at_large = cv2.perspectiveTransform(corner, matrix)
    assert np.allclose(at_small, (at_large + 0.5) / 2 - 0.5)


def test_an_image_of_the_working_size_is_compared_once(pair):
    small = cv2.resize(pair[0], (640, 640))
    assert len(list(levels(small, small, np.eye(3)))) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_strips_give_what_the_whole_gives(pair, monkeypatch, workers):
    (level,) = (one for one in levels(*pair, np.eye(3)) if one.share == 1)
    monkeypatch.setattr(levels_module, "STRIP_PIXELS", 1 << 20)
    whole = residual(level, 2, workers=1)
    monkeypatch.setattr(levels_module, "STRIP_PIXELS", 1 << 16)
    strips = residual(level, 2, workers=workers)
    assert np.array_equal(strips.field, whole.field)
    # Light and displacement are enlarged strip by strip, at places rounded to a 32nd of a pixel of their maps: a few samples
    # round the other way, by one level, or more where edges are steep.
    differ = strips.over.astype(int) - whole.over
    assert np.mean(differ != 0) < 0.02
    assert np.abs(differ).mean() < 0.02
    assert strips.contrast == pytest.approx(whole.contrast, rel=1e-3)
    assert strips.spread == pytest.approx(whole.spread, rel=0.01)


def test_a_displacement_found_at_one_level_is_where_the_next_starts(pair):
    reference = pair[0]
    shift = np.array([[1.0, 0, 5.0], [0, 1, 0], [0, 0, 1]])  # further than one level may bend
    small, large = levels(reference, cv2.warpPerspective(reference, shift, (700, 700)), np.eye(3))
    first = residual(small, 1)
    alone, led = (residual(large, 1, start, 1) for start in (None, 2 * first.field))
    inner = np.s_[100:600, 100:600]
    assert led.over[inner].mean() < 0.8 * alone.over[inner].mean()
