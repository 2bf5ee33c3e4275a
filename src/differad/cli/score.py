"""`differad score`: the metrics of stored predictions, without a model."""

from pathlib import Path
from typing import Annotated

import typer

from differad.cli.options import AsJson, print_json
from differad.cli.table import print_metrics
from differad.evaluation.run import score


def score_command(
    pairs: Annotated[Path, typer.Argument(help="The pairs.jsonl with the true boxes.", show_default=False)],
    predictions: Annotated[Path, typer.Argument(help="The predictions.jsonl to score.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Score stored predictions against the true boxes, without a model.

    Example: differad score pairs.jsonl predictions.jsonl --json
    """
    metrics = score([pairs], predictions)
    if as_json:
        print_json(metrics)
    else:
        print_metrics(metrics)
