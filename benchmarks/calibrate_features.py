"""Find the constants of the `features` locator on synthetic pairs, and print them with the criterion that chose each.

    python benchmarks/calibrate_features.py --pairs 240 --json

The result belongs into src/differad/locators/features/calibration.py. Reads no real image. Half of the pairs are normal.

- alone: two normal parts of one kind that cannot be aligned, see synthesis/unaligned.py. One of the constants in use
  is changed at a time, and a logistic curve over the highest region's peak and contrast is fitted to which pairs
  are abnormal. What counts is the mean of mIoU (highest region, if its probability reaches the threshold) and normal
  accuracy on surfaces that the curve has not seen, each of them left out in turn; a constant is changed where that is better
  by more than noise (about 0.02 for 300 pairs). The reported curve is fitted to all pairs.
- border: the ratio of the map of normal pairs, without the correction, to its inside, by patches from the border.
- further: the constants in use and that curve on as many other pairs, to which nothing was fitted.
- fused: pairs of one part that `difference` can align; a logistic curve over its logit of each box and the
  map's peak within, fitted to which boxes touch the defect, then shifted so that a pair's best box gives the probability
  that the pair is abnormal. No weight is below 0: more difference must not count as less.
- reach is judgement: a tenth of the side.
- threshold: 0.5, a box where a defect is more likely than not.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace

import cv2
import numpy as np

from calibrate_difference import make_synthetic, touches
from differad.boxes import iou
from differad.evaluation.metrics import auroc
from differad.locators.difference import DifferenceLocator
from differad.locators.features.backbone import Backbone, resize_to_area
from differad.locators.features.calibration import DECISION_CONSTANTS, SCORING_CONSTANTS, ScoringConstants
from differad.locators.features.locator import FUSED, FeaturesLocator, FeaturesOptions, region_features
from differad.locators.features.nearest import combine_distances, distances, self_distance
from differad.locators.features.regions import regions
from differad.locators.odds import logit
from differad.synthesis.pairs import SyntheticPair
from differad.synthesis.unaligned import generate_unaligned

# Seeds of the unaligned pairs start here, far from those of other programs.
FIRST = 20_000
CHANGES = {
    "side": (320,),
    "window": (0.0, 0.5),
    "own": (0.0, 0.4),
    "edge": (0.0, 0.13, 0.4),
    "fade": (0.045, 0.18),
    "smooth": (0.4, 1.2),
    "cut": (0.55, 0.6, 0.7),
    "gap": (0.0, 1.0, 3.0),
}
RINGS = 8
RIDGE = 1.0
THRESHOLD = 0.5
IN_USE = "in use"


def settings() -> dict[str, tuple[ScoringConstants, float, float]]:
    """The constants in use, and each of CHANGES on its own: scoring, cut and gap by name."""
    found = {IN_USE: (SCORING_CONSTANTS, DECISION_CONSTANTS.cut, DECISION_CONSTANTS.gap)}
    for name, values in CHANGES.items():
        for value in values:
            scoring = (
                replace(SCORING_CONSTANTS, **{name: value}) if hasattr(SCORING_CONSTANTS, name) else SCORING_CONSTANTS
            )
            cut, gap = (value if name == own else getattr(DECISION_CONSTANTS, own) for own in ("cut", "gap"))
            found[f"{name}={value}"] = (scoring, cut, gap)
    return found


def distances_of(pair: SyntheticPair, scoring: ScoringConstants) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Distances of each stride: whole, window, to the target itself."""
    backbone = Backbone()
    reference, target = (
        backbone.patches(resize_to_area(image, scoring.side)) for image in (pair.reference, pair.target)
    )
    return [
        (*distances(seen, [own], scoring.reach), self_distance(seen, scoring.reach))
        for seen, own in zip(target, reference, strict=True)
    ]


def alone_of(seed: int) -> tuple[dict[str, tuple[tuple[float, float], float]], bool, str, np.ndarray]:
    """Of pair `seed`: the highest region's features and IoU by setting, whether it is abnormal, its surface, its border."""
    cv2.setNumThreads(1)
    pair = generate_unaligned(np.random.default_rng(FIRST + seed), seed % 2 == 0)
    found = {
        side: distances_of(pair, replace(SCORING_CONSTANTS, side=side))
        for side in (SCORING_CONSTANTS.side, *CHANGES["side"])
    }
    result = {}
    for name, (scoring, cut, gap) in settings().items():
        score = cv2.GaussianBlur(combine_distances(found[scoring.side], scoring), (0, 0), scoring.smooth)
        best = regions(score, pair.target.shape[1::-1], cut=cut, gap=gap, max_regions=1)[0]
        result[name] = region_features(best), float(iou(best.box[None], pair.boxes).max(initial=0.0))
    plain = combine_distances(found[SCORING_CONSTANTS.side], replace(SCORING_CONSTANTS, edge=0.0))
    return result, len(pair.boxes) > 0, pair.category, border_of(plain)


