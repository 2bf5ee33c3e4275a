"""The embedded policy as a locator: a box for every target, its probability, and a custom threshold."""

import math
from dataclasses import fields

import numpy as np
import pytest
from numpy.testing import assert_allclose

from differad.answers.formats import FORMATS
from differad.answers.parsing import Frame, parse_answer
from differad.boxes import grow
from differad.core import Location, Pair
from differad.errors import ImageError, InputError, OptionError
from differad.locators.tiny import TinyLocator, TinyOptions
from differad.locators.tiny.calibration import DecisionConstants
from differad.locators.tiny.locator import CROP_SHARES, summary, window_around

# With a weight for the map too, so that the decision depends on both scores.
DECISION_CONSTANTS = DecisionConstants(bias=0.3, answer=0.5, peak=0.7)
SIZES = ((200, 100), (96, 200), (150, 150), (64, 64), (300, 90))


def make_image(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pairs():
    """Of sizes that differ; some are too small for crops."""
    return [
        Pair(make_image(*size, seed=i), make_image(*SIZES[-1 - i], seed=10 + i), id=str(i))
        for i, size in enumerate(SIZES)
    ]


def locator(folder, deciding=DECISION_CONSTANTS, **options):
    return TinyLocator(TinyOptions(**options), folder=folder, deciding=deciding)


def test_at_threshold_zero_every_target_gets_a_box(untaught):
    found = list(locator(untaught, threshold=0.0).locate_many(pairs()))
    for location, pair in zip(found, pairs(), strict=True):
        assert location.valid
        assert location.anomalous
        assert location.boxes.shape == (1, 4)
        height, width = pair.target.shape[:2]
        assert (location.boxes >= 0).all()
        assert (location.boxes <= [width, height, width, height]).all()
        assert 0 <= location.confidence <= 1
        assert location.scores.tolist() == [location.confidence]
        assert (location.model, location.seconds > 0) == (f"tiny@{untaught}", True)
        read = parse_answer(location.answer, FORMATS["qwen2-vl"], Frame(width, height))
        assert_allclose(read.boxes, location.boxes)


def test_at_threshold_one_none_does_and_the_rest_stays(untaught):
    every = list(locator(untaught, threshold=0.0).locate_many(pairs()))
    none = list(locator(untaught, threshold=1.0).locate_many(pairs()))
    for sure, doubtful in zip(every, none, strict=True):
        assert doubtful.boxes.shape == (0, 4)
        assert not doubtful.anomalous
        assert doubtful.answer == "<think></think><answer>(0,0),(0,0)</answer>"
        assert doubtful.reasoning.startswith("Nothing differs")
        assert doubtful.confidence == pytest.approx(sure.confidence)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_stream_answers_like_one_pair_at_a_time(untaught, workers):
    together = list(locator(untaught, workers=workers, threshold=0.0).locate_many(pairs()))
    for outcome, pair in zip(together, pairs(), strict=True):
        single = locator(untaught, threshold=0.0, workers=1).locate(pair)
        assert outcome.answer == single.answer
        assert outcome.confidence == pytest.approx(single.confidence, abs=1e-4)
    assert len({round(outcome.confidence, 6) for outcome in together}) == len(SIZES)  # each its own


@pytest.mark.parametrize("workers", [1, 2])
def test_the_box_is_the_median_of_three(untaught, monkeypatch, workers):
    """Two crops around the first box; their sides and the scores are computed by hand."""
    own = locator(untaught, threshold=0.0, margin=0.0, workers=workers)
    run_policy, replies = own._run_policy, {}

    def record(reference, target, pool, **how):
        replies[target.shape] = run_policy(reference, target, pool, **how)
        return replies[target.shape]

    monkeypatch.setattr(own, "_run_policy", record)
    reference, target = make_image(300, 200), make_image(300, 200, seed=1)
    location = own.locate(Pair(reference, target))
    first = replies.pop((200, 300, 3))
    boxes = [parse_answer(first.text, FORMATS["qwen2-vl"], first.frame).boxes[0]]
    assert len(replies) == len(CROP_SHARES)
    for share in CROP_SHARES:
        x1, y1, x2, y2 = (
            round(v) for v in np.multiply(window_around(boxes[0] / [300, 200, 300, 200], share), [300, 200] * 2)
        )
        reply = replies[(y2 - y1, x2 - x1, 3)]
        assert reply.text == run_policy(reference[y1:y2, x1:x2], target[y1:y2, x1:x2], None, align=False).text
        boxes.append(parse_answer(reply.text, FORMATS["qwen2-vl"], reply.frame).boxes[0] + [x1, y1, x1, y1])
    # Thousandths are whole numbers: half of one, of a side, may be lost to rounding, here twice.
    assert_allclose(location.boxes, np.sort(boxes, axis=0)[1][None], atol=0.31)
    box_logit, peak = (
        (getattr(first, n) + sum(getattr(r, n) for r in replies.values()) / 2) / 2 for n in ("box_logit", "peak")
    )
    logit = math.log(location.confidence / (1 - location.confidence))
    assert logit == pytest.approx(0.3 + 0.5 * box_logit + 0.7 * peak, abs=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_crops_are_registered_only_if_the_whole_images_are_aligned(untaught, monkeypatch, aligned):
    own, tried = locator(untaught, workers=1), []
    run_policy = own._run_policy
    monkeypatch.setattr(
        own, "_run_policy", lambda *given, **how: tried.append(how.get("align", True)) or run_policy(*given, **how)
    )
    smooth = np.kron(make_image(20, 20), np.ones((12, 12, 1), np.uint8))
    own.locate(
        Pair(smooth, smooth.copy() if aligned else np.kron(make_image(20, 20, 1), np.ones((12, 12, 1), np.uint8)))
    )
    assert tried == [True, aligned, aligned]


def test_without_crops_the_first_pass_counts(untaught):
    pair = Pair(make_image(300, 200), make_image(300, 200, seed=1))
    plain = locator(untaught, threshold=0.0, closer=False, margin=0.0)
    first = plain._run_policy(pair.reference, pair.target, None)
    assert plain.locate(pair).answer == first.text
    looser = locator(untaught, threshold=0.0, closer=False, margin=0.05).locate(pair)
    # Thousandths are whole numbers: half of one, of a side, may be lost to rounding.
    assert_allclose(looser.boxes, grow(plain.locate(pair).boxes, 0.05, 300, 200), atol=0.16)


@pytest.mark.parametrize(("side", "passes"), [(96, 3), (64, 2), (40, 1)])
def test_no_window_is_smaller_than_two_patches(untaught, monkeypatch, side, passes):
    """32 pixels are 0.4 of 80 and 0.65 of 50."""
    own, calls = locator(untaught), []
    run_policy = own._run_policy
    monkeypatch.setattr(own, "_run_policy", lambda *given, **how: calls.append(0) or run_policy(*given, **how))
    own.locate(Pair(make_image(side, side), make_image(side, side, seed=1)))
    assert len(calls) == passes


def test_the_confidence_is_the_logistic_curve_over_doubt_and_peak(untaught):
    """Answer alone, map alone and both: the logit of the third is the sum of the first two's and the bias."""

    def box_logit(**deciding):
        probability = locator(untaught, DecisionConstants(**deciding)).locate(pairs()[0]).confidence
        return math.log(probability / (1 - probability))

    answer, peak = box_logit(bias=0.0, answer=1.0, peak=0.0), box_logit(bias=0.0, answer=0.0, peak=1.0)
    assert box_logit(bias=0.3, answer=0.5, peak=0.7) == pytest.approx(0.3 + 0.5 * answer + 0.7 * peak, abs=1e-3)


def test_calibrate_bounds_false_alarms_and_refuses_too_few(untaught):
    normals = [Pair(make_image(80, 80, seed=seed), make_image(80, 80, seed=100 + seed)) for seed in range(19)]
    own = locator(untaught)
    strict = own.calibrate(normals, 0.05)  # (19 + 1) * 0.95 = 19: above the largest of 19
    found = list(strict.locate_many(normals))
    assert not any(outcome.anomalous for outcome in found)
    assert strict.options.threshold == math.nextafter(max(outcome.confidence for outcome in found), 1.0)
    assert own.options.threshold == DECISION_CONSTANTS.threshold  # the one that was asked stays as it is
    with pytest.raises(InputError, match=r"18 normal pairs with a confidence: .* at least 19"):
        own.calibrate(normals[:18], 0.05)
    with pytest.raises(OptionError, match=r"false_alarms=1\.5"):
        own.calibrate(normals, 1.5)


def test_a_broken_image_fails_its_pair_only(untaught, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = pairs()[0]
    thin = Pair(make_image(140, 140), make_image(5000, 20))
    own = locator(untaught, workers=2, threshold=0.0)
    outcomes = list(own.locate_many([good, Pair(broken, good.target), good, thin, good]))
    assert [type(outcome) for outcome in outcomes] == [Location, ImageError, Location, ImageError, Location]
    assert len({outcome.answer for outcome in outcomes[::2]}) == 1
    with pytest.raises(ImageError):
        own.locate(Pair(good.reference, broken))
    with pytest.raises(ImageError):
        own.calibrate([good, Pair(broken, good.target)])


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", -0.1), ("threshold", 1.1), ("threshold", float("nan")), ("workers", -1)]
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(OptionError, match=f"option {name}="):
        TinyOptions(**{name: value})


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"no config\.json"):
        TinyLocator(folder=tmp_path)


def test_every_option_says_what_it_does():
    assert all(field.metadata.get("help") for field in fields(TinyOptions))


def test_a_sentence_says_where_how_large_and_how_sure():
    # Middle (30, 20) of 120 x 80: a quarter each way; 20 x 10 of 9600 pixels are 2.1 %.
    said = summary(np.array([[20.0, 15, 40, 25]]), Frame(120, 80), 0.876)
    assert "25% of its width and 25% of its height, over 2.1% of the image (abnormal with 88%)" in said
    assert "(abnormal with 12%)" in summary(np.empty((0, 4)), Frame(120, 80), 0.12)
