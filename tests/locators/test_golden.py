"""Answers to a few synthetic pairs stay those that were stored with the pinned versions, within the differences of versions.

Red after a new release of OpenCV or NumPy: its answers changed by more than any from OpenCV 4.9 to 5.0 did
(docs/versions.md). Red after a change here: answers changed; `python tests/locators/golden.py` stores those that are meant.
"""

import json

import numpy as np
import pytest
from golden import FILE, MODELS, pairs

from differad.errors import InputError
from versions_differ import answers, differences

STORED = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
# The largest change of a confidence from OpenCV 4.9 to 5.0 was 0.022 on these pairs and 0.027 on 120 others; twice that.
# Boxes of these pairs moved by at most a pixel, which costs the small ones a twentieth of their overlap; again twice that.
CONFIDENCE, PIXELS, OVERLAP = 0.05, 2.0, 0.9


@pytest.fixture(scope="module")
def given():
    return list(answers(pairs(), MODELS))


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_that_were_stored(model, given):
    (found,) = differences(*([line for line in lines if line["model"] == model] for lines in (STORED[1:], given)))
    assert found.pairs == len(pairs())
    assert found.verdicts == 0
    assert found.confidence <= CONFIDENCE
    assert found.moved <= PIXELS
    assert found.iou >= OVERLAP


def test_the_stored_answers_are_those_of_every_verdict():
    assert {line["verdict"] for line in STORED[1:]} == {"normal", "anomalous", "not comparable"}


def test_pairs_are_generated_in_whole_numbers():
    first, second = pairs(), pairs()
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.reference, other.reference)
        assert one.target.dtype == np.uint8


def test_answers_to_other_pairs_are_not_compared(given):
    with pytest.raises(InputError, match="answer the same manifests with both"):
        differences(given, given[1:])
