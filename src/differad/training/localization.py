"""Localization rewards by name: the published one, plain IoU, and a guarded one; and the definition of a miss.

`differad.rewards` implements the published formulas exactly. Here a reward is an entry in a table: a formula, and how answers
are parsed for it. Answers may use any family's units. If a target has several true boxes, the best matching one counts, as in
evaluation. Knows nothing of groups or trainers; `differad audit-reward` (audit.py) measures each formula.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from differad.answers.formats import Order
from differad.answers.parsing import read_answer
from differad.boxes import Boxes, as_boxes, centers, diagonals, iou, is_degenerate, scale
from differad.errors import OptionError
from differad.rewards import LARGEST, Scores, check_truths, dclr, read_boxes

MISS_BELOW = 0.3
# Upper bound of the reward of a box without overlap: less than that of any hit.
GUARD = MISS_BELOW


class Outcomes(NamedTuple):
    """Scores of N answers: reward and IoU in [0, 1], and whether each missed; arrays of shape (N,)."""

    reward: Scores
    iou: Scores
    missed: NDArray[np.bool_]


class Statements(NamedTuple):
    """Content of N answers: each one's box (N, 4) in thousandths, whether it has a box, and whether it says "normal"."""

    boxes: Boxes
    gives_box: NDArray[np.bool_]
    says_normal: NDArray[np.bool_]


# Width and height of an answer's target in the units of the answer.
Units = tuple[float, float]
Reading = Callable[[Sequence[str], Sequence[Units], Order], Statements]


def as_evaluated(texts: Sequence[str], units: Sequence[Units], order: Order = "xy") -> Statements:
    """Parse as evaluation does: `answers.parsing.read_answer`, and the first of several boxes."""
    parsed = [read_answer(text, (size[0], size[1]), order) for text, size in zip(texts, units, strict=True)]
    boxes = np.zeros((len(parsed), 4))
    for row, (answer, (width, height)) in enumerate(zip(parsed, units, strict=True)):
        if len(answer.boxes):
            boxes[row] = scale(answer.boxes[0], LARGEST / width, LARGEST / height)
    status = np.array([answer.status for answer in parsed], dtype=object)
    return Statements(boxes, status == "valid", status == "normal")


def as_published(texts: Sequence[str], units: Sequence[Units], order: Order = "xy") -> Statements:
    """Parse as the authors' code does: `rewards.read_boxes`, the first integer box inside the first `<answer>`, as written."""
    written, answered = read_boxes(texts)
    if order == "yx":
        written = written[:, [1, 0, 3, 2]]
    boxes = written * LARGEST / np.tile(np.asarray(units, dtype=np.float64).reshape(-1, 2), 2)
    gives_box = answered & written.any(axis=1)
    return Statements(boxes, gives_box, answered & ~gives_box)


@dataclass(frozen=True)
class Variant:
    """A localization reward of boxes (N, 4) against true ones (N, 4), both with area; its parser of answers; its rationale."""

    function: Callable[[Boxes, Boxes], Scores]
    reading: Reading
    why: str


def guarded(predicted: Boxes, truth: Boxes) -> Scores:
    """IoU + (1 - IoU) * 0.3 * C * S of boxes (N, 4) with area, shape (N,).

    C = 1 - (distance of centres / diagonal of the enclosing box), the distance term of DIoU (arXiv 1911.08287). It is above 0 at
    any distance, so a nearer box always scores higher. S = product of the ratios of the shorter to the longer width and height:
    1/100 for a box ten times too wide and too high. As C and S are multiplied, neither a box over the whole image nor one of the
    right size elsewhere scores high; a box without overlap scores less than any hit.
    """
    overlap = iou(predicted, truth)
    enclosing = np.concatenate(
        [np.minimum(predicted[..., :2], truth[..., :2]), np.maximum(predicted[..., 2:], truth[..., 2:])], axis=-1
    )
    nearness = 1.0 - np.linalg.norm(centers(predicted) - centers(truth), axis=-1) / diagonals(enclosing)
    sides, true_sides = (boxes[..., 2:] - boxes[..., :2] for boxes in (predicted, truth))
    shape = np.prod(np.minimum(sides, true_sides) / np.maximum(sides, true_sides), axis=-1)
    return np.asarray(overlap + (1.0 - overlap) * GUARD * nearness * shape)


VARIANTS: dict[str, Variant] = {
    "guarded": Variant(
        guarded, as_evaluated, "bounded: tells near from far at IoU 0, almost nothing for a box over the whole image"
    ),
    "dclr": Variant(
        dclr,
        as_published,
        "as published, parsing too: centre and area consistency, up to 0.6 for a box over the whole image",
    ),
    "iou": Variant(iou, as_evaluated, "IoU alone: no signal until a box overlaps the truth"),
}
DEFAULT_VARIANT = "guarded"


def variant(name: str) -> Variant:
    """The reward of that name. Raises OptionError for an unknown one."""
    if name not in VARIANTS:
        raise OptionError(f"localization reward {name!r}: not known; expected one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def localize(
    texts: Sequence[str], truths: Sequence[ArrayLike], units: Sequence[Units], name: str, order: Order = "xy"
) -> Outcomes:
    """Reward, IoU and miss of N answers; an unreadable one earns 0.

    `truths` holds the (M, 4) true boxes of each answer's target in thousandths, none for a normal one; `units` the width and
    height of the target in the units of the answer: (1000, 1000), or the size after the processor's resize; `order` is the
    answers' axis order. The variant decides how answers are parsed: as in evaluation, or as in the published code. On an
    anomalous target an answer misses if its IoU is below 0.3; on a normal target it misses if it has a box. Raises InputError
    for an invalid truth.
    """
    chosen = variant(name)
    predicted, gives_box, says_normal = chosen.reading(texts, units, order)
    boxes = [_true_boxes(truth) for truth in truths]
    is_normal = np.array([len(each) == 0 for each in boxes], dtype=np.bool_)
    reward = (is_normal & says_normal).astype(np.float64)
    overlap = reward.copy()
    for row in np.flatnonzero(~is_normal & gives_box & ~is_degenerate(predicted)):
        repeated = np.broadcast_to(predicted[row], boxes[row].shape)
        reward[row] = chosen.function(repeated, boxes[row]).max()
        overlap[row] = iou(repeated, boxes[row]).max()
    missed = np.where(is_normal, gives_box, overlap < MISS_BELOW)
    return Outcomes(reward, overlap, missed)


def _true_boxes(truth: ArrayLike) -> Boxes:
    """True boxes (M, 4), zero boxes left out. Raises InputError."""
    boxes = as_boxes(truth)
    boxes = boxes[boxes.any(axis=1)]
    check_truths(boxes)
    return boxes
