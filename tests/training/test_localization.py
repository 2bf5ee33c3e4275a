"""Rewards by name: published values, values by hand, and bounds."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.answers.formats import FORMATS
from differad.answers.parsing import Frame, format_answer
from differad.boxes import as_boxes, iou, scale
from differad.errors import InputError, OptionError
from differad.evaluation.metrics import pair_iou
from differad.locators.chat import Reply, to_location
from differad.rewards import dclr
from differad.training.audit import audit, plot_audit
from differad.training.localization import DEFAULT_VARIANT, VARIANTS, guarded, localize

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


def test_a_box_over_the_whole_image_earns_almost_nothing():
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


def test_a_nearer_box_scores_higher_without_overlap():
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


TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<box>", "</box>", "<|box_start|>", "<|box_end|>", "```json\n")
number = st.one_of(
    st.integers(-5, 1300).map(str),
    st.floats(0, 1300, allow_nan=False).map(lambda v: f"{v:.3f}"),
    st.sampled_from(["0", "0.0", "0.25", "1.0", "1000", "1001", "9" * 12, "1e3"]),
)
four = st.tuples(number, number, number, number)
written = st.one_of(
    four.map(lambda n: "({},{}),({},{})".format(*n)),
    four.map(lambda n: "[{}, {}, {}, {}]".format(*n)),
    four.map(lambda n: "<box>{} {} {} {}</box>".format(*n)),
    four.map(lambda n: '{{"bbox_2d": [{}, {}, {}, {}], "label": "pins (1, 2, 30, 40)"}}'.format(*n)),
    four.map(lambda n: '{{"label": "as ({},{}),({},{})"}}'.format(*n)),
    st.just("(0,0),(0,0)"),
)
prose = st.sampled_from(["", " ", "The 2 screws at (1,2) and (3,4) are fine. ", "so ", "[]", "\n"])
pieces = st.lists(st.one_of(written, prose, st.sampled_from(TAGS)), max_size=10).map("".join)
quoting = st.tuples(written, prose, written, prose).map(
    lambda v: f"<think>{v[1]}<answer>{v[0]}</answer></think>{v[3]}<answer>{v[2]}</answer>{v[1]}{v[0]}"
)
cut_off = st.tuples(quoting, st.floats(0, 1)).map(lambda v: v[0][: round(v[1] * len(v[0]))])
completions = st.one_of(pieces, quoting, cut_off, pieces.map(lambda text: f"<answer>{text}</answer>"))
frames = st.tuples(*[st.integers(28, 4000)] * 2, *[st.integers(1, 60)] * 2).map(
    lambda v: Frame(v[0], v[1], (28 * v[2], 28 * v[3]))
)


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=completions, frame=frames)
def test_the_default_reward_reads_what_evaluation_reads(family, text, frame):
    units = frame.units(FORMATS[family].space)
    seen = to_location(Reply(text, frame), FORMATS[family], "m", 0.0)
    for name in (DEFAULT_VARIANT, "iou"):
        paid = VARIANTS[name].reading([text], [units], FORMATS[family].syntax.order)
        assert bool(paid.gives_box[0]) == (seen.anomalous is True)
        assert bool(paid.says_normal[0]) == (seen.anomalous is False)
        thousandths = scale(seen.boxes[:1], 1000 / frame.width, 1000 / frame.height)
        # Both come from the same numbers by up to four multiplications, of 2**-53 each.
        np.testing.assert_allclose(paid.boxes[: len(thousandths)], thousandths, rtol=8 * 2.0**-53)


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=completions, frame=frames)
def test_the_default_reward_is_measured_as_evaluation_measures(family, text, frame):
    seen = to_location(Reply(text, frame), FORMATS[family], "m", 0.0)
    truth = as_boxes([[100, 200, 400, 700], [600, 600, 1000, 900]])
    pixels = scale(truth, frame.width / 1000, frame.height / 1000)
    units = [frame.units(FORMATS[family].space)]
    order = FORMATS[family].syntax.order
    outcome = localize([text], [truth], units, DEFAULT_VARIANT, order)
    # Sides of up to 1000 are known to 1e-13 and parts as thin as 1e-6 are compared: 1e-7 of an IoU at the worst.
    assert outcome.iou[0] == pytest.approx(pair_iou(seen.boxes, pixels), abs=1e-7)
    assert bool(outcome.missed[0]) == (outcome.iou[0] < 0.3)
    normal = localize([text], [[]], units, DEFAULT_VARIANT, order)
    assert bool(normal.missed[0]) == (seen.anomalous is True)
    assert bool(normal.reward[0]) == (seen.anomalous is False)


@pytest.mark.parametrize("family", FORMATS)
def test_a_turned_box_and_a_quoted_answer(family):
    frame = Frame(640, 480, (644, 476))
    units = frame.units(FORMATS[family].space)
    text = format_answer(as_boxes([64, 48, 320, 240]), FORMATS[family], frame)
    width, height = units
    truth = [[100, 100, 500, 500]]
    turned = f"<answer>({width // 2},{height // 2}),({width // 10},{height // 10})</answer>"
    quoted = f"<think>{text}</think>{format_answer([], FORMATS[family], frame)}"
    rounded = 0.95  # a unit of 476 is 2 of 1000
    assert one(turned, truth, units=units)[1] > rounded
    assert one(text, truth, units=units)[1] > rounded
    assert one(quoted, truth, units=units) == (0, 0, True)
    assert one(quoted, [], units=units) == (1, 1, False)


def test_the_published_reward_keeps_its_own_reading():
    truth = [[100, 100, 500, 500]]
    assert one("<answer>(500,500),(100,100)</answer>", truth, "dclr") == (0, 0, True)
    assert one("<answer>(500,500),(100,100)</answer>", truth, "guarded") == (1, 1, False)
    quoted = "<think><answer>(100,100),(500,500)</answer></think><answer>(0,0),(0,0)</answer>"
    assert one(quoted, truth, "dclr") == (1, 1, False)
    assert one(quoted, truth, "guarded") == (0, 0, True)


@pytest.mark.parametrize(
    "truth", [[[1, 2, 3, np.nan]], [[-1, 2, 3, 4]], [[1, 2, 3, 1001]], [[3, 4, 1, 2]], [[1, 2, 3]]]
)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_wrong_truth_is_an_error(name, truth):
    with pytest.raises(InputError):
        one(answer((1, 2, 3, 4)), truth, name)


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


def test_the_audits_plot():
    plot = plot_audit()
    assert plot.dtype == np.uint8
    assert plot.shape[1] == len(VARIANTS) * plot.shape[0]
