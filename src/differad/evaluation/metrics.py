"""From outcomes of pairs to metrics with intervals; pure, no files and no pictures.

Protocol (arXiv 2606.16601 and its code): the IoU of a pair is that of the first predicted box with the best matching true box; an
invalid or missing answer has IoU 0, and is wrong on a normal pair. A metric without a pair to measure is None.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, area, iou

Values = NDArray[np.float64]

RESAMPLES = 2000
HIT = 0.3
# Names of defect sizes with the share of the target's area from which each begins.
SIZES = (("small", 0.0), ("medium", 0.01), ("large", 0.1))
WITH_INTERVAL = ("miou", "acc_0.3", "acc_0.5", "acc_0.7", "f1_0.3", "detection_f1", "normal_accuracy")
# Cells of one block of resampling weights: bounds its memory to 32 MiB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class PairResult:
    """What one labelled pair contributes."""

    category: str
    anomalous: bool
    iou: float
    gave_box: bool
    valid: bool
    group: str | None = None
    size: str | None = None
    confidence: float | None = None


def pair_iou(predicted: Boxes, truth: Boxes) -> float:
    """IoU of the first of `predicted` (N, 4) with the best matching of `truth` (M, 4); 0 where either is empty."""
    if len(predicted) == 0 or len(truth) == 0:
        return 0.0
    return float(iou(predicted[:1], truth).max())


def size_name(truth: Boxes, width: int, height: int) -> str | None:
    """The size of a pair's largest true box (M, 4) by its share of the target's area; None for a normal pair."""
    if len(truth) == 0:
        return None
    share = float(area(truth).max()) / (width * height)
    return [name for name, begins in SIZES if share >= begins][-1]


def summarise(results: Sequence[PairResult], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Metrics `overall` (with `macro`, the mean over categories), by `categories`, `groups` and `sizes`."""
    overall = measure(results, seed, resamples)
    categories = _split(results, lambda result: result.category)
    draws = {name: _resample(members, seed, resamples) for name, members in categories.items()}
    by_category = {name: _with_intervals(members, draws[name]) for name, members in categories.items()}
    overall["macro"] = _macro(by_category, draws)
    order = [name for name, _ in SIZES]
    sizes = _split([result for result in results if result.size], lambda result: order.index(str(result.size)))
    return {
        "overall": overall,
        "categories": by_category,
        "groups": {
            name: measure(members, seed, resamples)
            for name, members in _split([r for r in results if r.group], lambda result: result.group).items()
        },
        "sizes": {order[index]: measure(members, seed, resamples) for index, members in sizes.items()},
    }


