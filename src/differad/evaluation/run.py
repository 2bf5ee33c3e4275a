"""Locate many pairs and score them: streamed, resumable, no pair able to stop the others.

`evaluate` checks every manifest before the first picture is opened, appends predictions as they are made, and then scores them
as `score` does from the same files. Neither ever holds more than a few pairs.
"""

import json
import statistics
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes, clip, is_degenerate
from differad.core import Pair
from differad.data.locks import sole_run
from differad.data.manifest import read_pairs
from differad.data.truth import check_boxes, check_mask, in_fractions
from differad.errors import DifferadError, ImageError, InputError, InputWarning, LocatorError, ManifestError
from differad.evaluation.baselines import BASELINES
from differad.evaluation.identity import check_readable
from differad.evaluation.metrics import PairResult, pair_iou, size_name, summarise
from differad.evaluation.predictions import Prediction, PredictionIndex, PredictionWriter
from differad.evaluation.report import Case, Showcase, write_report
from differad.evaluation.run_record import Inputs, RunFiles, RunRecord, read_run
from differad.files import SECONDS_BETWEEN_SYNCS, make_folder, write_errors, write_text
from differad.images import image_size
from differad.locators import Locator
from differad.locators.base import Outcome
from differad.progress import progress_bar


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

    A second call with the same arguments goes on where the first stopped and tries failed pairs again. `limit` takes the
    first pairs only; `seed` draws the bootstrap. Returns the metrics. Raises ManifestError before any work when a manifest
    is wrong or a true box cannot be pixels of its target; InputError when `out` holds another run or one is at work there;
    where no pair at all could be located, with the first reason, InputError or LocatorError: the predictions hold the
    reasons, and nothing is scored.
    """
    paths = [Path(manifest) for manifest in manifests]
    check_readable(paths)
    labelled = _check_manifests(paths, limit)
    out = Path(out)
    files = _files_in(out)
    total = labelled if limit is None else min(limit, labelled)
    pairs = _first(_labelled_pairs(paths), limit)
    with sole_run(out):
        _locate(pairs, locator, files, paths, total=total, progress=progress)
        metrics, showcase = _score(_first(_all_pairs(paths), None), files.predictions, limit, seed)
        metrics = {"model": locator.name, **metrics}
        write_text(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        write_report(out / "report.html", metrics, showcase)
    return metrics


def discard_evaluation(out: str | Path) -> None:
    """Remove what an evaluation left in `out`, finished or not, so that the next one starts anew.

    Raises InputError, WriteError.
    """
    folder = Path(out)
    files = _files_in(folder)
    with sole_run(folder), write_errors(folder):
        files.check_free(())
        if read_run(files.record) is not None:
            for path in (files.predictions, files.images, *files.others, files.record):
                path.unlink(missing_ok=True)


def score(manifests: Sequence[str | Path], predictions: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """The metrics of stored predictions, without a model.

    Targets are opened for their size alone; where one is missing, its pair has no defect size and no baseline, which is
    counted as `without_image`. Raises ManifestError.
    """
    paths = [Path(manifest) for manifest in manifests]
    _check_manifests(paths, None)
    return _score(_all_pairs(paths), Path(predictions), None, seed)[0]


def locate_to_file(
    pairs: Iterable[Pair],
    locator: Locator,
    out: str | Path,
    *,
    manifests: Sequence[str | Path] = (),
    total: int | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Append a prediction for each pair to `out`; pairs already there are skipped, failed ones tried again.

    `OUT.run.json` and `OUT.images.jsonl` beside it say what it was made with; `manifests` are the files that the pairs are
    from. Returns how many were `located`, `kept` from an earlier run, and `failed` (kept in the file with their reason).
    Raises InputError when `out` holds anything else or another run, or one is at work; where every pair failed, with the
    first reason, InputError or LocatorError.
    """
    path, paths = Path(out), [Path(manifest) for manifest in manifests]
    check_readable(paths)
    make_folder(path.parent)
    if path.is_dir():
        raise InputError(f"{path}: a folder; expected the file to write predictions to, so choose another --out")
    record, images = (path.with_name(f"{path.name}.{ending}") for ending in ("run.json", "images.jsonl"))
    with sole_run(path):
        return _locate(pairs, locator, RunFiles(path, path, record, images), paths, total=total, progress=progress)


