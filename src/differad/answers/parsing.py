"""Write boxes as text and parse text into boxes, for every family in `FORMATS`.

Writing follows the family's format exactly. Parsing is lenient: it accepts every documented syntax from every family, with
surrounding prose, floats, reversed corners, code fences or a truncated text, as long as a box is closed. Text from a model is
untrusted input: parsing never raises on it and takes time linear in its length.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from differad.answers.formats import AnswerFormat, Order, Space
from differad.boxes import Boxes, as_boxes, clip, is_degenerate, no_boxes, order_corners, scale
from differad.errors import InputError, OptionError

Status = Literal["valid", "normal", "unreadable"]

# Possessive quantifiers (++, *+) never backtrack, so no text makes a search quadratic.
_GAP = r"\s*+"
_COMMA = rf"{_GAP},{_GAP}"
_BETWEEN = rf"(?:{_COMMA}|\s++)"
_NUMBER = r"([-+]?+\d++(?:\.\d*+)?+(?:[eE][-+]?+\d++)?+)"
_BOX = re.compile(
    # (x1,y1),(x2,y2)
    rf"\({_GAP}{_NUMBER}{_COMMA}{_NUMBER}{_GAP}\){_GAP},?+{_GAP}\({_GAP}{_NUMBER}{_COMMA}{_NUMBER}{_GAP}\)"
    # [x1, y1, x2, y2], alone, nested, in JSON, or one of several separated by semicolons; (x1, y1, x2, y2)
    rf"|[\[(;]{_GAP}{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}{_GAP}(?=[\]);])"
    # <box>x1 y1 x2 y2</box>
    rf"|<box>{_GAP}{_NUMBER}{_BETWEEN}{_NUMBER}{_BETWEEN}{_NUMBER}{_BETWEEN}{_NUMBER}{_GAP}</box>"
)
# JSON strings under a key, and Qwen-VL's object references: descriptions whose numbers are not boxes.
_STRING = re.compile(
    r'"(\w++)"\s*+:\s*+"((?:[^"\\]|\\.)*+)(?:"|\Z)'
    r"|'(\w++)'\s*+:\s*+'((?:[^'\\]|\\.)*+)(?:'|\Z)"
    r"|(?:<ref>|<\|object_ref_start\|>)[^<]*+"
)
_LETTER = re.compile(r"[^\W\d_]")
# Sides below this many units count as no area: a conversion of units could lose them.
_THINNEST = 1e-6
# An empty JSON list, alone, in a fence or as a bbox_2d, means that a model found nothing.
_NOTHING = re.compile(rf"\[{_GAP}\]")
# The JSON key of a box, and the axis order of each key.
_KEY = re.compile(r"""(\w+)["']\s*:\s*["'\[]?\s*\Z""")
_LONGEST_KEY = 30
_ORDERS: dict[str, Order] = {"box_2d": "yx", "bbox_2d": "xy", "bbox": "xy"}
_LABEL = re.compile(r'"label"\s*+:\s*+("(?:[^"\\]|\\.)*+")')
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Frame:
    """The size of an answer's target: in pixels, and after the processor's resize if known."""

    width: int
    height: int
    resized: tuple[int, int] | None = None

    def units(self, space: Space) -> tuple[int, int]:
        """Width and height of the target in units of `space`. Raises OptionError without the resized size."""
        if space == "thousandths":
            return 1000, 1000
        if self.resized is None:
            raise OptionError("answer in resized pixels: the size after the processor's resize is not known; give it")
        return self.resized

    def pixels_per_unit(self, space: Space) -> tuple[float, float]:
        """Original pixels (x, y) per unit of `space`. Raises OptionError without the resized size."""
        width, height = self.units(space)
        return self.width / width, self.height / height


@dataclass(frozen=True, eq=False)
class ParsedAnswer:
    """A parsed answer. `boxes` (N, 4) keep their order: in pixels of the original target from `parse_answer`, in the answer's
    units from `read_answer`.

    `status` is "valid" with boxes, "normal" for the zero box or an empty list, "unreadable" otherwise. `labels` has one
    text per box, or is empty.
    """

    status: Status
    boxes: Boxes = field(default_factory=no_boxes)
    labels: tuple[str, ...] = ()
    reasoning: str = ""


def format_answer(
    boxes: Boxes,
    answer_format: AnswerFormat,
    frame: Frame,
    *,
    reasoning: str | None = None,
    labels: Sequence[str] | None = None,
) -> str:
    """The training text of an answer: `<answer>…</answer>` with `boxes` (N, 4) in pixels, after `<think>` with any reasoning.

    No boxes become the family's zero box. Coordinates are rounded to the nearest unit; a box keeps at least one unit in
    each direction. `labels`, one per box ("anomaly" by default), appear if the syntax has labels. Raises InputError for a box
    without area or outside the target, a wrong number of labels, or reasoning that contains a tag.
    """
    array = as_boxes(boxes)
    if labels is not None and len(labels) != len(array):
        raise InputError(f"{len(labels)} labels for {len(array)} boxes: expected one each")
    answer = f"<answer>{_write(array, answer_format, frame, labels or ['anomaly'] * len(array))}</answer>"
    if reasoning is None:
        return answer
    if any(tag in reasoning for tag in _TAGS):
        raise InputError(f"reasoning {reasoning[:60]!r} holds one of the tags {' '.join(_TAGS)}; leave them out")
    return f"<think>{reasoning}</think>{answer}"


def to_units(boxes: Boxes, answer_format: AnswerFormat, frame: Frame) -> NDArray[np.int64]:
    """Pixel boxes (N, 4) in the family's whole units, (N, 4). Raises InputError."""
    inside = clip(boxes, frame.width, frame.height)
    if is_degenerate(inside).any():
        bad = boxes[is_degenerate(inside)][0].tolist()
        raise InputError(
            f"box {bad} holds no area in a target of {frame.width}x{frame.height}; expected x1 < x2, y1 < y2"
        )
    per_x, per_y = frame.pixels_per_unit(answer_format.space)
    limit = np.array(frame.resized if answer_format.space == "resized" else [answer_format.largest] * 2)
    units = np.rint(scale(inside, 1 / per_x, 1 / per_y)).astype(np.int64)
    low = np.minimum(units[:, :2], limit - 1)
    high = np.minimum(np.maximum(units[:, 2:], low + 1), limit)
    return np.concatenate([low, high], axis=1)


def _write(boxes: Boxes, answer_format: AnswerFormat, frame: Frame, labels: Sequence[str]) -> str:
    if len(boxes) == 0:
        return answer_format.zero_box
    syntax = answer_format.syntax
    written = [
        syntax.write(x1, y1, x2, y2, json.dumps(label, ensure_ascii=False)[1:-1])
        for label, (x1, y1, x2, y2) in zip(labels, to_units(boxes, answer_format, frame).tolist(), strict=True)
    ]
    return syntax.opening + syntax.separator.join(written) + syntax.closing


def parse_answer(text: str, answer_format: AnswerFormat, frame: Frame) -> ParsedAnswer:
    """Parse a model's text as `read_answer` does, with boxes in pixels of the original target.

    Never raises on `text`. Raises OptionError if `frame` lacks the resized size that the family needs.
    """
    parsed = read_answer(text, frame.units(answer_format.space), answer_format.syntax.order)
    pixels = scale(parsed.boxes, *frame.pixels_per_unit(answer_format.space))
    return replace(parsed, boxes=clip(pixels, frame.width, frame.height))


def read_answer(text: str, units: tuple[float, float], order: Order = "xy") -> ParsedAnswer:
    """Parse a model's text about a target of `units` (width, height) in the answer's units. Never raises.

    Locating, evaluation and rewards share this parser. The answer is the first `<answer>` after `</think>`, else one before
    `<think>`, else the text after `</think>`, else the whole text. An unclosed `<think>` without `<answer>` has no answer, and
    boxes inside a thought do not count. Four numbers in brackets are in `order`, except for a bbox_2d, bbox or box_2d, whose
    orders are fixed; corners in parentheses are x, y. Swapped corners are reordered, coordinates are clipped to the target,
    boxes without area are dropped, and so are zero boxes beside others.
    """
    content, reasoning = _split(text)
    if content is None:
        return ParsedAnswer("unreadable", reasoning=reasoning)
    plain = _STRING.sub(_blank, content)
    matches = list(_BOX.finditer(plain))
    if not matches:
        return ParsedAnswer(
            "normal" if _NOTHING.search(content) else "unreadable", reasoning=reasoning or content.strip()
        )
    if not reasoning and "<think>" not in text and "<answer>" not in text:
        reasoning = content[: matches[0].start()].strip()
    numbers = [[number for number in match.groups() if number is not None] for match in matches]
    values = np.array([[float(number) for number in box] for box in numbers])
    swapped = np.array([_order(plain, match, order) == "yx" for match in matches])
    values[swapped] = values[swapped][:, [1, 0, 3, 2]]
    if not values.any():
        return ParsedAnswer("normal", reasoning=reasoning)
    usable = values.any(axis=1) & np.isfinite(values).all(axis=1)
    has_point = np.array(["." in "".join(box) for box in numbers])
    boxes = _inside(values[usable], has_point[usable], units)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > _THINNEST).all(axis=1)]
    labels = tuple(_unquote(label) for label in _LABEL.findall(content))
    return ParsedAnswer(
        "valid" if len(boxes) else "unreadable",
        boxes=boxes,
        labels=labels if len(labels) == len(boxes) else (),
        reasoning=reasoning,
    )


