"""Intervals against Wilson's own equation, the normal approximation, and their coverage of known true values."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from differad.evaluation.intervals import Estimate, constant_f1_interval, constant_interval, estimate, mean_interval
from differad.evaluation.metrics import PairResult, measure, summarise
from interval_coverage import coverage

Z = 1.959963984540054


def located(category, overlaps):
    return [PairResult(category, True, float(value), True, True) for value in overlaps]


@pytest.mark.parametrize("count", [1, 3, 30, 1000])
def test_all_hits_have_wilsons_interval(count):
    low, high = constant_interval(1.0, count)
    # Wilson's bound p solves (1 - p)^2 = z^2 p (1 - p) / n.
    assert (1 - low) ** 2 == pytest.approx(Z**2 * low * (1 - low) / count)
    assert high == 1
    assert constant_interval(0.0, count) == (0, pytest.approx(1 - low))


def test_three_of_three_is_not_thirty_of_thirty():
    # 3 / (3 + 3.8415) = 0.4385, 30 / 33.8415 = 0.8865.
    for count, bound in ((3, 0.4385), (30, 0.8865)):
        hits = measure(located("a", [1.0] * count))
        assert hits["acc_0.3_ci95"] == pytest.approx([bound, 1], abs=1e-4)
        assert hits["miou_ci95"] == pytest.approx([bound, 1], abs=1e-4)
        right = measure([PairResult("a", False, 0.0, False, True)] * count)
        assert right["normal_accuracy_ci95"] == pytest.approx([bound, 1], abs=1e-4)
        refused = measure([PairResult("a", False, 0.0, False, False)] * count)
        assert refused["normal_accuracy_ci95"] == pytest.approx([0, 1 - bound], abs=1e-4)


def test_an_f1_of_one_or_zero_follows_its_share_of_true_positives():
    low, high = constant_f1_interval(1.0, 3)
    share = 3 / (3 + Z**2)
    assert (low, high) == (pytest.approx(2 * share / (1 + share)), 1)
    missed = measure([PairResult("a", True, 0.0, False, True)] * 3)
    assert missed["detection_f1_ci95"] == [0, pytest.approx(2 * (1 - share) / (2 - share))]
    # A normal pair without a box takes no part in F1; one with a box does: four pairs count.
    alarm, quiet = PairResult("a", False, 0.0, True, True), PairResult("a", False, 0.0, False, True)
    four = measure([PairResult("a", True, 0.0, False, True)] * 3 + [alarm] + [quiet] * 20)
    assert four["detection_f1_ci95"] == [0, pytest.approx(constant_f1_interval(0.0, 4)[1])]


def test_equal_values_within_0_and_1_leave_room_on_both_sides():
    low, high = measure(located("a", [0.5, 0.5, 0.5]))["miou_ci95"]
    alike = 3 / (3 + Z**2)
    assert (low, high) == (pytest.approx(0.5 * alike), pytest.approx(0.5 * alike + 1 - alike))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_pairs_are_no_narrower_than_equal_ones(count):
    values = np.linspace(0.40, 0.41, count)
    low, high = measure(located("a", values))["miou_ci95"]
    assert high - low >= Z**2 / (count + Z**2) - 1e-12
    assert low <= values.mean() <= high
    six = measure(located("a", np.linspace(0.40, 0.41, 6)))["miou_ci95"]
    assert 0.40 <= six[0] <= six[1] <= 0.41  # from six on the bootstrap alone


def test_a_mean_adds_independent_sides_in_quadrature():
    fixed = Estimate(1.0, (0.6, 1.0), None)
    low, high = mean_interval([fixed, fixed, fixed, fixed])
    assert (low, high) == (pytest.approx(1 - math.sqrt(4 * 0.4**2) / 4), 1)
    assert mean_interval([fixed]) == (pytest.approx(0.6), 1)
    draws = np.random.default_rng(0).normal(0.5, 0.05, 4000)
    varying = estimate(0.5, draws, 100)
    low, high = mean_interval([fixed, varying])
    side = 0.5 - varying.interval[0]
    assert low == pytest.approx(0.75 - math.hypot(0.4, side) / 2)
    assert high == pytest.approx(0.75 + (varying.interval[1] - 0.5) / 2)


@pytest.mark.parametrize("order", ["alike", "opposite"])
def test_the_order_of_a_manifest_does_not_change_the_macro_interval(order):
    values = np.sort(np.random.default_rng(0).beta(2, 3, 100))
    other = values if order == "alike" else values[::-1]
    low, high = summarise(located("a", values) + located("b", other))["overall"]["macro"]["miou_ci95"]
    # Half the root of the sum of two equal variances of a mean of 100. A 2.5 % quantile of 2,000 draws has a standard
    # error of sqrt(0.025 * 0.975 / 2000) / 0.0584 = 0.06 deviations; two of them 0.085 of 3.92, 2.2 %; four times that: 9 %.
    expected = 2 * Z * values.std() / math.sqrt(100) / math.sqrt(2)
    assert high - low == pytest.approx(expected, rel=0.09)


def test_a_further_category_changes_no_other_interval():
    rng = np.random.default_rng(1)
    one, two, three = (located(name, rng.random(20)) for name in "abc")
    both, all_three = summarise(one + two), summarise(three + one + two)
    assert both["categories"] == {name: all_three["categories"][name] for name in "ab"}
    assert both["categories"]["a"] == summarise(one)["categories"]["a"] == measure(one)
    only = summarise(one)["overall"]
    assert only["macro"]["miou_ci95"] == only["miou_ci95"]
    # A category that lacks a metric leaves those of the others as they are.
    normal = [PairResult("n", False, 0.0, False, True)] * 9
    assert summarise(one + two + normal)["overall"]["macro"]["miou_ci95"] == both["overall"]["macro"]["miou_ci95"]


def test_the_macro_interval_does_not_trust_small_perfect_categories():
    results = [result for name in "abcd" for result in located(name, [1.0] * 3)]
    low, high = summarise(results)["overall"]["macro"]["acc_0.3_ci95"]
    # Four independent sides of 1 - 0.4385 each.
    assert (low, high) == (pytest.approx(1 - math.sqrt(4 * (1 - 3 / (3 + Z**2)) ** 2) / 4), 1)


@pytest.mark.parametrize(
    "setting",
    [{}, {"macro": True}, {"macro": True, "abnormal": 1, "opposite": True}],
    ids=["micro", "macro", "macro of opposite orders"],
)
def test_intervals_hold_the_truth(setting):
    trials = 120
    measured = coverage(trials, (0.9, 0.7, 0.5, 0.3), 40, resamples=400, **setting)
    # The bootstrap of 40 pairs covers a little less than 95 %; at 93 % a count this low has probability below 0.001:
    # 111.6 - 3.1 * sqrt(120 * 0.93 * 0.07) = 102.9.
    bound = 0.93 * trials - 3.1 * math.sqrt(trials * 0.93 * 0.07)
    assert {name: held * trials >= bound for name, (held, _) in measured.items()} == dict.fromkeys(measured, True)
