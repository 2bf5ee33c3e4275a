"""The table of families: complete, cited, and each zero box as in the published protocol."""

import pytest

from differad.answers.formats import FORMATS, MODEL_TYPES, answer_format, family_of
from differad.errors import OptionError

ZERO = {
    "qwen-vl": "(0,0),(0,0)",
    "qwen2-vl": "(0,0),(0,0)",
    "univg-r1": "(0,0),(0,0)",
    "migician": "(0,0),(0,0)",
    "qwen2.5-vl": "(0,0),(0,0)",
    "qwen3-vl": "(0,0),(0,0)",
    "internvl": "[[0,0,0,0]]",
    "minicpm-v": "0 0 0 0",
    "gemma": '{"box_2d": [0, 0, 0, 0], "label": "normal"}',
    "glm-v": "<|begin_of_box|>[[0,0,0,0]]<|end_of_box|>",
    "lfm-vl": '[{"label": "normal", "bbox": [0.000, 0.000, 0.000, 0.000]}]',
    "plain": "[0, 0, 0, 0]",
    "mantis": "[0, 0, 0, 0]",
    "mplug-owl3": "[0, 0, 0, 0]",
    "cogvlm": "[[000,000,000,000]]",
}


def test_every_family_of_the_method_is_there_and_cited():
    assert set(FORMATS) == set(ZERO)
    assert all(len(entry.source) > 20 for entry in FORMATS.values())
    assert [name for name, entry in FORMATS.items() if entry.space == "resized"] == ["qwen2.5-vl"]


@pytest.mark.parametrize("family", FORMATS)
def test_the_zero_box_and_the_instruction(family):
    entry = answer_format(family)
    assert ZERO[family] in entry.zero_box
    assert entry.zero_box in entry.instruction
    assert ("pixels of the second picture" in entry.instruction) == (entry.space == "resized")
    assert not any(left in entry.instruction for left in ("{x", "{y", "{label", "{{"))


def test_only_gemma_names_y_first_and_only_lfm_writes_fractions():
    assert [name for name, entry in FORMATS.items() if entry.syntax.order == "yx"] == ["gemma"]
    assert [name for name, entry in FORMATS.items() if entry.syntax.fractions] == ["lfm-vl"]
    assert "[y1, x1, y2, x2]" in FORMATS["gemma"].instruction
    assert "0.000 to 1.000" in FORMATS["lfm-vl"].instruction
    assert "thousandths" not in FORMATS["lfm-vl"].instruction


def test_unknown_names_list_the_known_ones():
    with pytest.raises(OptionError, match=r"'gpt'.*qwen2-vl"):
        answer_format("gpt")
    with pytest.raises(OptionError, match=r"'llama'.*--family"):
        family_of("llama")


def test_model_types_lead_to_families():
    assert set(MODEL_TYPES.values()) <= set(FORMATS)
    assert family_of("qwen2_5_vl") == "qwen2.5-vl"
    assert family_of("minicpmv4_6") == "minicpm-v"
    assert family_of("qwen3_5") == "qwen3-vl"
    assert family_of("gemma4") == "gemma"
    assert family_of("smolvlm") == "plain"
