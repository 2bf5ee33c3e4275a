"""The two values that everything passes."""

import json
from dataclasses import replace

import numpy as np
import pytest

import differad
from differad import Location, Pair
from differad.errors import InputError


def test_a_pair_knows_whether_it_is_labelled():
    assert Pair("a.png", "b.png").anomalous is None
    assert Pair("a.png", "b.png", boxes=[]).anomalous is False
    assert Pair("a.png", "b.png", boxes=[[1, 2, 3, 4]]).anomalous is True
    assert Pair("a.png", "b.png", boxes=[]).boxes.shape == (0, 4)


def test_a_location_becomes_the_json_of_the_interface():
    location = Location(boxes=[[1, 2, 3.333, 4]], scores=[0.98765], confidence=0.5, reasoning="dent", model="m")
    document = json.loads(json.dumps(location.to_dict()))
    assert document == {
        "anomalous": True,
        "boxes": [[1, 2, 3.33, 4]],
        "scores": [0.9877],
        "confidence": 0.5,
        "reasoning": "dent",
        "answer": "",
        "valid": True,
        "threshold": None,
        "comparable": True,
        "model": "m",
        "seconds": 0.0,
    }


def test_an_empty_location_is_normal():
    location = Location()
    assert not location.anomalous
    assert location.to_dict()["confidence"] is None


def test_scores_must_match_boxes():
    with pytest.raises(InputError, match="2 scores for 1 boxes"):
        Location(boxes=[[1, 2, 3, 4]], scores=np.array([0.1, 0.2]))


def test_the_version_is_the_package_s_own():
    assert differad.__version__.count(".") == 2


def test_an_abnormal_target_of_unknown_place_has_no_boxes():
    pair = Pair("a.png", "b.png", anomalous=True)
    assert pair.boxes is None
    assert pair.anomalous is True
    normal = Pair("a.png", "b.png", anomalous=False)
    assert normal.boxes.shape == (0, 4)


def test_boxes_decide_also_where_they_are_replaced():
    abnormal = Pair("a.png", "b.png", boxes=[[1, 2, 3, 4]])
    assert replace(abnormal, boxes=[]).anomalous is False
    assert replace(Pair("a.png", "b.png", anomalous=True), boxes=[[1, 2, 3, 4]]).anomalous is True


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (Location(comparable=False, reasoning="The target is  black."), "The target is black."),
        (Location(valid=False, answer="I cannot tell", reasoning="a thought"), "unreadable answer 'I cannot tell'"),
        (Location(valid=False, boxes=[[1, 2, 3, 4]]), "no reason was given"),
    ],
)
def test_no_answer_is_neither_normal_nor_abnormal(location, reason):
    assert location.anomalous is None
    assert not location.valid
    assert location.to_dict()["anomalous"] is None
    assert location.why_no_answer == reason


def test_an_answer_needs_no_excuse():
    assert Location().anomalous is False
    assert Location().why_no_answer is None


def test_what_cannot_be_compared_is_no_valid_answer():
    location = Location(comparable=False)
    assert not location.valid
    assert location.to_dict()["comparable"] is False
