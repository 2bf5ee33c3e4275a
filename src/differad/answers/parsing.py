"""Boxes to the text that a model is trained on, and the text that a model gives back to boxes.

Every documented syntax of every family is read, whatever the family: models answer in a neighbour's syntax often
enough. The family decides what the numbers mean. A malformed answer is a value (`unreadable`), never an exception, and
no text takes more than linear time: the patterns use possessive quantifiers, so they never go back over what they read.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from differad.answers.formats import AnswerFormat
from differad.boxes import Boxes, as_boxes, clip, is_degenerate, no_boxes, order_corners, scale
from differad.errors import InputError, OptionError

Status = Literal["valid", "normal", "unreadable"]

# Far outside any picture, small enough that areas stay finite.
_FAR = 1e9

_NUMBER = r"([-+]?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+)"
_COMMA = r"\s*+,\s*+"
_BETWEEN = r"(?:\s*+,\s*+|\s++)"
# A closing mark that may open the next box too, as in [[1,2,3,4;5,6,7,8]], is looked at, not consumed.
_BOX = re.compile(
    rf"\(\s*+{_NUMBER}{_COMMA}{_NUMBER}\s*+\)[\s,;]*+\(\s*+{_NUMBER}{_COMMA}{_NUMBER}\s*+\)"
    rf"|[\[(;]\s*+{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}{_COMMA}{_NUMBER}\s*+(?=[\]);])"
    rf"|(?:<box>|<\|box_start\|>)\s*+{_NUMBER}{_BETWEEN}{_NUMBER}{_BETWEEN}{_NUMBER}{_BETWEEN}{_NUMBER}\s*+"
    r"(?:</box>|<\|box_end\|>)",
    re.ASCII,
)
_EMPTY_LIST = re.compile(r"\[\s*+\]", re.ASCII)
_LABEL_AFTER = re.compile(r"""[^{}]*?["']label["']\s*+:\s*+"((?:[^"\\]|\\.)*+)\"""", re.ASCII | re.DOTALL)
_LABEL_BEFORE = re.compile(r"""["']label["']\s*+:\s*+"((?:[^"\\]|\\.)*+)"[^{}]*+\Z""", re.ASCII | re.DOTALL)
_REFERENCE = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<]*+)(?:</ref>|<\|object_ref_end\|>)[^<>]*+\Z")


@dataclass(frozen=True)
class Frame:
    """The target that coordinates are about: its size in pixels, and its size after the processor's resize if known."""

    width: int
    height: int
    resized: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for side in (self.width, self.height, *(self.resized or ())):
            if side < 1:
                raise InputError(
                    f"frame {self.width}x{self.height}, resized {self.resized}: expected sides of 1 or more"
                )


@dataclass(frozen=True, eq=False)
class ParsedAnswer:
    """What an answer says: `valid` with boxes, `normal` (only zero boxes, or an empty list), or `unreadable`.

    `boxes` (N, 4) are pixels of the original image, clipped to it, in the order of the text; `labels` has one entry for
    each, "" where the answer names none. `reasoning` is what stands in `<think>…</think>`.
    """

    status: Status
    boxes: Boxes = field(default_factory=no_boxes)
    labels: tuple[str, ...] = ()
    reasoning: str = ""


def parse_answer(text: str, fmt: AnswerFormat, frame: Frame) -> ParsedAnswer:
    """Read an answer. Never raises for any text; raises OptionError where `fmt` needs `frame.resized` and it is None.

    Read is the first `<answer>` up to its end (or the end of the text), else what follows `</think>`, else all of it; a
    `<think>` that was never closed is unreadable. A box must be closed, so a truncated number is never taken. Corners
    are put in order, coordinates clipped to the picture, boxes without area dropped.
    """
    unit = _unit(fmt, frame)
    reasoning, answer = split_answer(text)
    if answer is None:
        return ParsedAnswer("unreadable", reasoning=reasoning)
    matches = list(_BOX.finditer(answer))
    if not matches:
        return ParsedAnswer("normal" if _EMPTY_LIST.search(answer) else "unreadable", reasoning=reasoning)
    written = [[number for number in match.groups() if number is not None] for match in matches]
    boxes = np.clip(np.array([[float(number) for number in row] for row in written]), -_FAR, _FAR)
    zero = ~boxes.any(axis=1)
    if zero.all():
        return ParsedAnswer("normal", reasoning=reasoning)
    fractional = np.array([any("." in number for number in row) for row in written])
    pixels = _to_pixels(boxes, fractional, fmt, frame, unit)
    keep = np.flatnonzero(~zero & ~is_degenerate(pixels))
    labels = _labels(answer, matches)
    return ParsedAnswer(
        status="valid" if len(keep) else "unreadable",
        boxes=pixels[keep],
        labels=tuple(labels[index] for index in keep),
        reasoning=reasoning,
    )


