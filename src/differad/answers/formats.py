"""Each model family's format of a box, as one table.

A format is a syntax (the text around four numbers) and a space (the unit of the numbers). It knows nothing of parsing answers
(parsing.py) or of a processor's resize (resize.py). Each entry has its source.
"""

from dataclasses import dataclass
from typing import Literal

from differad.errors import OptionError

Space = Literal["thousandths", "resized"]
# Which axis comes first in a box: x1, y1, x2, y2 or y1, x1, y2, x2.
Order = Literal["xy", "yx"]


@dataclass(frozen=True)
class Syntax:
    """The text of a list of boxes: `opening`, the boxes joined by `separator`, `closing`.

    `box` is a format string over x1, y1, x2, y2 and label (escaped for JSON). A zero box uses it too, with four zeros.
    With `fractions`, thousandths are written as 0.000 to 1.000.
    """

    box: str
    separator: str = ", "
    opening: str = ""
    closing: str = ""
    fractions: bool = False

    @property
    def order(self) -> Order:
        """The axis that `box` names first."""
        return "yx" if self.box.index("{y1") < self.box.index("{x1") else "xy"

    def write(self, x1: int, y1: int, x2: int, y2: int, label: str) -> str:
        """One box in whole units."""
        sides = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        if self.fractions:
            return self.box.format(**{name: f"{side / 1000:.3f}" for name, side in sides.items()}, label=label)
        return self.box.format(**sides, label=label)


SYNTAXES: dict[str, Syntax] = {
    "pairs": Syntax("({x1},{y1}),({x2},{y2})"),
    "tokens": Syntax("<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>", separator=""),
    "list": Syntax("[{x1}, {y1}, {x2}, {y2}]"),
    "json": Syntax(
        '{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}], "label": "{label}"}}', opening="```json\n[", closing="]\n```"
    ),
    "qwen_box": Syntax("<box>({x1},{y1}),({x2},{y2})</box>", separator=""),
    "nested_box": Syntax("[{x1},{y1},{x2},{y2}]", separator=",", opening="<box>[", closing="]</box>"),
    "bare_box": Syntax("<box>{x1} {y1} {x2} {y2}</box>", separator=""),
    "list_box": Syntax("<box>[{x1}, {y1}, {x2}, {y2}]</box>", separator=""),
    "json_yx": Syntax(
        '{{"box_2d": [{y1}, {x1}, {y2}, {x2}], "label": "{label}"}}', opening="```json\n[", closing="]\n```"
    ),
    "json_fractions": Syntax(
        '{{"label": "{label}", "bbox": [{x1}, {y1}, {x2}, {y2}]}}', opening="[", closing="]", fractions=True
    ),
    "glm_box": Syntax("[{x1},{y1},{x2},{y2}]", separator=",", opening="<|begin_of_box|>[", closing="]<|end_of_box|>"),
    "nested_digits": Syntax("{x1:03d},{y1:03d},{x2:03d},{y2:03d}", separator=";", opening="[[", closing="]]"),
}


@dataclass(frozen=True)
class AnswerFormat:
    """One family's format of boxes.

    `space`: "thousandths" of the target's width and height, or "resized": pixels of the target after the processor's own
    resize. `largest` is the highest number in thousandths. `source` documents the convention.
    """

    family: str
    syntax: Syntax
    space: Space
    source: str
    largest: int = 1000

    @property
    def zero_box(self) -> str:
        """The text for "nothing is abnormal"."""
        return self.syntax.opening + self.syntax.write(0, 0, 0, 0, "normal") + self.syntax.closing

    @property
    def instruction(self) -> str:
        """The sentence of the prompt that asks for this format."""
        names = {"x1": "x1", "y1": "y1", "x2": "x2", "y2": "y2", "label": "what"}
        box = self.syntax.box.replace(":03d", "").format(**names)
        shape = self.syntax.opening + box + self.syntax.closing
        unit = _FRACTIONS if self.syntax.fractions else _UNITS[self.space].format(largest=self.largest)
        return (
            f"Inside the answer tags write the box as {shape}, its upper left and lower right corner in {unit}; "
            f"if nothing is abnormal write {self.zero_box}."
        )


_UNITS: dict[Space, str] = {
    "thousandths": "whole thousandths of the second picture's width and height, 0 to {largest}",
    "resized": "whole pixels of the second picture",
}
_FRACTIONS = "fractions of the second picture's width and height, 0.000 to 1.000"

