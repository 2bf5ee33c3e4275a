"""Locate many pairs and score them: streamed and resumable; a failed pair does not stop the others.

`evaluate` checks every manifest before it opens the first image, appends each prediction at once, and then scores them as
`score` does from the same files. Neither holds more than a few pairs in memory.
"""

import json
import statistics
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes, clip, is_degenerate
from differad.core import Pair
from differad.data.locks import exclusive_run
from differad.data.manifest import check_readable, read_pairs
from differad.data.truth import are_fractions, check_boxes, check_mask
from differad.errors import DifferadError, ImageError, InputError, InputWarning, LocatorError, ManifestError
from differad.evaluation.baselines import BASELINES
from differad.evaluation.metrics import PairResult, pair_iou, size_name, summarise_with_baselines
from differad.evaluation.predictions import Prediction, PredictionIndex, PredictionWriter
from differad.evaluation.report import Case, Showcase, write_report
from differad.evaluation.run_record import Inputs, RunFiles, RunRecord, read_run
from differad.evaluation.selection import labelled_pairs
from differad.files import SECONDS_BETWEEN_SYNCS, make_folder, write_errors, write_text
from differad.images import image_size
from differad.locators import Locator
from differad.locators.base import Outcome
from differad.progress import progress_bar
from differad.text import printable


