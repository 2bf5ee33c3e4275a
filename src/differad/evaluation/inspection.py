"""Inspect unlabelled targets: verdicts as lines and as a table, overlays, and a report.

The output folder holds `pairs.jsonl`, `predictions.jsonl`, `results.csv`, `overlays/` and `report.html`. A later run continues
from the predictions; all else follows from them. Nothing is scored.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from differad.boxes import as_boxes
from differad.core import Pair
from differad.data.exchange.shared import image_path
from differad.data.folder_pairs import list_parts, pair_with_nearest
from differad.data.locks import exclusive_run
from differad.data.manifest import check_readable, read_pairs, write_pairs
from differad.drawing import draw_boxes, draw_no_answer, thumbnail
from differad.errors import ImageError, InputError, ManifestError, NoAnswerError
from differad.evaluation.inspection_report import Gallery, write_inspection_report
from differad.evaluation.inspection_rows import OVERLAYS, Row, header_line
from differad.evaluation.predictions import Prediction, PredictionIndex, to_line
from differad.evaluation.run import Counts, locate_recorded
from differad.evaluation.run_record import RunFiles, RunRecord
from differad.files import AppendFile, make_folder, write_lines
from differad.images import read_image, write_image
from differad.locators import Locator
from differad.locators.base import Outcome

RESULTS = "results.csv"
# Of an overlay in pixels: a side of a JPEG has 65,535 at most.
_LONGEST_SIDE = 65_000


@dataclass
class Inspection:
    """Numbers of abnormal and normal targets and of those without an answer, with the reason of the first of the last."""

    abnormal: int = 0
    normal: int = 0
    no_answer: int = 0
    first_reason: str = ""
    counts: Counts = field(default_factory=Counts)

    @property
    def targets(self) -> int:
        """Number of all targets."""
        return self.abnormal + self.normal + self.no_answer

    @property
    def exit_code(self) -> int:
        """3 if a target is abnormal, else 4 if one has no answer, else 0."""
        return 3 if self.abnormal else 4 if self.no_answer else 0

    def add(self, row: Row) -> None:
        """Count a row."""
        if row.prediction.anomalous is None:
            self.no_answer += 1
            self.first_reason = self.first_reason or f"{row.target}: {row.reason}"
        elif row.prediction.anomalous:
            self.abnormal += 1
        else:
            self.normal += 1

    def check(self) -> None:
        """Warn of failures. Raises InputError or LocatorError if all targets failed, NoAnswerError if none has an answer."""
        self.counts.report()
        if not self.abnormal + self.normal:
            raise NoAnswerError(f"no target has an answer, the first: {self.first_reason}")


def inspect_folder(
    good: str | Path,
    targets: Sequence[str | Path],
    locator: Locator,
    out: str | Path,
    *,
    each: Callable[[Row], None] | None = None,
    progress: bool = True,
) -> Inspection:
    """Compare each target with the most similar normal sample, and write the results to the folder `out`.

    `good` is an image or a folder of them, `targets` are images and folders, searched at any depth. A second call continues
    where the first stopped: finished targets are kept with their reference, new ones are added, failed ones are tried again.
    `each` is called with every row: those of an earlier call first, then each new one. Raises InputError if there is nothing to
    inspect, no normal sample can be read, `out` holds another run or images have changed; WriteError. Failures of single
    targets are in the rows; `Inspection.check` reports them.
    """
    target_paths = [Path(target) for target in targets]
    folder = list_parts(Path(good), target_paths)
    out = Path(out)
    for path in filter(Path.is_dir, (Path(good), *target_paths)):
        if out.exists() and out.samefile(path):
            raise InputError(f"--out {out}: holds the images that are compared; choose another folder")

    def pairs(record: RunRecord) -> list[Pair]:
        manifest = out / "pairs.jsonl"
        earlier = read_pairs(manifest) if record.done and manifest.exists() else ()
        references = {pair.id: image_path(pair, "reference") for pair in earlier if pair.id in record.done}
        return pair_with_nearest(folder, references, progress=progress)

    return _inspect(pairs, (), locator, out, each, progress)


def inspect_pairs(
    manifest: str | Path,
    locator: Locator,
    out: str | Path,
    *,
    each: Callable[[Row], None] | None = None,
    progress: bool = True,
) -> Inspection:
    """As `inspect_folder` for the pairs of a manifest, labelled or not. Also raises ManifestError."""
    path = Path(manifest)
    check_readable([path])
    pairs = list(read_pairs(path))
    if not pairs:
        raise ManifestError(f"{path}: no pair; expected one JSON object a line")
    return _inspect(lambda _: pairs, [path], locator, Path(out), each, progress)


def _inspect(
    make_pairs: Callable[[RunRecord], list[Pair]],
    manifests: Sequence[Path],
    locator: Locator,
    out: Path,
    each: Callable[[Row], None] | None,
    progress: bool,
) -> Inspection:
    make_folder(out)
    names = ("predictions.jsonl", "run.json", "images.jsonl", "pairs.jsonl", RESULTS, "report.html")
    predictions, record_file, images, *others = (out / name for name in names)
    files = RunFiles(out, predictions, record_file, images, tuple(others), out / OVERLAYS)
    with exclusive_run(out):
        with RunRecord(files, locator, manifests) as record:
            pairs = make_pairs(record)
            for pair in pairs:
                if pair.id in record.done:
                    record.check_finished(pair)
            write_pairs(out / "pairs.jsonl", pairs)
            counts = _locate(pairs, locator, record, predictions, out, each or (lambda _: None), progress)
        inspection, gallery = Inspection(counts=counts), Gallery()
        write_lines(out / RESULTS, _finish(_rows(pairs, predictions), out, inspection, gallery))
        numbers = {
            "abnormal": inspection.abnormal,
            "normal": inspection.normal,
            "without an answer": inspection.no_answer,
        }
        write_inspection_report(out / "report.html", locator.name, numbers, gallery)
    return inspection


def _locate(
    pairs: list[Pair],
    locator: Locator,
    record: RunRecord,
    predictions: Path,
    out: Path,
    each: Callable[[Row], None],
    progress: bool,
) -> Counts:
    """Locate unfinished targets; append a line to `results.csv` for each finished one, in the order in which they finish."""

    def earlier() -> Iterator[str]:
        yield header_line()
        for row in _rows((pair for pair in pairs if pair.id in record.done), predictions):
            each(row)
            yield row.to_csv()

    write_lines(out / RESULTS, earlier())
    with AppendFile(out / RESULTS) as results:

        def add(pair: Pair, outcome: Outcome) -> None:
            row = Row(pair, Prediction.model_validate_json(to_line(pair.id, outcome)))
            results.append(row.to_csv())
            each(row)
            _draw(row, out)  # last, so that a failure to write the overlay loses no verdict

        return locate_recorded(pairs, locator, record, predictions, total=len(pairs), progress=progress, each=add)


def _finish(rows: Iterable[Row], out: Path, inspection: Inspection, gallery: Gallery) -> Iterator[str]:
    """The lines of `results.csv` in the order of the targets; draws overlays lost by a kill and counts all rows."""
    yield header_line()
    for row in rows:
        if not (out / row.overlay).is_file():
            _draw(row, out)
        inspection.add(row)
        gallery.add(row)
        yield row.to_csv()


def _rows(pairs: Iterable[Pair], predictions: Path) -> Iterator[Row]:
    """The rows of pairs that have finished or failed."""
    index = PredictionIndex(predictions) if predictions.exists() else None
    for pair in pairs:
        prediction = index.get(pair.id) if index is not None else None
        if prediction is not None:
            yield Row(pair, prediction)


def _draw(row: Row, out: Path) -> None:
    """Write the overlay of a row that has one. Raises WriteError."""
    if not row.overlay:
        return
    try:
        target = read_image(row.pair.target)
        if row.prediction.anomalous:
            overlay = draw_boxes(target, predicted=as_boxes(row.prediction.boxes), scores=row.prediction.scores)
        else:
            overlay = draw_no_answer(target)
        if max(overlay.shape) > _LONGEST_SIDE:
            overlay = thumbnail(overlay, _LONGEST_SIDE)
        write_image(out / row.overlay, overlay)
    except ImageError:  # the file was removed after the target was located: the verdict remains valid
        return
