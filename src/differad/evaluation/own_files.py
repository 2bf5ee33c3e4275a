"""Whether what lies where a run writes its results is such a result: anything else is somebody's own and stays.

Knows what the files of `evaluate` and `inspect` begin with, and nothing of what they say.
"""

import json
from collections.abc import Callable
from pathlib import Path

from differad.data.manifest import read_pairs
from differad.errors import InputError
from differad.evaluation.inspection_rows import header_line

# The title stands within the first bytes of a page.
_HEAD = 1024


def check_own(path: Path, remedy: str) -> None:
    """See that a file of the name of a run's result is one, or is empty, or not there. Raises InputError with the remedy."""
    recognised = _KINDS[path.name]
    try:
        is_own = not path.exists() or not path.stat().st_size or recognised(path)
    except (OSError, ValueError, RecursionError, InputError):
        is_own = False
    if not is_own:
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


_KINDS: dict[str, Callable[[Path], bool]] = {
    "metrics.json": _is_metrics,
    "report.html": _is_report,
    "results.csv": _is_results,
    "pairs.jsonl": _is_manifest,
}
