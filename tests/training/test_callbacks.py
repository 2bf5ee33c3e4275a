"""The page of samples: true boxes and answers of each pair."""

import pytest

pytest.importorskip("accelerate", reason="the train extra is not installed")

from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.training.callbacks import sample_page


def test_a_sample_without_a_known_location_says_so(pairs):
    first = next(iter(read_pairs(pairs)))
    unknown = Pair(first.reference, first.target, id="u1", anomalous=True)
    answered = Location(answer="<answer>(0,0),(0,0)</answer>")
    page = sample_page([(first, answered), (unknown, answered)], "step 1")
    assert page.count("abnormal, place unknown") == 1
    assert "<b>u1</b> (abnormal, place unknown)" in page
