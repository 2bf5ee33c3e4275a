"""Find every constant of the `difference` locator on synthetic pairs, and print it with the criterion that chose it.

    python benchmarks/calibrate_difference.py --pairs 480 --json

The result belongs into src/differad/locators/calibration.py. Reads no real image. Half of the pairs are normal;
boards and surfaces are rendered under `Nuisance()` (shift, rotation, scale, warp, illumination, noise, swollen edges, JPEG).

- registration: `accept` is half way between the 5 % quantile of pairs of one part and the 99 % quantile of pairs of two
  (boards, grain, prints; woven cloth is periodic, so another piece of it registers); `enough` is the 5 % quantile over
  pairs of one part.
- detection: a grid of tolerance, floor, edge, contrast, low, high is scored by the mean of mIoU (first box, with the margin and
  over the labels that are described below) and normal accuracy. Of those within a standard error of the best the one
  with the highest mIoU is taken: a missed defect costs more than a false alarm. Each setting has its own logistic curve,
  fitted to which groups touch the defect, then moved and scaled so that a pair's best group says how likely the pair is
  abnormal where half of all pairs are.
- threshold: 0.5, a box where a defect is more likely than not.
- margin: how loosely labellers draw boxes is unknown. The margin of labels is assumed to be uniformly distributed
  over 0 .. 1/64 of the longer side (0 .. 10 pixels at 640: a box dragged by hand on a screen), and the margin with the
  best mean IoU over that distribution is chosen. This prior is a judgement; with masks as truth, 0 would be best.
"""

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np

from differad.boxes import iou
from differad.locators.calibration import COMPARISON_CONSTANTS, REGISTRATION_CONSTANTS
from differad.locators.comparison import group, squeeze_grey
from differad.locators.difference import DifferenceOptions, group_features, noise_scale
from differad.locators.levels import levels, residuals
from differad.locators.registration import grey, register
from differad.locators.resolution import at_common_resolution
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import SyntheticPair, make_pair
from differad.synthesis.textures import TEXTURES

CATEGORIES = ("board", "board", "board", "board", *TEXTURES)
APERIODIC = ("board", "grain", "printed")
SIDE = 640
SIZES = (320, 448, 640, 960, 1280, 1792)
TOLERANCE = 1
EDGES = (0.25, 0.5, 1.0)
CONTRASTS = (0.0, 0.1, 0.2)
LOWS = (3.0, 4.5, 6.0)
HIGH_RATIOS = (1.0, 1.5)
# A box where a defect is more likely than not.
THRESHOLD = 0.5
LABEL_MARGIN = 1 / 64
MARGINS = np.arange(0, 17) / 1024
RIDGE = 1.0
# Allowed signs of the weights: bias, mean and thickness speak for a defect, raggedness against it.
SIGNS = np.array([1.0, 1.0, 1.0, -1.0])


@dataclass(frozen=True, eq=False)
class LabelledGroup:
    """A group's features, its box (4,) at a side of SIDE, and whether it touches the defect."""

    features: tuple[float, ...]
    box: np.ndarray
    touches: bool