def format_answer(
    boxes: ArrayLike | None,
    fmt: AnswerFormat,
    frame: Frame,
    reasoning: str | None = None,
    labels: Sequence[str] | None = None,
) -> str:
    """The text that a model of this family is trained to give for `boxes`, (N, 4) pixels of the original image.

    With `reasoning` (which may be empty): `<think>…</think><answer>…</answer>`; without: the boxes alone, as the
    family's own grounding data has them. No boxes: the zero box. A box that would round to no area is widened to one
    unit. Raises InputError where `labels` do not fit, OptionError as `parse_answer` does.
    """
    array = as_boxes(boxes)
    if labels is not None and len(labels) != len(array):
        raise InputError(f"{len(labels)} labels for {len(array)} boxes: expected one each")
    answer = _render(to_units(array, fmt, frame), fmt, labels)
    return answer if reasoning is None else f"<think>{reasoning}</think><answer>{answer}</answer>"


def to_units(boxes: Boxes, fmt: AnswerFormat, frame: Frame) -> Boxes:
    """Boxes (N, 4) in pixels of the original image as the whole numbers that the family writes, (N, 4).

    Fractions come as thousandths. Raises OptionError as `parse_answer` does.
    """
    width, height = _unit(fmt, frame)
    limit = (width, height) if fmt.space == "resized" else (fmt.top, fmt.top)
    units = np.rint(order_corners(boxes) * np.array([width, height] * 2) / np.array([frame.width, frame.height] * 2))
    units = clip(units, *limit)
    low = np.minimum(units[:, :2], np.array(limit, dtype=np.float64) - 1)
    return np.concatenate([low, np.maximum(units[:, 2:], low + 1)], axis=1)


def split_answer(text: str) -> tuple[str, str | None]:
    """(reasoning, answer) of a text; the answer is None while the model is still thinking."""
    opened = text.find("<think>")
    closed = text.find("</think>", opened if opened >= 0 else 0)
    start = text.find("<answer>")
    reasoning_end = closed if closed >= 0 else start if start >= 0 else len(text)
    reasoning = (
        text[opened + len("<think>") if opened >= 0 else 0 : reasoning_end] if opened >= 0 or closed >= 0 else ""
    )
    if start >= 0:
        end = text.find("</answer>", start)
        return reasoning.strip(), text[start + len("<answer>") : end if end >= 0 else len(text)]
    if closed >= 0:
        return reasoning.strip(), text[closed + len("</think>") :]
    return reasoning.strip(), None if opened >= 0 else text


def _unit(fmt: AnswerFormat, frame: Frame) -> tuple[int, int]:
    """How many units of the format the frame's width and height hold."""
    if fmt.space != "resized":
        return 1000, 1000
    if frame.resized is None:
        raise OptionError(
            f"family {fmt.name} speaks pixels of the resized image: expected Frame(resized=…), "
            "from ResizeRule.from_folder(checkpoint).resized(width, height)"
        )
    return frame.resized


def _to_pixels(
    boxes: Boxes,
    fractional: np.ndarray[tuple[int], np.dtype[np.bool_]],
    fmt: AnswerFormat,
    frame: Frame,
    unit: tuple[int, int],
) -> Boxes:
    """Pixels of the original image, corners in order, clipped.

    Numbers that all lie in 0..1, one of them with a decimal point, are fractions of the sides in every family: no
    family means a box smaller than its own unit.
    """
    is_fraction = (np.abs(boxes) <= 1).all(axis=1) & (fractional | (fmt.space == "fractions"))
    in_units = scale(boxes, frame.width / unit[0], frame.height / unit[1])
    in_fractions = scale(boxes, frame.width, frame.height)
    return clip(order_corners(np.where(is_fraction[:, None], in_fractions, in_units)), frame.width, frame.height)


def _labels(answer: str, matches: list[re.Match[str]]) -> list[str]:
    """The label of each box: in its JSON object, after or before it, or in the reference tags before it."""
    labels = []
    for index, match in enumerate(matches):
        before = answer[matches[index - 1].end() if index else 0 : match.start()]
        after = answer[match.end() : matches[index + 1].start() if index + 1 < len(matches) else len(answer)]
        found = _LABEL_AFTER.match(after) or _LABEL_BEFORE.search(before) or _REFERENCE.search(before)
        labels.append(found.group(1) if found else "")
    return labels


def _render(units: Boxes, fmt: AnswerFormat, labels: Sequence[str] | None) -> str:
    if len(units) == 0:
        return fmt.zero
    rows = [_fields(row, fmt) for row in units.astype(int).tolist()]
    if labels is None or not fmt.labelled:
        return fmt.opening + fmt.separator.join(fmt.box.format(**row) for row in rows) + fmt.closing
    quote = json.dumps if "bbox_2d" in fmt.labelled else str
    parts = [fmt.labelled.format(label=quote(label), **row) for label, row in zip(labels, rows, strict=True)]
    return fmt.labelled_opening + fmt.labelled_separator.join(parts) + fmt.labelled_closing


def _fields(row: list[int], fmt: AnswerFormat) -> dict[str, int | str]:
    values = [f"{value / 1000:.3f}" for value in row] if fmt.space == "fractions" else row
    return dict(zip(("x1", "y1", "x2", "y2"), values, strict=True))
