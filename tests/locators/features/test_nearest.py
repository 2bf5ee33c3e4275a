"""Distances, noise, regions: small arrays whose answers can be counted."""

import numpy as np
import pytest

from differad.locators.features.nearest import Floors, distances, floors, scored
from differad.locators.features.regions import regions


def unit(rng, *shape):
    drawn = rng.normal(size=shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def test_distances_agree_with_a_plain_search():
    rng = np.random.default_rng(0)
    target, reference = unit(rng, 5, 7, 8), unit(rng, 6, 4, 8)
    whole, window = distances(target, [reference], 0.2)
    for y in range(5):
        for x in range(7):
            apart = np.linalg.norm(target[y, x] - reference, axis=-1)
            assert whole[y, x] == pytest.approx(apart.min(), abs=1e-3)
            rows = np.abs((y + 0.5) / 5 - (np.arange(6) + 0.5) / 6) <= 0.2
            columns = np.abs((x + 0.5) / 7 - (np.arange(4) + 0.5) / 4) <= 0.2
            assert window[y, x] == pytest.approx(apart[np.ix_(rows, columns)].min(), abs=1e-3)


def test_the_nearest_of_several_references_counts():
    rng = np.random.default_rng(1)
    target, one, two = (unit(rng, 4, 4, 8) for _ in range(3))
    both = distances(target, [one, two], 0.3)
    for index in (0, 1):
        each = np.minimum(distances(target, [one], 0.3)[index], distances(target, [two], 0.3)[index])
        np.testing.assert_allclose(both[index], each, atol=1e-5)


def test_a_moved_patch_is_near_in_the_whole_and_far_in_the_window():
    reference = unit(np.random.default_rng(2), 8, 8, 16)
    target = reference.copy()
    target[0, 0] = reference[7, 7]
    whole, window = distances(target, [reference], 0.2)
    assert whole[0, 0] == pytest.approx(0, abs=1e-3)
    assert window[0, 0] > 0.5


def test_copies_of_the_reference_itself_have_no_noise():
    reference = [unit(np.random.default_rng(3), 4, 4, 8)]
    noise = floors([reference], reference, reach=0.2, quantile=0.99)
    assert noise.whole == pytest.approx((0,), abs=1e-3)
    assert noise.window == pytest.approx((0,), abs=1e-3)


def test_a_score_is_the_distance_in_units_of_noise_averaged_over_both_searches():
    distance = np.full((2, 2), 0.4, np.float32)
    score = scored([(distance, distance)], Floors((0.1,), (0.2,)))
    assert score == pytest.approx(np.full((2, 2), 3.0))  # (0.4 / 0.1 + 0.4 / 0.2) / 2


def test_identical_pictures_score_zero_and_not_their_rounding():
    zero = np.zeros((3, 3), np.float32)
    assert scored([(zero, zero)], Floors((0.0,), (0.0,))).max() == 0


def test_regions_are_boxes_in_pixels_highest_first():
    score = np.ones((10, 20), np.float32)
    score[2:4, 3:6] = 3.0
    score[7:9, 12:18] = 2.0
    first, second = regions(score, (200, 50), cut=0.6, least=1.5, most=5)
    assert first.box.tolist() == [30, 10, 60, 20]  # 10 pixels a column, 5 a row
    assert second.box.tolist() == [120, 35, 180, 45]
    assert (first.peak, first.usual) == (3.0, 1.0)


def test_the_highest_region_is_given_and_no_other_below_the_least():
    score = np.ones((6, 6), np.float32)
    score[1, 1], score[4, 4] = 1.4, 1.3
    assert len(regions(score, (6, 6), cut=0.6, least=2.0, most=5)) == 1
    assert len(regions(score, (6, 6), cut=0.6, least=1.2, most=5)) == 2
    assert len(regions(score, (6, 6), cut=0.6, least=1.2, most=1)) == 1
    assert len(regions(np.zeros((6, 6), np.float32), (6, 6), cut=0.6, least=1.0, most=5)) == 1
