"""Find every constant of the `difference` locator on synthetic pairs, and print it with the criterion that chose it.

    python benchmarks/calibrate_difference.py --pairs 480 --json

The result belongs into src/differad/locators/calibration.py. Reads no real picture. Half of the pairs are normal;
boards and surfaces are seen under `Nuisance()` (shift, turn, scale, wobble, light, noise, swollen edges, JPEG).

- registration: `accept` lies half way between the 5 % quantile of pairs of one part and the 99 % quantile of pairs of two
  (boards, grain, prints; woven cloth repeats itself, so another piece of it does fit); `enough` is the 5 % quantile over
  pairs of one part.
- detection: a grid of tolerance, floor, edge, contrast, low, high is scored by the mean of mIoU (first box, with the margin and
  over the labels that are described below) and normal accuracy. Of those within a standard error of the best the one
  with the highest mIoU is taken: a missed defect costs more than a false alarm. Each setting has its own logistic curve,
  fitted to which groups touch the defect, then moved and scaled so that a pair's best group says how likely the pair is
  abnormal where half of all pairs are.
- threshold: 0.5, a box where a defect is more likely than not.
- margin: nobody knows how loosely a labeller draws. Labels are taken to stand off a defect by a margin spread evenly
  over 0 .. 1/64 of the longer side (0 .. 10 pixels at 640: a box dragged by hand on a screen), and the margin with the
  best mean IoU over that spread is taken. This prior is a judgement; with masks as truth, 0 would be best.
"""

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import cv2
import numpy as np

from differad.boxes import iou
from differad.locators.calibration import COMPARING, REGISTERING, Comparing
from differad.locators.comparison import (
    Group,
    bend,
    displace,
    edge_noise,
    equalise,
    excess,
    group,
    inside,
    noise,
    soften,
)
from differad.locators.difference import unit_of_noise
from differad.locators.registration import register, warp
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import SyntheticPair, make_pair
from differad.synthesis.textures import TEXTURES

CATEGORIES = ("board", "board", "board", "board", *TEXTURES)
UNLIKE_ITSELF = ("board", "grain", "printed")
TOLERANCES = (1,)
FLOORS = (4.0,)
EDGES = (0.25, 0.5, 1.0)
CONTRASTS = (0.0, 0.1, 0.2)
LOWS = (3.0, 4.5, 6.0)
HIGH_RATIOS = (1.0, 1.5)
GAPS = (0.008,)
# A box where a defect is more likely than not.
THRESHOLD = 0.5
LABEL_MARGIN = 1 / 64
MARGINS = np.arange(0, 17) / 1024
RIDGE = 1.0


