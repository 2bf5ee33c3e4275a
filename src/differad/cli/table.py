"""Metrics as a table in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

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
    """Every category on its own, then all pairs, then the trivial baselines, on stdout."""
    table = Table("", "pairs", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for heading in COLUMNS.values():
        table.add_column(heading, no_wrap=True)
    rows = {**metrics["categories"], "all pairs": metrics["overall"]}
    for name, values in rows.items():
        table.add_row(name, str(values["pairs"]), *(_cell(values, column) for column in COLUMNS))
    for name, baseline in metrics.get("baselines", {}).items():
        overall = baseline["overall"]
        table.add_row(name.replace("_", " "), str(overall["pairs"]), *(_cell(overall, c) for c in COLUMNS), style="dim")
    Console().print(table)


def _cell(values: dict[str, Any], name: str) -> str:
    value, interval = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return "-"
    if name not in WITH_INTERVAL or not interval:
        return f"{value:.2f}"
    low, high = (f"{bound:.2f}".lstrip("0") for bound in interval)
    return f"{value:.2f} [{low},{high}]"
