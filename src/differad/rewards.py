"""Rewards of an answer: format, localization (DCLR) and IoU, as pure functions.

Boxes are in thousandths of the target's width and height, `x1, y1, x2, y2`; the zero box means "normal". Formulas: DifferAD-R1,
arXiv 2606.16601. Answers are parsed exactly as in the authors' published code: the first integer box inside `<answer>`, corners
as written. Evaluation parses differently (`answers.parsing`), and training uses another reward by default
(`training.localization`). Knows nothing of groups, advantages or trainers.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from differad.answers.formats import SYNTAXES, AnswerFormat, Syntax
from differad.boxes import Boxes, area, centers, diagonals, iou, is_degenerate
from differad.errors import InputError

Scores = NDArray[np.float64]
Completion = str | Sequence[dict[str, Any]]

CENTER_WEIGHT, AREA_WEIGHT = 0.6, 0.4
# Upper limit of true boxes' coordinates, and the tolerance for coordinates converted from pixels.
LARGEST, _ROUNDING = 1000.0, 1e-9

_GAP = r"\s*+"
_INT = rf"{_GAP}(\d++){_GAP}"
_BOX = rf"(?:\({_INT},{_INT}\){_GAP},{_GAP}\({_INT},{_INT}\)|\[{_INT},{_INT},{_INT},{_INT}\])"
_FIRST_BOX = re.compile(_BOX)
_ANSWER_OF_ONE_BOX = re.compile(rf"{_GAP}<answer>{_GAP}{_BOX}{_GAP}</answer>{_GAP}")
_PUBLISHED = (SYNTAXES["pairs"].box, SYNTAXES["list"].box)
# A number with more digits than this is parsed as 10^9, which is too large for any coordinate, to bound the time.
_LARGEST_DIGITS = 9


class AnswerScore(NamedTuple):
    """Scores of one answer, each in [0, 1]."""

    format: float
    localization: float
    iou: float


class AnswerScores(NamedTuple):
    """Scores of N answers, arrays of shape (N,), each value in [0, 1]."""

    format: Scores
    localization: Scores
    iou: Scores


def score_answer(text: str, truth: ArrayLike) -> AnswerScore:
    """Format reward, DCLR and IoU of one answer; `truth` is a box in thousandths, zero or empty for normal."""
    scores = score_answers([text], [truth])
    return AnswerScore(*(float(values[0]) for values in scores))


def score_answers(texts: Sequence[str], truths: Sequence[ArrayLike] | NDArray[Any]) -> AnswerScores:
    """As `score_answer` for N answers at once.

    Raises InputError unless `truths` has one box per answer, each zero or within 0 to 1000 and with area.
    """
    truth = _truth_array(truths, len(texts))
    predicted, answered = read_boxes(texts)
    says_normal = answered & ~predicted.any(axis=1)
    is_normal = ~truth.any(axis=1)
    locates = answered & ~is_normal & ~is_degenerate(predicted)
    correct_normal = (says_normal & is_normal).astype(np.float64)
    localization, overlap = correct_normal.copy(), correct_normal.copy()
    localization[locates] = dclr(predicted[locates], truth[locates])
    overlap[locates] = iou(predicted[locates], truth[locates])
    return AnswerScores(format_scores(texts), localization, overlap)


def dclr(predicted: Boxes, truth: Boxes) -> Scores:
    """Dual-consistency localization reward of boxes (N, 4) with area, shape (N,); it also ranks boxes without overlap.

    R = IoU + (1 - IoU) (0.6 C + 0.4 S), where C compares centres and S areas (arXiv 2606.16601).
    """
    overlap = iou(predicted, truth)
    reach = np.maximum(np.maximum(diagonals(predicted), diagonals(truth)), 1.0)
    offset = np.linalg.norm(centers(predicted) - centers(truth), axis=-1)
    center_consistency = 1.0 - np.minimum(1.0, offset / reach)
    area_consistency = 1.0 - np.minimum(1.0, np.abs(area(predicted) - area(truth)) / area(truth))
    consistency = CENTER_WEIGHT * center_consistency + AREA_WEIGHT * area_consistency
    return np.asarray(overlap + (1.0 - overlap) * consistency)


def format_scores(texts: Sequence[str], answer_format: AnswerFormat | None = None) -> Scores:
    """1 for exactly `<think>…</think><answer>one box</answer>`, else 0; shape (N,).

    The box is `(x1,y1),(x2,y2)` or `[x1, y1, x2, y2]` in whole numbers, as published. With another `answer_format`, the box has
    that family's syntax.
    """
    syntax = answer_format.syntax if answer_format else None
    published = syntax is None or syntax.box in _PUBLISHED
    pattern = _ANSWER_OF_ONE_BOX if published or syntax is None else _answer_of_one(syntax)
    return np.array([_is_well_formed(text, pattern) for text in texts], dtype=np.float64)


@lru_cache
def _answer_of_one(syntax: Syntax) -> re.Pattern[str]:
    """Pattern of an answer of one box in a family's syntax, with optional white space."""
    number = rf"{_GAP}[01]\.\d++{_GAP}" if syntax.fractions else rf"{_GAP}\d++{_GAP}"
    box = "".join(
        _literal(text) + ("" if name is None else r'[^"]*+' if name == "label" else number)
        for text, name, _, _ in Formatter().parse(syntax.box)
    )
    opening, closing = (_literal(text) for text in (syntax.opening, syntax.closing))
    return re.compile(rf"{_GAP}<answer>{_GAP}{opening}{box}{closing}{_GAP}</answer>{_GAP}")


