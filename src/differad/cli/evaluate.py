"""`differad evaluate`: locate every labelled pair, score it and write the report."""

from pathlib import Path
from typing import Annotated

import typer

from differad.cli.options import AsJson, Family, LocatorOptions, Model, open_locator, print_json
from differad.cli.output import say
from differad.cli.table import print_metrics
from differad.evaluation.run import evaluate

Manifests = Annotated[list[Path], typer.Argument(help="One or more pairs.jsonl.", show_default=False)]


def evaluate_command(
    manifests: Manifests,
    out: Annotated[Path, typer.Option("--out", help="Folder for predictions.jsonl, metrics.json and report.html.")],
    model: Model = None,
    family: Family = None,
    option: LocatorOptions = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Evaluate at most this many pairs, spread over the manifests, normal and abnormal."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Locate every labelled pair and score it; a second run continues where the first stopped.

    Example: differad evaluate pairs.jsonl --model difference --out runs/difference
    """
    metrics = evaluate(manifests, open_locator(model, family, option), out, limit=limit)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics)
        say(f"report: {out / 'report.html'}")