def make_synthetic(seed: int, category: str | None = None) -> SyntheticPair:
    """Pair number `seed`: categories take turns, every other round is normal, sizes change from round to round.

    Shift, elastic warp and etching of a part are shares of its size; blur and noise are the camera's, in pixels.
    """
    category = category or CATEGORIES[seed % len(CATEGORIES)]
    turn = seed // len(CATEGORIES)
    size = SIZES[turn // 2 % len(SIZES)]
    usual, share = Nuisance(), size / SIDE
    nuisance = replace(
        usual, shift=usual.shift * share, elastic_warp=usual.elastic_warp * share, etch=usual.etch * share
    )
    return make_pair(np.random.default_rng(seed), category, anomalous=turn % 2 == 0, size=size, nuisance=nuisance)


def registration_of(seed: int) -> dict[str, float | None]:
    """Qualities of pair `seed` as it is and of its target with another part's reference."""
    cv2.setNumThreads(1)
    pair = make_synthetic(seed)
    same_part = _quality(pair.reference, pair.target)
    other = None
    if pair.category in APERIODIC:
        other = _quality(make_synthetic(seed + 100_000, category=pair.category).reference, pair.target)
    return {"own": same_part, "other": other}


def _quality(reference: np.ndarray, target: np.ndarray) -> float:
    reference, target = at_common_resolution(reference, target, DifferenceOptions.max_side)
    return register(grey(reference), grey(target)).quality


def groups_of(seed: int) -> list[tuple[tuple, list[LabelledGroup], np.ndarray]]:
    """For each setting of the grid: the groups of pair `seed` at all levels, and the true box, both at a side of SIDE."""
    cv2.setNumThreads(1)
    pair = make_synthetic(seed)
    side = len(pair.target)
    reference, target = at_common_resolution(*squeeze_grey(pair.reference, pair.target), DifferenceOptions.max_side)
    registration = register(grey(reference), grey(target))
    if not registration.accepted:
        return []
    found: dict[tuple, list[LabelledGroup]] = {}
    for level, left in residuals(levels(reference, target, registration.matrix), TOLERANCE, workers=1):
        scale = SIDE / len(level.target)
        for edge, contrast in itertools.product(EDGES, CONTRASTS):
            constants = replace(COMPARISON_CONSTANTS, edge=edge, contrast=contrast)
            unit = noise_scale(constants, left.spread, left.edges, left.contrast)
            for low, ratio in itertools.product(LOWS, HIGH_RATIOS):
                at = {
                    "low": low,
                    "high": low * ratio,
                    "core": COMPARISON_CONSTANTS.core,
                    "grow": TOLERANCE,
                    "gap": COMPARISON_CONSTANTS.gap,
                }
                groups = group(left.difference, unit, left.at_edges, **at)
                groups = sorted(groups, key=lambda g: -g.mean * g.thickness)[:30]
                found.setdefault((edge, contrast, low, ratio), []).extend(
                    LabelledGroup(
                        group_features(g, level), g.box * scale, touches(g.box * side / len(level.target), pair.mask)
                    )
                    for g in groups
                )
    return [(setting, groups, pair.boxes * SIDE / side) for setting, groups in found.items()]


def touches(box: np.ndarray, mask: np.ndarray) -> bool:
    x1, y1, x2, y2 = np.round(box).astype(int)
    return bool(mask[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)].any())