def _order(text: str, match: re.Match[str], order: Order) -> Order:
    """The axis order of a box."""
    if not match[0].startswith(("[", "(", ";")) or match[1] is not None:
        return "xy"
    key = _KEY.search(text, max(0, match.start() - _LONGEST_KEY), match.start())
    return _ORDERS.get(key[1].lower(), order) if key else order


def _inside(values: Boxes, has_point: NDArray[np.bool_], units: tuple[float, float]) -> Boxes:
    """Boxes (N, 4) in units of the answer, corners in order, clipped to the target.

    In every family, four numbers within 0 and 1 with a decimal point are fractions of the sides: no answer means a box below
    one unit, and models trained on LLaVA's data answer with fractions.
    """
    boxes = values.copy()
    is_fraction = has_point & (np.abs(values) <= 1.0).all(axis=1)
    boxes[is_fraction] = scale(values[is_fraction], *units)
    return clip(order_corners(boxes), *units)


def _blank(match: re.Match[str]) -> str:
    """Replacement of equal length for a description, so that no box is parsed from it; a box written as a string stays."""
    double, in_double, single, in_single = match.groups()
    key, value = double or single or "", in_double or in_single or ""
    is_box = "box" in key.lower() or (key != "label" and key and not _LETTER.search(value))
    return match[0] if is_box else "_" * len(match[0])


def _unquote(label: str) -> str:
    try:
        return str(json.loads(label, strict=False))
    except ValueError:
        return label[1:-1]


def _split(text: str) -> tuple[str | None, str]:
    """The part of an answer with its boxes (None if `<think>` is unclosed and no `<answer>` follows), and its reasoning.

    The thought ends at the first `</think>`; an unclosed one ends where `<answer>` begins.
    """
    opened, thought = text.find("<think>"), text.find("</think>")
    body = thought + len("</think>") if thought >= 0 else 0
    start = text.find("<answer>", body)
    if start < 0 and 0 <= opened < thought:
        start = text.find("<answer>", 0, opened)
    reasoning_end = thought if thought >= 0 else (start if start >= 0 else len(text))
    reasoning = (
        text[opened + len("<think>") : reasoning_end] if opened >= 0 else text[:reasoning_end] if start >= 0 else ""
    )
    if start >= 0:
        start += len("<answer>")
        end = text.find("</answer>", start)
        return text[start : end if end >= 0 else len(text)], reasoning.strip()
    if opened >= 0 and thought < 0:
        return None, reasoning.strip()
    return text[body:], (text[: max(thought, 0)] if opened < 0 else reasoning).strip()
