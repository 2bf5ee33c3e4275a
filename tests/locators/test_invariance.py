"""Changes that make no part good or bad leave the answers as they are; benchmarks/invariance.py counts over more pairs."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from differad.boxes import iou
from differad.core import Pair
from differad.locators.registry import load_locator
from differad.synthesis.pairs import make_pair

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from invariance import changes, holds

# What changes no sample, or brings back the original to the bit.
EXACT = ("x2 nearest", "x3 nearest", "16 bit", "border of background")
# What loses details that the verdict may need.
LOSSY = ("x0.75 bicubic", "x0.75 nearest", "x0.75 area", "reference at half the resolution", "JPEG 80")
# Of the other changes: those that `auto`, which is slow, is tried under.
FEW = ("x2 bicubic", "target at twice the resolution", "gamma 1.25", "mirrored")


@pytest.fixture(scope="module")
def pairs():
    kinds = ["board", "board", "grain", "printed", "board", "woven", "brushed", "board"]
    return [make_pair(np.random.default_rng(900 + i), c, anomalous=i % 2 == 0, size=320) for i, c in enumerate(kinds)]


@pytest.fixture(scope="module", params=["difference", "auto"])
def answered(request, pairs):
    locator = load_locator(request.param, workers=1)
    return locator, [locator.locate(Pair(pair.reference, pair.target)) for pair in pairs]


def held(answered, pairs, name):
    locator, before = answered
    change, found = changes()[name], []
    for pair, location in zip(pairs, before, strict=True):
        after = locator.locate(Pair(change.reference(pair.reference), change.target(pair.target)))
        found.append(holds(location, after, change.boxes(location.boxes, pair.target.shape[1::-1])))
    return found


@pytest.mark.parametrize("name", EXACT)
def test_exact_changes_leave_every_answer(answered, pairs, name):
    assert all(held(answered, pairs, name))


def test_other_changes_leave_nearly_every_answer(answered, pairs):
    names = FEW if answered[0].name == "auto" else [name for name in changes() if name not in (*EXACT, *LOSSY)]
    found = [one for name in names for one in held(answered, pairs, name)]
    # A pair near the threshold changes under most of them: one pair of the eight may.
    assert np.mean(found) >= 7 / 8


def test_a_hole_of_five_pixels_is_found_on_a_large_sharp_board():
    tiles = [make_pair(np.random.default_rng(100 + i), "board", anomalous=False, size=512).reference for i in range(12)]
    reference = np.concatenate([np.concatenate(tiles[i : i + 4], axis=1) for i in (0, 4, 8)])
    noise = np.random.default_rng(1).normal(0, 3, reference.shape)
    target = np.clip(reference + noise, 0, 255).astype(np.uint8)
    shift = np.array([[1, 0.001, 2.3], [-0.001, 1, -3.2]])
    target = cv2.warpAffine(target, shift, target.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
    flat = (
        cv2.blur(target.astype(np.float32).mean(axis=2) ** 2, (41, 41)) - cv2.blur(target.mean(axis=2), (41, 41)) ** 2
    )
    y, x = (v + 300 for v in np.unravel_index(flat[300:-300, 300:-300].argmin(), (936, 1448)))
    level = 0 if target[y, x].mean() > 128 else 255
    cv2.circle(target, (int(x), int(y)), 2, (level,) * 3, -1)
    location = load_locator("auto", **{"difference.margin": 0}).locate(Pair(reference, target))
    assert iou(location.boxes[:1], np.array([[x - 2.0, y - 2, x + 3, y + 3]]))[0] > 0.2