_QWEN_VL = "Qwen-VL, arXiv 2308.12966, and its repository's README: boxes scaled to [0, 1000) as (x1,y1),(x2,y2)"
_QWEN2_VL = "Qwen2-VL, arXiv 2409.12191, section 2.2.1: [0, 1000), <|box_start|>(x1,y1),(x2,y2)<|box_end|>"
_QWEN25_VL = "Qwen2.5-VL, arXiv 2502.13923, section 2, and QwenLM/Qwen3-VL issue 721: pixels of the resized picture"
_QWEN3_VL = "Qwen3-VL repository, cookbooks/2d_grounding: relative coordinates 0 to 1000, JSON bbox_2d"
_INTERNVL = "InternVL documentation, chat data format, grounding: <box>[[x1, y1, x2, y2]]</box>, 0 to 1000"
_MINICPM = "OpenBMB/MiniCPM-V issues 772 and 982, its maintainers: <box>x1 y1 x2 y2</box>, whole numbers 0 to 1000"
_UNDOCUMENTED = (
    "not documented; the syntax is MIG-Bench's (eval/MIG_bench of AMAP-ML/UniVG-R1), thousandths are assumed"
)
_GEMMA = (
    "Gemma documentation, ai.google.dev/gemma/docs/capabilities/vision/image, and Gemini's, docs.cloud.google.com/vertex-ai/"
    "generative-ai/docs/bounding-box-detection: JSON box_2d as [y1, x1, y2, x2], 0 to 1000"
)
_GLM = (
    "GLM-V, skill glmv-grounding of zai-org/GLM-V: 0 to 1000 of width and height; its example of grounding, GLM-4.5V and 4.6V: "
    "<|begin_of_box|>[[x1,y1,x2,y2]]<|end_of_box|>"
)
_LFM = (
    "LFM2.5-VL model card, huggingface.co/LiquidAI/LFM2.5-VL-450M, detection: JSON label and bbox [x1,y1,x2,y2], 0 to 1"
)
_PLAIN = "none: no box format of these models is documented; a plain list of thousandths is asked for"
_COGVLM = "zai-org/CogVLM issues 46 and 165: [[x0,y0,x1,y1]] in thousandths, three digits each, 000 to 999"

FORMATS: dict[str, AnswerFormat] = {
    entry.family: entry
    for entry in (
        AnswerFormat("qwen-vl", SYNTAXES["pairs"], "thousandths", _QWEN_VL),
        AnswerFormat("qwen2-vl", SYNTAXES["pairs"], "thousandths", _QWEN2_VL),
        AnswerFormat("univg-r1", SYNTAXES["pairs"], "thousandths", "UniVG-R1, arXiv 2505.14231: built on Qwen2-VL"),
        AnswerFormat("migician", SYNTAXES["pairs"], "thousandths", "Migician, arXiv 2501.05767: built on Qwen2-VL"),
        AnswerFormat("qwen2.5-vl", SYNTAXES["pairs"], "resized", _QWEN25_VL),
        AnswerFormat("qwen3-vl", SYNTAXES["pairs"], "thousandths", _QWEN3_VL),
        AnswerFormat("internvl", SYNTAXES["nested_box"], "thousandths", _INTERNVL),
        AnswerFormat("minicpm-v", SYNTAXES["bare_box"], "thousandths", _MINICPM),
        AnswerFormat("gemma", SYNTAXES["json_yx"], "thousandths", _GEMMA),
        AnswerFormat("glm-v", SYNTAXES["glm_box"], "thousandths", _GLM),
        AnswerFormat("lfm-vl", SYNTAXES["json_fractions"], "thousandths", _LFM),
        AnswerFormat("plain", SYNTAXES["list"], "thousandths", _PLAIN),
        AnswerFormat("mantis", SYNTAXES["list_box"], "thousandths", _UNDOCUMENTED),
        AnswerFormat("mplug-owl3", SYNTAXES["list_box"], "thousandths", _UNDOCUMENTED),
        AnswerFormat("cogvlm", SYNTAXES["nested_digits"], "thousandths", _COGVLM, largest=999),
    )
}

# The embedded policy's own `model_type`; it uses Qwen2-VL's format.
TINY_MODEL_TYPE = "differad_tiny"

# The family of each `model_type` in a checkpoint's config.json.
MODEL_TYPES: dict[str, str] = {
    "qwen": "qwen-vl",
    "qwen2_vl": "qwen2-vl",
    TINY_MODEL_TYPE: "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    "qwen3_5": "qwen3-vl",
    "qwen3_5_moe": "qwen3-vl",
    "qwen4_exp": "qwen3-vl",
    "gemma3": "gemma",
    "gemma3n": "gemma",
    "gemma4": "gemma",
    "gemma4_unified": "gemma",
    "glm4v": "glm-v",
    "glm4v_moe": "glm-v",
    "glm46v": "glm-v",
    "lfm2_vl": "lfm-vl",
    "lfm3_vl": "lfm-vl",
    "idefics2": "plain",
    "idefics3": "plain",
    "smolvlm": "plain",
    "mistral3": "plain",
    "mistral_large4": "plain",
    "internvl": "internvl",
    "internvl_chat": "internvl",
    "minicpmv": "minicpm-v",
    "minicpmo": "minicpm-v",
    "minicpmv4_6": "minicpm-v",
    "minicpmv4_7": "minicpm-v",
    "mplugowl3": "mplug-owl3",
    "cogvlm": "cogvlm",
}


def answer_format(family: str) -> AnswerFormat:
    """The format of a family. Raises OptionError for an unknown one."""
    if family not in FORMATS:
        raise OptionError(f"family {family!r}: not known; expected one of {', '.join(FORMATS)}")
    return FORMATS[family]


def family_of(model_type: str) -> str:
    """The family of a checkpoint's `model_type`. Raises OptionError for an unknown type."""
    if model_type not in MODEL_TYPES:
        raise OptionError(
            f"model type {model_type!r}: implies no answer format; pass --family, one of {', '.join(FORMATS)}"
        )
    return MODEL_TYPES[model_type]
