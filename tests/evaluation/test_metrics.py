"""Metrics against loops written out, counting pairs and the analytic interval of a share."""

import itertools
import math

import numpy as np
import pytest

from differad.boxes import as_boxes
from differad.evaluation.metrics import PairResult, auroc, measure, pair_iou, size_name, summarise


def random_results(seed, count=60):
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(count):
        anomalous, valid = bool(rng.random() < 0.6), bool(rng.random() < 0.9)
        gave_box = bool(rng.random() < 0.7)
        overlap = float(rng.random()) if anomalous and gave_box and valid else 0.0
        category, group = str(rng.choice(["a", "b", "c"])), str(rng.choice(["easy", "complex"]))
        results.append(PairResult(category, anomalous, overlap, gave_box, valid, group, None, float(rng.random())))
    return results


def by_hand(results):
    """The protocol's definitions, pair by pair."""
    anomalous = [r for r in results if r.anomalous]
    normal = [r for r in results if not r.anomalous]
    gives = {id(r): r.gave_box and r.valid for r in results}
    hits = [r for r in anomalous if gives[id(r)] and r.iou >= 0.3]
    false = [r for r in results if gives[id(r)] and r not in hits]  # on a normal pair, or a miss
    precision = len(hits) / max(1, len(hits) + len(false))
    recall = len(hits) / len(anomalous)
    found = sum(gives[id(r)] for r in anomalous)
    alarms = sum(gives[id(r)] for r in normal)
    detection = (found / max(1, found + alarms), found / len(anomalous))

    def harmonic(p, r):
        return 2 * p * r / (p + r) if p + r else 0.0

    return {
        "miou": sum(r.iou for r in anomalous) / len(anomalous),
        "acc_0.3": len(hits) / len(anomalous),
        "acc_0.5": sum(r.iou >= 0.5 for r in anomalous) / len(anomalous),
        "acc_0.7": sum(r.iou >= 0.7 for r in anomalous) / len(anomalous),
        "f1_0.3": harmonic(precision, recall),
        "detection_f1": harmonic(*detection),
        "normal_accuracy": sum(r.valid and not r.gave_box for r in normal) / len(normal),
        "valid": sum(r.valid for r in results) / len(results),
    }


@pytest.mark.parametrize("seed", range(8))
def test_every_metric_equals_its_definition(seed):
    results = random_results(seed)
    measured = measure(results, resamples=10)
    for name, value in by_hand(results).items():
        assert measured[name] == pytest.approx(value), name
    assert measured["pairs"] == len(results) == measured["anomalous"] + measured["normal"]


