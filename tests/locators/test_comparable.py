"""Normal is never the answer to images in which nothing can be seen."""

import cv2
import numpy as np
import pytest

from differad import Pair, load_locator
from differad.errors import InputError
from differad.locators.comparable import visibility_fault

EMBEDDED = ("auto", "difference", "features", "tiny")


def textured(seed=0, height=160, width=200):
    coarse = np.random.default_rng(seed).integers(60, 200, (height // 4, width // 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def level(value, height=160, width=200):
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("model", EMBEDDED)
@pytest.mark.parametrize(("reference", "target"), [(0, 1), (255, 254)])
def test_two_images_without_content_have_no_verdict(model, reference, target):
    location = load_locator(model).locate(Pair(level(reference), level(target)))
    assert not location.comparable
    assert not location.valid
    assert not location.anomalous
    assert location.confidence is None
    assert "nothing to compare" in location.reasoning


@pytest.mark.parametrize("model", EMBEDDED)
def test_a_black_target_of_a_visible_reference_is_not_comparable(model):
    location = load_locator(model).locate(Pair(textured(), level(0)))
    assert not location.comparable
    assert location.reasoning.startswith("The target is black while the reference is not")


def test_a_bright_scratch_on_a_dark_field_is_still_found():
    target = level(0)
    target[60:70, 50:150] = 200  # 1,000 of 32,000 pixels
    location = load_locator("difference").locate(Pair(level(0), target))
    assert location.comparable
    assert location.anomalous


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        (level(4), "is black"),
        (level(5), None),  # a dark surface, above the read noise
        (level(251), "is white (over-exposed)"),
        (level(128), None),  # a plain surface
        (textured(), None),
    ],
)
def test_what_counts_as_empty(image, fault):
    assert visibility_fault(image) == fault


def test_a_dead_pixel_is_no_content_and_a_defect_is():
    image = level(0, 100, 100)
    image[3, 4] = 255  # one of 10,000 pixels
    assert visibility_fault(image) == "is black"
    image[50:54, 50:54] = 255  # 17 of 10,000: more than a thousandth
    assert visibility_fault(image) is None


@pytest.mark.parametrize("shape", [(40, 12800), (12800, 40)])
@pytest.mark.parametrize("model", ["auto", "difference"])
def test_a_long_strip_is_compared_at_its_own_width(model, shape):
    reference = textured(1, *shape)
    target = reference.copy()
    y, x = (10, 7000) if shape[1] > shape[0] else (7000, 10)
    locator = load_locator(model)
    assert not locator.locate(Pair(reference, target)).anomalous
    target[y : y + 14, x : x + 14] = 255 - target[y : y + 14, x : x + 14]
    (box,) = locator.locate(Pair(reference, target)).boxes
    assert (box[:2] <= [x, y]).all()
    assert (box[2:] >= [x + 14, y + 14]).all()


def test_calibration_says_why_pairs_were_left_out():
    refused = [Pair(level(0), level(1))] * 3
    message = (
        r"0 normal pairs with a confidence \(3 more have no answer, the first: The reference is black.*at least 19"
    )
    with pytest.raises(InputError, match=message):
        load_locator("difference").calibrate(refused)
