"""How each family of models writes a box: one `AnswerFormat` per family, with where that is documented.

A family is added by a value in `FORMATS`, and the `model_type` of its checkpoints in `_FAMILY_OF_MODEL_TYPE`. What is
documented and what is assumed stands in docs/answers.md. Knows nothing of how text is parsed.
"""

from dataclasses import dataclass
from typing import Literal

from differad.errors import OptionError

Space = Literal["thousandths", "resized", "fractions"]


@dataclass(frozen=True)
class AnswerFormat:
    """How a family writes boxes, both for training texts and in the prompt.

    `box` is a template with the fields x1, y1, x2, y2; several boxes are joined by `separator` and stand between
    `opening` and `closing`. `labelled` is the template of one box with its `label`, joined by `labelled_separator`
    between `labelled_opening` and `labelled_closing`; empty where the family documents none.
    """

    name: str
    space: Space
    """`thousandths` of the picture's sides, pixels after the processor's resize (`resized`), or `fractions` in 0..1."""
    box: str
    sentence: str
    """The sentence of the prompt that asks for this output."""
    source: str
    """Where the convention is documented."""
    zero: str = "(0,0),(0,0)"
    """The zero box: nothing is abnormal."""
    opening: str = ""
    closing: str = ""
    separator: str = " "
    labelled: str = ""
    labelled_opening: str = ""
    labelled_closing: str = ""
    labelled_separator: str = " "
    top: int = 1000
    """The largest coordinate that is written (thousandths only)."""


def answer_format(family: str) -> AnswerFormat:
    """The format of a family by name. Raises OptionError listing the known names."""
    try:
        return FORMATS[family]
    except KeyError:
        raise OptionError(f"family {family!r} is not known: expected one of {', '.join(FORMATS)}") from None


def family_of(model_type: str) -> str:
    """The family that the `model_type` of a checkpoint's config.json implies. Raises OptionError."""
    try:
        return _FAMILY_OF_MODEL_TYPE[model_type]
    except KeyError:
        raise OptionError(
            f"model type {model_type!r} implies no answer format: pass --family with one of {', '.join(FORMATS)}"
        ) from None


_PAIRS = "({x1},{y1}),({x2},{y2})"
_LIST = "[{x1}, {y1}, {x2}, {y2}]"
_JSON = '{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": {label}}}'
_QWEN2_LABELLED = "<|object_ref_start|>{label}<|object_ref_end|><|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
_THOUSANDTHS = "in whole thousandths (0 to 1000) of the width and height of image 2"


def _sentence(box: str, unit: str, zero: str) -> str:
    return (
        f"Reason inside <think> </think>, then give the answer inside <answer> </answer> as {box}, the top left and "
        f"bottom right corner {unit}; if nothing is abnormal, answer {zero}."
    )


_PAIRS_SENTENCE = _sentence("(x1,y1),(x2,y2)", _THOUSANDTHS, "(0,0),(0,0)")

_QWEN2_VL = AnswerFormat(
    name="qwen2-vl",
    space="thousandths",
    box=_PAIRS,
    labelled=_QWEN2_LABELLED,
    sentence=_PAIRS_SENTENCE,
    source="https://arxiv.org/abs/2409.12191",
)