def evaluate(
    manifests: Sequence[str | Path],
    locator: Locator,
    out: str | Path,
    *,
    limit: int | None = None,
    progress: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Locate the labelled pairs of `manifests`, score them and write predictions.jsonl, metrics.json, report.html to `out`.

    A second call with the same arguments continues where the first stopped and tries failed pairs again. `limit` selects
    that many pairs evenly (`selection.spread`); `seed` is that of the bootstrap. Returns the metrics. Raises ManifestError
    before any work if a manifest is wrong or a true box cannot be pixels of its target; InputError if `out` holds another
    run or is in use by one; InputError or LocatorError, with the first reason, if no pair could be located: the
    predictions hold the reasons, and nothing is scored.
    """
    paths = [Path(manifest) for manifest in manifests]
    check_readable(paths)
    labelled, unlabelled = _check_manifests(paths, limit)
    out = Path(out)
    files = _files_in(out)
    total = labelled if limit is None else min(limit, labelled)
    with exclusive_run(out):
        _locate(labelled_pairs(paths, limit), locator, files, paths, total=total, progress=progress)
        metrics, showcase = _score(labelled_pairs(paths, limit), files.predictions, seed)
        metrics["unlabelled"] = unlabelled
        metrics = {"model": locator.name, **metrics}
        write_text(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        write_report(out / "report.html", metrics, showcase)
    return metrics


def discard_evaluation(out: str | Path) -> None:
    """Remove the files of an evaluation in `out`, finished or not, so that the next one starts from the beginning.

    Raises InputError, WriteError.
    """
    folder = Path(out)
    files = _files_in(folder)
    with exclusive_run(folder), write_errors(folder):
        files.check_free(())
        if read_run(files.record) is not None:
            for path in (files.predictions, files.images, *files.others, files.record):
                path.unlink(missing_ok=True)


def score(manifests: Sequence[str | Path], predictions: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """The metrics of stored predictions, without a model.

    Targets are opened for their size only; a pair without its target has no defect size and no baseline and is counted as
    `without_image`. Raises ManifestError, also if all predictions for these pairs are failures.
    """
    paths = [Path(manifest) for manifest in manifests]
    check_readable([*paths, Path(predictions)])
    _, unlabelled = _check_manifests(paths, None)
    metrics = _score(labelled_pairs(paths), Path(predictions), seed)[0]
    metrics["unlabelled"] = unlabelled
    pairs = metrics["overall"]["pairs"]
    if metrics["unpredicted"] == pairs:
        first = metrics["first_reasons"]["unpredicted"]
        raise ManifestError(
            f"{predictions}: no prediction for any of {pairs} pairs, the first: {first}; expected their ids"
        )
    if metrics["unpredicted"] + metrics["errors"] == pairs:
        first = metrics["first_reasons"]["errors"]
        raise ManifestError(f"{predictions}: all of {metrics['errors']} predictions failed, the first: {first}")
    return metrics


def locate_to_file(
    pairs: Iterable[Pair],
    locator: Locator,
    out: str | Path,
    *,
    manifests: Sequence[str | Path] = (),
    total: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Append a prediction for each pair to `out`; pairs already there are skipped, failed ones tried again.

    `OUT.run.json` and `OUT.images.jsonl` beside it record the run; `manifests` are the files that the pairs are from.
    Returns the numbers of pairs `located`, `kept` from an earlier run, and `failed` (stored with their reason); if there are
    any, the number of located pairs with `no_answer`, and the `first_reasons` of both.
    Raises InputError if `out` holds anything else or another run, or is in use by one; InputError or LocatorError, with the
    first reason, if every pair failed.
    """
    path, paths = Path(out), [Path(manifest) for manifest in manifests]
    check_readable(paths)
    make_folder(path.parent)
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected the file to write predictions to, so choose another --out")
    record, images = (path.with_name(f"{path.name}.{ending}") for ending in ("run.json", "images.jsonl"))
    with exclusive_run(path):
        return _locate(pairs, locator, RunFiles(path, path, record, images), paths, total=total, progress=progress)


def _locate(
    pairs: Iterable[Pair],
    locator: Locator,
    files: RunFiles,
    manifests: Sequence[Path],
    *,
    total: int | None,
    progress: bool,
) -> dict[str, Any]:
    """`locate_to_file` with the output already locked."""
    with RunRecord(files, locator, manifests) as record:
        counts = locate_recorded(pairs, locator, record, files.predictions, total=total, progress=progress)
    counts.report()
    return counts.to_dict()


def locate_recorded(
    pairs: Iterable[Pair],
    locator: Locator,
    record: RunRecord,
    predictions: Path,
    *,
    total: int | None,
    progress: bool,
    each: Callable[[Pair, Outcome], None] | None = None,
) -> "Counts":
    """Append a prediction for each pair that is not finished in `record`; `each` is called after its prediction is written.

    Returns the counts, not yet reported. Raises InputError if images have changed, WriteError.
    """
    counts = Counts()
    pending: deque[tuple[Pair, Inputs]] = deque()

    def unfinished() -> Iterator[Pair]:
        for pair in pairs:
            if pair.id in record.done:
                record.check_finished(pair)
                counts.kept += 1
                bar.advance(task)
            else:
                pending.append((pair, record.inputs(pair)))
                yield pair

    def sync() -> None:
        record.sync()  # first: a prediction is valid only if the log has its images
        writer.sync()

    with progress_bar(progress) as bar, PredictionWriter(predictions) as writer:
        task = bar.add_task(printable(locator.name), total=total)
        next_sync = time.monotonic() + SECONDS_BETWEEN_SYNCS
        for outcome in locator.locate_many(unfinished()):
            pair, inputs = pending.popleft()
            if not isinstance(outcome, DifferadError):
                record.add(pair.id, inputs)
            writer.write(pair.id, outcome)
            counts.add(pair.id, outcome)
            if each is not None:
                each(pair, outcome)
            if time.monotonic() >= next_sync:
                sync()
                next_sync = time.monotonic() + SECONDS_BETWEEN_SYNCS
            bar.advance(task)
        sync()
    return counts


@dataclass
class Counts:
    """Numbers of a run's pairs by outcome, with the first failure and the reason of the first missing answer."""

    located: int = 0
    kept: int = 0
    failed: int = 0
    no_answer: int = 0
    failure: DifferadError | None = None
    reason: str = ""

    def add(self, pair_id: str, outcome: Outcome) -> None:
        """Count the outcome of a pair."""
        if isinstance(outcome, DifferadError):
            self.failed += 1
            self.failure = self.failure or outcome
            return
        self.located += 1
        if not outcome.valid:
            self.no_answer += 1
            self.reason = self.reason or f"pair {pair_id!r}: {outcome.why_no_answer}"

    def report(self) -> None:
        """Warn of failures and missing answers. Raises InputError or LocatorError if no pair was located."""
        if self.failure is not None:
            if not self.located + self.kept:
                kind = InputError if isinstance(self.failure, InputError) else LocatorError
                raise kind(f"all {self.failed} pairs failed, the first: {self.failure}")
            tried = self.failed + self.located
            warnings.warn(
                f"{self.failed} of {tried} pairs failed, the first: {self.failure}", InputWarning, stacklevel=4
            )
        if self.no_answer:
            summary = (
                f"none of {self.located} pairs got an answer that counts"
                if self.no_answer == self.located
                else f"{self.no_answer} of {self.located} pairs have no answer"
            )
            warnings.warn(f"{summary}, the first: {self.reason}", InputWarning, stacklevel=4)

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON, with the first reason of each kind."""
        counts: dict[str, Any] = {"located": self.located, "kept": self.kept, "failed": self.failed}
        if self.no_answer:
            counts["no_answer"] = self.no_answer
        reasons = {"failed": str(self.failure or ""), "no_answer": self.reason}
        if any(reasons.values()):
            counts["first_reasons"] = {name: reason for name, reason in reasons.items() if reason}
        return counts


def _check_manifests(paths: Sequence[Path], limit: int | None) -> tuple[int, int]:
    """Read every line, and the headers of the images to evaluate; return the numbers of labelled and unlabelled pairs.

    Warns of unlabelled pairs. Raises ManifestError, also on true boxes that cannot be pixels of their target.
    """
    manifest_of: dict[str, Path] = {}
    labelled = 0
    for path in paths:
        for pair in read_pairs(path):
            if pair.id in manifest_of:
                raise ManifestError(
                    f"{path}: id {pair.id!r} is also in {manifest_of[pair.id]}; expected ids that differ"
                )
            manifest_of[pair.id] = path
            if pair.anomalous is not None:
                labelled += 1
                if limit is None:
                    _check_truth(path, pair)
    if not labelled:
        names = ", ".join(map(str, paths))
        raise ManifestError(
            f"{names}: no labelled pair; expected `boxes`, `mask` or `anomalous` on some line ([] says normal). Unlabelled pairs "
            f"get verdicts, overlays and a report from: differad inspect --pairs {paths[0]} --out DIR"
        )
    for pair in labelled_pairs(paths, limit) if limit is not None else ():
        _check_truth(manifest_of[pair.id], pair)
    unlabelled = len(manifest_of) - labelled
    if unlabelled:
        warnings.warn(
            f"{unlabelled} of {len(manifest_of)} pairs are unlabelled and left out", InputWarning, stacklevel=3
        )
    return labelled, unlabelled


def _check_truth(path: Path, pair: Pair) -> None:
    try:
        size = _target_size(pair)
        check_boxes(pair, size)
        check_mask(pair, size)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None


def _files_in(out: Path) -> RunFiles:
    """The files of an evaluation in the folder `out`, which is created. Raises InputError."""
    make_folder(out)
    names = ("predictions.jsonl", "run.json", "images.jsonl", "metrics.json", "report.html")
    predictions, record, images, *others = (out / name for name in names)
    return RunFiles(out, predictions, record, images, tuple(others))


# Failures that are counted, with the first reason of each.
_FAILURES = ("unpredicted", "errors", "no_answer", "without_image", "predictions_outside")


@dataclass
class _ScoreCounts:
    """Results and counts that scoring collects from a stream of pairs."""

    results: list[PairResult] = field(default_factory=list)
    baselines: dict[str, list[PairResult]] = field(default_factory=lambda: {name: [] for name in BASELINES})
    seconds: list[float] = field(default_factory=list)
    boxes_cut: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_reasons: dict[str, str] = field(default_factory=dict)

    def count(self, name: str, reason: str) -> None:
        """Count a failure of kind `name` and keep the first reason."""
        self.failures[name] += 1
        self.first_reasons.setdefault(name, reason)


def _score(pairs: Iterator[Pair], predictions: Path, seed: int) -> tuple[dict[str, Any], Showcase]:
    index = PredictionIndex(predictions)
    counts, showcase = _ScoreCounts(), Showcase()
    for pair in pairs:
        _add(counts, showcase, pair, index.get(pair.id))
    _warn_of_outside(counts)
    measured = {name: results for name, results in counts.baselines.items() if results}
    metrics, baselines = summarise_with_baselines(counts.results, measured, seed)
    metrics["baselines"] = baselines
    metrics |= {
        **{name: counts.failures[name] for name in _FAILURES},
        "first_reasons": counts.first_reasons,
        "boxes_cut": counts.boxes_cut,
        "unknown_predictions": len(index) - (len(counts.results) - counts.failures["unpredicted"]),
        "median_seconds": statistics.median(counts.seconds) if counts.seconds else None,
    }
    return metrics, showcase


def _warn_of_outside(counts: _ScoreCounts) -> None:
    outside = counts.failures["predictions_outside"]
    if outside:
        warnings.warn(
            f"{outside} of {len(counts.results)} pairs: the predicted box is outside the target or within 0..1; expected "
            "pixels of the target as it is on disk, so these score as misses; the first: "
            f"{counts.first_reasons['predictions_outside']}",
            InputWarning,
            stacklevel=2,
        )


def _add(counts: _ScoreCounts, showcase: Showcase, pair: Pair, prediction: Prediction | None) -> None:
    try:
        size = image_size(pair.target)
    except ImageError as error:
        size = None
        counts.count("without_image", str(error))
    truth = as_boxes(check_boxes(pair, size))
    predicted = as_boxes(prediction.boxes if prediction else None)
    valid = prediction is not None and prediction.is_valid
    result = _result(
        pair, truth, predicted, size, valid=valid, confidence=prediction.confidence if prediction else None
    )
    counts.results.append(result)
    counts.boxes_cut += int((truth != as_boxes(pair.boxes)).any(axis=-1).sum())
    if prediction is None:
        counts.count("unpredicted", f"pair {pair.id!r}")
    elif prediction.error is not None:
        counts.count("errors", prediction.error)
    elif not valid:
        counts.count("no_answer", f"pair {pair.id!r}: {prediction.why_no_answer}")
    if prediction and prediction.seconds is not None:
        counts.seconds.append(prediction.seconds)
    if size is not None:
        if _outside(predicted[:1], *size).any():
            counts.count("predictions_outside", f"pair {pair.id!r}")
        for name, predict in BASELINES.items():
            counts.baselines[name].append(_result(pair, truth, predict(*size), size, valid=True))
    showcase.add(Case(pair, prediction, result))


def _result(
    pair: Pair,
    truth: Boxes,
    predicted: Boxes,
    size: tuple[int, int] | None,
    *,
    valid: bool,
    confidence: float | None = None,
) -> PairResult:
    return PairResult(
        category=pair.category,
        anomalous=pair.anomalous is True,
        iou=pair_iou(predicted, truth) if valid else 0.0,
        gave_box=len(predicted) > 0,
        valid=valid,
        group=pair.group,
        size=size_name(truth, *size) if size else None,
        confidence=confidence,
        has_location=pair.boxes is not None,
    )


def _outside(predicted: Boxes, width: int, height: int) -> NDArray[np.bool_]:
    """Whether each predicted box (N, 4) is in fractions or outside a target of that size in pixels; shape (N,)."""
    return are_fractions(predicted) | is_degenerate(clip(predicted, width, height)) & ~is_degenerate(predicted)


def _target_size(pair: Pair) -> tuple[int, int] | None:
    try:
        return image_size(pair.target)
    except ImageError:
        return None
