"""Coverage of the 95 % intervals of `differad evaluate`, on simulated pairs with known true metrics.

    python benchmarks/interval_coverage.py --trials 2000       # rewrites the table in docs/evaluation.md

A simulated category has pairs that are abnormal with probability 0.6, or all of them (found with probability p, IoU then uniform
in 0.3..1), and normal ones (right with probability p). In the order of a manifest, normal pairs come first; in "opposite orders"
every second category is reversed, so that draws shared by categories would cancel out.
"""

import argparse
from pathlib import Path

import numpy as np

from differad.evaluation.metrics import PairResult, summarise

METRICS = ("miou", "acc_0.3", "detection_f1", "normal_accuracy")
ABNORMAL = 0.6
MEAN_IOU = (0.3 + 1) / 2
START, END = "<!-- coverage -->\n", "<!-- end of coverage -->"


def truth(share, abnormal):
    """The true metrics of a category whose pairs are answered correctly with probability `share`."""
    detected, false_alarms = abnormal * share, (1 - abnormal) * (1 - share)
    return {
        "miou": share * MEAN_IOU,
        "acc_0.3": share,
        "detection_f1": 2 * detected / (detected + false_alarms + abnormal),
        "normal_accuracy": share,
    }


def category(rng, name, share, count, *, abnormal=ABNORMAL, backwards=False):
    results = []
    for _ in range(count):
        anomalous, right = bool(rng.random() < abnormal), bool(rng.random() < share)
        overlap = float(rng.uniform(0.3, 1)) if anomalous and right else 0.0
        results.append(PairResult(name, anomalous, overlap, anomalous == right, True))
    return sorted(results, key=lambda result: (result.anomalous, result.iou), reverse=backwards)


def coverage(trials, shares, count, *, abnormal=ABNORMAL, opposite=False, macro=False, resamples=1000, seed=0):
    """Share of `trials` whose interval holds the true value, and the mean width, by defined metric.

    One category of `count` pairs for each of `shares`. With equal sizes the micro average's true value is that of a mixture.
    """
    rng = np.random.default_rng(seed)
    parts = [truth(share, abnormal) for share in shares]
    # A mixture of equal parts is one category with the mean share.
    true = (
        {name: np.mean([part[name] for part in parts]) for name in METRICS}
        if macro
        else truth(np.mean(shares), abnormal)
    )
    held, widths = dict.fromkeys(METRICS, 0), {name: [] for name in METRICS}
    for trial in range(trials):
        sets = [
            category(rng, str(number), share, count, abnormal=abnormal, backwards=opposite and number % 2)
            for number, share in enumerate(shares)
        ]
        overall = summarise([result for members in sets for result in members], seed=trial, resamples=resamples)[
            "overall"
        ]
        for name in METRICS:
            bounds = (overall["macro"] if macro else overall)[f"{name}_ci95"]
            if bounds is not None:
                held[name] += bounds[0] - 1e-9 <= true[name] <= bounds[1] + 1e-9
                widths[name].append(bounds[1] - bounds[0])
    return {name: (held[name] / len(widths[name]), float(np.mean(widths[name]))) for name in METRICS if widths[name]}


SETTINGS = {
    "one category of 5 pairs": ((0.9,), 5, {}),
    "one category of 20": ((0.9,), 20, {}),
    "one category of 80": ((0.9,), 80, {}),
    "micro, 4 categories of 20": ((0.95, 0.8, 0.6, 0.4), 20, {}),
    "macro, 4 categories of 20": ((0.95, 0.8, 0.6, 0.4), 20, {"macro": True}),
    "macro, 4 categories of 80": ((0.95, 0.8, 0.6, 0.4), 80, {"macro": True}),
    "macro, 2 of 50 abnormal pairs": ((0.6, 0.6), 50, {"macro": True, "abnormal": 1}),
    "the same in opposite orders": ((0.6, 0.6), 50, {"macro": True, "abnormal": 1, "opposite": True}),
    "macro, 10 categories of 5": ((0.9,) * 10, 5, {"macro": True}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--page", type=Path, default=Path("docs/evaluation.md"))
    arguments = parser.parse_args()
    lines = [f"| {arguments.trials} simulated sets | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
    for title, (shares, count, more) in SETTINGS.items():
        measured = coverage(arguments.trials, shares, count, **more)
        cells = ["{:.3f} ({:.2f})".format(*measured[name]) if name in measured else "–" for name in METRICS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    before, _, rest = arguments.page.read_text().partition(START)
    arguments.page.write_text(before + START + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
