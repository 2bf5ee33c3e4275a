"""Localization rewards by name: the published one, plain IoU, and a guarded one; and what a miss is.

`differad.rewards` holds the published formulas to the letter. Here a reward is a value in a table: a formula, and how an
answer is read for it. Answers may count in any family's numbers, and a target may have several true boxes, of which the best
matching one counts, as in evaluation. Knows nothing of groups or trainers; `differad audit-reward` (audit.py) measures what
each formula pays for.
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
# What a box clear of the truth may earn at most: less than any hit.
GUARD = MISS_BELOW


class Outcomes(NamedTuple):
    """What N answers earn: reward and IoU in [0, 1], and whether each missed; arrays of shape (N,)."""

    reward: Scores
    iou: Scores
    missed: NDArray[np.bool_]


class Statements(NamedTuple):
    """What N answers say: the box (N, 4) of each in thousandths, whether it gives one, and whether it says "normal"."""

    boxes: Boxes
    gives_box: NDArray[np.bool_]
    says_normal: NDArray[np.bool_]


# Width and height of an answer's target in the numbers that it is written in.
Units = tuple[float, float]
Reading = Callable[[Sequence[str], Sequence[Units], Order], Statements]


def as_evaluated(texts: Sequence[str], units: Sequence[Units], order: Order = "xy") -> Statements:
    """What evaluation reads: `answers.parsing.read_answer`, and of several boxes the first."""
    parsed = [read_answer(text, (size[0], size[1]), order) for text, size in zip(texts, units, strict=True)]
    boxes = np.zeros((len(parsed), 4))
    for row, (answer, (width, height)) in enumerate(zip(parsed, units, strict=True)):
        if len(answer.boxes):
            boxes[row] = scale(answer.boxes[0], LARGEST / width, LARGEST / height)
    status = np.array([answer.status for answer in parsed], dtype=object)
    return Statements(boxes, status == "valid", status == "normal")


def as_published(texts: Sequence[str], units: Sequence[Units], order: Order = "xy") -> Statements:
    """What the authors' code reads: `rewards.read_boxes`, the first integer box inside the first `<answer>`, as written."""
    written, answered = read_boxes(texts)
    if order == "yx":
        written = written[:, [1, 0, 3, 2]]
    boxes = written * LARGEST / np.tile(np.asarray(units, dtype=np.float64).reshape(-1, 2), 2)
    gives_box = answered & written.any(axis=1)
    return Statements(boxes, gives_box, answered & ~gives_box)


@dataclass(frozen=True)
class Variant:
    """A localization reward of boxes (N, 4) against true ones (N, 4), both with area; how answers are read; its merits."""

    function: Callable[[Boxes, Boxes], Scores]
    reading: Reading
    why: str


def guarded(predicted: Boxes, truth: Boxes) -> Scores:
    """IoU + (1 - IoU) * 0.3 * C * S of boxes (N, 4) with area, shape (N,).

    C = 1 - (distance of centres / diagonal of the box around both): above 0 however far apart, so that nearer always pays;
    the distance is the one that DIoU takes (arXiv 1911.08287). S = product of the ratios of the shorter to the longer
    width and height: a box ten times too wide and too high keeps 1/100. Both must agree, so neither a box over everything
    nor one of the right size elsewhere earns much; a box clear of the truth earns less than any hit.
    """
    overlap = iou(predicted, truth)
    around = np.concatenate(
        [np.minimum(predicted[..., :2], truth[..., :2]), np.maximum(predicted[..., 2:], truth[..., 2:])], axis=-1
    )
    nearness = 1.0 - np.linalg.norm(centers(predicted) - centers(truth), axis=-1) / diagonals(around)
    sides, true_sides = (boxes[..., 2:] - boxes[..., :2] for boxes in (predicted, truth))
    shape = np.prod(np.minimum(sides, true_sides) / np.maximum(sides, true_sides), axis=-1)
    return np.asarray(overlap + (1.0 - overlap) * GUARD * nearness * shape)


VARIANTS: dict[str, Variant] = {
    "guarded": Variant(
        guarded, as_evaluated, "bounded: tells near from far at IoU 0 and pays a box over everything next to nothing"
    ),
    "dclr": Variant(
        dclr,
        as_published,
        "as published, reading too: centre and area consistency, up to 0.6 for a box over everything",
    ),
    "iou": Variant(iou, as_evaluated, "IoU alone: nothing to learn from until a box touches the truth"),
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

    `truths` hold the (M, 4) true boxes of each answer's target in thousandths, none for a normal one; `units` the width and
    height of the target in the numbers that its answer is written in: (1000, 1000), or the size after the processor's
    resize; `order` is the axis that they name first. Answers are read as the variant says: as evaluation reads them, or as
    the published code does. On an anomalous target an answer misses below IoU 0.3; on a normal one it misses by giving a box.
    Raises InputError for a wrong truth.
    """
    chosen = variant(name)
    predicted, gives_box, says_normal = chosen.reading(texts, units, order)
    boxes = [_true_boxes(truth) for truth in truths]
    is_normal = np.array([len(each) == 0 for each in boxes], dtype=np.bool_)
    reward = (is_normal & says_normal).astype(np.float64)
    overlap = reward.copy()
    for row in np.flatnonzero(~is_normal & gives_box & ~is_degenerate(predicted)):
        given = np.broadcast_to(predicted[row], boxes[row].shape)
        reward[row] = chosen.function(given, boxes[row]).max()
        overlap[row] = iou(given, boxes[row]).max()
    missed = np.where(is_normal, gives_box, overlap < MISS_BELOW)
    return Outcomes(reward, overlap, missed)


def _true_boxes(truth: ArrayLike) -> Boxes:
    """True boxes (M, 4), zero boxes left out. Raises InputError."""
    boxes = as_boxes(truth)
    boxes = boxes[boxes.any(axis=1)]
    check_truths(boxes)
    return boxes
