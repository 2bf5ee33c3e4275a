"""From outcomes of pairs to metrics with intervals; pure, no files and no images.

Protocol (arXiv 2606.16601 and its code): the IoU of a pair is that of the first predicted box with the best matching true box; an
invalid or missing answer has IoU 0, and is wrong on a normal pair. A pair that is abnormal at an unknown place counts in
detection metrics only. A metric without a pair to measure is None.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, area, iou
from differad.evaluation.intervals import Estimate, estimate, mean_interval, unvaried, unvaried_f1

Values = NDArray[np.float64]
_Draws = dict[str, Values]

RESAMPLES = 2000
HIT = 0.3
# Names of defect sizes with the share of the target's area from which each begins.
SIZES = (("small", 0.0), ("medium", 0.01), ("large", 0.1))
WITH_INTERVAL = ("miou", "acc_0.3", "acc_0.5", "acc_0.7", "f1_0.3", "detection_f1", "normal_accuracy")
# Cells of one block of resampling weights: bounds its memory to 32 MiB.
_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class PairResult:
    """What one labelled pair contributes; `placed` is False where it is abnormal and nobody marked where."""

    category: str
    anomalous: bool
    iou: float
    gave_box: bool
    valid: bool
    group: str | None = None
    size: str | None = None
    confidence: float | None = None
    placed: bool = True


def pair_iou(predicted: Boxes, truth: Boxes) -> float:
    """IoU of the first of `predicted` (N, 4) with the best matching of `truth` (M, 4); 0 where either is empty."""
    if len(predicted) == 0 or len(truth) == 0:
        return 0.0
    return float(iou(predicted[:1], truth).max())


def size_name(truth: Boxes, width: int, height: int) -> str | None:
    """The size of a pair's largest true box (M, 4) by its share of the target's area; None without one."""
    if len(truth) == 0:
        return None
    share = float(area(truth).max()) / (width * height)
    return [name for name, begins in SIZES if share >= begins][-1]


def summarise(results: Sequence[PairResult], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Metrics `overall` (with `macro`, the mean over categories), by `categories`, `groups` and `sizes`."""
    return summarise_beside(results, {}, seed, resamples)[0]


