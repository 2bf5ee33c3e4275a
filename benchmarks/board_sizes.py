"""How well `auto` judges synthetic boards at several sizes, and the same boards enlarged.

    python benchmarks/board_sizes.py --boards 40 --json

Every other board has a defect. A board generated at a larger size has finer edges and smaller defects; an enlarged one shows
no more than the smaller one. Printed are detection F1, accuracy on normal boards, and the share of defects whose
first box has an IoU of at least 0.3.
"""

import argparse
import json
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache

import cv2
import numpy as np

from differad import Location, Pair, load_locator
from differad.boxes import iou
from differad.synthesis.draw import usual_nuisance
from differad.synthesis.pairs import make_pair

# The side in pixels at which boards are generated, and the factor by which they are enlarged then.
CASES = ((448, 1), (448, 2), (448, 4), (896, 1), (1792, 1))
HIT = 0.3


@cache
def locator(model: str):
    return load_locator(model, workers=1)


def judged(task: tuple[int, int, int, str]) -> tuple[bool, bool, float]:
    """Whether board number `seed` is abnormal, whether it was called so, and the first box's IoU."""
    seed, size, factor, model = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng(800_000 + seed)
    strength = rng.uniform(0.1, 1)
    nuisance = replace(usual_nuisance(size, strength), shimmer=0.12, swell=0.25 * strength, etch=strength)
    pair = make_pair(rng, "board", anomalous=seed % 2 == 0, size=size, nuisance=nuisance)
    images = (
        cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        for image in (pair.reference, pair.target)
    )
    found: Location = locator(model).locate(Pair(*images))
    hit = found.anomalous and len(pair.boxes)
    return len(pair.boxes) > 0, found.anomalous, float(iou(found.boxes[0], pair.boxes[0] * factor)) if hit else 0.0


def measured(rows: Iterable[tuple[bool, bool, float]]) -> dict[str, float]:
    rows = list(rows)
    found = sum(true and said for true, said, _ in rows)
    wrong = sum(said and not true for true, said, _ in rows)
    abnormal = sum(true for true, _, _ in rows)
    return {
        "detection F1": 2 * found / max(1, found + wrong + abnormal),
        "normal accuracy": 1 - wrong / max(1, len(rows) - abnormal),
        "Acc@0.3": sum(overlap >= HIT for *_, overlap in rows) / max(1, abnormal),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=40, help="of each size")
    parser.add_argument("--model", default="auto")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    result = {}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for size, factor in CASES:
            tasks = [(seed, size, factor, arguments.model) for seed in range(arguments.boards)]
            name = f"drawn at {size}" + (f", enlarged to {size * factor}" if factor > 1 else "")
            result[name] = measured(pool.map(judged, tasks))
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    columns = list(next(iter(result.values())))
    print(f"| boards | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, values in result.items():
        print(f"| {name} | {' | '.join(f'{values[column]:.2f}' for column in columns)} |")


if __name__ == "__main__":
    main()
