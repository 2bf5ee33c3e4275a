"""The rewards against the published values, against arithmetic by hand and against a scalar rewrite."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.boxes import as_boxes
from differad.errors import InputError
from differad.rewards import dclr, format_reward, iou_reward, localization_reward, score_answer, score_answers

GOLDEN = json.loads((Path(__file__).parent / "data" / "published_rewards.json").read_text())["rewards"]


def answer(box):
    x1, y1, x2, y2 = box
    return f"<think>x</think><answer>({x1},{y1}),({x2},{y2})</answer>"


def test_the_published_values():
    assert len(GOLDEN) == 400
    scores = score_answers([case["completion"] for case in GOLDEN], [case["solution"] for case in GOLDEN])
    np.testing.assert_allclose(scores.localization, [case["dclr"] for case in GOLDEN], atol=1e-6)
    np.testing.assert_allclose(scores.format, [case["format"] for case in GOLDEN], atol=1e-6)


def test_one_at_a_time_gives_the_same():
    for case in GOLDEN[:60]:
        score = score_answer(case["completion"], case["solution"])
        assert (score.localization, score.format) == (pytest.approx(case["dclr"], abs=1e-6), case["format"])


def test_dclr_by_hand():
    predicted, truth = as_boxes([0, 0, 30, 40]), as_boxes([30, 0, 60, 40])
    # They touch: IoU 0. Centres 30 apart, diagonals 50: C = 1 - 30/50. Equal areas: S = 1.
    assert dclr(predicted, truth)[0] == pytest.approx(0.6 * (1 - 30 / 50) + 0.4)
    half = as_boxes([30, 0, 60, 20])
    # IoU 600/1200; centres 10 apart, the longer diagonal 50; areas 600 against 1200.
    consistency = 0.6 * (1 - 10 / 50) + 0.4 * (1 - 600 / 1200)
    assert dclr(half, truth)[0] == pytest.approx(0.5 + 0.5 * consistency)
    assert dclr(truth, truth)[0] == 1.0


def scalar_dclr(p, g):
    """The formula over plain numbers."""
    width = max(0, min(p[2], g[2]) - max(p[0], g[0]))
    height = max(0, min(p[3], g[3]) - max(p[1], g[1]))
    area_p, area_g = (p[2] - p[0]) * (p[3] - p[1]), (g[2] - g[0]) * (g[3] - g[1])
    overlap = width * height / (area_p + area_g - width * height)
    distance = math.dist(((p[0] + p[2]) / 2, (p[1] + p[3]) / 2), ((g[0] + g[2]) / 2, (g[1] + g[3]) / 2))
    reach = max(math.dist(p[:2], p[2:]), math.dist(g[:2], g[2:]), 1)
    center = 1 - min(1, distance / reach)
    size = 1 - min(1, abs(area_p - area_g) / area_g)
    return overlap + (1 - overlap) * (0.6 * center + 0.4 * size)


boxes = st.tuples(*[st.integers(0, 1000)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
solid = boxes.filter(lambda b: b[0] < b[2] and b[1] < b[3])


@settings(max_examples=500, deadline=None, derandomize=True)
@given(p=solid, g=solid)
def test_dclr_equals_the_scalar_formula_and_stays_in_bounds(p, g):
    score = score_answer(answer(p), g)
    assert score.localization == pytest.approx(scalar_dclr(p, g), abs=1e-12)
    assert score.iou - 1e-12 <= score.localization <= 1 + 1e-12
    assert score.format == 1


@pytest.mark.parametrize("truth", [[0, 0, 0, 0], []])
def test_a_normal_target_wants_the_zero_box(truth):
    assert score_answer(answer((0, 0, 0, 0)), truth) == (1, 1, 1)
    assert score_answer(answer((1, 2, 3, 4)), truth) == (1, 0, 0)
    assert score_answer("nothing", truth) == (0, 0, 0)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 5, 5, 9), (9, 9, 5, 5)])
def test_zero_and_degenerate_boxes_earn_nothing_on_an_anomaly(box):
    assert score_answer(answer(box), [1, 2, 30, 40])[1:] == (0, 0)


@pytest.mark.parametrize(
    ("text", "format", "located"),
    [
        ("<think>a</think>\n<answer>(1,2),(30,40)</answer>", 1, 1),
        ("  <think>a</think><answer>[1, 2, 30, 40]</answer>\n", 1, 1),
        ("<think>a</think><answer>(1,2),(30,40)</answer> so", 0, 1),
        ("<think>a</think> so <answer>(1,2),(30,40)</answer>", 0, 1),
        ("<think>a</think><answer>(1,2),(30,40),(1,2),(30,40)</answer>", 0, 1),
        ("<answer>(1,2),(30,40)</answer>", 0, 1),
        ("<think>a</think><answer>(1,2),(30,40)", 0, 0),
        ("<think>a</think>(1,2),(30,40)", 0, 0),
        ("<think>a</think><answer>(1.0,2),(30,40)</answer>", 0, 0),
        ("<think>a</think><answer>(-1,2),(30,40)</answer>", 0, 0),
        ("", 0, 0),
    ],
)
def test_format_and_location_are_independent(text, format, located):
    score = score_answer(text, [1, 2, 30, 40])
    assert (score.format, score.localization) == (format, located)


def test_malformed_text_is_scored_without_errors():
    for text in (
        "<answer>(" + "9" * 100_000 + ",1),(2,3)</answer>",
        "<answer>" * 20_000,
        "(" * 100_000,
        "</answer><answer>",
    ):
        assert score_answer(text, [1, 2, 3, 4]).format == 0


def test_wrong_true_boxes_are_an_error():
    with pytest.raises(InputError, match=r"shape \(2, 4\) for 1 answers"):
        score_answers(["a"], [[1, 2, 3, 4], [1, 2, 3, 4]])
    with pytest.raises(InputError, match=r"shape \(1, 3\)"):
        score_answers(["a"], [[1, 2, 3]])
    with pytest.raises(InputError, match="holds no area"):
        score_answers(["a"], [[5, 5, 4, 9]])
    assert score_answers([], []).iou.shape == (0,)
    assert score_answers([answer((0, 0, 0, 0))] * 2, [[], [1, 2, 3, 4]]).iou.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([float("nan")] * 4, r"true box \[nan, nan, nan, nan\]: expected numbers from 0 to 1000"),
        ([1, 2, float("nan"), 4], "expected numbers from 0 to 1000"),
        ([1, 2, float("inf"), 4], "expected numbers from 0 to 1000"),
        ([-1, 2, 3, 4], "expected numbers from 0 to 1000"),
        ([-9, -9, -5, -5], "expected numbers from 0 to 1000"),
        ([1, 2, 3, 1000.5], "expected numbers from 0 to 1000"),
        ([1, 2, 3, 1e300], "expected numbers from 0 to 1000"),
        ([3, 4, 1, 2], "holds no area"),
        ([1, 2, 3], r"shape \(1, 3\)"),
        ([[1, 2, 3, 4]], r"shape \(1, 1, 4\)"),
        (5, r"shape \(1,\)"),
        (None, r"shape \(1,\)"),
        (["a", "b", "c", "d"], "expected a box as x1, y1, x2, y2"),
        ({"x1": 1}, "expected a box as x1, y1, x2, y2"),
    ],
)
def test_a_truth_that_is_none_is_an_error_alone_and_beside_others(truth, message):
    with pytest.raises(InputError, match=message):
        score_answer(answer((1, 2, 3, 4)), truth)
    for others in ([], [0, 0, 0, 0], [1, 2, 3, 4]):
        with pytest.raises(InputError):
            score_answers([answer((1, 2, 3, 4))] * 2, [others, truth])


def test_a_truth_may_reach_the_border_and_round_beyond_it():
    assert score_answer(answer((0, 0, 1000, 1000)), [0, 0, 1000, 1000]) == (1, 1, 1)
    beyond = np.nextafter(1000.0, np.inf)
    assert score_answer(answer((0, 0, 1000, 1000)), [0, 0, beyond, beyond]).localization == pytest.approx(1)
    with pytest.raises(InputError, match=r"shape \(\) for 1 answers"):
        score_answers(["a"], 5)


def test_the_callables_take_columns_and_both_kinds_of_completion():
    texts = [answer((1, 2, 30, 40)), answer((0, 0, 0, 0))]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    parts = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in texts]
    solution = [[1, 2, 30, 40], [1, 2, 30, 40]]
    logged = {}
    for completions in (texts, chats, parts):
        columns = {
            "completions": completions,
            "solution": solution,
            "prompts": ["?"] * 2,
            "log_metric": logged.__setitem__,
        }
        assert format_reward(**columns) == [1, 1]
        assert localization_reward(**columns) == [1, 0]
        assert iou_reward(**columns) == [1, 0]
    assert logged == {"iou": 0.5}
