"""The embedded default: `features` if the parts can be aligned, otherwise `tiny`."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from differad import load_locator
from differad.core import Location, Pair
from differad.errors import ImageError, InputError, OptionError
from differad.locators.auto import AutoLocator, AutoOptions
from differad.locators.features import FUSED, FeaturesOptions
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import make_pair
from differad.synthesis.unaligned import generate_unaligned


@pytest.fixture(scope="module")
def aligned():
    return make_pair(np.random.default_rng(3), "board", nuisance=Nuisance(shift=4)).as_pair()


@pytest.fixture(scope="module")
def apart():
    return generate_unaligned(np.random.default_rng(7), True, 224).as_pair()


@pytest.fixture(scope="module")
def auto():
    return load_locator()


def test_the_registration_decides_which_locator_answers(auto, aligned, apart):
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


def test_a_stream_answers_like_one_pair_at_a_time_and_survives_a_broken_image(auto, aligned, apart, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    outcomes = list(auto.locate_many([aligned, Pair(broken, apart.target), apart]))
    assert [type(outcome) for outcome in outcomes] == [Location, ImageError, Location]
    for outcome, pair in zip(outcomes[::2], (aligned, apart), strict=True):
        np.testing.assert_allclose(outcome.boxes, auto.locate(pair).boxes)


def test_calibrate_bounds_false_alarms_over_both_and_refuses_too_few(auto):
    normals = [make_pair(np.random.default_rng(seed), "board", anomalous=False).as_pair() for seed in range(5)]
    normals += [generate_unaligned(np.random.default_rng(seed), False, 160).as_pair() for seed in range(4)]
    strict = auto.calibrate(normals, 0.1)  # (9 + 1) * 0.9 = 9: above the largest of 9
    assert not any(outcome.anomalous for outcome in strict.locate_many(normals))
    assert strict.options.threshold > max(outcome.confidence for outcome in auto.locate_many(normals))
    with pytest.raises(InputError, match=r"8 normal pairs"):
        auto.calibrate(normals[:8], 0.1)


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"max_boxes": 0}, {"workers": -1}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        load_locator("auto", **wrong)


def same(found, expected):
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert (found.confidence, found.reasoning) == (expected.confidence, expected.reasoning)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"difference.tolerance": 3}, {"difference.tolerance": 3}),
        ({"difference.margin": 0.1}, {"difference.margin": 0.1}),
        ({"difference.max_side": 128}, {"difference.max_side": 128}),
        ({"difference.threshold": 1}, {"difference.threshold": 1}),
        ({"features.fuse": False}, {"fuse": False}),
        ({"features.runtime": "opencv"}, {"runtime": "opencv"}),
    ],
)
def test_options_of_a_part_reach_it_where_images_are_aligned(auto, aligned, options, part):
    everything = {"threshold": 0.0}
    found = load_locator("auto", **everything, **options).locate(aligned)
    same(found, load_locator("features", **everything, **part).locate(aligned))
    if "runtime" not in part:  # the same numbers within 1e-4
        default = load_locator("auto", **everything).locate(aligned)
        assert not np.array_equal(found.boxes, default.boxes) or not np.array_equal(found.scores, default.scores)


@pytest.mark.parametrize("part", [{"margin": 0.1}, {"closer": False}])
def test_options_of_tiny_reach_it_where_images_are_not_aligned(apart, part):
    everything = {"threshold": 0.0}
    found = load_locator("auto", **everything, tiny=part).locate(apart)
    same(found, load_locator("tiny", **everything, **part).locate(apart))
    assert not np.array_equal(found.boxes, load_locator("auto", **everything).locate(apart).boxes)


def test_overlay_as_an_option_of_difference_compares_what_cannot_be_aligned(apart):
    overlaid = load_locator("auto", **{"difference.on_refusal": "overlay"}).locate(apart)
    assert "does not register" in overlaid.reasoning
    same(overlaid, load_locator("features", **{"difference.on_refusal": "overlay"}).locate(apart))


def test_each_part_has_a_threshold_of_its_own_unless_one_is_set_for_both(aligned, apart):
    for options, anomalous in (
        ({"features.threshold": 1, "tiny.threshold": 0}, [False, True]),
        ({"features.threshold": 0, "tiny.threshold": 1}, [True, False]),
    ):
        own = load_locator("auto", **options)
        assert [own.locate(pair).anomalous for pair in (aligned, apart)] == anomalous
    with pytest.raises(OptionError, match=r"tiny\.threshold=0\.3: expected none beside threshold=0\.5"):
        load_locator("auto", threshold=0.5, tiny={"threshold": 0.3})


def test_calibrate_replaces_the_thresholds_of_the_parts():
    normals = [make_pair(np.random.default_rng(seed), "board", anomalous=False).as_pair() for seed in range(9)]
    own = load_locator("auto", **{"features.threshold": 0, "tiny.threshold": 0, "difference.tolerance": 2})
    calibrated = own.calibrate(normals, 0.1)
    assert not any(outcome.anomalous for outcome in calibrated.locate_many(normals))
    assert calibrated.options.difference.tolerance == 2


def test_options_of_parts_come_by_name_as_a_mapping_or_as_a_dataclass():
    expected = AutoOptions(difference=replace(FUSED, tolerance=3), features=FeaturesOptions(fuse=False))
    for options in (
        {"difference.tolerance": "3", "features.fuse": "false"},
        {"difference": {"tolerance": 3}, "features": {"fuse": False}},
        {"difference": replace(FUSED, tolerance=3), "features.fuse": False},
        {"difference": replace(FUSED, tolerance=2), "difference.tolerance": 3, "features": {"fuse": False}},
    ):
        assert load_locator("auto", **options).options == expected


def test_parts_left_as_they_are_change_no_answer(auto, aligned, apart):
    unchanged = load_locator("auto", difference={"tolerance": 1}, features={}, **{"tiny.closer": True})
    for pair in (aligned, apart):
        same(unchanged.locate(pair), auto.locate(pair))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"difference.nonsense": 1}, r"'difference\.nonsense'.* takes difference\.margin, .*difference\.tolerance$"),
        ({"difference": {"nonsense": 1}}, r"'difference\.nonsense'"),
        (
            {"nonsense.tolerance": 1},
            r"'nonsense\.tolerance'.*max_boxes, threshold, workers.*difference, features, tiny",
        ),
        ({"difference.tolerance": 51}, r"difference\.tolerance=51: expected 0 to 50 pixels"),
        ({"difference": 3}, r"difference=3 of auto: expected .* difference\.NAME=VALUE"),
        ({"features.max_boxes": 3}, r"'features\.max_boxes'.* max_boxes is set for the whole"),
        ({"features": FeaturesOptions(max_boxes=3)}, r"features\.max_boxes=3: expected none of its own"),
    ],
)
def test_wrong_options_of_parts_are_named(wrong, says):
    with pytest.raises(OptionError, match=says) as caught:
        load_locator("auto", **wrong)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
