"""Rewards by name: against the published values, by hand, and within their bounds."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.boxes import as_boxes, iou
from differad.errors import OptionError
from differad.rewards import dclr
from differad.training.audit import audit, draw_audit
from differad.training.localization import VARIANTS, guarded, localize

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "published_rewards.json").read_text())["rewards"]
THOUSANDTHS = (1000, 1000)


def answer(box):
    x1, y1, x2, y2 = box
    return f"<think>x</think><answer>({x1},{y1}),({x2},{y2})</answer>"


def one(text, truth, name="guarded", units=THOUSANDTHS):
    outcomes = localize([text], [truth], [units], name)
    return float(outcomes.reward[0]), float(outcomes.iou[0]), bool(outcomes.missed[0])


def test_the_published_reward_has_the_published_values():
    truths = [[case["solution"]] if any(case["solution"]) else [] for case in GOLDEN]
    outcomes = localize([case["completion"] for case in GOLDEN], truths, [THOUSANDTHS] * len(GOLDEN), "dclr")
    np.testing.assert_allclose(outcomes.reward, [case["dclr"] for case in GOLDEN], atol=1e-6)


def test_guarded_by_hand():
    predicted, truth = as_boxes([0, 0, 30, 40]), as_boxes([30, 0, 60, 40])
    # They touch: IoU 0. Centres 30 apart, the box around both 60 x 40. Same shape: S = 1.
    assert guarded(predicted, truth)[0] == pytest.approx(0.3 * (1 - 30 / np.hypot(60, 40)))
    half = as_boxes([30, 0, 60, 20])
    # IoU 1/2; centres 10 apart, 30 x 40 around both; same width, half the height: S = 1/2.
    assert guarded(half, truth)[0] == pytest.approx(0.5 + 0.5 * 0.3 * (1 - 10 / 50) * 0.5)


def test_a_box_over_everything_earns_next_to_nothing():
    everything, truth = as_boxes([0, 0, 1000, 1000]), as_boxes([450, 450, 550, 550])
    assert dclr(everything, truth)[0] > 0.6  # 0.01 of IoU
    assert guarded(everything, truth)[0] < 0.02  # IoU 0.01 + 0.3 * 1/100


corners = st.tuples(st.integers(0, 900), st.integers(0, 900), st.integers(1, 100), st.integers(1, 100))
boxes = corners.map(lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(p=boxes, g=boxes)
def test_guarded_is_bounded_by_iou(p, g):
    predicted, truth = as_boxes(p), as_boxes(g)
    overlap, reward = iou(predicted, truth)[0], guarded(predicted, truth)[0]
    assert overlap - 1e-12 <= reward <= overlap + 0.3 * (1 - overlap) + 1e-12


def test_nearer_pays_more_without_overlap():
    truth = as_boxes([0, 0, 50, 50])
    rewards = [guarded(as_boxes([x, 0, x + 50, 50]), truth)[0] for x in (900, 600, 300, 100, 60)]
    assert rewards == sorted(rewards)
    assert len(set(rewards)) == 5


@pytest.mark.parametrize("name", VARIANTS)
def test_normal_targets(name):
    assert one(answer((0, 0, 0, 0)), [], name) == (1, 1, False)
    assert one(answer((1, 2, 30, 40)), [], name) == (0, 0, True)  # a box on a normal target: a miss
    assert one("?", [], name) == (0, 0, False)  # unreadable: nothing earned, yet no box given
    assert one(answer((0, 0, 0, 0)), [[1, 2, 30, 40]], name) == (0, 0, True)


def test_a_miss_is_counted_by_iou():
    # Squares of 100, moved by 75: a quarter of each is shared.
    reward, overlap, missed = one(answer((75, 0, 175, 100)), [[0, 0, 100, 100]], "dclr")
    assert overlap == pytest.approx(25 / 175)
    assert reward > 0.3
    assert missed


def test_the_best_matching_box_counts():
    truth = [[0, 0, 100, 100], [500, 500, 600, 600]]
    assert one(answer((500, 500, 600, 600)), truth) == (1, 1, False)


def test_resized_pixels_become_thousandths():
    # 280 x 140 after the resize: (28, 14, 56, 28) is (100, 100, 200, 200) in thousandths.
    assert one(answer((28, 14, 56, 28)), [[100, 100, 200, 200]], units=(280, 140)) == (1, 1, False)


def test_an_unknown_name():
    with pytest.raises(OptionError, match="'giou': not known; expected one of guarded, dclr, iou"):
        one("", [], "giou")


def test_the_audit():
    figures = audit()["rewards"]
    assert figures["dclr"]["best_reward_below_0.05"] > 0.8
    assert figures["dclr"]["whole_square"]["30"] == pytest.approx(0.6, abs=0.01)
    assert figures["guarded"]["best_reward_below_0.05"] < 0.3
    assert figures["guarded"]["whole_square"]["30"] < 0.01
    assert figures["iou"]["distinct_at_iou_0"] == 0
    assert figures["guarded"]["distinct_at_iou_0"] > figures["dclr"]["distinct_at_iou_0"] > 0.5
    for each in figures.values():
        best = localize([answer([round(v) for v in each["its_box"]])], [[each["its_truth"]]], [THOUSANDTHS], "iou")
        assert best.iou[0] < 0.06


def test_the_audits_picture():
    picture = draw_audit()
    assert picture.dtype == np.uint8
    assert picture.shape[1] == len(VARIANTS) * picture.shape[0]
