"""Audit of localization rewards over boxes of many sizes, shapes and offsets. Knows nothing of models.

True boxes of several sizes are placed in a square of 1000 x 1000; every reward in `VARIANTS` scores every candidate box against
them. A good reward tells near from far at IoU 0, gives little to a miss, and nothing to a box over the whole square.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, area, as_boxes, clip, iou, is_degenerate
from differad.drawing import PREDICTED_COLOR, TRUTH_COLOR
from differad.images import RGB
from differad.training.localization import MISS_BELOW, VARIANTS

SIDE = 1000.0
TRUE_SIDES = (30.0, 100.0, 300.0)
TRUE_CENTERS = ((500.0, 500.0), (250.0, 700.0))
SCALES = np.geomspace(1 / 8, 32, 33)
ASPECTS = (1 / 3, 1.0, 3.0)
OFFSETS = np.linspace(-SIDE, SIDE, 81)
# Offsets in units of the true box's side, so that small boxes get partial overlaps too.
NEAR_OFFSETS = np.linspace(-1.5, 1.5, 25)
ALMOST_APART = 0.05
BANDS = ((0.0, 0.05), (0.05, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1.0 + 1e-9))


@dataclass(frozen=True, eq=False)
class Trials:
    """Candidate boxes (N, 4), the true box of each (N, 4), both in thousandths, and their IoU (N,)."""

    predicted: Boxes
    truth: Boxes
    overlap: NDArray[np.float64]


def make_trials() -> Trials:
    """Every combination of true size and location with candidate scale, shape and offset, clipped to the square."""
    predicted, truth = [], []
    for side in TRUE_SIDES:
        for center in TRUE_CENTERS:
            candidates = _candidates(side, center)
            predicted.append(candidates)
            truth.append(np.broadcast_to(_box(center, side, side), candidates.shape))
    boxes, truths = np.concatenate(predicted), np.concatenate(truth)
    return Trials(boxes, truths, iou(boxes, truths))


def audit() -> dict[str, Any]:
    """Statistics of every reward, JSON-ready.

    `best_reward_below_0.05`: the highest reward at IoU < 0.05, and its box; `whole_square`: the reward of a box over the whole
    square, by the true box's side; `misses_above_0.3`: share of misses (IoU < 0.3) with a reward of 0.3 or more;
    `distinct_at_iou_0`: share of boxes without overlap whose reward differs from the most common one.
    """
    trials = make_trials()
    return {
        "trials": len(trials.predicted),
        "rewards": {name: _statistics(trials, _score(trials, name)) for name in VARIANTS},
    }


def _candidates(side: float, center: tuple[float, float]) -> Boxes:
    sides = np.array([(side * s * a**0.5, side * s / a**0.5) for s in SCALES for a in ASPECTS])
    grid = np.unique(np.concatenate([OFFSETS[::4], NEAR_OFFSETS * side]))
    centers = np.array([(center[0] + x, center[1] + y) for x in grid for y in grid])
    half = sides[:, None, :] / 2
    boxes = np.concatenate([centers[None] - half, centers[None] + half], axis=-1).reshape(-1, 4)
    boxes = np.concatenate([clip(boxes, SIDE, SIDE), as_boxes([0, 0, SIDE, SIDE])])
    return np.unique(boxes[~is_degenerate(boxes)], axis=0)


def _box(center: tuple[float, float], width: float, height: float) -> Boxes:
    x, y = center
    return as_boxes([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _score(trials: Trials, name: str) -> NDArray[np.float64]:
    return VARIANTS[name].function(trials.predicted, trials.truth)


def _statistics(trials: Trials, reward: NDArray[np.float64]) -> dict[str, Any]:
    almost_apart = np.flatnonzero(trials.overlap < ALMOST_APART)
    best = almost_apart[np.argmax(reward[almost_apart])]
    missed, clear = trials.overlap < MISS_BELOW, trials.overlap == 0
    _, counts = np.unique(reward[clear].round(6), return_counts=True)
    return {
        "best_reward_below_0.05": _round(reward[best]),
        "its_box": trials.predicted[best].round(1).tolist(),
        "its_truth": trials.truth[best].round(1).tolist(),
        "its_iou": _round(trials.overlap[best]),
        "whole_square": {f"{side:g}": _round(_whole(trials, reward, side)) for side in TRUE_SIDES},
        "misses_above_0.3": _round(np.mean(reward[missed] >= MISS_BELOW)),
        "distinct_at_iou_0": _round(1 - counts.max() / counts.sum()),
        "bands": [_band(trials, reward, low, high) for low, high in BANDS],
    }


def _whole(trials: Trials, reward: NDArray[np.float64], side: float) -> float:
    """The highest reward of the whole square over all locations of a true box of `side`."""
    whole = (area(trials.predicted) == SIDE * SIDE) & np.isclose(area(trials.truth), side * side)
    return float(reward[whole].max())


def _band(trials: Trials, reward: NDArray[np.float64], low: float, high: float) -> dict[str, Any]:
    inside = reward[(trials.overlap >= low) & (trials.overlap < high)]
    least, middle, most = (_round(v) for v in np.quantile(inside, (0, 0.5, 1)))
    return {"iou": [low, min(high, 1.0)], "boxes": len(inside), "least": least, "median": middle, "most": most}


def _round(value: Any) -> float:
    return round(float(value), 4)


# The plot: one panel per reward, IoU to the right, reward upwards; the shade counts boxes, the line is reward = IoU.

_PANEL, _MARGIN, _BINS = 320, 48, 80


def plot_audit() -> RGB:
    """Plot reward against IoU, (H, W, 3) RGB: a panel for each reward in `VARIANTS`, darker for more boxes."""
    trials = make_trials()
    panels = [_panel(name, trials.overlap, _score(trials, name)) for name in VARIANTS]
    return np.concatenate(panels, axis=1)


def _panel(name: str, overlap: NDArray[np.float64], reward: NDArray[np.float64]) -> RGB:
    counts, _, _ = np.histogram2d(1.0 - reward, overlap, bins=_BINS, range=[[0, 1], [0, 1]])
    shade = np.where(counts > 0, 225 - 200 * np.log1p(counts) / np.log1p(counts.max()), 255).astype(np.uint8)
    inner = cv2.resize(shade, (_PANEL, _PANEL), interpolation=cv2.INTER_NEAREST)
    canvas = np.full((_PANEL + 2 * _MARGIN, _PANEL + 2 * _MARGIN, 3), 255, np.uint8)
    canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = inner[..., None]
    low, high = _MARGIN, _MARGIN + _PANEL
    cv2.rectangle(canvas, (low, low), (high, high), (0, 0, 0), 1)
    cv2.line(canvas, (low, high), (high, low), TRUTH_COLOR, 1, cv2.LINE_AA)
    across = low + round(MISS_BELOW * _PANEL)
    cv2.line(canvas, (across, low), (across, high), PREDICTED_COLOR, 1)
    for text, position in (
        (name, (low, low - 12)),
        ("IoU 0", (low - 8, high + 20)),
        ("0.3", (across - 10, high + 20)),
        ("1", (high - 6, high + 20)),
        ("0", (low - 18, high)),
        ("1", (low - 18, low + 10)),
    ):
        cv2.putText(canvas, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
