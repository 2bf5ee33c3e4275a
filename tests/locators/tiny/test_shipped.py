"""The policy that comes with the package: loaded by its name, it finds plain defects on kinds that it was not trained on."""

import subprocess
import sys

import numpy as np

from differad import load_locator
from differad.boxes import iou
from differad.synthesis.draw import PairGenerator, SynthesisOptions


def test_the_shipped_policy_finds_plain_defects_and_leaves_most_good_parts_alone():
    generator = PairGenerator(
        SynthesisOptions(seed=77, size=256, categories=("wood", "perforated"), grades=("easy",), siblings=0.5)
    )
    synthetic_pairs = [generator.generate(number) for number in range(24)]
    locator = load_locator("tiny")
    locations = list(locator.locate_many([pair.as_pair(str(number)) for number, pair in enumerate(synthetic_pairs)]))
    overlaps, alarms = [], []
    for pair, location in zip(synthetic_pairs, locations, strict=True):
        assert location.valid
        assert 0 <= location.confidence <= 1
        if len(pair.boxes):
            overlaps.append(float(iou(location.boxes[:1], pair.boxes).max(initial=0.0)))
        else:
            alarms.append(location.anomalous)
    # A box over everything has a mean IoU of about the boxes' share, below 0.1; a centre box less.
    assert np.mean(overlaps) > 0.4
    assert np.mean(alarms) < 0.5


def test_it_needs_neither_torch_nor_transformers():
    """In a process where neither can be imported, as after a plain installation."""
    program = """
import sys
for name in ("torch", "transformers", "safetensors", "onnxruntime"):
    sys.modules[name] = None
import numpy as np
from differad import Pair, load_locator
part = np.random.default_rng(0).integers(90, 120, (200, 200, 3), dtype=np.uint8)
broken = part.copy()
broken[60:110, 80:130] = 255
print(load_locator("tiny").locate(Pair(part, broken)).confidence > 0.5)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "True"
