"""Each step of the comparison on arrays small enough to see through."""

import cv2
import numpy as np
import pytest

from differad.locators.comparison import (
    bend,
    displace,
    edge_noise,
    enlarged,
    excess,
    fit_light,
    flat,
    group,
    inside,
    robust_deviation,
)


def field(height=40, width=40, level=100):
    return np.full((height, width), level, np.uint8)


def test_an_edge_within_the_tolerance_is_no_difference():
    here, there = field(), field()
    here[:, 20:] = 200
    there[:, 22:] = 200
    assert excess(here, there, 2).max() == 0
    assert excess(here, there, 1).max() == 100  # one column of two is out of reach


def test_a_thin_line_that_is_missing_or_added_is_found_whole():
    plain, line = field(), field()
    line[:, 20:22] = 200  # thinner than the window of the envelope
    for here, there in ((plain, line), (line, plain)):
        over = excess(here, there, 2)
        assert (over[:, 20:22] == 100).all()
        assert (np.delete(over, [20, 21], axis=1) == 0).all()


def test_light_is_equalised():
    rng = np.random.default_rng(0)
    there = rng.uniform(50, 150, (128, 128)).astype(np.float32).repeat(4, 0).repeat(4, 1)
    slope = np.linspace(0.8, 1.3, 512, dtype=np.float32)
    here = there * slope + 12
    lit = fit_light(there, here, np.ones(here.shape, bool)).on(there, 512)
    before, after = np.abs(here - there).mean(), np.abs(here - lit).mean()
    assert after < 0.2 * before


def test_what_the_reference_does_not_cover_has_no_say_in_the_light():
    rng = np.random.default_rng(0)
    there = rng.uniform(50, 150, (64, 64)).astype(np.float32).repeat(4, 0).repeat(4, 1)
    here, covered = there.copy(), np.ones(there.shape, bool)
    here[:, :64], covered[:, :64] = 255, False
    assert np.abs(fit_light(there, here, covered).on(there, 256) - here)[:, 80:].mean() < 1.0


def wobbling(seed=3, side=320):
    """A texture, a smooth displacement of it, and the texture displaced."""
    there = cv2.GaussianBlur(np.random.default_rng(seed).uniform(0, 255, (side, side)).astype(np.float32), (0, 0), 3)
    there = (there - there.mean()) * 8 + 128
    y, x = np.mgrid[:side, :side].astype(np.float32)
    wobble = np.stack([1.5 * np.sin(y / 60), 1.2 * np.cos(x / 50)], axis=-1).astype(np.float32)
    return there, wobble, displace(there, wobble)


def bent(there, here, start=None):
    covered = np.ones(there.shape, bool)
    small = bend(there, here, covered, fit_light(there, here, covered), start)
    return enlarged(small, there.shape, len(there))


def test_a_smooth_wobble_is_bent_back_and_a_defect_is_not():
    there, wobble, here = wobbling()
    inner = np.s_[20:300, 20:300]
    left = np.abs(bent(there, here) - wobble)[inner]
    assert left.mean() < 0.25 * np.abs(wobble)[inner].mean()
    spoilt = here.copy()
    spoilt[150:165, 150:165] = 255
    assert np.abs(bent(there, spoilt) - wobble)[inner].max() < 1.0


def test_bending_again_from_what_was_found_does_not_run_away():
    there, wobble, here = wobbling()
    found = None
    errors = []
    for _ in range(8):
        found = bent(there, here, found)
        errors.append(float(np.abs(found - wobble)[20:300, 20:300].max()))
    assert max(errors[1:]) <= errors[0]


def test_rows_of_a_map_are_those_of_the_whole_map():
    small = np.random.default_rng(0).uniform(0, 3, (9, 7, 2)).astype(np.float32)
    whole = enlarged(small, (90, 70), 90)
    rows = enlarged(small, (20, 70), 90, 35)
    # OpenCV rounds places to a 32nd of a pixel of the small map, along each axis.
    assert np.abs(rows - whole[35:55]).max() <= 2 * 3 / 32


