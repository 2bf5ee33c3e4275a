"""Find the constants of the `tiny` locator's decision on labelled pairs, and print them with what they reach.

    differad synthesize --count 600 --seed 93 --size 448 --aspect 2.5 --siblings 0.7 --out runs/tiny/calibration
    python benchmarks/calibrate_tiny.py runs/tiny/calibration/pairs.jsonl
    python benchmarks/calibrate_tiny.py my/calibration.jsonl --folder runs/tiny/own/model --write

A logistic curve over the logit of a box in the policy's answer and the highest logit of its map, fitted to which pairs are
abnormal; no weight is below 0. The threshold leaves a box on a tenth of the normal pairs (judgement): synthetic defects are
easier than real ones, so that a threshold of 0.5 would be too high. The result of the shipped policy
belongs into src/differad/locators/tiny/calibration.py; `--write` puts that of another into decision.json of its folder, where
`--model FOLDER` finds it. Pairs that the policy was trained on are unsuitable: it is more certain of them.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from calibrate_features import fit_logistic
from differad.boxes import as_boxes
from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.errors import DifferadError, InputError
from differad.evaluation.metrics import auroc, pair_iou
from differad.images import read_images
from differad.locators.threads import one_thread_each, usable_cores
from differad.locators.tiny.calibration import DecisionConstants, write_decision_constants
from differad.locators.tiny.locator import WEIGHTS, TinyLocator, TinyOptions

FALSE_ALARMS = 0.1


def evaluate(logits: np.ndarray, overlap: np.ndarray, abnormal: np.ndarray, least: float = 0.0) -> dict[str, float]:
    found = logits >= least
    return {
        "miou": float((overlap * found)[abnormal].mean()),
        "miou_of_every_box": float(overlap[abnormal].mean()),
        "normal_accuracy": float((~found)[~abnormal].mean()),
        "auroc": auroc(logits[abnormal], logits[~abnormal]),
    }


def run_policy(locator: TinyLocator, pair: Pair) -> tuple[float, float, float]:
    """Logit of a box, highest logit of the map, and the IoU of the box. Raises ImageError."""
    reply = locator.reply(*read_images(pair.reference, pair.target))
    return reply.box_logit, reply.peak, pair_iou(locator.decide(reply).boxes, as_boxes(pair.boxes))


def calibrate(folder: Path, pairs: list[Pair], *, closer: bool) -> tuple[DecisionConstants, dict[str, object]]:
    """The numbers for the policy in `folder`, and a report. Raises InputError, ImageError."""
    abnormal = np.array([len(as_boxes(pair.boxes)) > 0 for pair in pairs])
    if abnormal.all() or not abnormal.any():
        raise InputError(f"{len(pairs)} labelled pairs, {abnormal.sum()} abnormal; expected normal and abnormal ones")
    # The truth of synthetic pairs is tight, so no margin; with threshold 0 every target gets a box.
    locator = TinyLocator(TinyOptions(threshold=0.0, closer=closer, margin=0.0, workers=1), folder=folder)
    workers = usable_cores()
    with one_thread_each(workers), ThreadPoolExecutor(workers) as pool:
        answers = np.array(list(pool.map(lambda pair: run_policy(locator, pair), pairs)))
    x, overlap = answers[:, :2], answers[:, 2]
    weights = fit_logistic(x, abnormal.astype(float))
    logits = weights[0] + x @ weights[1:]
    least = float(np.quantile(logits[~abnormal], 1 - FALSE_ALARMS))
    threshold = 1 / (1 + float(np.exp(-least)))
    deciding = DecisionConstants(*(round(float(number), 3) for number in (*weights, threshold)))
    return deciding, {
        "deciding": asdict(deciding),
        "pairs": len(pairs),
        "calibrated": evaluate(logits, overlap, abnormal, least),
        "more_likely_than_not": evaluate(logits, overlap, abnormal),
        "answer_alone": evaluate(x[:, 0], overlap, abnormal),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pairs", type=Path, nargs="+", help="pairs.jsonl of labelled pairs that the policy was not trained on"
    )
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="the policy; by default the shipped one")
    parser.add_argument("--once", action="store_true", help="without the two crops")
    parser.add_argument("--write", action="store_true", help="put the numbers into decision.json of --folder")
    arguments = parser.parse_args()
    if arguments.write and arguments.folder == WEIGHTS:
        parser.error(
            "--write: expected --folder FOLDER, a policy of your own; the shipped one's numbers stand in its source"
        )
    try:
        pairs = [pair for path in arguments.pairs for pair in read_pairs(path) if pair.boxes is not None]
        deciding, report = calibrate(arguments.folder, pairs, closer=not arguments.once)
        if arguments.write:
            report["written"] = str(write_decision_constants(arguments.folder, deciding))
    except DifferadError as error:
        print(f"calibrate_tiny.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