_FORMATS = (
    AnswerFormat(
        name="qwen-vl",
        space="thousandths",
        box=_PAIRS,
        labelled="<ref>{label}</ref><box>({x1},{y1}),({x2},{y2})</box>",
        sentence=_PAIRS_SENTENCE,
        source="https://github.com/QwenLM/Qwen-VL",
    ),
    _QWEN2_VL,
    AnswerFormat(
        name="univg-r1",
        space="thousandths",
        box=_PAIRS,
        labelled=_QWEN2_LABELLED,
        sentence=_PAIRS_SENTENCE,
        source="https://github.com/AMAP-ML/UniVG-R1",
    ),
    AnswerFormat(
        name="migician",
        space="thousandths",
        box=_PAIRS,
        labelled=_QWEN2_LABELLED,
        sentence=_PAIRS_SENTENCE,
        source="https://github.com/Michael4933/Migician",
    ),
    AnswerFormat(
        name="qwen2.5-vl",
        space="resized",
        box=_PAIRS,
        labelled=_JSON,
        labelled_opening="[",
        labelled_closing="]",
        labelled_separator=", ",
        sentence=_sentence("(x1,y1),(x2,y2)", "in pixels of image 2", "(0,0),(0,0)"),
        source="https://github.com/QwenLM/Qwen3-VL/issues/721",
    ),
    AnswerFormat(
        name="qwen3-vl",
        space="thousandths",
        box=_PAIRS,
        labelled=_JSON,
        labelled_opening="[",
        labelled_closing="]",
        labelled_separator=", ",
        sentence=_PAIRS_SENTENCE,
        source="https://github.com/QwenLM/Qwen3-VL/blob/main/cookbooks/2d_grounding.ipynb",
    ),
    AnswerFormat(
        name="internvl",
        space="thousandths",
        box="[{x1},{y1},{x2},{y2}]",
        opening="<box>[",
        closing="]</box>",
        separator=",",
        labelled="<ref>{label}</ref><box>[[{x1},{y1},{x2},{y2}]]</box>",
        zero="<box>[[0,0,0,0]]</box>",
        sentence=_sentence("<box>[[x1,y1,x2,y2]]</box>", _THOUSANDTHS, "<box>[[0,0,0,0]]</box>"),
        source="https://internvl.readthedocs.io/en/latest/get_started/chat_data_format.html#grounding-detection-data",
    ),
    AnswerFormat(
        name="minicpm-v",
        space="thousandths",
        box="<box>{x1} {y1} {x2} {y2}</box>",
        labelled="<ref>{label}</ref><box>{x1} {y1} {x2} {y2}</box>",
        zero="<box>0 0 0 0</box>",
        sentence=_sentence("<box>x1 y1 x2 y2</box>", _THOUSANDTHS, "<box>0 0 0 0</box>"),
        source="https://github.com/OpenBMB/MiniCPM-V/issues/982",
    ),
    AnswerFormat(
        name="mantis",
        space="fractions",
        box=f"<box>{_LIST}</box>",
        zero="<box>[0, 0, 0, 0]</box>",
        sentence=_sentence(
            "<box>[x1, y1, x2, y2]</box>",
            "as fractions (0.000 to 1.000) of the width and height of image 2",
            "<box>[0, 0, 0, 0]</box>",
        ),
        source="https://github.com/AMAP-ML/UniVG-R1/blob/main/eval/MIG_bench/MIG_bench_eval.py",
    ),
    AnswerFormat(
        name="mplug-owl3",
        space="thousandths",
        box=f"<box>{_LIST}</box>",
        zero="<box>[0, 0, 0, 0]</box>",
        sentence=_sentence("<box>[x1, y1, x2, y2]</box>", _THOUSANDTHS, "<box>[0, 0, 0, 0]</box>"),
        source="https://github.com/AMAP-ML/UniVG-R1/blob/main/eval/MIG_bench/MIG_bench_eval.py",
    ),
    AnswerFormat(
        name="cogvlm",
        space="thousandths",
        box="{x1:03d},{y1:03d},{x2:03d},{y2:03d}",
        opening="[[",
        closing="]]",
        separator=";",
        zero="[[000,000,000,000]]",
        top=999,
        sentence=_sentence(
            "[[x0,y0,x1,y1]]",
            "in thousandths of the width and height of image 2, three digits each (000 to 999)",
            "[[000,000,000,000]]",
        ),
        source="https://github.com/zai-org/CogVLM/issues/165",
    ),
)

FORMATS: dict[str, AnswerFormat] = {fmt.name: fmt for fmt in _FORMATS}

_FAMILY_OF_MODEL_TYPE = {
    "qwen": "qwen-vl",
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    "internvl": "internvl",
    "internvl_chat": "internvl",
    "minicpmv": "minicpm-v",
    "minicpmo": "minicpm-v",
    "minicpmv4_6": "minicpm-v",
    "minicpmv4_7": "minicpm-v",
    "mplugowl3": "mplug-owl3",
    "cogvlm": "cogvlm",
}
