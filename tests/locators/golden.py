"""A few synthetic pairs in whole-number arithmetic, so that they are the same bytes on every machine, and their answers.

    python tests/locators/golden.py

rewrites `golden.jsonl` with the installed versions, after a change of the locators that is meant to change answers.
"""

import json
import sys
from pathlib import Path

import numpy as np

from differad.core import Pair

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from versions_differ import MODELS, answers, environment

FILE = Path(__file__).with_name("golden.jsonl")
SIDE = 256
# Poses count in these parts of a pixel, or of the size.
ONE = 1024
STILL = (ONE, 0, 0, 0, ONE, 0)
# Rotated by 2 degrees (sin 36 / 1024) about the corner, and shifted.
ROTATED = (1023, -36, 7 * ONE, 36, 1023, -3 * ONE)


def pairs():
    """Aligned, shifted, turned, under other light, of another size, of another part; with and without a defect."""
    part, other = _part(1), _part(2)
    spotted, faint, cut = part.copy(), part.copy(), part.copy()
    spotted[150:166, 90:110] = (30, 40, 35)
    faint[150:166, 90:110] -= 33  # a defect of which nobody is sure: there a confidence moves most
    cut[60:64, 100:190] = 128
    light = 820 + np.arange(part.shape[1])[None, :, None]
    by_name = {
        "same": (part, part),
        "shifted": (part, _posed(part, (ONE, 0, 3 * ONE, 0, ONE, 2 * ONE))),
        "turned": (part, _posed(part, ROTATED)),
        "light": (part, np.minimum(part * light // ONE, 255)),
        "spot": (part, spotted),
        "spot turned": (part, _posed(spotted, ROTATED)),
        "faint spot turned": (part, _posed(faint, ROTATED)),
        "cut turned": (part, _posed(cut, ROTATED)),
        "spot, half size": (_halved(part), spotted),
        "another part": (other, part),
    }
    noise = np.random.RandomState(0)  # NumPy promises this stream for good
    return [Pair(_grained(noise, a), _grained(noise, b), id=name) for name, (a, b) in by_name.items()]


def _part(seed):
    """Rectangles of all sizes on a plate, softened: (SIDE, SIDE, 3) whole numbers."""
    rng = np.random.RandomState(seed)
    plate = np.full((SIDE, SIDE, 3), 128)
    for _ in range(90):
        x, y = rng.randint(0, SIDE - 8, 2)
        width, height = rng.randint(4, 40, 2)
        plate[y : y + height, x : x + width] = rng.randint(40, 216) + rng.randint(-20, 21, 3)
    for axis in (0, 1):
        plate = (np.roll(plate, 1, axis) + 2 * plate + np.roll(plate, -1, axis)) // 4
    return plate


def _posed(part, pose):
    """The part read at the nearest pixel of a pose (a, b, c, d, e, f): x' = a x + b y + c, y' = d x + e y + f."""
    a, b, c, d, e, f = pose
    y, x = np.mgrid[:SIDE, :SIDE]
    columns, rows = (a * x + b * y + c + ONE // 2) // ONE, (d * x + e * y + f + ONE // 2) // ONE
    return part[np.clip(rows, 0, SIDE - 1), np.clip(columns, 0, SIDE - 1)]


def _halved(part):
    return part.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).sum(axis=(1, 3)) // 4


def _grained(rng, part):
    return np.clip(part + rng.randint(-3, 4, part.shape), 0, 255).astype(np.uint8)


def main():
    with FILE.open("w", encoding="utf-8") as file:
        for line in (environment(), *answers(pairs(), MODELS)):
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
