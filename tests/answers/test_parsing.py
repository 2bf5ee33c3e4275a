"""Answers in both directions: written boxes parse back, real models' texts are parsed, malformed text does no harm."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.answers.formats import FORMATS, SYNTAXES, AnswerFormat, answer_format
from differad.answers.parsing import Frame, format_answer, parse_answer, to_units
from differad.boxes import as_boxes
from differad.errors import InputError, OptionError

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "published_rewards.json").read_text())["conversions"]
THOUSAND = Frame(1000, 1000, (1000, 1000))  # one pixel is one thousandth: numbers in a text are pixels
QWEN = FORMATS["qwen2-vl"]


def read(text, family="qwen2-vl", frame=THOUSAND):
    parsed = parse_answer(text, FORMATS[family], frame)
    return parsed.status, parsed.boxes.tolist()


def test_the_published_conversions():
    for case in GOLDEN:
        frame = Frame(case["width"], case["height"], tuple(case["resized_hw"][::-1]))
        for family, key in (("qwen2-vl", "qwen2_vl"), ("qwen2.5-vl", "qwen2_5_vl")):
            assert to_units(as_boxes(case["box"]), FORMATS[family], frame).tolist() == [case[key]]


READINGS = {
    "(1,2),(30,40)": [[1, 2, 30, 40]],
    "<think>dent</think><answer>(1,2),(30,40)</answer>": [[1, 2, 30, 40]],
    "<answer> ( 1 , 2 ) , ( 30 , 40 ) </answer>": [[1, 2, 30, 40]],
    "<answer>(1, 2)(30, 40)</answer>": [[1, 2, 30, 40]],
    "<|object_ref_start|>dent<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>": [[1, 2, 30, 40]],
    "<ref>dent</ref><box>(1,2),(30,40)</box>": [[1, 2, 30, 40]],
    "[1, 2, 30, 40]": [[1, 2, 30, 40]],
    "[[1,2,30,40]]": [[1, 2, 30, 40]],
    "<box>[[1, 2, 30, 40], [5, 6, 70, 80]]</box>": [[1, 2, 30, 40], [5, 6, 70, 80]],
    "<box>1 2 30 40</box>": [[1, 2, 30, 40]],
    "<box>[1, 2, 30, 40]</box>": [[1, 2, 30, 40]],
    "[[001,002,030,040]]": [[1, 2, 30, 40]],
    "[[001,002,030,040;005,006,070,080]]": [[1, 2, 30, 40], [5, 6, 70, 80]],
    '```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "dent"}]\n```': [[1, 2, 30, 40]],
    '```json\n[{"box_2d": [2, 1, 40, 30], "label": "dent"}]\n```': [[1, 2, 30, 40]],  # y first
    "{'box_2d': [2, 1, 40, 30]}": [[1, 2, 30, 40]],
    '[{"label": "dent", "bbox": [0.001, 0.002, 0.030, 0.040]}]': [[1, 2, 30, 40]],
    "<|begin_of_box|>[[1,2,30,40]]<|end_of_box|>": [[1, 2, 30, 40]],
    '{"bbox_2d": [1.5, 2.25, 30.0, 40]}': [[1.5, 2.25, 30, 40]],
    '[{"bbox_2d": [1, 2, 30, 40], "label": "de': [[1, 2, 30, 40]],  # cut off after the box
    "The dent is at (1,2),(30,40), near the rim.": [[1, 2, 30, 40]],
    "(30,40),(1,2)": [[1, 2, 30, 40]],  # reversed corners
    "(30,2),(1,40)": [[1, 2, 30, 40]],
    "(-5,2),(30,4000)": [[0, 2, 30, 1000]],  # cut off at the target
    "(1,2),(30,40) and [5, 6, 70, 80]": [[1, 2, 30, 40], [5, 6, 70, 80]],
    "(0,0),(0,0) (1,2),(30,40)": [[1, 2, 30, 40]],  # a zero box beside a real one says nothing
    "(7,7),(7,9) (1,2),(30,40)": [[1, 2, 30, 40]],  # no area
    "<think>not (9,9),(99,99)</think><answer>(1,2),(30,40)</answer>": [[1, 2, 30, 40]],
    "<think>not (9,9),(99,99)</think>(1,2),(30,40)": [[1, 2, 30, 40]],
    "<think>I write <answer>(9,9),(99,99)</answer></think><answer>(1,2),(30,40)</answer>": [[1, 2, 30, 40]],
    "<answer>(1,2),(30,40)": [[1, 2, 30, 40]],  # cut off before the closing tag
    "(1e1,2),(3e1,40)": [[10, 2, 30, 40]],
    "(1, 2, 30, 40)": [[1, 2, 30, 40]],
    "<box>1, 2, 30, 40</box>": [[1, 2, 30, 40]],
    "<box>[0.001, 0.25, 0.5, 1.0]</box>": [[1, 250, 500, 1000]],  # fractions of the sides
    "(0,0.5),(1,1)": [[0, 500, 1000, 1000]],
    "(0,0),(1,1)": [[0, 0, 1, 1]],  # without a decimal point: units
    "(0.5,0.5),(2,1)": [[0.5, 0.5, 2, 1]],  # one number above 1: units
    # Text quoted in a thought is no answer, even with tags; an answer may come before the thought.
    "<think><answer>(9,9),(99,99)</answer></think>(1,2),(30,40)": [[1, 2, 30, 40]],
    "<answer>(1,2),(30,40)</answer><think><answer>(9,9),(99,99)</answer></think>": [[1, 2, 30, 40]],
    "<think>a <think> b</think><answer>(1,2),(30,40)</answer></think>": [[1, 2, 30, 40]],
    "<think>it is <answer>(1,2),(30,40)</answer>": [[1, 2, 30, 40]],  # a thought ends where the answer begins
    # Numbers of a sentence, a label or a reference are no box.
    "Screws (1,2) and (3,4) are fine. <answer>(1,2),(30,40)</answer>": [[1, 2, 30, 40]],
    "Holes (5, 6, 70, 80) agree. <answer>(1,2),(30,40)</answer> not [9, 9, 99, 99]": [[1, 2, 30, 40]],
    '{"label": "pins (5, 6, 70, 80) bent", "bbox_2d": [1, 2, 30, 40]}': [[1, 2, 30, 40]],
    '{"label": "[5, 6, 70, 80]", "bbox_2d": [1, 2, 30, 40]}': [[1, 2, 30, 40]],
    '{"bbox_2d": [1, 2, 30, 40], "description": "as (5,6),(70,80), \\"twice\\" (5,6),(70,80)"}': [[1, 2, 30, 40]],
    "{'label': 'pins (5,6),(70,80)', 'bbox_2d': [1, 2, 30, 40]}": [[1, 2, 30, 40]],
    "<ref>pins (5,6),(70,80)</ref><box>(1,2),(30,40)</box>": [[1, 2, 30, 40]],
    "<|object_ref_start|>pins [5, 6, 70, 80]<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>": [[1, 2, 30, 40]],
    # A box that is written as a string is one.
    '{"bbox_2d": "[1, 2, 30, 40]", "label": "dent"}': [[1, 2, 30, 40]],
    '{"where": "(1,2),(30,40)"}': [[1, 2, 30, 40]],
    '{"box": "<box>(1,2),(30,40)</box>"}': [[1, 2, 30, 40]],
}
# Numbers in brackets under no key that tells their order: a family that names y first means y first.
BARE = [
    text
    for text in READINGS
    if ("[" in text or "(1, 2, 30, 40)" in text) and "box_2d" not in text and "bbox" not in text
]
NORMAL = [
    "(0,0),(0,0)",
    "<think>fine</think><answer>(0,0),(0,0)</answer>",
    "<box>[[0,0,0,0]]</box>",
    "<box>0 0 0 0</box>",
    "[0, 0, 0, 0]",
    "[[000,000,000,000]]",
    '{"bbox_2d": [0, 0, 0, 0], "label": "normal"}',
    "(0.0,0.0),(0.0,0.0)",
    "[]",
    "```json\n[]\n```",
    '<answer>{"bbox_2d": []}</answer>',
    "```json\n[]\n```\nThe two parts agree.",
]
UNREADABLE = [
    "",
    "none",
    "<answer></answer>",
    "<think>it is at (1,2),(30,40)",  # still thinking
    "(1,2),(30,4",  # the last number may go on
    "[1, 2, 30, 40",
    "<box>1 2 30 4",
    "(1,2),(30,",
    "1 2 30 40",
    "[1, 2, 30]",
    "[1, 2, 30, 40, 50]",
    "(a,b),(c,d)",
    "(7,7),(7,9)",
    "(2000,2000),(3000,3000)",  # wholly outside
    "<think>(1,2),(30,40)</think><answer>nothing</answer>",
    "(\u0661\u0662,2),(30,x)",
    "<think>I could write <answer>(1,2),(30,40)</answer></think>",  # quoted, never given
    "<think>I could write <answer>(1,2),(30,40)</answer></think> Both parts agree.",
    "I could write <answer>(1,2),(30,40)</answer></think>",  # the thought was opened by the prompt
    "The screws at (1,2) and (30,40) look fine.",
    '{"label": "pins (1, 2, 30, 40)", "bbox_2d": [3',
    '{"label": "pins (1, 2, 30, 40), b',
    "(1000,2),(1005,40)",  # beside the target
]


@pytest.mark.parametrize("family", FORMATS)
def test_every_family_reads_every_documented_syntax(family):
    y_first = FORMATS[family].syntax.order == "yx"
    for text, boxes in READINGS.items():
        if not (y_first and text in BARE):
            assert read(text, family) == ("valid", boxes), text
    for text in NORMAL:
        assert read(text, family) == ("normal", []), text
    for text in UNREADABLE:
        assert read(text, family) == ("unreadable", []), text


def test_a_family_that_names_y_first():
    frame = Frame(2000, 500)
    for text in (
        "[100, 200, 300, 400]",
        "<answer>[[100, 200, 300, 400]]</answer>",
        '{"box_2d": [100, 200, 300, 400]}',
        '{"bbox_2d": [200, 100, 400, 300]}',
        "(200,100),(400,300)",
    ):
        assert read(text, "gemma", frame) == ("valid", [[400, 50, 800, 150]]), text
    written = format_answer(as_boxes([[400, 50, 800, 150]]), FORMATS["gemma"], frame)
    assert '"box_2d": [100, 200, 300, 400]' in written


def test_fractions_are_written_with_three_digits():
    written = format_answer(as_boxes([[0, 50, 1234, 500]]), FORMATS["lfm-vl"], Frame(2000, 500))
    assert "[0.000, 0.100, 0.617, 1.000]" in written


def test_one_number_means_different_pixels_in_different_families():
    frame = Frame(2000, 500, (1000, 252))
    assert read("(100,100),(200,200)", "qwen2-vl", frame)[1] == [[200, 50, 400, 100]]  # thousandths
    boxes = read("(100,126),(200,252)", "qwen2.5-vl", frame)[1]  # 2000/1000 and 500/252 pixels each
    assert boxes == [[200, 250, 400, 500]]


def test_resized_families_need_the_resized_size():
    with pytest.raises(OptionError, match="resize"):
        parse_answer("(1,2),(3,4)", FORMATS["qwen2.5-vl"], Frame(100, 100))


def test_a_box_outside_the_target_is_no_box():
    # 1000 * (width / 1000) may fall short of the width by a rounding, which would leave a sliver inside.
    for width in range(1000, 1100):
        for text in ("(1000,5),(1005,9)", "(5,1000),(9,1005)"):
            assert read(text, frame=Frame(width, width)) == ("unreadable", []), width


def test_reasoning_and_labels():
    parsed = parse_answer("<think> a dent </think><answer>(1,2),(30,40)</answer>", QWEN, THOUSAND)
    assert parsed.reasoning == "a dent"
    assert parse_answer("A dent: (1,2),(30,40).", QWEN, THOUSAND).reasoning == "A dent:"
    assert parse_answer("<think>hm", QWEN, THOUSAND).reasoning == "hm"
    assert parse_answer("I see nothing.", QWEN, THOUSAND).reasoning == "I see nothing."
    text = '[{"bbox_2d": [1, 2, 30, 40], "label": "dent"}, {"bbox_2d": [5, 6, 70, 80], "label": "stain"}]'
    assert parse_answer(text, QWEN, THOUSAND).labels == ("dent", "stain")


def test_what_is_written():
    boxes, frame = as_boxes([[10, 20, 300, 400]]), Frame(1000, 500)
    assert format_answer(boxes, QWEN, frame) == "<answer>(10,40),(300,800)</answer>"
    assert format_answer([], QWEN, frame, reasoning="ok") == "<think>ok</think><answer>(0,0),(0,0)</answer>"
    json_format = AnswerFormat("qwen3-vl", SYNTAXES["json"], "thousandths", "test")
    written = format_answer(boxes, json_format, frame, labels=['a "dent"'])
    fenced = written.removeprefix("<answer>```json\n").removesuffix("\n```</answer>")
    assert json.loads(fenced) == [{"bbox_2d": [10, 40, 300, 800], "label": 'a "dent"'}]
    assert parse_answer(written, json_format, frame).labels == ('a "dent"',)
    with pytest.raises(InputError, match="2 labels for 1 boxes"):
        format_answer(boxes, json_format, frame, labels=["a", "b"])


def test_fractions_are_fractions_of_the_original_sides_in_every_family():
    frame = Frame(2000, 500, (1008, 252))
    for family in FORMATS:
        assert read('{"bbox": [0.1, 0.2, 0.3, 0.4]}', family, frame)[1] == [pytest.approx([200, 100, 600, 200])], family


def test_a_box_keeps_a_unit_however_small_it_is():
    frame = Frame(10_000, 10_000)
    for box in ([0, 0, 1, 1], [9_999, 9_999, 10_000, 10_000], [5, 5, 6, 6]):
        text = format_answer(as_boxes(box), QWEN, frame)
        assert parse_answer(text, QWEN, frame).status == "valid", text


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 9, 5, 5], [200, 0, 300, 10]])
def test_a_box_without_area_in_the_target_cannot_be_written(box):
    with pytest.raises(InputError, match="holds no area"):
        format_answer(as_boxes(box), QWEN, Frame(100, 100))


def test_reasoning_must_not_hold_a_tag():
    with pytest.raises(InputError, match="<answer>"):
        format_answer([], QWEN, THOUSAND, reasoning="so <answer>")


@st.composite
def scenes(draw):
    width, height = draw(st.integers(28, 6000)), draw(st.integers(28, 6000))
    resized = (draw(st.integers(28, 3000)), draw(st.integers(28, 3000)))
    share = st.floats(0, 1)
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        x1, x2 = sorted((draw(share) * width, draw(share) * width))
        y1, y2 = sorted((draw(share) * height, draw(share) * height))
        if x2 - x1 > 1e-6 and y2 - y1 > 1e-6:
            boxes.append([x1, y1, x2, y2])
    return Frame(width, height, resized), as_boxes(boxes)


@pytest.mark.parametrize("syntax", [None, *SYNTAXES])
@pytest.mark.parametrize(
    "family", ["qwen2-vl", "qwen2.5-vl", "cogvlm", "internvl", "minicpm-v", "mantis", "gemma", "glm-v", "lfm-vl"]
)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(scene=scenes())
def test_written_boxes_read_back_within_rounding(family, syntax, scene):
    frame, boxes = scene
    entry = FORMATS[family]
    if syntax is not None:
        if SYNTAXES[syntax].fractions and entry.space == "resized":
            return  # fractions are of the sides, in thousandths
        entry = AnswerFormat(family, SYNTAXES[syntax], entry.space, entry.source, entry.largest)
    parsed = parse_answer(format_answer(boxes, entry, frame, reasoning="why"), entry, frame)
    assert parsed.status == ("valid" if len(boxes) else "normal")
    assert parsed.boxes.shape == boxes.shape
    unit = np.tile(frame.pixels_per_unit(entry.space), 2)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    # Half a unit of rounding; up to two where a box under two units wide is widened, or 1000 is written as 999.
    slack = np.where((sides < 2 * unit) | (entry.largest == 999), 2.0, 0.5) * unit + 1e-6
    assert (np.abs(parsed.boxes - boxes) <= slack).all(), (parsed.boxes, boxes)


FRAGMENTS = [
    *READINGS, *NORMAL, *UNREADABLE,
    "<think>", "</think>", "<answer>", "</answer>", "<box>", "</box>", "<|box_start|>", "<|box_end|>", "```json", "```",
    "(", ")", "[", "]", "[[", "]]", ",", ";", " ", "\n", "\t", "{", "}", '"bbox_2d":', '"label": "', '"', "\\", "\x00",
    "0", "1", "999", "1000", "-1", "1.5", ".5", "1e9", "1e999", "-1e999", "nan", "NaN", "Infinity", "9" * 5000, "٣", "½",
    "\ud800", "é", "𝟙", "(1,2", "),(3,4)", "(0,0)", "[1,2,3,", "4]", "null", "true",
]  # fmt: skip
ANSWERS_PER_FAMILY = 10_000


@pytest.mark.parametrize("family", FORMATS)
def test_malformed_answers_never_raise(family):
    """10,000 texts per family, glued from fragments of answers and damaged at random."""
    draw = random.Random(family)
    entry, frame = answer_format(family), Frame(640, 480, (644, 476))
    seen = set()
    for _ in range(ANSWERS_PER_FAMILY):
        text = "".join(draw.choices(FRAGMENTS, k=draw.randint(1, 12)))
        if draw.random() < 0.3:
            cut = draw.randrange(len(text) + 1)
            text = text[:cut] + chr(draw.randrange(0x110000)) + text[cut + draw.randrange(3) :]
        parsed = parse_answer(text, entry, frame)
        seen.add(parsed.status)
        boxes = parsed.boxes
        assert (parsed.status == "valid") == (len(boxes) > 0)
        assert np.isfinite(boxes).all()
        assert ((boxes >= 0) & (boxes <= [640, 480, 640, 480])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert seen == {"valid", "normal", "unreadable"}


noise = st.text(st.one_of(st.sampled_from("()[],;.-+0123456789eE<>/ \n\"'"), st.characters()), max_size=300)


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=noise)
def test_arbitrary_text_never_raises(family, text):
    assert parse_answer(text, FORMATS[family], THOUSAND).status in ("valid", "normal", "unreadable")


HUGE = 1_000_000


@pytest.mark.parametrize(
    "unit",
    [
        "(",
        "[",
        "(1,",
        "[1,",
        "(1,2),(",
        "<box>",
        " ",
        "\n",
        "9",
        "(1,2)",
        "[;",
        "[ ",
        "( ",
        "<answer>",
        '"label":',
        '"label":"\\',
        "<box>1,",
        "<box>1 ",
        "```",
        '"a":"',
        '"a":"\\',
        "'a':'",
        '"aa',
        "<ref>",
        "<ref>(1,2),(3,4)",
    ],
)
def test_a_megabyte_of_malformed_text_is_parsed(unit):
    """A search that went back over the text would take hours here, not seconds."""
    assert parse_answer(unit * (HUGE // len(unit)), QWEN, THOUSAND).status == "unreadable"