def _literal(text: str) -> str:
    return _GAP.join(["", *(re.escape(letter) for letter in text if not letter.isspace()), ""])


def read_boxes(texts: Sequence[str]) -> tuple[Boxes, NDArray[np.bool_]]:
    """The first integer box inside each text's `<answer>`, (N, 4) as written, and whether there is one, (N,)."""
    parsed = [_read_box(text) for text in texts]
    answered = np.array([box is not None for box in parsed], dtype=np.bool_)
    boxes = np.array([box or (0.0, 0.0, 0.0, 0.0) for box in parsed], dtype=np.float64)
    return boxes.reshape(-1, 4), answered


def _read_box(text: str) -> tuple[float, ...] | None:
    start = text.find("<answer>")
    end = text.find("</answer>", start)
    match = _FIRST_BOX.search(text, start, end) if 0 <= start < end else None
    if match is None:
        return None
    a, b, c, d, e, f, g, h = match.groups()
    digits = (a, b, c, d) if a is not None else (e, f, g, h)
    return tuple(float(digit) if len(digit) <= _LARGEST_DIGITS else 10.0**_LARGEST_DIGITS for digit in digits)


def _is_well_formed(text: str, pattern: re.Pattern[str]) -> bool:
    text = text.strip()
    thought = text.find("</think>")
    if thought < 0 or not text.startswith("<think>"):
        return False
    return pattern.fullmatch(text, thought + len("</think>")) is not None


def check_truths(boxes: Boxes) -> None:
    """Raise InputError unless each true box (N, 4) has area and coordinates from 0 to 1000."""
    within = np.isfinite(boxes) & (boxes >= 0) & (boxes <= LARGEST + _ROUNDING)
    outside, flat = ~within.all(axis=1), is_degenerate(boxes)
    if outside.any():
        raise InputError(
            f"true box {boxes[outside][0].tolist()}: expected numbers from 0 to 1000, thousandths of the target's sides"
        )
    if flat.any():
        raise InputError(
            f"true box {boxes[flat][0].tolist()} holds no area: expected x1 < x2, y1 < y2, or the zero box"
        )


def _truth_array(truths: Sequence[ArrayLike] | NDArray[Any], count: int) -> Boxes:
    """The true boxes (count, 4), the zero box for normal targets. Raises InputError."""
    try:
        truth = np.asarray(truths, dtype=np.float64)
    except (ValueError, TypeError):  # some are empty: normal targets
        truth = np.array([_true_box(truth) for truth in truths], dtype=np.float64)
    if truth.size == 0 and truth.ndim:
        truth = np.zeros((len(truths), 4))
    if truth.shape != (count, 4):
        raise InputError(f"truths of shape {truth.shape} for {count} answers: expected one box each")
    check_truths(truth[truth.any(axis=1)])
    return truth


def _true_box(truth: ArrayLike) -> NDArray[np.float64]:
    """One true box (4,), zero for a normal target. Raises InputError."""
    try:
        box = np.asarray(truth, dtype=np.float64)
    except (ValueError, TypeError):
        raise InputError(f"truth {str(truth)[:80]}: expected a box as x1, y1, x2, y2") from None
    if box.size == 0:
        return np.zeros(4)
    if box.shape != (4,):
        raise InputError(f"truth {str(truth)[:80]} of shape {box.shape}: expected one box as x1, y1, x2, y2")
    return box


# Reward functions for TRL's GRPOTrainer: it passes the data set's columns as keywords and expects one float per completion.


def format_reward(completions: Sequence[Completion], **_columns: Any) -> list[float]:
    """Format reward as a TRL reward function."""
    return [float(value) for value in format_scores([_text(completion) for completion in completions])]


def localization_reward(
    completions: Sequence[Completion],
    solution: Sequence[ArrayLike],
    log_metric: Callable[[str, float], None] | None = None,
    **_columns: Any,
) -> list[float]:
    """DCLR as a TRL reward function; column `solution` holds the true box in thousandths. Logs the mean IoU."""
    scores = score_answers([_text(completion) for completion in completions], solution)
    if log_metric is not None and len(scores.iou):
        log_metric("iou", float(scores.iou.mean()))
    return [float(value) for value in scores.localization]


def iou_reward(completions: Sequence[Completion], solution: Sequence[ArrayLike], **_columns: Any) -> list[float]:
    """Plain IoU as a TRL reward function, the ablation of DCLR."""
    scores = score_answers([_text(completion) for completion in completions], solution)
    return [float(value) for value in scores.iou]


def _text(completion: Completion) -> str:
    """The text of a completion, which TRL gives as a string or as a list of chat messages."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