def test_grey_images_are_compared_in_one_channel_and_coloured_ones_in_three():
    grey = np.random.default_rng(0).integers(0, 256, (70, 80, 1), dtype=np.uint8).repeat(3, axis=2)
    speck = grey.copy()
    speck[33, 41, 2] ^= 8
    assert [image.shape for image in flat(grey, grey)] == [(70, 80), (70, 80)]
    assert [image.shape for image in flat(grey, speck)] == [(70, 80, 3), (70, 80, 3)]


@pytest.mark.parametrize("deviation", [3.0, 7.3])
@pytest.mark.parametrize("rounded", [False, True])
def test_noise_is_a_standard_deviation_that_a_defect_does_not_move(deviation, rounded):
    residual = np.random.default_rng(1).normal(0, deviation, (200, 200)).astype(np.float32)
    residual[:40, :40] += 200
    values = np.rint(residual).astype(np.int16) if rounded else residual
    # Four per cent of outliers move the median of 40,000 values by 0.52 / 0.5, which is 6 % of a deviation; their number, by 1 %.
    assert robust_deviation(values) == pytest.approx(deviation, rel=0.08)
    assert robust_deviation(values[:0]) == 0


def test_the_rim_of_the_covered_part_does_not_count():
    covered = np.ones((8, 8), bool)
    covered[:, 0] = False
    kept = inside(covered, 1)
    expected = np.zeros((8, 8), bool)
    expected[1:7, 2:7] = True
    assert (kept == expected).all()


def test_groups_are_joined_grown_and_measured():
    over = np.zeros((60, 60), np.uint8)
    over[10:15, 10:15] = 16  # depth of the middle of a 5x5 square: 3 pixels to the outside
    over[10:15, 18:20] = 8  # three pixels apart from it
    over[40:42, 40:42] = 8  # never high: dropped
    at_edges = np.zeros((60, 60), bool)
    at_edges[:, 14:19] = True  # the last column of the square, the first of its neighbour
    joined = group(over, 2.0, at_edges, low=3, high=6, core=0.5, grow=1, gap=2)
    assert [g.box.tolist() for g in joined] == [[9, 9, 21, 16]]
    assert joined[0].mean == pytest.approx((25 * 8 + 10 * 4) / 35)
    assert joined[0].thickness == pytest.approx(3, abs=0.2)
    assert joined[0].at_edges == pytest.approx(10 / 35)
    apart = group(over, 2.0, at_edges, low=3, high=3, core=0, grow=0, gap=0)
    assert [g.box.tolist() for g in apart] == [[10, 10, 15, 15], [18, 10, 20, 15], [40, 40, 42, 42]]


def test_a_box_encloses_the_strong_part_of_a_group_and_stays_inside():
    over = np.zeros((30, 30), np.uint8)
    over[0:3, 2:12] = 6
    over[0:3, 6:8] = 20
    at_edges = np.zeros((30, 30), bool)
    whole, core = (group(over, 1.0, at_edges, low=3, high=3, core=c, grow=1, gap=0)[0] for c in (0, 0.35))
    assert whole.box.tolist() == [1, 0, 13, 4]
    assert core.box.tolist() == [5, 0, 9, 4]
    # What is weak counts for how likely the group is a defect all the same.
    assert core.mean == whole.mean == pytest.approx((24 * 6 + 6 * 20) / 30)


def test_noise_of_edges_is_what_most_tiles_have():
    over = np.zeros((80, 80), np.uint8)
    over[::2] = 10
    assert edge_noise(over, np.ones((80, 80), bool)) == 10
    over[:40, :30] = 200  # a large defect: 12 of 64 tiles
    assert edge_noise(over, np.ones((80, 80), bool)) == 10
    over[:, :40] = 200  # half of them
    assert edge_noise(over, np.ones((80, 80), bool)) == 200
    assert edge_noise(over, np.zeros((80, 80), bool)) == 0


def test_no_difference_no_group():
    none = field(level=0)
    assert group(none, 1.0, np.zeros(none.shape[:2], bool), low=3, high=6, core=0, grow=2, gap=3) == []
