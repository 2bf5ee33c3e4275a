"""Find the constants of the `features` locator on synthetic pairs, and print them with the criterion that chose each.

    python benchmarks/calibrate_features.py --pairs 240 --json

The result belongs into src/differad/locators/features/calibration.py. Reads no real picture. Half of the pairs are normal.

- alone: two pieces of one surface (or of one part, on a surface of its own each) under `Nuisance()` with a shift up to 7 %, a
  turn up to 4 degrees and 5 % of scale, drawn at 128 to 640 pixels so that defects are specks as well as a third of the
  picture. For each setting of side, smooth and cut a logistic curve over the highest region's peak and
  contrast is fitted to which pairs are abnormal; the setting with the best mean of mIoU (highest region, where its
  chance reaches the threshold) and normal accuracy is taken.
- fused: pairs of one part that `difference` can lay on each other; a logistic curve over its chance of each box and the
  map's peak within, fitted to which boxes touch the defect, then moved so that a pair's best box says how likely
  the pair is abnormal. No weight is below 0: more evidence must not count as less.
- reach, copies and quantile are judgement: a tenth of the side, two copies, one patch in two hundred.
- threshold: 0.5, a box where a defect is more likely than not.
"""

import argparse
import itertools
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import cv2
import numpy as np

from differad.boxes import iou
from differad.data.masks import boxes_from_mask
from differad.evaluation.metrics import auroc
from differad.locators.difference import DifferenceLocator, DifferenceOptions
from differad.locators.features.augmentation import copies
from differad.locators.features.backbone import Backbone, fit
from differad.locators.features.calibration import DECIDING, SCORING
from differad.locators.features.locator import FeaturesLocator, evidence, logit, peak_within
from differad.locators.features.nearest import distances, floors, scored
from differad.locators.features.regions import regions
from differad.synthesis.camera import STILL, Nuisance, develop, draw_view, see
from differad.synthesis.defects import damage_surface
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import SyntheticPair, make_pair
from differad.synthesis.textures import TEXTURES

SURFACES = ("brushed", "woven", "grain", "wood", "machined", "perforated", "striped", "tiled")
LAYOUTS = ("printed", "assembled", "board")
ALIGNED = ("board", "board", "board", "board", *TEXTURES)
SMALLEST, LARGEST = 128, 640
VISIBLE_LEVELS, VISIBLE_PIXELS, ATTEMPTS = 20, 60, 20
# Seeds of the unaligned pairs start here, far from those of other programs.
FIRST = 20_000
SIDES = (320, 448)
SMOOTHS = (0.8, 1.2)
CUTS = (0.4, 0.5, 0.6, 0.7, 0.8)
RIDGE = 1.0
THRESHOLD = 0.5


