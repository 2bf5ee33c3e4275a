"""Speed and memory of the embedded locators, in one run.

    python benchmarks/tiny_speed.py --pairs 16 --json

Synthetic pairs of 640 x 640, one after the other after loading: with a new reference each, and with one reference for all. Then
where the time of one pass of `tiny` goes, on one thread; a pair takes three. An export of the policy to another runtime
could save time in the last part only.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import cv2

from differad import load_locator
from differad.answers.resize import ResizeRule
from differad.core import Pair
from differad.images import read_images
from differad.locators.features.backbone import Backbone
from differad.locators.tiny.evidence import aligned_difference, pair_features, reference_features
from differad.locators.tiny.locator import WEIGHTS
from differad.locators.tiny.network import Policy
from differad.locators.tiny.pairs import resized
from features_speed import peak_mib, seconds_a_pair, synthetic_pairs


def measure(pairs: list[Pair]) -> Iterator[tuple[str, dict[str, float]]]:
    one = [replace(pair, reference=pairs[0].reference) for pair in pairs]
    for name in ("difference", "features", "tiny", "auto"):
        start = time.perf_counter()
        locator = load_locator(name)
        yield (
            name,
            {
                "load": round(time.perf_counter() - start, 2),
                "seconds_new_reference": round(seconds_a_pair(locator, pairs), 3),
                "seconds_same_reference": round(seconds_a_pair(locator, one), 3),
                "peak_mib_so_far": round(peak_mib()),
            },
        )


def parts_of_a_pass(pairs: list[Pair]) -> dict[str, float]:
    """Median milliseconds of each part of one pass over a pair, on one thread."""
    cv2.setNumThreads(1)
    backbone, policy, rule = Backbone(), Policy(WEIGHTS), ResizeRule.from_folder(WEIGHTS)
    taken: dict[str, list[float]] = {"laid_on": [], "backbone": [], "reference": [], "comparing": [], "policy": []}
    for pair in pairs:
        reference, target = (resized(each, rule) for each in read_images(pair.reference, pair.target))
        times = [time.perf_counter()]
        pixels = aligned_difference(reference, target)
        times.append(time.perf_counter())
        patches = backbone.patches(target)
        times.append(time.perf_counter())
        of_reference = reference_features(backbone, reference)
        times.append(time.perf_counter())
        features = pair_features(patches, of_reference, pixels)
        times.append(time.perf_counter())
        policy.predict(features)
        times.append(time.perf_counter())
        for part, (begin, end) in zip(taken, pairwise(times), strict=True):
            taken[part].append(end - begin)
    # The first pass warms up.
    return {part: round(1e3 * statistics.median(each[1:]), 1) for part, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="how many pairs, at least 2")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    report = {"load_before": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    report |= dict(measure(synthetic_pairs(arguments.pairs)))
    report["milliseconds_of_a_look"] = parts_of_a_pass(synthetic_pairs(arguments.pairs))
    print(json.dumps(report, indent=1) if arguments.json else "\n".join(f"{k}: {v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
