"""Each step of the comparison on arrays small enough to see through."""

import cv2
import numpy as np
import pytest

from differad.locators.comparison import bend, displace, equalise, excess, group, inside, noise


def field(height=40, width=40, level=100.0):
    return np.full((height, width), level, np.float32)


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
    before, after = np.abs(here - there).mean(), np.abs(here - equalise(there, here, np.ones(here.shape, bool))).mean()
    assert after < 0.2 * before


def test_what_the_reference_does_not_cover_has_no_say_in_the_light():
    rng = np.random.default_rng(0)
    there = rng.uniform(50, 150, (64, 64)).astype(np.float32).repeat(4, 0).repeat(4, 1)
    here, covered = there.copy(), np.ones(there.shape, bool)
    here[:, :64], covered[:, :64] = 255, False
    assert np.abs(equalise(there, here, covered) - here)[:, 80:].mean() < 1.0


def test_a_smooth_wobble_is_bent_back_and_a_defect_is_not():
    rng = np.random.default_rng(3)
    there = cv2.GaussianBlur(rng.uniform(0, 255, (320, 320)).astype(np.float32), (0, 0), 3)
    there = (there - there.mean()) * 8 + 128
    y, x = np.mgrid[:320, :320].astype(np.float32)
    wobble = np.stack([1.5 * np.sin(y / 60), 1.2 * np.cos(x / 50)], axis=-1).astype(np.float32)
    here = displace(there, wobble)
    covered = np.ones(there.shape, bool)
    inner = np.s_[20:300, 20:300]
    left = np.abs(bend(there, here, covered) - wobble)[inner]
    assert left.mean() < 0.25 * np.abs(wobble)[inner].mean()
    spoilt = here.copy()
    spoilt[150:165, 150:165] = 255
    assert np.abs(bend(there, spoilt, covered) - wobble)[inner].max() < 1.0


def test_noise_is_a_standard_deviation_that_a_defect_does_not_move():
    rng = np.random.default_rng(1)
    residual = rng.normal(0, 3, (200, 200)).astype(np.float32)
    residual[:40, :40] += 200
    assert noise(residual, np.ones((200, 200), bool)) == pytest.approx(3, rel=0.08)


def test_the_rim_of_the_covered_part_does_not_count():
    covered = np.ones((8, 8), bool)
    covered[:, 0] = False
    kept = inside(covered, 1)
    expected = np.zeros((8, 8), bool)
    expected[1:7, 2:7] = True
    assert (kept == expected).all()


def test_groups_are_joined_grown_and_measured():
    score = np.zeros((60, 60), np.float32)
    score[10:15, 10:15] = 8  # depth of the middle of a 5x5 square: 3 pixels to the outside
    score[10:15, 18:20] = 4  # three pixels apart from it
    score[40:42, 40:42] = 4  # never high: dropped
    joined = group(score, low=3, high=6, grow=1, gap=2)
    assert [g.box.tolist() for g in joined] == [[9, 9, 21, 16]]
    assert joined[0].peak == 8
    assert joined[0].mass == 25 * 8 + 10 * 4
    assert joined[0].thickness == pytest.approx(3, abs=0.2)
    apart = group(score, low=3, high=3, grow=0, gap=0)
    assert [g.box.tolist() for g in apart] == [[10, 10, 15, 15], [18, 10, 20, 15], [40, 40, 42, 42]]


def test_no_difference_no_group():
    assert group(field(level=0), low=3, high=6, grow=2, gap=3) == []