def test_a_small_case_by_hand():
    results = [
        PairResult("a", True, 0.8, True, True),
        PairResult("a", True, 0.1, True, True),  # a box that misses: false positive and false negative
        PairResult("a", True, 0.0, False, False),  # unreadable
        PairResult("a", False, 0.0, True, True),  # false alarm
        PairResult("a", False, 0.0, False, True),
        PairResult("a", False, 0.0, False, False),  # no box, but unreadable: not right either
    ]
    measured = measure(results, resamples=10)
    assert measured["miou"] == pytest.approx(0.9 / 3)
    assert measured["f1_0.3"] == pytest.approx(2 * 1 / (2 * 1 + 2 + 2))
    assert measured["detection_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert measured["normal_accuracy"] == pytest.approx(1 / 3)
    assert measured["valid"] == pytest.approx(4 / 6)


def test_what_cannot_be_measured_is_none():
    only_normal = measure([PairResult("a", False, 0.0, False, True)] * 3, resamples=10)
    assert (only_normal["miou"], only_normal["miou_ci95"], only_normal["f1_0.3"]) == (None, None, None)
    assert only_normal["normal_accuracy"] == 1
    only_anomalous = measure([PairResult("a", True, 0.5, True, True)] * 3, resamples=10)
    assert (only_anomalous["normal_accuracy"], only_anomalous["miou"], only_anomalous["auroc"]) == (None, 0.5, None)


def test_the_interval_of_a_share_is_the_analytic_one():
    count, share = 400, 0.7
    results = [PairResult("a", True, float(i < share * count), True, True) for i in range(count)]
    low, high = measure(results, seed=1)["acc_0.3_ci95"]
    half = 1.96 * math.sqrt(share * (1 - share) / count)  # normal approximation of the binomial
    assert low == pytest.approx(share - half, abs=0.01)
    assert high == pytest.approx(share + half, abs=0.01)


def test_about_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        overlaps = rng.beta(2, 3, 80)  # mean 2 / (2 + 3)
        results = [PairResult("a", True, float(value), True, True) for value in overlaps]
        low, high = measure(results, seed=trial, resamples=400)["miou_ci95"]
        held += low <= 0.4 <= high
    assert held >= 87  # under 87 of 100 has probability below 0.001 at a coverage of 95 %


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    results = random_results(3, 200)
    whole = measure(results, seed=5, resamples=300)
    assert measure(results, seed=5, resamples=300) == whole
    assert measure(results, seed=6, resamples=300) != whole
    monkeypatch.setattr("differad.evaluation.metrics._BLOCK_CELLS", 200 * 7)  # seven resamples at a time
    assert measure(results, seed=5, resamples=300) == whole


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_counting_pairs(seed):
    rng = np.random.default_rng(seed)
    positive, negative = rng.integers(0, 6, 30) / 5, rng.integers(0, 5, 20) / 5  # many ties
    wins = sum((p > n) + 0.5 * (p == n) for p, n in itertools.product(positive, negative))
    assert auroc(positive, negative) == pytest.approx(wins / (30 * 20))
    assert auroc(positive, np.array([])) is None


def brute_force_auroc(results):
    """Every anomalous pair against every normal one; pairs that cannot be ranked lose on either side."""
    wins = []
    for bad, good in itertools.product([r for r in results if r.anomalous], [r for r in results if not r.anomalous]):
        if any(not r.valid or r.confidence is None for r in (bad, good)):
            wins.append(0.0)
        else:
            wins.append((bad.confidence > good.confidence) + 0.5 * (bad.confidence == good.confidence))
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(5))
def test_invalid_answers_and_those_without_confidence_rank_worst(seed):
    rng = np.random.default_rng(seed)
    results = [
        PairResult("a", bool(rng.random() < 0.5), 0.0, False, bool(rng.random() < 0.8),
                   confidence=None if rng.random() < 0.2 else float(rng.integers(0, 5)) / 4)
        for _ in range(60)
    ]  # fmt: skip
    measured = measure(results, resamples=5)
    assert measured["auroc"] == pytest.approx(brute_force_auroc(results))
    assert measured["auroc_invalid"] == sum(not r.valid or r.confidence is None for r in results)


def test_nine_invalid_of_ten_are_no_auroc_of_one():
    def results(valid):
        return [PairResult("a", bool(n % 2), 0.0, False, n < valid, confidence=n % 2 * 0.9) for n in range(20)]

    assert measure(results(20), resamples=5)["auroc"] == 1
    assert measure(results(2), resamples=5)["auroc"] == 1 / 100  # one pair of each kind is left of 10 x 10
    assert (measure(results(0), resamples=5)["auroc"], measure(results(0), resamples=5)["auroc_invalid"]) == (0, 20)


def test_a_refused_category_counts_in_the_macro_auroc():
    answered = [PairResult("a", bool(n % 2), 0.0, False, True, confidence=n % 2 * 0.9) for n in range(6)]
    refused = [PairResult("b", bool(n % 2), 0.0, False, False) for n in range(6)]
    summary = summarise(answered + refused, resamples=5)
    assert {name: part["auroc"] for name, part in summary["categories"].items()} == {"a": 1, "b": 0}
    assert summary["overall"]["macro"]["auroc"] == 0.5
    # A model that tells no confidence at all has none to be judged by, refused pairs or not.
    silent = [PairResult("a", bool(n % 2), 0.0, False, True) for n in range(6)]
    summary = summarise(silent + refused, resamples=5)
    assert [summary["overall"]["auroc"], summary["categories"]["b"]["auroc"], summary["overall"]["macro"]["auroc"]] == [
        None
    ] * 3


