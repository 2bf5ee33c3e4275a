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
    """Every category on its own, then all pairs, then the trivial baselines, on stdout; below it what the table leaves out."""
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


# Counts that are failures, with what is said of each; the first reason comes with it.
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
        yield f"{metrics['boxes_cut']} true boxes reach over the edge of their target and were cut off there"


def _cell(values: dict[str, Any], name: str) -> str:
    value, interval = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return "-"
    if name not in WITH_INTERVAL or not interval:
        return f"{value:.2f}"
    low, high = (f"{bound:.2f}".lstrip("0") for bound in interval)
    return f"{value:.2f} [{low},{high}]"


# Rows of verdicts that a terminal is worth.
_SHOWN_ROWS = 50


class VerdictTable:
    """The rows of an inspection: all of them where they are few, else the first of those that are not normal."""

    def __init__(self) -> None:
        self._all: list[Row] = []
        self._telling: list[Row] = []
        self._passed = 0

    def add(self, row: Row) -> None:
        """Take a row into account; a fixed number is held."""
        self._passed += 1
        for rows, fits in ((self._all, True), (self._telling, row.prediction.anomalous is not False)):
            if fits and len(rows) < _SHOWN_ROWS:
                rows.append(row)

    def print(self) -> None:
        """Print the table on stdout."""
        rows = self._all if self._passed <= _SHOWN_ROWS else self._telling
        table = Table(
            "target", "verdict", "confidence", "boxes", "reason", box=None, padding=(0, 2, 0, 0), header_style="bold"
        )
        for column in (0, 4):
            table.columns[column].overflow = "fold"
        for row in sorted(rows, key=lambda one: one.pair.id):
            found = row.prediction
            verdict = {False: "normal", True: "abnormal", None: "no answer"}[found.anomalous]
            sure = "-" if found.confidence is None else f"{found.confidence:.2f}"
            reason = row.reason if found.anomalous is None else ""
            table.add_row(printable(row.pair.id), verdict, sure, str(len(found.boxes or [])), printable(reason))
        console = Console(markup=False, emoji=False, highlight=False)
        console.print(table)
        if self._passed > len(rows):
            console.print(f"… of {self._passed} targets; results.csv has them all")