def measure(results: Sequence[PairResult], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every metric of one set of pairs, with 95 % percentile bootstrap intervals over pairs."""
    return _with_intervals(results, _resample(results, seed, resamples))


def auroc(positive: Values, negative: Values) -> float | None:
    """Probability that a positive (N,) scores above a negative (M,), ties counted half; None without both."""
    if len(positive) == 0 or len(negative) == 0:
        return None
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float((below + up_to).mean() / 2 / len(negative))


# Every metric is a ratio of sums over pairs, so that a resample is a weighted sum: one column per summand.
_COLUMNS = ("pairs", "anomalous", "normal", "valid", "iou", "hit_0.3", "hit_0.5", "hit_0.7", "miss_box", "alarm", "found",
            "normal_right")  # fmt: skip


def _columns(results: Sequence[PairResult]) -> Values:
    """Summands (N, len(_COLUMNS)) of the metrics."""
    anomalous = np.array([r.anomalous for r in results], dtype=bool)
    overlap = np.array([r.iou if r.valid else 0.0 for r in results])
    gave_box = np.array([r.gave_box and r.valid for r in results], dtype=bool)
    valid = np.array([r.valid for r in results], dtype=bool)
    hit = anomalous & gave_box & (overlap >= HIT)
    return np.stack(
        [
            np.ones(len(results)),
            anomalous,
            ~anomalous,
            valid,
            overlap * anomalous,
            *(anomalous & gave_box & (overlap >= bar) for bar in (0.3, 0.5, 0.7)),
            gave_box & ~hit,
            gave_box & ~anomalous,
            gave_box & anomalous,
            valid & ~gave_box & ~anomalous,
        ],
        axis=-1,
    ).astype(np.float64)


def _ratios(sums: Values) -> dict[str, Values]:
    """Metrics of sums (..., len(_COLUMNS)), shape (...,); NaN where there is nothing to measure."""
    of = {name: sums[..., index] for index, name in enumerate(_COLUMNS)}

    def share(part: Values, whole: Values) -> Values:
        return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)

    def f1(true: Values, false_alarms: Values) -> Values:
        # No defect to find means no F1, however many false alarms there are.
        missed = of["anomalous"] - true
        return np.where(of["anomalous"] > 0, share(2 * true, 2 * true + false_alarms + missed), np.nan)

    return {
        "miou": share(of["iou"], of["anomalous"]),
        "acc_0.3": share(of["hit_0.3"], of["anomalous"]),
        "acc_0.5": share(of["hit_0.5"], of["anomalous"]),
        "acc_0.7": share(of["hit_0.7"], of["anomalous"]),
        "f1_0.3": f1(of["hit_0.3"], of["miss_box"]),
        "detection_f1": f1(of["found"], of["alarm"]),
        "normal_accuracy": share(of["normal_right"], of["normal"]),
        "valid": share(of["valid"], of["pairs"]),
    }


def _resample(results: Sequence[PairResult], seed: int, resamples: int) -> dict[str, Values]:
    """Metrics of `resamples` bootstrap samples of the pairs, each of shape (resamples,)."""
    count = len(results)
    columns = _columns(results)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // max(1, count))
    sums = []
    for start in range(0, resamples, block):
        drawn = rng.integers(count, size=(min(block, resamples - start), count))
        offsets = count * np.arange(len(drawn))[:, None]
        weights = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)
        sums.append(weights @ columns)
    return _ratios(np.concatenate(sums))


def _with_intervals(results: Sequence[PairResult], draws: dict[str, Values]) -> dict[str, Any]:
    columns = _columns(results)
    counts = {name: int(columns[:, _COLUMNS.index(name)].sum()) for name in ("pairs", "anomalous", "normal")}
    values = {name: _number(value) for name, value in _ratios(columns.sum(axis=0)).items()}
    intervals = {f"{name}_ci95": _interval(draws[name]) for name in WITH_INTERVAL}
    return {**counts, **values, **intervals, "auroc": _pair_auroc(results)}


def _macro(by_category: dict[str, dict[str, Any]], draws: dict[str, dict[str, Values]]) -> dict[str, Any]:
    """Means over the categories that have the metric; the interval resamples within each category."""
    macro: dict[str, Any] = {"categories": len(by_category)}
    for name in (*WITH_INTERVAL, "valid"):
        having = [category for category, values in by_category.items() if values[name] is not None]
        macro[name] = float(np.mean([by_category[c][name] for c in having])) if having else None
        if name in WITH_INTERVAL:
            drawn = [draws[c][name] for c in having]
            macro[f"{name}_ci95"] = _interval(_mean_of_defined(drawn)) if having else None
    return macro


def _mean_of_defined(drawn: Sequence[Values]) -> Values:
    """Mean over categories of resampled metrics, each (R,); a resample may lack what a category measures."""
    values = np.array(drawn)
    counts = (~np.isnan(values)).sum(axis=0)
    sums = np.nansum(values, axis=0)
    return np.asarray(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))


def _pair_auroc(results: Sequence[PairResult]) -> float | None:
    """How well `confidence` tells anomalous from normal pairs; None unless every valid pair has one."""
    valid = [result for result in results if result.valid]
    if not valid or any(result.confidence is None for result in valid):
        return None
    scores = {
        kind: np.array([r.confidence for r in valid if r.anomalous is kind], dtype=float) for kind in (True, False)
    }
    return auroc(scores[True], scores[False])


def _interval(values: Values) -> list[float] | None:
    defined = values[~np.isnan(values)]
    return [float(v) for v in np.percentile(defined, [2.5, 97.5])] if len(defined) else None


def _number(value: Values) -> float | None:
    return None if np.isnan(value) else float(value)


def _split(results: Iterable[PairResult], key: Callable[[PairResult], Any]) -> dict[Any, list[PairResult]]:
    """Results by key, keys in order."""
    parts: dict[Any, list[PairResult]] = {}
    for result in results:
        parts.setdefault(key(result), []).append(result)
    return {name: parts[name] for name in sorted(parts)}
