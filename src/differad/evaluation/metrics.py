"""Metrics with intervals from results of pairs; pure, no files and no images.

Protocol (arXiv 2606.16601 and its code): the IoU of a pair is that of the first predicted box with the best matching true box; an
invalid or missing answer has IoU 0, and is wrong on a normal pair. An abnormal pair of unknown place counts in detection
metrics only. A metric without a pair to measure is None.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, area, iou
from differad.evaluation.intervals import Estimate, constant_f1_interval, constant_interval, estimate, mean_interval

Values = NDArray[np.float64]
_Draws = dict[str, Values]

RESAMPLES = 2000
HIT = 0.3
# Names of defect sizes with the lower bound of each as a share of the target's area.
SIZES = (("small", 0.0), ("medium", 0.01), ("large", 0.1))
WITH_INTERVAL = ("miou", "acc_0.3", "acc_0.5", "acc_0.7", "f1_0.3", "detection_f1", "normal_accuracy")
# Cells of one block of resampling weights: bounds its memory to 32 MiB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class PairResult:
    """Result of one labelled pair; `has_location` is False if it is abnormal and the location is unknown."""

    category: str
    anomalous: bool
    iou: float
    gave_box: bool
    valid: bool
    group: str | None = None
    size: str | None = None
    confidence: float | None = None
    has_location: bool = True


def pair_iou(predicted: Boxes, truth: Boxes) -> float:
    """IoU of the first of `predicted` (N, 4) with the best matching of `truth` (M, 4); 0 if either is empty."""
    if len(predicted) == 0 or len(truth) == 0:
        return 0.0
    return float(iou(predicted[:1], truth).max())


def size_name(truth: Boxes, width: int, height: int) -> str | None:
    """The size of a pair's largest true box (M, 4) by its share of the target's area; None without one."""
    if len(truth) == 0:
        return None
    share = float(area(truth).max()) / (width * height)
    return [name for name, lower_bound in SIZES if share >= lower_bound][-1]


def summarise(results: Sequence[PairResult], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Metrics `overall` (with `macro`, the mean over categories), by `categories`, `groups` and `sizes`."""
    return summarise_with_baselines(results, {}, seed, resamples)[0]


