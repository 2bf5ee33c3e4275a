"""The embedded policy as a locator: a box for every target, how sure it is, and a threshold of one's own."""

import math
from dataclasses import fields

import numpy as np
import pytest
from numpy.testing import assert_allclose

from differad.answers.formats import FORMATS
from differad.answers.parsing import Frame, parse_answer
from differad.core import Location, Pair
from differad.errors import ImageError, InputError, OptionError
from differad.locators.tiny import TinyLocator, TinyOptions
from differad.locators.tiny.calibration import Deciding
from differad.locators.tiny.locator import describe

# Over the map too, so that the policy's doubt is not all there is.
DECIDING = Deciding(bias=0.3, answer=0.5, peak=0.7)
SIZES = ((200, 100), (96, 200), (150, 150), (64, 64), (300, 90))


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pairs():
    """Of sizes that differ, so that a batch has to be padded."""
    return [
        Pair(picture(*size, seed=i), picture(*SIZES[-1 - i], seed=10 + i), id=str(i)) for i, size in enumerate(SIZES)
    ]


def locator(folder, deciding=DECIDING, **options):
    return TinyLocator(TinyOptions(device="cpu", **options), folder=folder, deciding=deciding)


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
        assert (location.model, location.seconds > 0) == ("tiny", True)
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


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_batch_answers_like_one_pair_at_a_time(untaught, batch_size):
    alone = locator(untaught, batch_size=1, threshold=0.0)
    together = list(locator(untaught, batch_size=batch_size, threshold=0.0).locate_many(pairs()))
    for outcome, pair in zip(together, pairs(), strict=True):
        single = alone.locate(pair)
        assert outcome.answer == single.answer
        assert outcome.confidence == pytest.approx(single.confidence, abs=1e-4)
    assert len({round(outcome.confidence, 6) for outcome in together}) == len(SIZES)  # each its own


def test_the_confidence_is_the_logistic_curve_over_doubt_and_peak(untaught):
    """Answer alone, map alone and both: log odds of the third are the sum of the first two's and the bias."""

    def odds(**deciding):
        chance = locator(untaught, Deciding(**deciding)).locate(pairs()[0]).confidence
        return math.log(chance / (1 - chance))

    answer, peak = odds(bias=0.0, answer=1.0, peak=0.0), odds(bias=0.0, answer=0.0, peak=1.0)
    assert odds(bias=0.3, answer=0.5, peak=0.7) == pytest.approx(0.3 + 0.5 * answer + 0.7 * peak, abs=1e-3)


def test_the_doubt_is_how_likely_the_policy_itself_finds_the_zero_box(untaught):
    """The chance of 0 after the opening, from the model run by hand on the same prompt."""
    import torch

    own = locator(untaught, Deciding(bias=0.0, answer=1.0, peak=0.0))
    pair = pairs()[2]
    item = own._attempt_prepare(pair)
    ids = own._tokenizer(item.text + "<think></think><answer>(", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        logits = own._model(
            input_ids=ids["input_ids"],
            mm_token_type_ids=(ids["input_ids"] == own._config.image_token_id).int(),
            pixel_values=item.patches,
            image_grid_thw=item.grids,
        ).logits[0, -1]
    zero = logits.softmax(dim=-1)[own._tokenizer.convert_tokens_to_ids("0")]
    assert 1 - own.locate(pair).confidence == pytest.approx(float(zero), rel=1e-3)


def test_nothing_else_can_be_written_whatever_the_weights_like():
    """Random scores, written out greedily: the phrases in order, and corners that lie in order."""
    import torch

    from differad.locators.tiny.locator import _Grammar

    numbers = [*range(30, 20, -1), *range(50, 1041)]  # tokens of 0 to 1000, in no order of their own
    steps = [0, None, 1, None, 2, None, 1, None, 3, 4]
    value = {token: number for number, token in enumerate(numbers)}
    generator = torch.Generator().manual_seed(0)
    for liked in (None, numbers[1000], numbers[999], numbers[0]):  # anything, or one number above all
        grammar, ids = _Grammar(steps, numbers), torch.full((200, 7), numbers[5])  # after a prompt of seven tokens
        for _ in range(10):
            scores = torch.randn(200, 1100, generator=generator)
            if liked is not None:
                scores[:, liked] = 100.0
            ids = torch.cat([ids, grammar(ids, scores).argmax(dim=1, keepdim=True)], dim=1)
        assert ids[:, [7, 9, 11, 13, 15, 16]].tolist() == [[0, 1, 2, 1, 3, 4]] * 200
        for x1, y1, x2, y2 in ([value[token] for token in row] for row in ids[:, [8, 10, 12, 14]].tolist()):
            assert 0 <= x1 < x2 <= 1000
            assert 0 <= y1 < y2 <= 1000


def test_calibrate_bounds_false_alarms_and_refuses_too_few(untaught):
    normals = [Pair(picture(80, 80, seed=seed), picture(80, 80, seed=100 + seed)) for seed in range(19)]
    own = locator(untaught)
    strict = own.calibrate(normals, 0.05)  # (19 + 1) * 0.95 = 19: above the largest of 19
    found = list(strict.locate_many(normals))
    assert not any(outcome.anomalous for outcome in found)
    assert strict.decision.threshold == math.nextafter(max(outcome.confidence for outcome in found), 1.0)
    assert own.decision.threshold == TinyOptions().threshold  # the one that was asked stays as it is
    with pytest.raises(InputError, match=r"18 normal pairs with a confidence: .* at least 19"):
        own.calibrate(normals[:18], 0.05)
    with pytest.raises(OptionError, match=r"false_alarms=1\.5"):
        own.calibrate(normals, 1.5)


def test_a_broken_picture_costs_its_pair_only(untaught, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = pairs()[0]
    thin = Pair(picture(140, 140), picture(5000, 20))
    own = locator(untaught, batch_size=3, threshold=0.0)
    outcomes = list(own.locate_many([good, Pair(broken, good.target), good, thin, good]))
    assert [type(outcome) for outcome in outcomes] == [Location, ImageError, Location, ImageError, Location]
    assert len({outcome.answer for outcome in outcomes[::2]}) == 1
    with pytest.raises(ImageError):
        own.locate(Pair(good.reference, broken))
    with pytest.raises(ImageError):
        own.calibrate([good, Pair(broken, good.target)])


@pytest.mark.parametrize(
    ("name", "value"), [("threshold", -0.1), ("threshold", 1.1), ("threshold", float("nan")), ("batch_size", 0)]
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(OptionError, match=f"option {name}="):
        TinyOptions(**{name: value})


def test_what_is_not_there_is_refused(untaught, tmp_path):
    with pytest.raises(OptionError, match="option device='toaster'"):
        TinyLocator(TinyOptions(device="toaster"), folder=untaught)
    with pytest.raises(OptionError, match=r"no config\.json"):
        TinyLocator(folder=tmp_path)


def test_every_option_says_what_it_does():
    assert all(field.metadata.get("help") for field in fields(TinyOptions))


def test_a_sentence_says_where_how_large_and_how_sure():
    # Middle (30, 20) of 120 x 80: a quarter each way; 20 x 10 of 9600 pixels are 2.1 %.
    said = describe(np.array([[20.0, 15, 40, 25]]), Frame(120, 80), 0.876)
    assert "25% of its width and 25% of its height, over 2.1% of the picture (abnormal with 88%)" in said
    assert "(abnormal with 12%)" in describe(np.empty((0, 4)), Frame(120, 80), 0.12)
