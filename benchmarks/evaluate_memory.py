"""Memory of an evaluation over many pairs, sampled while it runs.

    python benchmarks/evaluate_memory.py [--pairs 10000] [--json]

Baseline: the usual script that collects every pair's images and prediction in lists, over the first tenth of the pairs; its
growth per 1,000 pairs is compared. Reads the process's resident memory, so Linux only.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from differad import load_locator, read_pairs
from differad.evaluation.run import evaluate
from differad.images import read_images

SIDE, IMAGES, STEPS = 160, 20, 10


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_pairs(folder, count):
    """A manifest of `count` pairs over a few images: the number of pairs matters, not their bytes on disk."""
    rng = np.random.default_rng(0)
    good = np.kron(rng.integers(0, 200, (SIDE // 8, SIDE // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    Image.fromarray(good).save(folder / "good.png")
    boxes = []
    for number in range(IMAGES):
        x, y = rng.integers(0, SIDE - 40, 2).tolist()
        target = good.copy()
        target[y : y + 30, x : x + 40] = 255
        Image.fromarray(target).save(folder / f"{number}.png")
        boxes.append([[x, y, x + 40, y + 30]])
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(count):
            pair = {"id": f"pair-{number}", "category": f"c{number % 4}", "reference": "good.png"}
            pair |= {"target": f"{number % IMAGES}.png", "boxes": boxes[number % IMAGES]}
            file.write(json.dumps(pair) + "\n")
    return folder / "pairs.jsonl"


class Watched:
    """A locator that samples the process's memory between its answers."""

    def __init__(self, locator, every):
        self.name, self.locator, self.every, self.samples = locator.name, locator, every, []

    def locate_many(self, pairs):
        for number, outcome in enumerate(self.locator.locate_many(pairs), start=1):
            if number % self.every == 0:
                self.samples.append((number, resident_mib()))
            yield outcome


def growth_per_1000(samples):
    """Slope of memory over pairs, MiB per 1,000 pairs, without the first tenth (warm-up)."""
    pairs, mib = np.array(samples[1:]).T
    return float(np.polyfit(pairs / 1000, mib, 1)[0])


def growth_with_lists(manifest, locator, count):
    """The baseline: everything in lists."""
    results, samples = [], []
    for number, pair in enumerate(read_pairs(manifest), start=1):
        results.append((pair, read_images(pair.reference, pair.target), locator.locate(pair)))
        if number % (count // STEPS) == 0:
            samples.append((number, resident_mib()))
        if number == count:
            return growth_per_1000(samples)
    return growth_per_1000(samples)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = make_pairs(folder, arguments.pairs)
        watched = Watched(load_locator("difference"), arguments.pairs // STEPS)
        metrics = evaluate([manifest], watched, folder / "out", progress=False)
        after = resident_mib()
        baseline = growth_with_lists(manifest, watched.locator, arguments.pairs // 10)
    streamed = growth_per_1000(watched.samples)
    result = {
        "pairs": metrics["overall"]["pairs"],
        "resident_mib": {str(number): round(mib, 1) for number, mib in watched.samples},
        "resident_mib_after_scoring": round(after, 1),
        "growth_mib_per_1000_pairs": round(streamed, 3),
        "peer_growth_mib_per_1000_pairs": round(baseline, 1),
        "ratio_to_peer": round(streamed / baseline, 4),
    }
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