def summarise_with_baselines(
    results: Sequence[PairResult],
    baselines: Mapping[str, Sequence[PairResult]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The summary of `results`, and for each of `baselines` its `overall` and `categories`.

    Sets of equally many pairs share their bootstrap draws, which are computed once.
    """
    answers = [results, *baselines.values()]
    categories = [_split(answer, lambda result: result.category) for answer in answers]
    order = [name for name, _ in SIZES]
    sizes = _split([result for result in results if result.size], lambda result: order.index(str(result.size)))
    groups = _split([result for result in results if result.group], lambda result: result.group)
    # A single category equals the whole.
    parts = [part for by_category in categories if len(by_category) > 1 for part in by_category.values()]
    draws = _resample_alike([*answers, *parts, *groups.values(), *sizes.values()], seed, resamples)
    streams = _resample_categories([by_category for by_category in categories if len(by_category) > 1], seed, resamples)
    summaries = []
    for answer, by_category in zip(answers, categories, strict=True):
        ranked = _can_rank(answer)
        overall = _measure(answer, draws[id(answer)], ranked)
        if len(by_category) == 1:
            measured = {name: dict(overall) for name in by_category}
        else:
            measured = {name: _measure(part, draws[id(part)], ranked) for name, part in by_category.items()}
        overall["macro"] = _macro(by_category, measured, streams)
        summaries.append({"overall": overall, "categories": measured})
    main, *others = summaries
    ranked = _can_rank(results)
    main["groups"] = {name: _measure(part, draws[id(part)], ranked) for name, part in groups.items()}
    main["sizes"] = {order[index]: _measure(part, draws[id(part)], ranked) for index, part in sizes.items()}
    return main, dict(zip(baselines, others, strict=True))


def measure(results: Sequence[PairResult], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """All metrics of one set of pairs, with 95 % intervals: percentile bootstrap over pairs, see `intervals`."""
    return _measure(results, _resample_alike([results], seed, resamples)[id(results)], _can_rank(results))


def auroc(positive: Values, negative: Values) -> float | None:
    """Probability that a positive (N,) scores above a negative (M,), ties counted half; None if either is empty."""
    if len(positive) == 0 or len(negative) == 0:
        return None
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float((below + up_to).mean() / 2 / len(negative))


# Every metric is a ratio of sums over pairs, so a resample is a weighted sum: one column per summand.
_COLUMNS = ("pairs", "anomalous", "normal", "located", "valid", "iou", "hit_0.3", "hit_0.5", "hit_0.7", "miss_box",
            "false_alarm", "detected", "correct_normal")  # fmt: skip
# The pairs that a metric is measured on, as a sum of columns.
_MEASURED_ON = {
    "miou": ("located",),
    "acc_0.3": ("located",),
    "acc_0.5": ("located",),
    "acc_0.7": ("located",),
    "f1_0.3": ("located", "false_alarm"),
    "detection_f1": ("anomalous", "false_alarm"),
    "normal_accuracy": ("normal",),
}


def _columns(results: Sequence[PairResult]) -> Values:
    """Summands (N, len(_COLUMNS)) of the metrics."""
    anomalous = np.array([r.anomalous for r in results], dtype=bool)
    located = anomalous & np.array([r.has_location for r in results], dtype=bool)
    overlap = np.array([r.iou if r.valid else 0.0 for r in results])
    gave_box = np.array([r.gave_box and r.valid for r in results], dtype=bool)
    valid = np.array([r.valid for r in results], dtype=bool)
    hit = located & gave_box & (overlap >= HIT)
    return np.stack(
        [
            np.ones(len(results)),
            anomalous,
            ~anomalous,
            located,
            valid,
            overlap * located,
            *(located & gave_box & (overlap >= threshold) for threshold in (0.3, 0.5, 0.7)),
            gave_box & (located | ~anomalous) & ~hit,
            gave_box & ~anomalous,
            gave_box & anomalous,
            valid & ~gave_box & ~anomalous,
        ],
        axis=-1,
    ).astype(np.float64)


def _ratios(sums: Values) -> dict[str, Values]:
    """Metrics of sums (..., len(_COLUMNS)), shape (...,); NaN where no pair measures them."""
    by_name = {name: sums[..., index] for index, name in enumerate(_COLUMNS)}

    def share(part: Values, whole: Values) -> Values:
        return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)

    def f1(true: Values, false_alarms: Values, defects: Values) -> Values:
        # F1 is undefined without defects, however many false alarms there are.
        return np.where(defects > 0, share(2 * true, true + false_alarms + defects), np.nan)

    return {
        "miou": share(by_name["iou"], by_name["located"]),
        "acc_0.3": share(by_name["hit_0.3"], by_name["located"]),
        "acc_0.5": share(by_name["hit_0.5"], by_name["located"]),
        "acc_0.7": share(by_name["hit_0.7"], by_name["located"]),
        "f1_0.3": f1(by_name["hit_0.3"], by_name["miss_box"], by_name["located"]),
        "detection_f1": f1(by_name["detected"], by_name["false_alarm"], by_name["anomalous"]),
        "normal_accuracy": share(by_name["correct_normal"], by_name["normal"]),
        "valid": share(by_name["valid"], by_name["pairs"]),
    }


def _stream(seed: int, category: str) -> np.random.Generator:
    """The random generator of a category: seeded by its name, so that it does not depend on other categories."""
    name = hashlib.blake2b(category.encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(name)])


def _resample_alike(sets: Sequence[Sequence[PairResult]], seed: int, resamples: int) -> dict[int, _Draws]:
    """The bootstrap draws of each set, by its `id`, all from the same seed."""
    by_count: dict[int, list[Sequence[PairResult]]] = defaultdict(list)
    for members in sets:
        by_count[len(members)].append(members)
    return {
        id(members): draws
        for equal_sized in by_count.values()
        for members, draws in zip(
            equal_sized, _resample(equal_sized, np.random.default_rng(seed), resamples), strict=True
        )
    }


def _resample_categories(
    categories: Sequence[Mapping[str, Sequence[PairResult]]], seed: int, resamples: int
) -> dict[int, _Draws]:
    """The bootstrap draws of each category, by the `id` of its results, independent of the other categories.

    With one seed for all, as for the intervals of single categories, all would resample the same positions.
    """
    by_name: dict[tuple[str, int], list[Sequence[PairResult]]] = defaultdict(list)
    for by_category in categories:
        for name, members in by_category.items():
            by_name[name, len(members)].append(members)
    return {
        id(members): draws
        for (name, _), equal_sized in by_name.items()
        for members, draws in zip(equal_sized, _resample(equal_sized, _stream(seed, name), resamples), strict=True)
    }


def _resample(sets: Sequence[Sequence[PairResult]], rng: np.random.Generator, resamples: int) -> list[_Draws]:
    """Metrics of `resamples` bootstrap samples of each of `sets`, all of equally many pairs; shape (resamples,)."""
    count = len(sets[0])
    columns = [_columns(results) for results in sets]
    block = max(1, _BLOCK_CELLS // max(1, count))
    sums: list[list[Values]] = [[] for _ in sets]
    for start in range(0, resamples, block):
        positions = rng.integers(count, size=(min(block, resamples - start), count))
        offsets = count * np.arange(len(positions))[:, None]
        weights = np.bincount((positions + offsets).ravel(), minlength=positions.size)
        weights = weights.reshape(positions.shape).astype(np.float64)
        for blocks, summands in zip(sums, columns, strict=True):
            blocks.append(weights @ summands)
    return [_ratios(np.concatenate(blocks)) for blocks in sums]


def _measure(results: Sequence[PairResult], draws: _Draws, ranked: bool) -> dict[str, Any]:
    sums = _columns(results).sum(axis=0)
    by_name = dict(zip(_COLUMNS, sums.tolist(), strict=True))
    counts = {name: int(by_name[name]) for name in ("pairs", "anomalous", "normal")}
    counts["place_unknown"] = int(by_name["anomalous"] - by_name["located"])
    values = {name: _number(value) for name, value in _ratios(sums).items()}
    intervals = {}
    for name in WITH_INTERVAL:
        part = _estimate(name, sums, draws)
        intervals[f"{name}_ci95"] = None if part is None else list(part.interval)
    area_under, unranked = _pair_auroc(results) if ranked else (None, None)
    return {**counts, **values, **intervals, "auroc": area_under, "auroc_invalid": unranked}


def _estimate(name: str, sums: Values, draws: _Draws) -> Estimate | None:
    """The metric `name` of sums (len(_COLUMNS),) with its interval; None if no pair measures it."""
    value = _number(_ratios(sums)[name])
    if value is None:
        return None
    count = int(sum(sums[_COLUMNS.index(column)] for column in _MEASURED_ON[name]))
    return estimate(
        value, draws[name], count, constant_f1_interval if name in ("f1_0.3", "detection_f1") else constant_interval
    )


def _macro(
    categories: Mapping[str, Sequence[PairResult]], by_category: dict[str, dict[str, Any]], streams: dict[int, _Draws]
) -> dict[str, Any]:
    """Means over the categories that have the metric; the interval resamples each category independently."""
    macro: dict[str, Any] = {"categories": len(categories)}
    for name in ("valid", "auroc", *WITH_INTERVAL):
        values = [part[name] for part in by_category.values() if part[name] is not None]
        macro[name] = float(np.mean(values)) if values else None
    if len(categories) == 1:
        (only,) = by_category.values()
        return macro | {f"{name}_ci95": only[f"{name}_ci95"] for name in WITH_INTERVAL}
    parts: dict[str, list[Estimate]] = {name: [] for name in WITH_INTERVAL}
    for members in categories.values():
        sums = _columns(members).sum(axis=0)
        for name in WITH_INTERVAL:
            part = _estimate(name, sums, streams[id(members)])
            if part is not None:
                parts[name].append(part)
    return macro | {
        f"{name}_ci95": list(mean_interval(estimates)) if estimates else None for name, estimates in parts.items()
    }


def _can_rank(results: Sequence[PairResult]) -> bool:
    """Whether these answers have an AUROC: false if there are valid answers and none has a confidence."""
    valid = [result for result in results if result.valid]
    return not valid or any(result.confidence is not None for result in valid)


def _pair_auroc(results: Sequence[PairResult]) -> tuple[float | None, int | None]:
    """AUROC of `confidence`, and the number of pairs without one, which are ranked worst.

    Invalid answers and those without a confidence rank below all others if the pair is anomalous, above all if it is normal.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    unranked = 0
    for result in results:
        if result.valid and result.confidence is not None:
            scores[result.anomalous].append(result.confidence)
        else:
            scores[result.anomalous].append(-np.inf if result.anomalous else np.inf)
            unranked += 1
    value = auroc(np.array(scores[True]), np.array(scores[False]))
    return value, None if value is None else unranked


def _number(value: Values) -> float | None:
    return None if np.isnan(value) else float(value)


def _split(results: Iterable[PairResult], key: Callable[[PairResult], Any]) -> dict[Any, list[PairResult]]:
    """Results by key, keys in order."""
    parts: dict[Any, list[PairResult]] = {}
    for result in results:
        parts.setdefault(key(result), []).append(result)
    return {name: parts[name] for name in sorted(parts)}
