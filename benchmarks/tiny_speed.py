"""Speed and memory of the `tiny` locator beside `features` and `difference`, in one run.

    python benchmarks/tiny_speed.py --pairs 16 --json

Drawn pairs of 640 x 640, one after the other after loading: with a new reference each, and with one reference for all.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace

from differad import load_locator
from differad.core import Pair
from features_speed import drawn, peak_mib, seconds_a_pair


def measure(pairs: list[Pair]) -> Iterator[tuple[str, dict[str, float]]]:
    one = [replace(pair, reference=pairs[0].reference) for pair in pairs]
    for name in ("difference", "features", "tiny"):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16, help="how many pairs, at least 2")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    report = {"load_before": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}
    report |= dict(measure(drawn(arguments.pairs)))
    print(json.dumps(report, indent=1) if arguments.json else "\n".join(f"{k}: {v}" for k, v in report.items()))


if __name__ == "__main__":
    main()
