"""The table of README from stored runs: each category with intervals, and the trivial baselines.

differad evaluate …/pairs.jsonl … --out runs/difference
python benchmarks/markdown_table.py runs/difference/metrics.json runs/features/metrics.json
"""

import json
import sys
from pathlib import Path

COLUMNS = {
    "miou": "mIoU", "acc_0.3": "Acc@0.3", "f1_0.3": "F1@0.3", "detection_f1": "detection F1",
    "normal_accuracy": "normal accuracy", "valid": "valid",
}  # fmt: skip


def cell(values, name, interval):
    value, bounds = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return "–"
    return f"{value:.2f} ({bounds[0]:.2f}–{bounds[1]:.2f})" if interval and bounds else f"{value:.2f}"


def main():
    runs = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    print("| category, pairs (anomalous) | locator | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for category, values in runs[0]["categories"].items():
        head = f"**{category}**, {values['pairs']} ({values['anomalous']})"
        for run in runs:
            metrics = run["categories"][category]
            print(f"| {head} | **`{run['model']}`** | " + " | ".join(cell(metrics, c, True) for c in COLUMNS) + " |")
            head = ""
        for name, parts in runs[0]["baselines"].items():
            row = (cell(parts["categories"][category], column, False) for column in COLUMNS)
            print(f"| | {name.replace('_', ' ')} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
