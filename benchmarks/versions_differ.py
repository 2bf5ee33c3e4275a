"""Compare the answers of two environments: write the answers to stored pairs as JSON lines, and compare two such files.

    differad synthesize --count 100 --seed 7 --size 384 --out runs/versions/pairs            # once, in either environment
    python benchmarks/versions_differ.py answer runs/versions/pairs/pairs.jsonl --out old.jsonl      # in the one
    python benchmarks/versions_differ.py answer runs/versions/pairs/pairs.jsonl --out new.jsonl      # in the other
    python benchmarks/versions_differ.py compare old.jsonl new.jsonl [--json]

The pairs are stored as PNG once, because synthetic pairs may themselves differ between versions. The first line of a
file of answers holds versions and processor. To emulate another processor in one of two runs set
`OPENCV_CPU_DISABLE=AVX512-SKX,AVX2,FP16,AVX,SSE4.2,SSE4.1`. Answers are those of one thread.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from differad.boxes import as_boxes, iou, to_list
from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.errors import DifferadError, InputError
from differad.locators.registry import load_locator

MODELS = ("difference", "features", "tiny", "auto")


@dataclass(frozen=True)
class Difference:
    """Differences between the answers of one model. A verdict is normal, anomalous or not comparable.

    `confidence` is the largest change if both have one. Over pairs with boxes in both, `moved` is the largest change of a
    coordinate of the first box in pixels and `iou` its lowest overlap.
    """

    model: str
    pairs: int
    equal: int
    verdicts: int
    confidence: float
    confidence_99: float
    moved: float
    moved_over_1: int
    iou: float


def environment() -> dict[str, str]:
    """Properties of the environment that may change an answer."""
    return {
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "opencv_cpu_features": cv2.getCPUFeaturesLine(),
        "opencv_cpu_disabled": os.environ.get("OPENCV_CPU_DISABLE", ""),
    }


def answers(pairs: Sequence[Pair], models: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One line for each model and pair, in order."""
    for model in models:
        locator = load_locator(model, workers=1)
        for pair, outcome in zip(pairs, locator.locate_many(pairs), strict=True):
            yield {"model": model, "id": pair.id, **_answer(outcome)}


def _answer(outcome: Location | DifferadError) -> dict[str, Any]:
    if isinstance(outcome, DifferadError):
        return {"verdict": type(outcome).__name__, "confidence": None, "boxes": []}
    verdict = ("anomalous" if outcome.anomalous else "normal") if outcome.valid else "not comparable"
    return {"verdict": verdict, "confidence": outcome.confidence, "boxes": to_list(outcome.boxes)}


def differences(first: Iterable[Mapping[str, Any]], second: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """The differences by model. Raises InputError if the lines are not of the same pairs and models."""
    first_lines, second_lines = ({(line["model"], line["id"]): line for line in lines} for lines in (first, second))
    if first_lines.keys() != second_lines.keys():
        key = sorted(first_lines.keys() ^ second_lines.keys())[0]
        raise InputError(f"{key}: only one of the two files answers this pair; answer the same manifests with both")
    models = dict.fromkeys(model for model, _ in first_lines)
    return [
        _difference(model, [(first_lines[key], second_lines[key]) for key in first_lines if key[0] == model])
        for model in models
    ]


def _difference(model: str, both: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Difference:
    changes = [
        abs(a["confidence"] - b["confidence"]) for a, b in both if None not in (a["confidence"], b["confidence"])
    ]
    boxed = [(as_boxes(a["boxes"][:1]), as_boxes(b["boxes"][:1])) for a, b in both if a["boxes"] and b["boxes"]]
    moved = [float(np.abs(a - b).max()) for a, b in boxed]
    return Difference(
        model=model,
        pairs=len(both),
        equal=sum(a == b for a, b in both),
        verdicts=sum(a["verdict"] != b["verdict"] for a, b in both),
        confidence=max(changes, default=0.0),
        confidence_99=float(np.quantile(changes, 0.99)) if changes else 0.0,
        moved=max(moved, default=0.0),
        moved_over_1=sum(pixels > 1 for pixels in moved),
        iou=min((float(iou(a, b)[0]) for a, b in boxed), default=1.0),
    )


def _read(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return head, lines


def _write(pairs: Sequence[Pair], models: Sequence[str], out: Path) -> None:
    with out.open("w", encoding="utf-8") as file:
        for line in (environment(), *answers(pairs, models)):
            file.write(json.dumps(line) + "\n")


def _table(by_model: Iterable[Difference]) -> Iterator[str]:
    yield "| model | pairs | equal | other verdict | confidence: largest, 99 % | first box: pixels, over 1, lowest IoU |"
    yield "|---|---|---|---|---|---|"
    for d in by_model:
        boxes = f"{d.moved:.1f}, {d.moved_over_1}, {d.iou:.2f}"
        yield (
            f"| `{d.model}` | {d.pairs} | {d.equal} | {d.verdicts} | {d.confidence:.2g}, {d.confidence_99:.2g} | {boxes} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    answer = commands.add_parser("answer", help="write the answers of this environment")
    answer.add_argument("manifests", nargs="+", type=Path)
    answer.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    answer.add_argument("--out", type=Path, required=True)
    compare = commands.add_parser("compare", help="compare two files of answers")
    compare.add_argument("files", nargs=2, type=Path)
    compare.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.command == "answer":
        _write([pair for manifest in args.manifests for pair in read_pairs(manifest)], args.models, args.out)
        return
    (first, first_lines), (second, second_lines) = (_read(path) for path in args.files)
    by_model = differences(first_lines, second_lines)
    if args.json:
        print(json.dumps({"environments": [first, second], "models": [asdict(difference) for difference in by_model]}))
        return
    for name in first:
        print(f"{name}: {first[name]} | {second[name]}")
    print("\n".join(_table(by_model)))


if __name__ == "__main__":
    main()
