"""Recognise result files of earlier runs: any other file at a run's output paths is the user's own and is not overwritten.

Knows how files of `evaluate` and `inspect` begin, and nothing of their content.
"""

import json
from collections.abc import Callable
from pathlib import Path

from differad.data.manifest import read_pairs
from differad.errors import InputError
from differad.evaluation.inspection_rows import header_line

# Bytes at the start of a page that hold its title.
_HEAD = 1024


def check_is_result(path: Path, remedy: str) -> None:
    """Check that a file at the path of a run's result is a result, empty or missing. Raises InputError with the remedy."""
    recognise = _RECOGNISERS[path.name]
    try:
        is_result = not path.exists() or not path.stat().st_size or recognise(path)
    except (OSError, ValueError, RecursionError, InputError):
        is_result = False
    if not is_result:
        raise InputError(f"{path}: was not written by differad; {remedy}")


def _is_metrics(path: Path) -> bool:
    document = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(document, dict) and {"model", "overall", "categories"} <= document.keys()


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return b"<title>differad" in file.read(_HEAD)


def _is_results(path: Path) -> bool:
    header = header_line().encode()
    with path.open("rb") as file:
        return file.read(len(header)) == header


def _is_manifest(path: Path) -> bool:
    return sum(1 for _ in read_pairs(path)) > 0


_RECOGNISERS: dict[str, Callable[[Path], bool]] = {
    "metrics.json": _is_metrics,
    "report.html": _is_report,
    "results.csv": _is_results,
    "pairs.jsonl": _is_manifest,
}
