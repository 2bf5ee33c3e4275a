"""`differad locate`: one pair on the command line, or a manifest of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from differad.cli.options import AsJson, FailOnAnomaly, Family, LocatorOptions, Model, open_locator, print_json
from differad.cli.output import say
from differad.core import Location, Pair
from differad.data.manifest import check_readable, read_pairs
from differad.drawing import draw_boxes, draw_no_answer
from differad.errors import ImageError, ManifestError, NoAnswerError, OptionError
from differad.evaluation.predictions import Prediction, read_predictions
from differad.evaluation.run import locate_to_file
from differad.images import RGB, check_drawn, check_ending, image_file, read_image, read_images, write_drawn
from differad.locators.comparable import visibility_fault

_UNANSWERED = {"failed": "failed", "no_answer": "located without an answer"}


def locate_command(
    reference: Annotated[Path | None, typer.Argument(help="An image of a good part.", show_default=False)] = None,
    target: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TARGET", help="An image of the part to inspect.", show_default=False),
    ] = None,
    model: Model = None,
    family: Family = None,
    option: LocatorOptions = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the target with its boxes to this image.")] = None,
    pairs: Annotated[Path | None, typer.Option("--pairs", help="Locate every pair of this pairs.jsonl.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --pairs: append predictions to this file.")] = None,
    fail_on_anomaly: FailOnAnomaly = False,
    as_json: AsJson = False,
) -> None:
    """Say whether the target is abnormal, and where.

    Example: differad locate good.png test.png --save overlay.png

    Many: differad inspect good/ test/ --out inspected, or of a list: differad locate --pairs pairs.jsonl --out predictions.jsonl
    """
    if pairs is not None:
        predictions = _locate_manifest(pairs, reference, out, save, model, family, option, as_json)
        if fail_on_anomaly:
            raise typer.Exit(exit_code(read_predictions(predictions)))
        _check_any_answered(predictions)
        return
    first, second = _one_pair(reference, target)
    if out is not None:
        raise OptionError(f"--out {out}: goes with --pairs; for one pair use --json or --save")
    if save is not None:
        check_ending(save)
        _refuse_input(save, first, second)
        check_drawn(save)
    location = open_locator(model, family, option).locate(Pair(reference=first, target=second))
    if as_json:
        print_json(location.to_dict())
    else:
        say(describe(location))
    if save is not None:
        write_drawn(save, _overlay(read_image(second), location))
    if fail_on_anomaly:
        raise typer.Exit(exit_code([location]))
    _check_answered(location, first, second)


def _one_pair(reference: Path | None, targets: list[Path] | None) -> tuple[Path, Path]:
    """The two images of one pair. Raises OptionError, which names the command for folders and for many images."""
    if reference is None or not targets:
        raise OptionError("locate: expected REFERENCE and TARGET, or --pairs with --out; folders: differad inspect")
    folder = next((path for path in (reference, *targets) if path.is_dir()), None)
    if len(targets) == 1 and folder is None:
        return reference, targets[0]
    shown = f"{targets[0]}" if len(targets) == 1 else f"{targets[0]} …"
    what = f"{folder} is a folder" if folder else f"{len(targets)} targets"
    raise OptionError(
        f"locate: {what}; it compares two images. For many: differad inspect {reference} {shown} --out DIR"
    )


def exit_code(answers: Iterable[Location | Prediction]) -> int:
    """The exit code of --fail-on-anomaly: 3 if any target is abnormal, else 4 if one has no answer, else 0."""
    code = 0
    for answer in answers:
        if answer.anomalous:
            return 3
        code = 4 if answer.anomalous is None else code
    return code


def _overlay(target: RGB, location: Location) -> RGB:
    if not location.valid:
        return draw_no_answer(target)
    return draw_boxes(target, predicted=location.boxes, scores=location.scores)


def _check_answered(location: Location, reference: Path, target: Path) -> None:
    """Raise ImageError if there is no answer because an image shows nothing, NoAnswerError if there is none for other reasons."""
    if location.valid:
        return
    if not location.comparable:
        for path, image in zip((reference, target), read_images(reference, target), strict=True):
            fault = visibility_fault(image)
            if fault is not None:
                raise ImageError(f"{path}: {fault}: there is nothing to compare, so no answer; take the image again")
    raise NoAnswerError(f"{target}: no answer: {location.why_no_answer}")


def _check_any_answered(predictions: Path) -> None:
    """Raise NoAnswerError if a file of predictions holds no answer."""
    first = None
    for prediction in read_predictions(predictions):
        if prediction.is_valid:
            return
        first = first or f"pair {prediction.id!r}: {prediction.why_no_answer}"
    if first is not None:
        raise NoAnswerError(f"{predictions}: no pair has an answer, the first: {first}")


def _refuse_input(save: Path, *images: Path) -> None:
    """Raise OptionError if `save` would overwrite one of the images that are compared."""
    for image in map(image_file, images):
        if save.exists() and image.exists() and save.samefile(image):
            raise OptionError(f"--save {save}: is {image}, an image that is compared; choose another name")


def describe(location: Location) -> str:
    """A location as a few lines of text."""
    lines = [_verdict(location)]
    scores = location.scores if len(location.scores) else [None] * len(location.boxes)
    for box, score in zip(location.boxes, scores, strict=True):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        lines.append(f"  box ({x1}, {y1}) to ({x2}, {y2})" + ("" if score is None else f", score {score:.2f}"))
    if location.confidence is not None:
        threshold = "" if location.threshold is None else f" (threshold {location.threshold:.2f})"
        lines.append(f"  abnormal with confidence {location.confidence:.2f}{threshold}")
    if location.reasoning:
        lines.append(f"  {location.reasoning}")
    lines.append(f"  {location.model}, {location.seconds:.2f} s")
    return "\n".join(lines)


def _verdict(location: Location) -> str:
    if not location.comparable:
        return "not comparable"
    if not location.valid:
        return "unreadable answer"
    return "abnormal" if location.anomalous else "normal"


def _locate_manifest(
    pairs: Path,
    reference: Path | None,
    out: Path | None,
    save: Path | None,
    model: str | None,
    family: str | None,
    option: list[str] | None,
    as_json: bool,
) -> Path:
    """Locate the pairs of a manifest and print the counts; return the path of the predictions."""
    if reference is not None:
        raise OptionError(f"locate: {reference} beside --pairs; give a manifest or two images, not both")
    if save is not None:
        raise OptionError(f"--save {save}: goes with one pair; `differad evaluate` writes a report of many")
    if out is None:
        raise OptionError("locate --pairs: --out is missing; expected the file to write predictions to")
    check_readable([pairs])
    if next(read_pairs(pairs), None) is None:
        raise ManifestError(f"{pairs}: no pair; expected one JSON object a line")
    counts = locate_to_file(read_pairs(pairs), open_locator(model, family, option), out, manifests=[pairs])
    if as_json:
        print_json(counts)
    else:
        say(f"{counts['located']} located, {counts['kept']} already there, {counts['failed']} failed: {out}")
        for name, reason in counts.get("first_reasons", {}).items():
            say(f"  {counts[name]} {_UNANSWERED[name]}, the first: {reason}")
    return out