def draw(seed: int, nuisance: Nuisance | None = None, category: str | None = None) -> SyntheticPair:
    """Pair number `seed`: categories take turns, every other round is normal."""
    category = category or CATEGORIES[seed % len(CATEGORIES)]
    anomalous = (seed // len(CATEGORIES)) % 2 == 0
    return make_pair(np.random.default_rng(seed), category, anomalous=anomalous, nuisance=nuisance)


def grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def registration_of(seed: int) -> dict[str, float | None]:
    """Qualities of pair `seed` as it is and of its target with another part's reference."""
    cv2.setNumThreads(1)
    pair = draw(seed)
    own = register(grey(pair.reference), grey(pair.target))
    other = None
    if pair.category in UNLIKE_ITSELF:
        stranger = draw(seed + 100_000, category=pair.category)
        other = register(grey(stranger.reference), grey(pair.target)).quality
    return {"own": own.quality, "other": other}


def groups_of(seed: int) -> list[tuple[tuple, list[Group], list[bool], np.ndarray]]:
    """For each setting of the grid: the groups of pair `seed`, whether each touches the defect, and the true box."""
    cv2.setNumThreads(1)
    pair = draw(seed)
    registration = register(grey(pair.reference), grey(pair.target))
    if not registration.accepted:
        return []
    moved, covered = warp(pair.reference, registration.matrix, pair.target.shape[:2])
    here, there = soften(pair.target, moved)
    there = equalise(there, here, covered)
    there = displace(there, bend(there, here, covered))
    spread, sd = noise(here - there, covered), float(there.std())
    result = []
    for tolerance in TOLERANCES:
        over = excess(here, there, tolerance)
        over[~inside(covered, tolerance + 1)] = 0
        edges = edge_noise(over, there, covered)
        for floor, edge, contrast, low, ratio, gap in itertools.product(
            FLOORS, EDGES, CONTRASTS, LOWS, HIGH_RATIOS, GAPS
        ):
            constants = replace(COMPARING, floor=floor, edge=edge, contrast=contrast)
            found = group(
                over / unit_of_noise(constants, spread, edges, sd),
                low=low,
                high=low * ratio,
                grow=tolerance,
                gap=max(1, round(gap * 640)),
            )
            found = sorted(found, key=lambda g: -g.mass)[:30]
            result.append(
                (
                    (tolerance, floor, edge, contrast, low, ratio, gap),
                    found,
                    [touches(g, pair.mask) for g in found],
                    pair.boxes,
                )
            )
    return result


def touches(group: Group, mask: np.ndarray) -> bool:
    x1, y1, x2, y2 = (int(v) for v in group.box)
    return bool(mask[y1:y2, x1:x2].any())


def features(group: Group) -> list[float]:
    return [1.0, np.log(group.peak), np.log(group.mass), np.log(group.thickness)]


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
    """Weights with none below 0 but the bias: a stronger, larger or thicker difference must not count as less suspect.

    Without this, the peaks of black-and-white scans teach that high contrast speaks for a sliver.
    """
    kept = np.ones(x.shape[1], bool)
    while True:
        weights = np.zeros(x.shape[1])
        weights[kept] = fit_logistic(x[:, kept], y)
        negative = (weights < 0) & (np.arange(len(weights)) > 0)
        if not negative.any():
            return weights
        kept[np.where(negative, weights, 0).argmin()] = False


def to_pair_odds(weights: np.ndarray, rows: list) -> np.ndarray:
    """The same curve, moved and scaled so that the best group's chance is the chance that the pair is abnormal."""
    scored = [(row, max(np.dot(features(g), weights) for g in row[1])) for row in rows if row[1]]
    abnormal = np.array([len(row[3]) > 0 for row, _ in scored], dtype=float)
    move, stretch = fit_logistic(np.array([[1.0, logit] for _, logit in scored]), abnormal)
    return weights * stretch + np.array([move, 0.0, 0.0, 0.0])


def judge(rows: list) -> tuple[dict[str, float], np.ndarray, list]:
    """mIoU, normal accuracy and their mean for one setting, with its fitted weights and first boxes."""
    x = np.array([features(g) for _, found, _, _ in rows for g in found]).reshape(-1, 4)
    y = np.array([hit for _, _, hits, _ in rows for hit in hits], dtype=float)
    if not 0 < y.sum() < len(y):
        return {"score": 0.0, "miou": 0.0}, np.zeros(4), []
    weights = to_pair_odds(fit_monotone(x, y), rows)
    chances = [
        1 / (1 + np.exp(-(np.array([features(g) for g in found]).reshape(-1, 4) @ weights))) for _, found, _, _ in rows
    ]
    best = np.array([c.max() if len(c) else 0.0 for c in chances])
    normal = np.array([len(truth) == 0 for *_, truth in rows])
    firsts = [
        (found[int(c.argmax())].box, truth[0]) if len(c) and c.max() >= THRESHOLD else (None, truth[0])
        for (_, found, _, truth), c in zip(rows, chances, strict=True)
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
    size, grow = 640, np.array([-1.0, -1.0, 1.0, 1.0])
    labels = np.linspace(0, LABEL_MARGIN, 11)[:, None] * size
    return np.array(
        [0.0 if box is None else iou(box + margin * size * grow, truth + labels * grow).mean() for box, truth in firsts]
    )


def best_margin(firsts: list) -> tuple[float, dict[float, float]]:
    """The share of the longer side that labels under the stated prior ask for, and the mIoU of every candidate."""
    curve = {float(m): float(label_overlaps(firsts, m).mean()) for m in MARGINS}
    return max(curve, key=lambda m: curve[m]), curve


def calibrate_registration(pool: ProcessPoolExecutor, seeds: range) -> dict[str, float]:
    rows = list(pool.map(registration_of, seeds, chunksize=4))
    own = np.array([row["own"] for row in rows])
    other = np.array([row["other"] for row in rows if row["other"] is not None])
    worst_own, best_other = np.quantile(own, 0.05), np.quantile(other, 0.99)
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
    judged = {setting: judge(rows) for setting, rows in by_setting.items()}
    ranked = sorted(judged, key=lambda s: -judged[s][0]["score"])
    yield "runners_up", [{"setting": s, **judged[s][0]} for s in ranked[:8]]
    best = judged[ranked[0]][0]
    equal = [s for s in ranked if judged[s][0]["score"] >= best["score"] - best["standard_error"]]
    setting = max(equal, key=lambda s: judged[s][0]["miou"])
    metrics, weights, firsts = judged[setting]
    margin, curve = best_margin(firsts)
    tolerance, floor, edge, contrast, low, ratio, gap = setting
    bias, peak, mass, thickness = (round(float(w), 3) for w in weights)
    chosen = Comparing(
        *(tolerance, floor, edge, contrast, low, low * ratio, gap, margin),
        *(bias, peak, mass, thickness, THRESHOLD),
    )
    yield "metrics", metrics
    yield "margin_curve", {f"{m * 640:.1f} px": round(v, 3) for m, v in curve.items()}
    yield "comparing", asdict(chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=480, help="synthetic pairs, half of them normal")
    parser.add_argument("--seed", type=int, default=0, help="number of the first pair")
    parser.add_argument("--only", choices=["registration", "detection"], help="one half of the work")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.pairs)
    report: dict[str, object] = {"in_use": {"registering": asdict(REGISTERING), "comparing": asdict(COMPARING)}}
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
