"""Each step of the comparison on small arrays."""

import cv2
import numpy as np
import pytest

from differad.locators.comparison import (
    edge_noise,
    erode_mask,
    estimate_flow,
    fit_illumination,
    group,
    robust_deviation,
    squeeze_grey,
    tolerance_difference,
    upsample_rows,
    warp_by_flow,
)


def flow(height=40, width=40, level=100):
    return np.full((height, width), level, np.uint8)


def test_an_edge_within_the_tolerance_is_no_difference():
    target, reference = flow(), flow()
    target[:, 20:] = 200
    reference[:, 22:] = 200
    assert tolerance_difference(target, reference, 2).max() == 0
    assert tolerance_difference(target, reference, 1).max() == 100  # one column of two is out of reach


def test_a_thin_line_that_is_missing_or_added_is_found_whole():
    plain, line = flow(), flow()
    line[:, 20:22] = 200  # thinner than the window of the envelope
    for target, reference in ((plain, line), (line, plain)):
        difference = tolerance_difference(target, reference, 2)
        assert (difference[:, 20:22] == 100).all()
        assert (np.delete(difference, [20, 21], axis=1) == 0).all()


def test_illumination_is_normalised():
    rng = np.random.default_rng(0)
    reference = rng.uniform(50, 150, (128, 128)).astype(np.float32).repeat(4, 0).repeat(4, 1)
    slope = np.linspace(0.8, 1.3, 512, dtype=np.float32)
    target = reference * slope + 12
    lit = fit_illumination(reference, target, np.ones(target.shape, bool)).apply(reference, 512)
    before, after = np.abs(target - reference).mean(), np.abs(target - lit).mean()
    assert after < 0.2 * before


def test_uncovered_pixels_do_not_affect_the_illumination():
    rng = np.random.default_rng(0)
    reference = rng.uniform(50, 150, (64, 64)).astype(np.float32).repeat(4, 0).repeat(4, 1)
    target, covered = reference.copy(), np.ones(reference.shape, bool)
    target[:, :64], covered[:, :64] = 255, False
    assert np.abs(fit_illumination(reference, target, covered).apply(reference, 256) - target)[:, 80:].mean() < 1.0


def warped_texture(seed=3, side=320):
    """A texture, a smooth displacement of it, and the texture displaced."""
    reference = cv2.GaussianBlur(
        np.random.default_rng(seed).uniform(0, 255, (side, side)).astype(np.float32), (0, 0), 3
    )
    reference = (reference - reference.mean()) * 8 + 128
    y, x = np.mgrid[:side, :side].astype(np.float32)
    flow = np.stack([1.5 * np.sin(y / 60), 1.2 * np.cos(x / 50)], axis=-1).astype(np.float32)
    return reference, flow, warp_by_flow(reference, flow)


def full_flow(reference, target, start=None):
    covered = np.ones(reference.shape, bool)
    small = estimate_flow(reference, target, covered, fit_illumination(reference, target, covered), start)
    return upsample_rows(small, reference.shape, len(reference))


def test_a_smooth_flow_is_estimated_and_a_defect_has_no_effect():
    reference, flow, target = warped_texture()
    inner = np.s_[20:300, 20:300]
    left = np.abs(full_flow(reference, target) - flow)[inner]
    assert left.mean() < 0.25 * np.abs(flow)[inner].mean()
    spoilt = target.copy()
    spoilt[150:165, 150:165] = 255
    assert np.abs(full_flow(reference, spoilt) - flow)[inner].max() < 1.0


def test_repeated_estimates_of_the_flow_do_not_diverge():
    reference, flow, target = warped_texture()
    estimate = None
    errors = []
    for _ in range(8):
        estimate = full_flow(reference, target, estimate)
        errors.append(float(np.abs(estimate - flow)[20:300, 20:300].max()))
    assert max(errors[1:]) <= errors[0]


def test_rows_of_a_map_are_those_of_the_whole_map():
    small = np.random.default_rng(0).uniform(0, 3, (9, 7, 2)).astype(np.float32)
    whole = upsample_rows(small, (90, 70), 90)
    rows = upsample_rows(small, (20, 70), 90, 35)
    # OpenCV rounds places to a 32nd of a pixel of the small map, along each axis.
    assert np.abs(rows - whole[35:55]).max() <= 2 * 3 / 32


def test_grey_images_are_compared_in_one_channel_and_coloured_ones_in_three():
    grey = np.random.default_rng(0).integers(0, 256, (70, 80, 1), dtype=np.uint8).repeat(3, axis=2)
    speck = grey.copy()
    speck[33, 41, 2] ^= 8
    assert [image.shape for image in squeeze_grey(grey, grey)] == [(70, 80), (70, 80)]
    assert [image.shape for image in squeeze_grey(grey, speck)] == [(70, 80, 3), (70, 80, 3)]


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
    kept = erode_mask(covered, 1)
    expected = np.zeros((8, 8), bool)
    expected[1:7, 2:7] = True
    assert (kept == expected).all()


def test_groups_are_joined_grown_and_measured():
    difference = np.zeros((60, 60), np.uint8)
    difference[10:15, 10:15] = 16  # depth of the middle of a 5x5 square: 3 pixels to the outside
    difference[10:15, 18:20] = 8  # three pixels apart from it
    difference[40:42, 40:42] = 8  # never high: dropped
    at_edges = np.zeros((60, 60), bool)
    at_edges[:, 14:19] = True  # the last column of the square, the first of its neighbour
    joined = group(difference, 2.0, at_edges, low=3, high=6, core=0.5, grow=1, gap=2)
    assert [g.box.tolist() for g in joined] == [[9, 9, 21, 16]]
    assert joined[0].mean == pytest.approx((25 * 8 + 10 * 4) / 35)
    assert joined[0].thickness == pytest.approx(3, abs=0.2)
    assert joined[0].at_edges == pytest.approx(10 / 35)
    apart = group(difference, 2.0, at_edges, low=3, high=3, core=0, grow=0, gap=0)
    assert [g.box.tolist() for g in apart] == [[10, 10, 15, 15], [18, 10, 20, 15], [40, 40, 42, 42]]


def test_a_box_encloses_the_strong_part_of_a_group_and_stays_inside():
    difference = np.zeros((30, 30), np.uint8)
    difference[0:3, 2:12] = 6
    difference[0:3, 6:8] = 20
    at_edges = np.zeros((30, 30), bool)
    whole, core = (group(difference, 1.0, at_edges, low=3, high=3, core=c, grow=1, gap=0)[0] for c in (0, 0.35))
    assert whole.box.tolist() == [1, 0, 13, 4]
    assert core.box.tolist() == [5, 0, 9, 4]
    # What is weak counts for how likely the group is a defect all the same.
    assert core.mean == whole.mean == pytest.approx((24 * 6 + 6 * 20) / 30)


def test_noise_of_edges_is_what_most_tiles_have():
    difference = np.zeros((80, 80), np.uint8)
    difference[::2] = 10
    assert edge_noise(difference, np.ones((80, 80), bool)) == 10
    difference[:40, :30] = 200  # a large defect: 12 of 64 tiles
    assert edge_noise(difference, np.ones((80, 80), bool)) == 10
    difference[:, :40] = 200  # half of them
    assert edge_noise(difference, np.ones((80, 80), bool)) == 200
    assert edge_noise(difference, np.zeros((80, 80), bool)) == 0


def test_no_difference_no_group():
    none = flow(level=0)
    assert group(none, 1.0, np.zeros(none.shape[:2], bool), low=3, high=6, core=0, grow=2, gap=3) == []
