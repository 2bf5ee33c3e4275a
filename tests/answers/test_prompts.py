"""One system text, one question, twenty paraphrases."""

import numpy as np
import pytest

from differad.answers.formats import FORMATS
from differad.answers.prompts import PARAPHRASES, QUESTION, SYSTEM, prompt_text, training_question


def test_twenty_different_paraphrases_that_name_the_task():
    assert len(set(PARAPHRASES)) == len(PARAPHRASES) == 20
    for text in (*PARAPHRASES, QUESTION):
        assert all(word in text.lower() for word in ("good", "reference", "target", "light", "viewpoint")), text
    assert all(word in SYSTEM for word in ("reference", "target", "first picture", "second picture"))
    assert all(tag in SYSTEM for tag in ("<think>", "</think>", "<answer>", "</answer>"))


@pytest.mark.parametrize("family", FORMATS)
def test_only_the_format_sentence_changes_by_family(family):
    text = prompt_text(FORMATS[family])
    assert text.startswith(QUESTION)
    assert text.removeprefix(QUESTION).strip() == FORMATS[family].instruction
    assert prompt_text(FORMATS[family], "Where?").startswith("Where? ")


def test_the_generator_chooses_the_question():
    drawn = [training_question(np.random.default_rng(seed)) for seed in range(400)]
    assert drawn == [training_question(np.random.default_rng(seed)) for seed in range(400)]
    assert set(drawn) == set(PARAPHRASES)  # a missing one has probability 20 * 0.95**400 < 1e-7
