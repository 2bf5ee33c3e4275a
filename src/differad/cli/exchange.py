"""`differad export` and `differad import`: pairs and predictions to annotation tools, and corrected boxes from them."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from differad.boxes import Boxes, as_boxes
from differad.cli.options import AsJson, print_json
from differad.cli.output import say
from differad.data.exchange.registry import ANNOTATION_FORMATS, export_pairs, import_pairs
from differad.data.exchange.shared import URL_PREFIX, Predictions, Scores
from differad.errors import InputWarning, ManifestError
from differad.evaluation.predictions import Prediction, PredictionIndex

Format = Annotated[
    str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(ANNOTATION_FORMATS)}.", show_default=False)
]
Manifest = Annotated[Path, typer.Argument(metavar="PAIRS", help="The pairs.jsonl.", show_default=False)]
Root = Annotated[
    Path | None, typer.Option("--root", help="Folder that image names are relative to; left out: that of PAIRS.")
]


def export_command(
    name: Format,
    pairs: Manifest,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the files.", show_default=False)],
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="A predictions.jsonl to export for review.")
    ] = None,
    root: Root = None,
    copy: Annotated[bool, typer.Option("--copy", help="yolo: copy the images instead of linking them.")] = False,
    url_prefix: Annotated[
        str, typer.Option("--url-prefix", help="label-studio: prefix of the images' names.")
    ] = URL_PREFIX,
    as_json: AsJson = False,
) -> None:
    """Write pairs, and predictions, in the format of an annotation tool or a trainer.

    Example: differad export label-studio pairs.jsonl review --predictions predictions.jsonl
    """
    answers = None if predictions is None else load_predictions(predictions)
    summary = export_pairs(name, pairs, out, predictions=answers, root=root, copy=copy, url_prefix=url_prefix)
    if as_json:
        print_json(summary)
        return
    unknown = f", {summary['place_unknown']} abnormal at an unknown place" if summary["place_unknown"] else ""
    say(
        f"{summary['pairs']} pairs ({summary['unlabelled']} unlabelled{unknown}, {summary['boxes']} boxes, "
        f"{summary['predictions']} predictions) written to {out}: {', '.join(summary['files'])}"
    )
    if summary["cut_boxes"] or summary["unknown_predictions"]:
        say(
            f"{summary['cut_boxes']} boxes were cut off at the image's edge; {summary['unknown_predictions']} predictions "
            "have an id that is not in the manifest",
            err=True,
        )


def import_command(
    name: Format,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What the tool exported (yolo: the folder).", show_default=False)
    ],
    pairs: Manifest,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new pairs.jsonl.", show_default=False)],
    root: Root = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="List and skip what is wrong; such a pair keeps its true boxes.")
    ] = False,
    empty_is_normal: Annotated[
        bool,
        typer.Option("--empty-is-normal", help="Unlabelled pairs whose images have no box in FILE are normal."),
    ] = False,
    masks: Annotated[
        Path | None,
        typer.Option("--masks", help="A new folder for masks of annotations that are not upright rectangles."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import corrected boxes into a new manifest; pairs that the file does not mention keep their true boxes.

    Example: differad import label-studio export.json pairs.jsonl corrected.jsonl
    """
    summary = import_pairs(
        name, file, pairs, out, root=root, skip_bad=skip_bad, empty_is_normal=empty_is_normal, masks=masks
    )
    for problem in summary["problems"]:
        say(f"skipped: {problem}", err=True)
    if as_json:
        print_json(summary)
        return
    say(
        f"{summary['pairs']} pairs written to {out}: {summary['corrected']} corrected, {summary['confirmed']} confirmed, "
        f"{summary['kept']} kept; {summary['skipped']} entries skipped, {summary['cut_boxes']} boxes cut off at the edge"
    )
    if summary["crowd_regions"]:
        say(f"{summary['crowd_regions']} crowd regions (iscrowd 1) left out: they mark no single defect", err=True)
    if summary["place_unknown"]:
        say(f"{summary['place_unknown']} pairs are abnormal at an unknown place; draw their boxes", err=True)


def load_predictions(path: Path) -> Predictions:
    """Answers of a file of predictions by id, boxes (N, 4) in pixels, scores (N,) or (0,); of an id's lines the last counts.

    They are read from the file on access. Lines that are no answers are left out, with a warning. Raises ManifestError.
    """
    index = PredictionIndex(path)
    answered, unanswered, reason = set[str](), 0, ""
    for prediction in index:
        if prediction.why_no_answer is None:
            _boxes_and_scores(prediction, path)
            answered.add(prediction.id)
        else:
            unanswered += 1
            reason = reason or f"pair {prediction.id!r}: {prediction.why_no_answer}"
    if unanswered:
        summary = f"{path}: {unanswered} predictions are no answers and were left out"
        warnings.warn(f"{summary}, the first: {reason}", InputWarning, stacklevel=2)
    return _Answers(path, index, answered)


class _Answers(Mapping[str, tuple[Boxes, Scores]]):
    """The answers of a file of predictions."""

    def __init__(self, path: Path, index: PredictionIndex, ids: set[str]) -> None:
        self._path, self._index, self._ids = path, index, ids

    def __getitem__(self, pair_id: str) -> tuple[Boxes, Scores]:
        prediction = self._index.get(pair_id) if pair_id in self._ids else None
        if prediction is None:
            raise KeyError(pair_id)
        return _boxes_and_scores(prediction, self._path)

    def __contains__(self, pair_id: object) -> bool:
        return pair_id in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def _boxes_and_scores(prediction: Prediction, path: Path) -> tuple[Boxes, Scores]:
    boxes, scores = as_boxes(prediction.boxes), np.asarray(prediction.scores or [], dtype=np.float64)
    if len(scores) not in (0, len(boxes)):
        raise ManifestError(
            f"{path}: id {prediction.id!r}: {len(scores)} scores for {len(boxes)} boxes; expected one each, or none"
        )
    return boxes, scores
