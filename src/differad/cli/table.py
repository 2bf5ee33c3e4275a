"""Metrics, and verdicts, as a table in the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from differad.evaluation.inspection_rows import Row
from differad.text import printable

# Headings short enough that a row fits into 80 columns.
COLUMNS = {
    "miou": "mIoU",
    "acc_0.3": "Acc@0.3",
    "f1_0.3": "F1@0.3",
    "detection_f1": "det F1",
    "normal_accuracy": "normal",
    "valid": "valid",
}


WITH_INTERVAL = ("miou", "acc_0.3")


def print_metrics(metrics: dict[str, Any]) -> None:
    """Print each category, all pairs and the trivial baselines as a table on stdout, with further counts below it."""
    table = Table("", "pairs", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in COLUMNS.values():
        table.add_column(heading, no_wrap=True)
    rows = {**metrics["categories"], "all pairs": metrics["overall"]}
    for name, values in rows.items():
        table.add_row(printable(name), str(values["pairs"]), *(_cell(values, column) for column in COLUMNS))
    for name, baseline in metrics.get("baselines", {}).items():
        overall = baseline["overall"]
        table.add_row(name.replace("_", " "), str(overall["pairs"]), *(_cell(overall, c) for c in COLUMNS), style="dim")
    # A category's name is text, not markup.
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table)
    for line in _footer(metrics):
        console.print(printable(line))


# Counts of failures with their text; the first reason is appended.
_FAILURES = {
    "errors": "pairs failed",
    "no_answer": "pairs have no answer (not comparable, or unreadable), which counts as wrong",
    "unpredicted": "pairs have no prediction, which counts as wrong",
    "without_image": "targets could not be opened, so that they have no defect size and no baseline",
}


def _footer(metrics: dict[str, Any]) -> Iterator[str]:
    overall = metrics["overall"]
    for name, what in _FAILURES.items():
        if metrics.get(name):
            yield f"{metrics[name]} of {overall['pairs']} {what}; the first: {metrics['first_reasons'][name]}"
    if metrics.get("unlabelled"):
        yield f"{metrics['unlabelled']} pairs are unlabelled and left out"
    if overall["place_unknown"]:
        yield (
            f"{overall['place_unknown']} of {overall['anomalous']} anomalous pairs: place unknown, counted in det F1 and valid,"
            " not in mIoU, Acc and F1@0.3"
        )
    if overall["auroc"] is not None:
        worst = f" ({overall['auroc_invalid']} pairs without a ranked answer count as worst)"
        yield f"AUROC {overall['auroc']:.2f}{worst if overall['auroc_invalid'] else ''}"
    if metrics["boxes_cut"]:
        yield f"{metrics['boxes_cut']} true boxes extend beyond their target and were clipped"


def _cell(values: dict[str, Any], name: str) -> str:
    value, interval = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return "-"
    if name not in WITH_INTERVAL or not interval:
        return f"{value:.2f}"
    low, high = (f"{bound:.2f}".lstrip("0") for bound in interval)
    return f"{value:.2f} [{low},{high}]"


# Rows of verdicts shown in a terminal.
_SHOWN_ROWS = 50


class VerdictTable:
    """The rows of an inspection: all if they are few, else the first that are not normal."""

    def __init__(self) -> None:
        self._all: list[Row] = []
        self._not_normal: list[Row] = []
        self._count = 0

    def add(self, row: Row) -> None:
        """Add a row; a bounded number is held."""
        self._count += 1
        for rows, matches in ((self._all, True), (self._not_normal, row.prediction.anomalous is not False)):
            if matches and len(rows) < _SHOWN_ROWS:
                rows.append(row)

    def print(self) -> None:
        """Print the table on stdout."""
        rows = self._all if self._count <= _SHOWN_ROWS else self._not_normal
        table = Table(
            "target", "verdict", "confidence", "boxes", "reason", box=None, padding=(0, 2, 0, 0), header_style="bold"
        )
        for column in (0, 4):
            table.columns[column].overflow = "fold"
        for row in sorted(rows, key=lambda row: row.pair.id):
            prediction = row.prediction
            verdict = {False: "normal", True: "abnormal", None: "no answer"}[prediction.anomalous]
            confidence = "-" if prediction.confidence is None else f"{prediction.confidence:.2f}"
            reason = row.reason if prediction.anomalous is None else ""
            boxes = str(len(prediction.boxes or []))
            table.add_row(printable(row.pair.id), verdict, confidence, boxes, printable(reason))
        console = Console(markup=False, emoji=False, highlight=False)
        console.print(table)
        if self._count > len(rows):
            console.print(f"… of {self._count} targets; results.csv has them all")
