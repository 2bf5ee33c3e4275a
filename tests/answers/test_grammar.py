"""The grammar of answers agrees with the parser and the writer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.answers.formats import FORMATS
from differad.answers.grammar import OPENING, AnswerGrammar
from differad.answers.parsing import Frame, format_answer, parse_answer

FRAME = Frame(300, 90, resized=(308, 84))
families = st.sampled_from(sorted(FORMATS))


@given(family=families, seed=st.integers(0, 2**32 - 1), greed=st.sampled_from(["0", "9", "1", ""]))
@settings(max_examples=400, deadline=None)
def test_every_text_of_the_grammar_can_be_parsed(family, seed, greed):
    """Random walks; some repeat a digit wherever allowed. No walk ends in a dead end or exceeds `longest`."""
    form, random = FORMATS[family], np.random.default_rng(seed)
    grammar, text = AnswerGrammar(form, FRAME), ""
    while grammar.read(text) != "done":
        letters = [letter for letter in sorted(grammar.letters) if grammar.read(text + letter) != "dead"]
        assert letters, f"a dead end after {text!r}"
        text += greed if greed in letters and greed else letters[int(random.integers(len(letters)))]
    assert len(text) <= grammar.longest
    answer = parse_answer(OPENING + text, form, FRAME)
    assert answer.status in ("valid", "normal")
    assert len(answer.boxes) == (answer.status == "valid")


@given(
    family=families,
    corners=st.tuples(st.floats(0, 290), st.floats(0, 80), st.floats(5, 300), st.floats(5, 90)) | st.none(),
)
@settings(max_examples=300, deadline=None)
def test_the_grammar_allows_every_written_answer(family, corners):
    form = FORMATS[family]
    boxes = np.empty((0, 4))
    if corners is not None:
        x, y, width, height = corners
        boxes = np.array([[x, y, min(x + width, 300), min(y + height, 90)]])
    text = format_answer(boxes, form, FRAME).removeprefix(OPENING)
    grammar = AnswerGrammar(form, FRAME)
    assert [grammar.read(text[:end]) for end in range(len(text))] == ["open"] * len(text)
    assert grammar.read(text) == "done"
    assert grammar.read(text + " ") == "dead"


@pytest.mark.parametrize(
    "text",
    [
        "(5,5),(5,9)",  # no width
        "(5,5),(4,9)",  # corners reversed
        "(0,0),(0,3)",  # neither the zero box nor one with area
        "(05,5),(9,9)",
        "(1000,5),(1000,9)",
        "(5,5),(1001,9)",
        "(-5,5),(9,9)",
        " (5,5),(9,9)",
        "(\u0665,5),(9,9)",  # a digit, but not one of ours
        "(5,5),(9,9),(1,1),(2,2)",
    ],
)
def test_texts_that_the_grammar_rejects(text):
    assert AnswerGrammar(FORMATS["qwen2-vl"], FRAME).read(text + "</answer>") == "dead"
