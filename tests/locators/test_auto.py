"""The embedded default: `features` where the parts lie on each other, `tiny` where they do not."""

import numpy as np
import pytest

from differad import load_locator
from differad.core import Location, Pair
from differad.errors import ImageError, InputError, OptionError
from differad.locators.auto import AutoLocator, AutoOptions
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import make_pair
from differad.synthesis.unaligned import draw_unaligned


@pytest.fixture(scope="module")
def aligned():
    return make_pair(np.random.default_rng(3), "board", nuisance=Nuisance(shift=4)).as_pair()


@pytest.fixture(scope="module")
def apart():
    return draw_unaligned(np.random.default_rng(7), True, 224).as_pair()


@pytest.fixture(scope="module")
def auto():
    return load_locator()


def test_who_answers_is_decided_by_whether_the_reference_can_be_laid_on(auto, aligned, apart):
    assert isinstance(auto, AutoLocator)
    assert load_locator("difference").locate(aligned).valid
    assert not load_locator("difference").locate(apart).valid
    for pair, name in ((aligned, "features"), (apart, "tiny")):
        found, expected = auto.locate(pair), load_locator(name).locate(pair)
        assert found.model == "auto"
        assert found.seconds > 0
        np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert (found.confidence, found.reasoning) == (expected.confidence, expected.reasoning)


def test_a_threshold_of_ones_own_holds_for_both(aligned, apart):
    for threshold, anomalous in ((0.0, True), (1.0, False)):
        own = AutoLocator(AutoOptions(threshold=threshold))
        assert [own.locate(pair).anomalous for pair in (aligned, apart)] == [anomalous] * 2


def test_a_stream_answers_like_one_pair_at_a_time_and_survives_a_broken_picture(auto, aligned, apart, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    outcomes = list(auto.locate_many([aligned, Pair(broken, apart.target), apart]))
    assert [type(outcome) for outcome in outcomes] == [Location, ImageError, Location]
    for outcome, pair in zip(outcomes[::2], (aligned, apart), strict=True):
        np.testing.assert_allclose(outcome.boxes, auto.locate(pair).boxes)


def test_calibrate_bounds_false_alarms_over_both_and_refuses_too_few(auto):
    normals = [make_pair(np.random.default_rng(seed), "board", anomalous=False).as_pair() for seed in range(5)]
    normals += [draw_unaligned(np.random.default_rng(seed), False, 160).as_pair() for seed in range(4)]
    strict = auto.calibrate(normals, 0.1)  # (9 + 1) * 0.9 = 9: above the largest of 9
    assert not any(outcome.anomalous for outcome in strict.locate_many(normals))
    assert strict.options.threshold > max(outcome.confidence for outcome in auto.locate_many(normals))
    with pytest.raises(InputError, match=r"8 normal pairs"):
        auto.calibrate(normals[:8], 0.1)


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"max_boxes": 0}, {"workers": -1}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        load_locator("auto", **wrong)
