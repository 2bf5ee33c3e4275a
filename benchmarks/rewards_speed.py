"""Answers per second that are parsed and scored on one core, compared with the same formulas for one answer at a time.

    python benchmarks/rewards_speed.py [--json]

Peer: a plain loop that parses each answer with `re` and evaluates the formulas on Python numbers. Both give the same rewards.
"""

import argparse
import json
import math
import os
import re
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from differad.rewards import score_answers

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "published_rewards.json"
COPIES, REPEATS = 100, 7
ONE_BOX = re.compile(r"<think>.*?</think>\s*<answer>\s*[\(\[][\d,\s\(\)]+[\)\]]\s*</answer>\s*", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBERS = re.compile(
    r"\(\s*(\d+)\s*,\s*(\d+)\s*\)\s*,\s*\(\s*(\d+)\s*,\s*(\d+)\s*\)|\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]"
)


def peer(text, g):
    """(format, localization) of one answer, directly from the formulas."""
    well_formed = float(ONE_BOX.fullmatch(text.strip()) is not None)
    inside = ANSWER.search(text)
    match = NUMBERS.search(inside.group(1)) if inside else None
    if match is None:
        return well_formed, 0.0
    p = [float(v) for v in match.groups() if v is not None]
    if not any(g) or not any(p):
        return well_formed, float(not any(g) and not any(p))
    if p[2] <= p[0] or p[3] <= p[1]:
        return well_formed, 0.0
    shared = max(0.0, min(p[2], g[2]) - max(p[0], g[0])) * max(0.0, min(p[3], g[3]) - max(p[1], g[1]))
    area_p, area_g = (p[2] - p[0]) * (p[3] - p[1]), (g[2] - g[0]) * (g[3] - g[1])
    iou = shared / (area_p + area_g - shared)
    reach = max(math.dist(p[:2], p[2:]), math.dist(g[:2], g[2:]), 1.0)
    away = math.dist([(p[0] + p[2]) / 2, (p[1] + p[3]) / 2], [(g[0] + g[2]) / 2, (g[1] + g[3]) / 2])
    c, s = 1 - min(1.0, away / reach), 1 - min(1.0, abs(area_p - area_g) / area_g)
    return well_formed, iou + (1 - iou) * (0.6 * c + 0.4 * s)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cases = json.loads(GOLDEN.read_text())["rewards"] * COPIES
    texts, truths = [case["completion"] for case in cases], [case["solution"] for case in cases]
    ours, theirs = score_answers(texts, truths), [peer(*case) for case in zip(texts, truths, strict=True)]
    np.testing.assert_allclose(ours.localization, [value for _, value in theirs], atol=1e-9)
    vectorised, loop = [], []
    for _ in range(REPEATS):
        vectorised.append(seconds(lambda: score_answers(texts, truths)))
        loop.append(seconds(lambda: [peer(*case) for case in zip(texts, truths, strict=True)]))
    rate, peer_rate = (len(texts) / statistics.median(times) for times in (vectorised, loop))
    result = {
        "answers": len(texts),
        "answers_per_second": round(rate),
        "peer_answers_per_second": round(peer_rate),
        "ratio_to_peer": round(rate / peer_rate, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
