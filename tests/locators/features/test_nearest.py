"""Distances, scores, regions: small arrays whose answers can be counted."""

import numpy as np
import pytest

from differad.locators.features.calibration import ScoringConstants
from differad.locators.features.nearest import combine_distances, distances, self_distance
from differad.locators.features.regions import regions
from tolerance import distance_rounding


def unit(rng, *shape):
    generated = rng.normal(size=shape).astype(np.float32)
    return generated / np.linalg.norm(generated, axis=-1, keepdims=True)


def window_mask(distance, channels=8):
    return pytest.approx(distance, rel=0, abs=float(distance_rounding(channels, distance)))


def test_distances_agree_with_a_plain_search():
    rng = np.random.default_rng(0)
    target, reference = unit(rng, 5, 7, 8), unit(rng, 6, 4, 8)
    whole, window = distances(target, [reference], 0.2)
    for y in range(5):
        for x in range(7):
            apart = np.linalg.norm(target[y, x] - reference, axis=-1)
            assert whole[y, x] == window_mask(apart.min())
            rows = np.abs((y + 0.5) / 5 - (np.arange(6) + 0.5) / 6) <= 0.2
            columns = np.abs((x + 0.5) / 7 - (np.arange(4) + 0.5) / 4) <= 0.2
            assert window[y, x] == window_mask(apart[np.ix_(rows, columns)].min())


def test_the_nearest_of_several_references_counts():
    rng = np.random.default_rng(1)
    target, one, two = (unit(rng, 4, 4, 8) for _ in range(3))
    both = distances(target, [one, two], 0.3)
    for index in (0, 1):
        each = np.minimum(distances(target, [one], 0.3)[index], distances(target, [two], 0.3)[index])
        np.testing.assert_array_equal(both[index], each)


def test_a_moved_patch_is_near_in_the_whole_and_far_in_the_window():
    reference = unit(np.random.default_rng(2), 8, 8, 16)
    target = reference.copy()
    target[0, 0] = reference[7, 7]
    whole, window = distances(target, [reference], 0.2)
    assert whole[0, 0] == window_mask(0, channels=16)
    assert window[0, 0] > 0.5


def test_solitude_agrees_with_a_plain_search_beyond_the_reach():
    target = unit(np.random.default_rng(3), 6, 5, 8)
    alone = self_distance(target, 0.25)
    rows, columns = np.mgrid[:6, :5]
    for y in range(6):
        for x in range(5):
            beyond = (np.abs(rows - y) / 6 > 0.25) | (np.abs(columns - x) / 5 > 0.25)
            apart = np.linalg.norm(target[y, x] - target[beyond], axis=-1)
            assert alone[y, x] == window_mask(apart.min())


def test_what_returns_in_the_target_is_not_alone():
    target = unit(np.random.default_rng(4), 8, 8, 16)
    target[7, 7] = target[0, 0]
    assert self_distance(target, 0.1)[0, 0] == window_mask(0, channels=16)


def test_a_score_joins_the_three_distances():
    whole, window, alone = (np.full((2, 2), value, np.float32) for value in (0.4, 0.8, 0.1))
    score = combine_distances([(whole, window, alone)], ScoringConstants(window=0.25, own=0.5, edge=0.0))
    # 0.75 * 0.4 + 0.25 * 0.8 = 0.5; sqrt(0.5 * 0.1)
    assert score == pytest.approx(np.full((2, 2), 0.05**0.5))


def test_the_same_distance_counts_less_at_the_border():
    one = np.ones((20, 20), np.float32)
    score = combine_distances([(one, one, one)], ScoringConstants(edge=0.25, fade=0.1))
    assert score[0, 5] == pytest.approx(1 / 1.25)
    assert score[2, 10] == pytest.approx(1 / (1 + 0.25 * np.exp(-1)))  # 2 of 20 is one fade inwards
    assert score[10, 10] > 0.99


def test_identical_images_score_zero_and_not_their_rounding():
    patches = unit(np.random.default_rng(5), 6, 6, 16)
    both = distances(patches, [patches], 0.1)
    assert combine_distances([(*both, self_distance(patches, 0.1))], ScoringConstants()).max() == 0


def test_regions_are_boxes_in_pixels_highest_first():
    score = np.ones((20, 40), np.float32)
    score[4:8, 6:12] = 3.0
    score[14:18, 24:36] = 2.0
    first, second = regions(score, (400, 100), cut=0.5, gap=0, max_regions=2)
    assert first.box == pytest.approx([60, 20, 120, 40])  # 10 pixels a column, 5 a row
    assert second.box == pytest.approx([240, 70, 360, 90])
    assert first.peak == pytest.approx(3.0, abs=0.5)  # cells are split by a cubic, which may overshoot
    assert first.background == 1.0


def test_pieces_of_one_crack_are_one_region_and_those_far_off_are_not():
    score = np.zeros((12, 40), np.float32)
    for start, stop in ((2, 8), (11, 16), (30, 36)):  # 3 cells apart, then 14
        score[5:7, start:stop] = 1.0
    joined = regions(score, (40, 12), cut=0.5, gap=2, max_regions=5)
    assert [region.box.tolist() for region in joined] == [[2, 5, 16, 7], [30, 5, 36, 7]]
    assert len(regions(score, (40, 12), cut=0.5, gap=0, max_regions=5)) == 3


def test_the_highest_region_is_always_given_and_never_more_than_asked_for():
    score = np.ones((12, 12), np.float32)
    score[2, 2], score[9, 9] = 1.4, 1.3
    assert len(regions(score, (6, 6), cut=0.6, gap=0, max_regions=1)) == 1
    assert len(regions(np.zeros((6, 6), np.float32), (6, 6), cut=0.6, gap=0, max_regions=5)) == 1