def _locate(
    pairs: Iterable[Pair],
    locator: Locator,
    files: RunFiles,
    manifests: Sequence[Path],
    *,
    total: int | None,
    progress: bool,
) -> dict[str, int]:
    """`locate_to_file` where the place is locked."""
    counts = _Counts()
    waiting: deque[tuple[str, Inputs]] = deque()

    def to_do() -> Iterator[Pair]:
        for pair in pairs:
            if pair.id in record.done:
                record.check_finished(pair)
                counts.kept += 1
                bar.advance(task)
            else:
                waiting.append((pair.id, record.inputs(pair)))
                yield pair

    def sync() -> None:
        record.sync()  # first: a prediction counts where the log has its images
        writer.sync()

    with (
        RunRecord(files, locator, manifests) as record,
        progress_bar(progress) as bar,
        PredictionWriter(files.predictions) as writer,
    ):
        task = bar.add_task(locator.name, total=total)
        due = time.monotonic() + SECONDS_BETWEEN_SYNCS
        for outcome in locator.locate_many(to_do()):
            pair_id, inputs = waiting.popleft()
            if not isinstance(outcome, DifferadError):
                record.add(pair_id, inputs)
            writer.write(pair_id, outcome)
            if time.monotonic() >= due:
                sync()
                due = time.monotonic() + SECONDS_BETWEEN_SYNCS
            counts.add(outcome)
            bar.advance(task)
        sync()
    counts.report()
    return {"located": counts.located, "kept": counts.kept, "failed": counts.failed}


@dataclass
class _Counts:
    """What became of the pairs of a run."""

    located: int = 0
    kept: int = 0
    failed: int = 0
    invalid: int = 0
    failure: DifferadError | None = None

    def add(self, outcome: Outcome) -> None:
        if isinstance(outcome, DifferadError):
            self.failed += 1
            self.failure = self.failure or outcome
        else:
            self.located += 1
            self.invalid += not outcome.valid

    def report(self) -> None:
        """Warn of what got no answer. Raises InputError or LocatorError where nothing at all was located."""
        if self.failure is not None:
            if not self.located + self.kept:
                kind = InputError if isinstance(self.failure, InputError) else LocatorError
                raise kind(f"all {self.failed} pairs failed, the first: {self.failure}")
            tried = self.failed + self.located
            warnings.warn(
                f"{self.failed} of {tried} pairs failed, the first: {self.failure}", InputWarning, stacklevel=4
            )
        if self.located and self.invalid == self.located:
            warnings.warn(
                f"none of {self.located} pairs got an answer that counts; `reasoning` in the predictions says why",
                InputWarning,
                stacklevel=4,
            )


def _check_manifests(paths: Sequence[Path], limit: int | None) -> int:
    """Read every line once, and the headers of the first `limit` labelled pairs; return how many pairs are labelled.

    Raises ManifestError, on true boxes that cannot be pixels of their target too.
    """
    seen: dict[str, Path] = {}
    labelled = 0
    for path in paths:
        for pair in read_pairs(path):
            if pair.id in seen:
                raise ManifestError(f"{path}: id {pair.id!r} stands in {seen[pair.id]} too; expected ids that differ")
            seen[pair.id] = path
            if pair.anomalous is None:
                continue
            if limit is None or labelled < limit:
                _check_truth(path, pair)
            labelled += 1
    if not labelled:
        names = ", ".join(map(str, paths))
        raise ManifestError(
            f"{names}: no labelled pair; expected `boxes`, `mask` or `anomalous` on some line ([] says normal)"
        )
    return labelled


def _check_truth(path: Path, pair: Pair) -> None:
    try:
        size = _target_size(pair)
        check_boxes(pair, size)
        check_mask(pair, size)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None


def _files_in(out: Path) -> RunFiles:
    """The files of an evaluation in the folder `out`, which is made. Raises InputError."""
    make_folder(out)
    names = ("predictions.jsonl", "run.json", "images.jsonl", "metrics.json", "report.html")
    predictions, record, images, *others = (out / name for name in names)
    return RunFiles(out, predictions, record, images, tuple(others))