def border_of(score: np.ndarray) -> np.ndarray:
    """Logarithm (RINGS,) of the 95 % quantile at each patch from the border over that further inside."""
    rows, columns = (np.minimum(np.arange(count), np.arange(count)[::-1]) for count in score.shape)
    inwards = np.minimum(rows[:, None], columns)
    if inwards.max() < RINGS:
        return np.full(RINGS, np.nan)
    inside = np.quantile(score[inwards >= RINGS], 0.95)
    return np.array([np.log(np.quantile(score[inwards == ring], 0.95) / inside) for ring in range(RINGS)])


def fused_of(seed: int) -> tuple[list[tuple[float, float]], list[bool], bool] | None:
    """Features of each box of an aligned pair, whether each touches the defect, and whether the pair is abnormal."""
    cv2.setNumThreads(1)
    pair = make_synthetic(seed)
    locator = FeaturesLocator(FeaturesOptions(workers=1))
    found = DifferenceLocator(replace(FUSED, workers=1)).align(pair.reference, pair.target)
    if not found.registration.accepted:
        return None
    peaks = locator.peaks(found, locator.score(pair.reference, pair.target))
    candidates = found.candidates[: FUSED.max_boxes]
    rows = [(logit(one.probability), float(np.log(peak))) for one, peak in zip(candidates, peaks, strict=False)]
    return rows, [touches(one.box * found.stretch, pair.mask) for one in candidates], len(pair.boxes) > 0


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


def evaluate(overlap: np.ndarray, abnormal: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Metrics of one setting, given what its curve answers."""
    found = logits >= np.log(THRESHOLD / (1 - THRESHOLD))
    miou, accuracy = float((overlap * found)[abnormal].mean()), float((~found)[~abnormal].mean())
    metrics = {
        "score": (miou + accuracy) / 2,
        "miou": miou,
        "miou_of_every_highest_region": float(overlap[abnormal].mean()),
        "normal_accuracy": accuracy,
        "auroc": auroc(logits[abnormal], logits[~abnormal]),
    }
    return {name: round(value, 3) for name, value in metrics.items()}


def calibrate_alone(results: list) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Metrics of each setting on surfaces that its curve was not fitted to, and the curve of the constants in use."""
    abnormal, surfaces = np.array([d[1] for d in results]), np.array([d[2] for d in results])
    judged = {}
    for name in settings():
        x, overlap = (np.array([d[0][name][i] for d in results]) for i in (0, 1))
        logits = np.empty(len(x))
        for surface in np.unique(surfaces):
            held_out = surfaces == surface
            weights = fit_logistic(x[~held_out], abnormal[~held_out].astype(float))
            logits[held_out] = weights[0] + x[held_out] @ weights[1:]
        judged[name] = evaluate(overlap, abnormal, logits)
    x = np.array([d[0][IN_USE][0] for d in results])
    return judged, fit_logistic(x, abnormal.astype(float))


def check_further(results: list, curve: np.ndarray) -> dict[str, float]:
    """Metrics of the constants in use with the curve that was fitted, on other pairs."""
    abnormal = np.array([d[1] for d in results])
    x, overlap = (np.array([d[0][IN_USE][i] for d in results]) for i in (0, 1))
    return evaluate(overlap, abnormal, curve[0] + x @ curve[1:])


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


def calibrate(pool: ProcessPoolExecutor, pairs: int, only: str | None) -> dict[str, object]:
    report: dict[str, object] = {
        "in_use": {"scoring": asdict(SCORING_CONSTANTS), "deciding": asdict(DECISION_CONSTANTS)}
    }
    deciding = DECISION_CONSTANTS
    if only != "fused":
        results = list(pool.map(alone_of, range(2 * pairs), chunksize=2))
        judged, curve = calibrate_alone(results[:pairs])
        bias, peak, contrast = (round(float(w), 3) for w in curve)
        deciding = replace(deciding, bias=bias, peak=peak, contrast=contrast)
        normal_borders = [d[3] for d in results[:pairs] if not d[1]]
        report |= {
            "changed": judged,
            "border": np.exp(np.nanmean(normal_borders, axis=0)).round(3).tolist(),
            "further": check_further(results[pairs:], curve),
        }
    if only != "alone":
        fused, report["fused"] = calibrate_fusion([r for r in pool.map(fused_of, range(pairs), chunksize=2) if r])
        a, b, c = (round(float(w), 3) for w in fused)
        deciding = replace(deciding, fused_bias=a, fused_difference=b, fused_peak=c)
    return report | {"deciding": asdict(deciding)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=240, help="synthetic pairs of each kind, half of them normal")
    parser.add_argument("--only", choices=["alone", "fused"], help="one half of the work")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.workers) as pool:
        report = calibrate(pool, arguments.pairs, arguments.only)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
