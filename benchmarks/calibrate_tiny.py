"""Find the constants of the `tiny` locator's decision on synthetic pairs, and print them with what they reach.

    differad synthesize --count 600 --seed 93 --size 448 --aspect 2.5 --siblings 0.7 --out runs/tiny/calibration
    python benchmarks/calibrate_tiny.py runs/tiny/calibration/pairs.jsonl

A logistic curve over the odds of a box in the policy's answer and the highest logit of its map, fitted to which pairs are
abnormal; no weight is below 0. The threshold leaves a box on a tenth of the drawn normal pairs (judgement): drawn defects are
plainer than real ones, so that the point where a drawn defect is more likely than not would be too high. The result
belongs into src/differad/locators/tiny/calibration.py. Reads no real picture.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from calibrate_features import fit_logistic
from differad.boxes import as_boxes
from differad.core import Location
from differad.data.manifest import read_pairs
from differad.evaluation.metrics import auroc, pair_iou
from differad.locators.tiny.locator import WEIGHTS, SureReply, TinyLocator, TinyOptions

FALSE_ALARMS = 0.1


class Recorder(TinyLocator):
    """The locator, keeping what each decision is made from; every target gets its box.

    Pairs are answered side by side, so what is kept is found by the location that it led to.
    """

    evidence: dict[int, tuple[float, float]]

    def _decide(self, reply: SureReply, seconds: float) -> Location:
        found = super()._decide(reply, seconds)
        self.evidence[id(found)] = reply.odds, reply.peak
        return found


def judge(logits: np.ndarray, overlap: np.ndarray, abnormal: np.ndarray, least: float = 0.0) -> dict[str, float]:
    found = logits >= least
    return {
        "miou": float((overlap * found)[abnormal].mean()),
        "miou_of_every_box": float(overlap[abnormal].mean()),
        "normal_accuracy": float((~found)[~abnormal].mean()),
        "auroc": auroc(logits[abnormal], logits[~abnormal]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pairs", type=Path, nargs="+", help="pairs.jsonl of drawn pairs that the policy was not trained on"
    )
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="the policy; the shipped one unless told")
    parser.add_argument("--once", action="store_true", help="without closer looks")
    arguments = parser.parse_args()
    # The truth of drawn pairs is tight.
    locator = Recorder(TinyOptions(threshold=0.0, closer=not arguments.once, margin=0.0), folder=arguments.folder)
    locator.evidence = {}
    pairs = [pair for path in arguments.pairs for pair in read_pairs(path) if pair.boxes is not None]
    outcomes: list[Any] = list(locator.locate_many(pairs))
    x = np.array([locator.evidence[id(found)] for found in outcomes])
    abnormal = np.array([len(as_boxes(pair.boxes)) > 0 for pair in pairs])
    overlap = np.array(
        [pair_iou(found.boxes, as_boxes(pair.boxes)) for pair, found in zip(pairs, outcomes, strict=True)]
    )
    weights = fit_logistic(x, abnormal.astype(float))
    bias, answer, peak = (round(float(w), 3) for w in weights)
    logits = weights[0] + x @ weights[1:]
    least = float(np.quantile(logits[~abnormal], 1 - FALSE_ALARMS))
    threshold = round(1 / (1 + float(np.exp(-least))), 3)
    report = {
        "deciding": {"bias": bias, "answer": answer, "peak": peak, "threshold": threshold},
        "pairs": len(pairs),
        "calibrated": judge(logits, overlap, abnormal, least),
        "more_likely_than_not": judge(logits, overlap, abnormal),
        "answer_alone": judge(x[:, 0], overlap, abnormal),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