def fit_logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights (F,) by Newton's method; the ridge keeps separable data finite and the bias is left free."""
    weights = np.zeros(x.shape[1])
    penalty = RIDGE * np.diag([0.0] + [1.0] * (x.shape[1] - 1))
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + penalty @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(x.shape[1])
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def fit_monotone(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of which those of strength and thickness are not below 0, and that of raggedness is not above.

    A stronger or thicker difference must not count as less suspect.
    """
    x = x * SIGNS
    kept = np.ones(x.shape[1], bool)
    while True:
        weights = np.zeros(x.shape[1])
        weights[kept] = fit_logistic(x[:, kept], y)
        negative = (weights < 0) & (np.arange(len(weights)) > 0)
        if not negative.any():
            return weights * SIGNS
        kept[np.where(negative, weights, 0).argmin()] = False


def to_pair_logits(weights: np.ndarray, rows: list) -> np.ndarray:
    """The same curve, shifted and scaled so that the best group's probability is the probability that the pair is abnormal."""
    best_groups = [(truth, max(np.dot(one.features, weights) for one in found)) for _, found, truth in rows if found]
    abnormal = np.array([len(truth) > 0 for truth, _ in best_groups], dtype=float)
    move, stretch = fit_logistic(np.array([[1.0, logit] for _, logit in best_groups]), abnormal)
    return weights * stretch + np.array([move, 0.0, 0.0, 0.0])


def evaluate(rows: list) -> tuple[dict[str, float], np.ndarray, list]:
    """mIoU, normal accuracy and their mean for one setting, with its fitted weights and first boxes."""
    x = np.array([one.features for _, found, _ in rows for one in found]).reshape(-1, 4)
    y = np.array([one.touches for _, found, _ in rows for one in found], dtype=float)
    if not 0 < y.sum() < len(y):
        return {"score": 0.0, "miou": 0.0}, np.zeros(4), []
    weights = to_pair_logits(fit_monotone(x, y), rows)
    probabilities = [
        1 / (1 + np.exp(-(np.array([o.features for o in found]).reshape(-1, 4) @ weights))) for _, found, _ in rows
    ]
    best = np.array([c.max() if len(c) else 0.0 for c in probabilities])
    normal = np.array([len(truth) == 0 for *_, truth in rows])
    firsts = [
        (found[int(c.argmax())].box, truth[0]) if len(c) and c.max() >= THRESHOLD else (None, truth[0])
        for (_, found, truth), c in zip(rows, probabilities, strict=True)
        if len(truth)
    ]
    accuracy = float((best[normal] < THRESHOLD).mean())
    margin, curve = best_margin(firsts)
    variance = np.var(label_overlaps(firsts, margin)) / len(firsts) + accuracy * (1 - accuracy) / normal.sum()
    return (
        {
            "score": (curve[margin] + accuracy) / 2,
            "standard_error": float(np.sqrt(variance)) / 2,
            "miou": curve[margin],
            "normal_accuracy": accuracy,
        },
        weights,
        firsts,
    )


def label_overlaps(firsts: list, margin: float) -> np.ndarray:
    """IoU of each first box, grown by `margin` of the side, with the labels (N,) that the stated prior expects."""
    grow = np.array([-1.0, -1.0, 1.0, 1.0])
    labels = np.linspace(0, LABEL_MARGIN, 11)[:, None] * SIDE
    return np.array(
        [0.0 if box is None else iou(box + margin * SIDE * grow, truth + labels * grow).mean() for box, truth in firsts]
    )


def best_margin(firsts: list) -> tuple[float, dict[float, float]]:
    """The share of the longer side that labels under the stated prior ask for, and the mIoU of every candidate."""
    curve = {float(m): float(label_overlaps(firsts, m).mean()) for m in MARGINS}
    return max(curve, key=lambda m: curve[m]), curve


def calibrate_registration(pool: ProcessPoolExecutor, seeds: range) -> dict[str, float]:
    rows = list(pool.map(registration_of, seeds, chunksize=4))
    same_part = np.array([row["own"] for row in rows])
    other = np.array([row["other"] for row in rows if row["other"] is not None])
    worst_own, best_other = np.quantile(same_part, 0.05), np.quantile(other, 0.99)
    return {
        "accept": round(float(worst_own + best_other) / 2, 2),
        "enough": round(float(worst_own), 2),
        "own_5%": round(float(worst_own), 3),
        "other_99%": round(float(best_other), 3),
    }


def calibrate_detection(pool: ProcessPoolExecutor, seeds: range) -> Iterator[tuple[str, object]]:
    by_setting: dict[tuple, list] = {}
    refused = 0
    for rows in pool.map(groups_of, seeds, chunksize=2):
        refused += not rows
        for row in rows:
            by_setting.setdefault(row[0], []).append(row)
    yield "refused", refused
    judged = {setting: evaluate(rows) for setting, rows in by_setting.items()}
    ranked = sorted(judged, key=lambda s: -judged[s][0]["score"])
    yield "runners_up", [{"setting": s, **judged[s][0]} for s in ranked[:8]]
    best = judged[ranked[0]][0]
    equal = [s for s in ranked if judged[s][0]["score"] >= best["score"] - best["standard_error"]]
    setting = max(equal, key=lambda s: judged[s][0]["miou"])
    metrics, weights, firsts = judged[setting]
    margin, curve = best_margin(firsts)
    edge, contrast, low, ratio = setting
    bias, mean, thickness, ragged = (round(float(w), 3) for w in weights)
    chosen = replace(
        COMPARISON_CONSTANTS,
        **{"edge": edge, "contrast": contrast, "low": low, "high": low * ratio, "margin": margin},
        **{"bias": bias, "mean": mean, "thickness": thickness, "ragged": ragged, "threshold": THRESHOLD},
    )
    yield "metrics", metrics
    yield "margin_curve", {f"{m * SIDE:.1f} px": round(v, 3) for m, v in curve.items()}
    yield "comparing", asdict(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=480, help="synthetic pairs, half of them normal")
    parser.add_argument("--seed", type=int, default=0, help="number of the first pair")
    parser.add_argument("--only", choices=["registration", "detection"], help="one half of the work")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.pairs)
    report: dict[str, object] = {
        "in_use": {"registering": asdict(REGISTRATION_CONSTANTS), "comparing": asdict(COMPARISON_CONSTANTS)}
    }
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        if arguments.only != "detection":
            report["registering"] = calibrate_registration(pool, seeds)
        if arguments.only != "registration":
            report.update(calibrate_detection(pool, seeds))
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
