"""Synthetic pairs: exact masks, a correct pose, and no dependence on anything but the seed."""

import cv2
import numpy as np
import pytest

from differad.synthesis.boards import BoardStyle
from differad.synthesis.camera import Nuisance
from differad.synthesis.pairs import VISIBLE_PIXELS, make_pair
from differad.synthesis.textures import TEXTURES

CATEGORIES = ["board", *TEXTURES]
WEAK_NUISANCE = Nuisance(
    shift=0,
    angle=0,
    scale=0,
    gain=0,
    offset=0,
    gradient=0,
    blur=0.4,
    noise=0.5,
    shimmer=0,
    swell=0,
    elastic_warp=0,
    etch=0,
)
BINARY = BoardStyle((0, 0, 0), (255, 255, 255), binary=True)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_pair_depends_on_its_seed_alone(category):
    first, again, other = (make_pair(np.random.default_rng(seed), category, size=160) for seed in (1, 1, 2))
    assert (first.target == again.target).all()
    assert (first.reference == again.reference).all()
    assert (first.mask == again.mask).all()
    assert (first.target != other.target).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_shapes_and_truth(category):
    defect = make_pair(np.random.default_rng(3), category, size=200)
    normal = make_pair(np.random.default_rng(3), category, size=200, anomalous=False)
    assert defect.reference.shape == defect.target.shape == (200, 200, 3)
    assert defect.mask.sum() >= VISIBLE_PIXELS
    assert defect.boxes.shape == (1, 4)
    assert normal.boxes.shape == (0, 4)
    assert not normal.mask.any()
    x1, y1, x2, y2 = defect.boxes[0].astype(int)
    assert defect.mask[y1:y2, x1:x2].sum() == defect.mask.sum()


@pytest.mark.parametrize("seed", range(5))
def test_the_mask_is_where_the_defect_changed_the_target(seed):
    # The same seed gives the same part and view; with and without the defect only masked pixels may differ.
    defect, normal = (
        make_pair(np.random.default_rng(seed), "board", anomalous=anomalous, nuisance=WEAK_NUISANCE, style=BINARY)
        for anomalous in (True, False)
    )
    if (defect.reference != normal.reference).any():
        pytest.fail("the reference must not depend on the defect")
    changed = np.abs(defect.target.astype(int) - normal.target.astype(int)).max(axis=2) > 127
    near = cv2.dilate(defect.mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0  # JPEG rings within its 8x8 blocks
    assert changed[defect.mask].mean() > 0.98
    assert not changed[~near].any()


def test_the_pose_aligns_the_reference_with_the_target():
    moved = Nuisance(shift=9, angle=3, gain=0, gradient=0, elastic_warp=0)
    pair = make_pair(np.random.default_rng(8), "printed", anomalous=False, nuisance=moved)
    aligned = cv2.warpPerspective(pair.reference, pair.pose, (640, 640))
    middle = np.s_[80:560, 80:560]
    correlation = np.corrcoef(aligned[middle].ravel(), pair.target[middle].ravel())[0, 1]
    before = np.corrcoef(pair.reference[middle].ravel(), pair.target[middle].ravel())[0, 1]
    assert correlation > 0.95
    assert correlation > before + 0.05


def test_a_binary_scan_has_two_levels():
    pair = make_pair(np.random.default_rng(9), "board", style=BINARY, nuisance=Nuisance())
    extreme = (pair.target < 40) | (pair.target > 215)  # JPEG blurs the two a little
    assert extreme.mean() > 0.99


def test_as_pair_has_the_true_boxes():
    synthetic = make_pair(np.random.default_rng(10), "grain", size=128)
    pair = synthetic.as_pair("g-10")
    assert pair.id == "g-10"
    assert pair.category == "grain"
    assert pair.boxes.tolist() == synthetic.boxes.tolist()
