"""Speed and memory of the `difference` locator beside a crude difference and structural similarity, in one run.

    python benchmarks/difference_speed.py --pairs 80 --json

Pairs are synthetic boards of 640x640 written as PNG (or those of `--manifest`); each contender reads the files, and uses two
worker threads. The crude one is what thirty lines give: absolute difference, blur, threshold, largest component. With
scikit-image installed, its `structural_similarity` map takes the place of the difference. Memory is what the process's
peak grew by over the first quarter of the pairs, and over the rest: a stream held in memory would show in the second.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.images import read_image, write_image
from differad.locators.difference import DifferenceLocator, DifferenceOptions
from differad.synthesis.pairs import make_pair

WORKERS = 2


def crude(pair: Pair) -> list[list[int]]:
    target, reference = (cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) for path in (pair.target, pair.reference))
    return largest(cv2.GaussianBlur(cv2.absdiff(target, reference), (0, 0), 2.0) > 60)


def structural(pair: Pair) -> list[list[int]]:
    from skimage.metrics import structural_similarity

    target, reference = (cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) for path in (pair.target, pair.reference))
    _, similarity = structural_similarity(target, reference, full=True)
    return largest(similarity < 0.3)


def largest(marked: np.ndarray) -> list[list[int]]:
    _, _, stats, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8))
    if len(stats) < 2:
        return []
    x, y, w, h, _ = max(stats[1:].tolist(), key=lambda row: row[4])
    return [[x, y, x + w, y + h]]


def pooled(work: Callable[[Pair], object], pairs: Iterable[Pair]) -> Iterator[object]:
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(work, pairs)


def synthetic_pairs(folder: Path, count: int) -> list[Pair]:
    pairs = []
    for seed in range(count):
        synthetic = make_pair(np.random.default_rng(seed), "board", anomalous=seed % 2 == 0)
        pair = Pair(folder / f"{seed}_reference.png", folder / f"{seed}_target.png", id=str(seed))
        write_image(pair.reference, synthetic.reference)
        write_image(pair.target, synthetic.target)
        pairs.append(pair)
    return pairs


def rate(work: Callable[[list[Pair]], Iterator[object]], pairs: list[Pair]) -> float:
    """Pairs a second, the better of two passes: the first one warms the disk cache."""
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        answered = sum(1 for _ in work(pairs))
        best = max(best, answered / (time.perf_counter() - start))
    return best


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(pairs: list[Pair]) -> dict[str, object]:
    locator = DifferenceLocator(DifferenceOptions(workers=WORKERS))
    quarter = len(pairs) // 4
    before = peak_mib()
    list(locator.locate_many(pairs[:quarter]))
    early = peak_mib()
    list(locator.locate_many(pairs[quarter:]))
    late = peak_mib()
    contenders: dict[str, Callable[[list[Pair]], Iterator[object]]] = {
        "difference": locator.locate_many,
        "crude": lambda some: pooled(crude, some),
    }
    if find_spec("skimage"):
        contenders["structural_similarity"] = lambda some: pooled(structural, some)
    rates = {name: round(rate(work, pairs), 1) for name, work in contenders.items()}
    return {
        "pairs": len(pairs),
        "workers": WORKERS,
        "pairs_per_second": rates,
        "ratio_to": {
            name: round(rates["difference"] / value, 2) for name, value in rates.items() if name != "difference"
        },
        "peak_mib": {"before": round(before), "first_quarter": round(early), "all": round(late)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=80, help="how many synthetic pairs")
    parser.add_argument("--manifest", type=Path, help="time the pairs of this pairs.jsonl in place of synthetic ones")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = (
            list(read_pairs(arguments.manifest))
            if arguments.manifest
            else synthetic_pairs(Path(folder), arguments.pairs)
        )
        report = measure(pairs)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
