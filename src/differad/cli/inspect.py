"""`differad inspect`: images to inspect against one or a folder of a good part's images; no labels and no list needed."""

from pathlib import Path
from typing import Annotated

import typer

from differad.cli.options import FailOnAnomaly, Family, LocatorOptions, Model, open_locator, print_json
from differad.cli.output import say
from differad.cli.table import VerdictTable
from differad.errors import OptionError
from differad.evaluation.inspection import Inspection, inspect_folder, inspect_pairs
from differad.evaluation.inspection_rows import Row


def inspect_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for results.csv, overlays and report.html.")],
    good: Annotated[
        Path | None,
        typer.Argument(metavar="GOOD", help="An image of a good part, or a folder of them.", show_default=False),
    ] = None,
    targets: Annotated[
        list[Path] | None,
        typer.Argument(metavar="TARGETS...", help="Images to inspect, or folders of them.", show_default=False),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", help="Inspect the pairs of this pairs.jsonl in place of GOOD and TARGETS.")
    ] = None,
    model: Model = None,
    family: Family = None,
    option: LocatorOptions = None,
    fail_on_anomaly: FailOnAnomaly = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document a line for each target.")] = False,
) -> None:
    """Inspect a folder: verdicts as a table and CSV, overlays, and a report. Run it again to continue.

    Example: differad inspect good/ test/ --out inspected
    """
    _check_arguments(good, targets, pairs)
    table = VerdictTable()

    def each(row: Row) -> None:
        if as_json:
            print_json(row.to_dict(), indent=None)
        else:
            table.add(row)

    locator = open_locator(model, family, option)
    if pairs is not None:
        inspection = inspect_pairs(pairs, locator, out, each=each)
    else:
        inspection = inspect_folder(good or "", targets or [], locator, out, each=each)
    if not as_json:
        table.print()
    say(_summary(inspection, out), err=as_json)
    inspection.check()
    if fail_on_anomaly:
        raise typer.Exit(inspection.exit_code)


def _check_arguments(good: Path | None, targets: list[Path] | None, pairs: Path | None) -> None:
    if pairs is not None and good is not None:
        raise OptionError(f"inspect: {good} beside --pairs; give a manifest or images, not both")
    if pairs is None and (good is None or not targets):
        raise OptionError(
            "inspect: expected GOOD and TARGETS, images or folders of them: differad inspect good/ test/ --out DIR"
        )


def _summary(inspection: Inspection, out: Path) -> str:
    return (
        f"{inspection.targets} targets: {inspection.abnormal} abnormal, {inspection.normal} normal, "
        f"{inspection.no_answer} without an answer: {out / 'results.csv'}, {out / 'report.html'}"
    )