def test_a_pair_at_an_unknown_place_counts_in_detection_only():
    unknown = PairResult("a", True, 0.0, True, True, confidence=0.9, has_location=False)
    overlooked = PairResult("a", True, 0.0, False, True, confidence=0.2, has_location=False)
    hit = PairResult("a", True, 0.8, True, True, confidence=0.8)
    good, alarm = (
        PairResult("a", False, 0.0, False, True, confidence=0.1),
        PairResult("a", False, 0.0, True, True, confidence=0.7),
    )
    measured = measure([unknown, overlooked, hit, good, alarm], resamples=10)
    assert [measured[key] for key in ("pairs", "anomalous", "normal", "place_unknown")] == [5, 3, 2, 2]
    assert (measured["miou"], measured["acc_0.7"]) == (0.8, 1)
    assert measured["f1_0.3"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 0))  # one hit, one false alarm, none missed
    assert measured["detection_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert measured["auroc"] == pytest.approx(5 / 6)  # 0.2 loses against 0.7
    only = measure([unknown, overlooked, good], resamples=10)
    for name in ("miou", "acc_0.3", "acc_0.5", "acc_0.7", "f1_0.3"):
        assert (only[name], only[f"{name}_ci95"]) == (None, None)
    assert only["detection_f1"] == pytest.approx(2 / 3)
    macro = summarise([unknown, PairResult("b", True, 0.4, True, True, confidence=1.0)], resamples=10)["overall"][
        "macro"
    ]
    assert macro["miou"] == 0.4  # of the category that has boxes


def test_summaries_by_category_group_and_size_and_the_macro_mean():
    results = [
        PairResult("tile", True, 0.9, True, True, "complex", "large"),
        PairResult("tile", True, 0.5, True, True, "complex", "small"),
        PairResult("board", True, 0.2, True, True, None, "small"),
        PairResult("board", False, 0.0, False, True),
        PairResult("wood", False, 0.0, True, True, "easy"),
    ]
    summary = summarise(results, resamples=50)
    assert {name: part["miou"] for name, part in summary["categories"].items()} == {
        "board": 0.2, "tile": pytest.approx(0.7), "wood": None,
    }  # fmt: skip
    assert summary["overall"]["miou"] == pytest.approx((0.9 + 0.5 + 0.2) / 3)
    assert summary["overall"]["macro"]["miou"] == pytest.approx((0.2 + 0.7) / 2)  # wood has no anomalous pair
    assert summary["overall"]["macro"]["normal_accuracy"] == pytest.approx((1 + 0) / 2)
    assert list(summary["groups"]) == ["complex", "easy"]
    assert list(summary["sizes"]) == ["small", "large"]
    assert summary["sizes"]["small"]["pairs"] == 2
    low, high = summary["overall"]["macro"]["miou_ci95"]
    assert low <= summary["overall"]["macro"]["miou"] <= high


def test_the_first_box_against_the_best_matching_true_one():
    truth = as_boxes([[0, 0, 10, 10], [50, 50, 60, 60]])
    assert pair_iou(as_boxes([[50, 50, 60, 60], [0, 0, 10, 10]]), truth) == 1
    assert pair_iou(as_boxes([[100, 100, 110, 110], [0, 0, 10, 10]]), truth) == 0  # only the first one counts
    assert pair_iou(as_boxes([[0, 0, 10, 5]]), truth) == pytest.approx(0.5)
    assert pair_iou(as_boxes([]), truth) == pair_iou(truth, as_boxes([])) == 0


@pytest.mark.parametrize(("side", "name"), [(9, "small"), (10, "medium"), (31, "medium"), (32, "large")])
def test_sizes_by_share_of_the_target(side, name):
    assert size_name(as_boxes([0, 0, side, side]), 100, 100) == name  # 1 % is 10 x 10, 10 % is 31.6 x 31.6
    assert size_name(as_boxes([]), 100, 100) is None