def _all_pairs(paths: Sequence[Path]) -> Iterator[Pair]:
    for path in paths:
        yield from read_pairs(path)


def _labelled_pairs(paths: Sequence[Path]) -> Iterator[Pair]:
    return (pair for pair in _all_pairs(paths) if pair.anomalous is not None)


def _first(pairs: Iterator[Pair], limit: int | None) -> Iterator[Pair]:
    for count, pair in enumerate(pairs):
        if limit is not None and count >= limit:
            return
        yield pair


@dataclass
class _Tally:
    """What scoring gathers while the pairs stream by."""

    results: list[PairResult] = field(default_factory=list)
    baselines: dict[str, list[PairResult]] = field(default_factory=lambda: {name: [] for name in BASELINES})
    seconds: list[float] = field(default_factory=list)
    unlabelled: int = 0
    unpredicted: int = 0
    errors: int = 0
    without_image: int = 0
    boxes_cut: int = 0
    predictions_outside: int = 0


def _score(pairs: Iterator[Pair], predictions: Path, limit: int | None, seed: int) -> tuple[dict[str, Any], Showcase]:
    index = PredictionIndex(predictions)
    tally, showcase = _Tally(), Showcase()
    for pair in pairs:
        if pair.anomalous is None:
            tally.unlabelled += 1
            continue
        if limit is not None and len(tally.results) >= limit:
            break
        _add(tally, showcase, pair, index.get(pair.id))
    _warn_of_outside(tally)
    metrics = summarise(tally.results, seed)
    metrics["baselines"] = {
        name: {part: values for part, values in summarise(results, seed).items() if part in ("overall", "categories")}
        for name, results in tally.baselines.items()
        if results
    }
    metrics |= {
        "unlabelled": tally.unlabelled,
        "unpredicted": tally.unpredicted,
        "errors": tally.errors,
        "without_image": tally.without_image,
        "boxes_cut": tally.boxes_cut,
        "predictions_outside": tally.predictions_outside,
        "unknown_predictions": len(index) - (len(tally.results) - tally.unpredicted),
        "median_seconds": statistics.median(tally.seconds) if tally.seconds else None,
    }
    return metrics, showcase


def _warn_of_outside(tally: _Tally) -> None:
    if tally.predictions_outside:
        warnings.warn(
            f"{tally.predictions_outside} of {len(tally.results)} pairs: the predicted box lies outside the target or within "
            "0..1; expected pixels of the target as it is on disk, so these score as misses",
            InputWarning,
            stacklevel=2,
        )


def _add(tally: _Tally, showcase: Showcase, pair: Pair, prediction: Prediction | None) -> None:
    size = _target_size(pair)
    truth = as_boxes(check_boxes(pair, size))
    predicted = as_boxes(prediction.boxes if prediction else None)
    valid = prediction is not None and prediction.is_valid
    result = _result(
        pair, truth, predicted, size, valid=valid, confidence=prediction.confidence if prediction else None
    )
    tally.results.append(result)
    tally.boxes_cut += int((truth != as_boxes(pair.boxes)).any(axis=-1).sum())
    tally.unpredicted += prediction is None
    tally.errors += prediction is not None and prediction.error is not None
    if prediction and prediction.seconds is not None:
        tally.seconds.append(prediction.seconds)
    if size is None:
        tally.without_image += 1
    else:
        tally.predictions_outside += bool(_outside(predicted[:1], *size).any())
        for name, predict in BASELINES.items():
            tally.baselines[name].append(_result(pair, truth, predict(*size), size, valid=True))
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
        placed=pair.boxes is not None,
    )


def _outside(predicted: Boxes, width: int, height: int) -> NDArray[np.bool_]:
    """Which predicted boxes (N, 4) are no pixels of a target of that size."""
    return in_fractions(predicted) | is_degenerate(clip(predicted, width, height)) & ~is_degenerate(predicted)


def _target_size(pair: Pair) -> tuple[int, int] | None:
    try:
        return image_size(pair.target)
    except ImageError:
        return None