def summarise_beside(
    results: Sequence[PairResult],
    baselines: Mapping[str, Sequence[PairResult]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What `summarise` says of `results`, and of each of `baselines` what it says `overall` and by `categories`.

    Sets of equally many pairs see the same draws, which are made once for all of them.
    """
    answers = [results, *baselines.values()]
    categories = [_split(one, lambda result: result.category) for one in answers]
    order = [name for name, _ in SIZES]
    sizes = _split([result for result in results if result.size], lambda result: order.index(str(result.size)))
    groups = _split([result for result in results if result.group], lambda result: result.group)
    # The only category is the whole.
    parts = [part for one in categories if len(one) > 1 for part in one.values()]
    draws = _resample_alike([*answers, *parts, *groups.values(), *sizes.values()], seed, resamples)
    streams = _resample_categories([one for one in categories if len(one) > 1], seed, resamples)
    found = []
    for one, by_category in zip(answers, categories, strict=True):
        ranked = _can_rank(one)
        overall = _measure(one, draws[id(one)], ranked)
        if len(by_category) == 1:
            measured = {name: dict(overall) for name in by_category}
        else:
            measured = {name: _measure(own, draws[id(own)], ranked) for name, own in by_category.items()}
        overall["macro"] = _macro(by_category, measured, streams)
        found.append({"overall": overall, "categories": measured})
    main, *others = found
    ranked = _can_rank(results)
    main["groups"] = {name: _measure(own, draws[id(own)], ranked) for name, own in groups.items()}
    main["sizes"] = {order[index]: _measure(own, draws[id(own)], ranked) for index, own in sizes.items()}
    return main, dict(zip(baselines, others, strict=True))


def measure(results: Sequence[PairResult], seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Every metric of one set of pairs, with 95 % intervals: percentile bootstrap over pairs, see `intervals`."""
    return _measure(results, _resample_alike([results], seed, resamples)[id(results)], _can_rank(results))


def auroc(positive: Values, negative: Values) -> float | None:
    """Probability that a positive (N,) scores above a negative (M,), ties counted half; None without both."""
    if len(positive) == 0 or len(negative) == 0:
        return None
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float((below + up_to).mean() / 2 / len(negative))


# Every metric is a ratio of sums over pairs, so that a resample is a weighted sum: one column per summand.
_COLUMNS = ("pairs", "anomalous", "normal", "placed", "valid", "iou", "hit_0.3", "hit_0.5", "hit_0.7", "miss_box", "alarm",
            "found", "normal_right")  # fmt: skip
# The pairs that a metric is measured on, as a sum of columns.
_MEASURED_ON = {
    "miou": ("placed",),
    "acc_0.3": ("placed",),
    "acc_0.5": ("placed",),
    "acc_0.7": ("placed",),
    "f1_0.3": ("placed", "alarm"),
    "detection_f1": ("anomalous", "alarm"),
    "normal_accuracy": ("normal",),
}


def _columns(results: Sequence[PairResult]) -> Values:
    """Summands (N, len(_COLUMNS)) of the metrics."""
    anomalous = np.array([r.anomalous for r in results], dtype=bool)
    placed = anomalous & np.array([r.placed for r in results], dtype=bool)
    overlap = np.array([r.iou if r.valid else 0.0 for r in results])
    gave_box = np.array([r.gave_box and r.valid for r in results], dtype=bool)
    valid = np.array([r.valid for r in results], dtype=bool)
    hit = placed & gave_box & (overlap >= HIT)
    return np.stack(
        [
            np.ones(len(results)),
            anomalous,
            ~anomalous,
            placed,
            valid,
            overlap * placed,
            *(placed & gave_box & (overlap >= bar) for bar in (0.3, 0.5, 0.7)),
            gave_box & (placed | ~anomalous) & ~hit,
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

    def f1(true: Values, false_alarms: Values, defects: Values) -> Values:
        # No defect to find means no F1, however many false alarms there are.
        return np.where(defects > 0, share(2 * true, true + false_alarms + defects), np.nan)

    return {
        "miou": share(of["iou"], of["placed"]),
        "acc_0.3": share(of["hit_0.3"], of["placed"]),
        "acc_0.5": share(of["hit_0.5"], of["placed"]),
        "acc_0.7": share(of["hit_0.7"], of["placed"]),
        "f1_0.3": f1(of["hit_0.3"], of["miss_box"], of["placed"]),
        "detection_f1": f1(of["found"], of["alarm"], of["anomalous"]),
        "normal_accuracy": share(of["normal_right"], of["normal"]),
        "valid": share(of["valid"], of["pairs"]),
    }


def _stream(seed: int, category: str) -> np.random.Generator:
    """The random draws of a category: by its name, so that a further category leaves them as they are."""
    name = hashlib.blake2b(category.encode(), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(name)])


def _resample_alike(sets: Sequence[Sequence[PairResult]], seed: int, resamples: int) -> dict[int, _Draws]:
    """The resamples of each set, by its `id`, drawn from the same seed."""
    by_count: dict[int, list[Sequence[PairResult]]] = defaultdict(list)
    for members in sets:
        by_count[len(members)].append(members)
    return {
        id(members): draws
        for alike in by_count.values()
        for members, draws in zip(alike, _resample(alike, np.random.default_rng(seed), resamples), strict=True)
    }


def _resample_categories(
    categories: Sequence[Mapping[str, Sequence[PairResult]]], seed: int, resamples: int
) -> dict[int, _Draws]:
    """The resamples of each category, by the `id` of its results, each drawn by itself.

    With the seed of the categories' own intervals, all would resample the same positions.
    """
    named: dict[tuple[str, int], list[Sequence[PairResult]]] = defaultdict(list)
    for one in categories:
        for name, members in one.items():
            named[name, len(members)].append(members)
    return {
        id(members): draws
        for (name, _), alike in named.items()
        for members, draws in zip(alike, _resample(alike, _stream(seed, name), resamples), strict=True)
    }


def _resample(sets: Sequence[Sequence[PairResult]], rng: np.random.Generator, resamples: int) -> list[_Draws]:
    """Metrics of `resamples` bootstrap samples of each of `sets`, equally many pairs each; shape (resamples,)."""
    count = len(sets[0])
    columns = [_columns(results) for results in sets]
    block = max(1, _BLOCK_CELLS // max(1, count))
    sums: list[list[Values]] = [[] for _ in sets]
    for start in range(0, resamples, block):
        drawn = rng.integers(count, size=(min(block, resamples - start), count))
        offsets = count * np.arange(len(drawn))[:, None]
        weights = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        for own, summands in zip(sums, columns, strict=True):
            own.append(weights @ summands)
    return [_ratios(np.concatenate(own)) for own in sums]


def _measure(results: Sequence[PairResult], draws: _Draws, ranked: bool) -> dict[str, Any]:
    sums = _columns(results).sum(axis=0)
    of = dict(zip(_COLUMNS, sums.tolist(), strict=True))
    counts = {name: int(of[name]) for name in ("pairs", "anomalous", "normal")}
    counts["place_unknown"] = int(of["anomalous"] - of["placed"])
    values = {name: _number(value) for name, value in _ratios(sums).items()}
    intervals = {}
    for name in WITH_INTERVAL:
        part = _estimate(name, sums, draws)
        intervals[f"{name}_ci95"] = None if part is None else list(part.interval)
    area_under, unranked = _pair_auroc(results) if ranked else (None, None)
    return {**counts, **values, **intervals, "auroc": area_under, "auroc_invalid": unranked}


def _estimate(name: str, sums: Values, draws: _Draws) -> Estimate | None:
    """The metric `name` of sums (len(_COLUMNS),) with its interval; None where no pair measures it."""
    value = _number(_ratios(sums)[name])
    if value is None:
        return None
    count = int(sum(sums[_COLUMNS.index(column)] for column in _MEASURED_ON[name]))
    return estimate(value, draws[name], count, unvaried_f1 if name in ("f1_0.3", "detection_f1") else unvaried)


def _macro(
    categories: Mapping[str, Sequence[PairResult]], by_category: dict[str, dict[str, Any]], streams: dict[int, _Draws]
) -> dict[str, Any]:
    """Means over the categories that have the metric; the interval resamples each category by itself."""
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
    """Whether these answers have an AUROC: not where the locator answers and never says how sure it is."""
    valid = [result for result in results if result.valid]
    return not valid or any(result.confidence is not None for result in valid)


def _pair_auroc(results: Sequence[PairResult]) -> tuple[float | None, int | None]:
    """How well `confidence` tells anomalous from normal pairs, and how many pairs without one count as ranked worst.

    Invalid answers and those without a confidence rank below all where the pair is anomalous, above all where it is normal.
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