def draw_unaligned(rng: np.random.Generator, anomalous: bool) -> SyntheticPair:
    """Two parts of one kind, which nothing can lay on each other; the second perhaps with a defect."""
    size = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    margin = max(12, size // 11)
    side = size + 2 * margin
    kind = str(rng.choice(SURFACES))
    surface = NORMALS[kind](rng, 2 * side)
    first, second = surface[:side, :side], surface[side:, side:]
    if rng.random() < 0.5:
        layout, share = NORMALS[str(rng.choice(LAYOUTS))](rng, side), rng.uniform(0.3, 0.6)
        first, second = (piece * (1 - share) + layout * share for piece in (first, second))
    first, second = (np.ascontiguousarray(piece, dtype=np.float32) for piece in (first, second))
    still = draw_view(rng, size, margin, STILL)
    view = draw_view(rng, size, margin, Nuisance(shift=0.07 * size, angle=4, scale=0.05))
    clean = seen = see(second, view, binary=False)
    mask = np.zeros((size, size), bool)
    for _ in range(ATTEMPTS if anomalous else 0):
        seen = see(damage_surface(rng, second, margin), view, binary=False)
        mask = np.abs(seen - clean).max(axis=2) >= VISIBLE_LEVELS
        if mask.sum() >= VISIBLE_PIXELS:
            break
    reference = develop(see(first, still, binary=False), still, binary=False)
    return SyntheticPair(reference, develop(seen, view, binary=False), mask, np.eye(3), kind)


def truth_of(mask: np.ndarray) -> np.ndarray:
    """One box (1, 4) around all of a mask, (0, 4) for none."""
    return boxes_from_mask(mask, gap=max(mask.shape))[:1]


def alone_of(seed: int) -> dict[tuple, tuple[tuple[float, float], float, bool]]:
    """For each setting: the evidence of the highest region of pair `seed`, its IoU, and whether the pair is abnormal."""
    cv2.setNumThreads(1)
    pair = draw_unaligned(np.random.default_rng(FIRST + seed), seed % 2 == 0)
    truth = truth_of(pair.mask)
    backbone, size = Backbone(), pair.target.shape[1::-1]
    result = {}
    for side in SIDES:
        small = fit(pair.reference, side)
        own, target = backbone.patches(small), backbone.patches(fit(pair.target, side))
        others = [backbone.patches(copy) for copy in copies(small, SCORING.copies)]
        noise = floors(others, own, reach=SCORING.reach, quantile=SCORING.quantile)
        found = [distances(t, [o], SCORING.reach) for t, o in zip(target, own, strict=True)]
        score = scored(found, noise)
        for smooth, cut in itertools.product(SMOOTHS, CUTS):
            smoothed = cv2.GaussianBlur(score, (0, 0), smooth)
            best = regions(smoothed, size, cut=cut, least=np.inf, most=1)[0]
            overlap = float(iou(best.box[None], truth).max(initial=0.0))
            result[side, smooth, cut] = evidence(best), overlap, len(truth) > 0
    return result


def fused_of(seed: int) -> tuple[list[tuple[float, float]], list[bool], bool] | None:
    """Evidence of each box of an aligned pair, whether each touches the defect, and whether the pair is abnormal."""
    cv2.setNumThreads(1)
    anomalous = (seed // len(ALIGNED)) % 2 == 0
    pair = make_pair(np.random.default_rng(seed), ALIGNED[seed % len(ALIGNED)], anomalous=anomalous)
    laid_on = DifferenceLocator(DifferenceOptions(threshold=0.0)).locate(pair.as_pair())
    if not laid_on.valid:
        return None
    score = FeaturesLocator().score(pair.reference, pair.target)
    size = pair.target.shape[1::-1]
    rows = [
        (logit(chance), float(np.log(peak_within(score, box, size))))
        for box, chance in zip(laid_on.boxes, laid_on.scores, strict=True)
    ]
    touches = []
    for box in laid_on.boxes:
        x1, y1, x2, y2 = (int(v) for v in box)
        touches.append(bool(pair.mask[y1:y2, x1:x2].any()))
    return rows, touches, anomalous


def fit_logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bias and weights (1 + F,) by Newton's method, with a ridge on the weights, none of which is below 0."""
    x = np.column_stack([np.ones(len(x)), x])
    kept = np.ones(x.shape[1], bool)
    while True:
        weights, part = np.zeros(x.shape[1]), x[:, kept]
        own = np.zeros(part.shape[1])
        penalty = RIDGE * np.diag([0.0] + [1.0] * (len(own) - 1))
        for _ in range(50):
            p = 1 / (1 + np.exp(-np.clip(part @ own, -30, 30)))
            hessian = (part * (p * (1 - p))[:, None]).T @ part + penalty + 1e-9 * np.eye(len(own))
            own -= np.linalg.solve(hessian, part.T @ (p - y) + penalty @ own)
        weights[kept] = own
        negative = np.where(np.arange(len(weights)) > 0, weights, 0.0)
        if negative.min() >= 0:
            return weights
        kept[negative.argmin()] = False


def judge(rows: list[tuple[tuple[float, float], float, bool]]) -> tuple[dict[str, float], np.ndarray]:
    """Metrics of one setting, and the curve that was fitted."""
    x, overlap, abnormal = (np.array(column) for column in zip(*rows, strict=True))
    weights = fit_logistic(x, abnormal.astype(float))
    logits = weights[0] + x @ weights[1:]
    found = logits >= np.log(THRESHOLD / (1 - THRESHOLD))
    miou, accuracy = float((overlap * found)[abnormal].mean()), float((~found)[~abnormal].mean())
    metrics = {
        "score": (miou + accuracy) / 2,
        "miou": miou,
        "miou_of_every_highest_region": float(overlap[abnormal].mean()),
        "normal_accuracy": accuracy,
        "auroc": auroc(logits[abnormal], logits[~abnormal]),
    }
    return metrics, weights


def calibrate_fusion(rows: list[tuple[list[tuple[float, float]], list[bool], bool]]) -> tuple[np.ndarray, dict]:
    """Bias and weights of the fused curve, and how well a pair's best box tells abnormal pairs, against `difference`."""
    x = np.array([row for found, _, _ in rows for row in found]).reshape(-1, 2)
    weights = fit_logistic(x, np.array([touch for _, hits, _ in rows for touch in hits], dtype=float))
    with_boxes = [row for row in rows if row[0]]
    best = np.array([max(weights[0] + np.dot(row, weights[1:]) for row in found) for found, _, _ in with_boxes])
    before = np.array([max(row[0] for row in found) for found, _, _ in with_boxes])
    abnormal = np.array([label for _, _, label in with_boxes])
    move, stretch = fit_logistic(best[:, None], abnormal.astype(float))
    metrics = {
        "registered": len(rows),
        "auroc": auroc(best[abnormal], best[~abnormal]),
        "auroc_of_difference": auroc(before[abnormal], before[~abnormal]),
    }
    return weights * stretch + np.array([move, 0.0, 0.0]), metrics


def calibrate(pool: ProcessPoolExecutor, pairs: int) -> dict[str, object]:
    by_setting: dict[tuple, list] = {}
    for found in pool.map(alone_of, range(pairs), chunksize=2):
        for setting, row in found.items():
            by_setting.setdefault(setting, []).append(row)
    judged = {setting: judge(rows) for setting, rows in by_setting.items()}
    ranked = sorted(judged, key=lambda setting: -judged[setting][0]["score"])
    side, smooth, cut = ranked[0]
    bias, peak, contrast = (round(float(w), 3) for w in judged[ranked[0]][1])
    fused, fused_metrics = calibrate_fusion([r for r in pool.map(fused_of, range(pairs), chunksize=2) if r])
    a, b, c = (round(float(w), 3) for w in fused)
    scoring = replace(SCORING, side=side, smooth=smooth)
    deciding = replace(
        DECIDING, cut=cut, bias=bias, peak=peak, contrast=contrast, fused_bias=a, fused_difference=b, fused_peak=c
    )
    return {
        "in_use": {"scoring": asdict(SCORING), "deciding": asdict(DECIDING)},
        "best": [{"setting": setting, **judged[setting][0]} for setting in ranked[:8]],
        "best_per_side": [
            {"setting": s, **judged[s][0]} for s in (next(r for r in ranked if r[0] == w) for w in SIDES)
        ],
        "fused": fused_metrics,
        "scoring": asdict(scoring),
        "deciding": asdict(deciding),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=240, help="synthetic pairs of each kind, half of them normal")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        report = calibrate(pool, arguments.pairs)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
