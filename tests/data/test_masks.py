"""Masks to boxes, against a flood fill written out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from differad.data.manifest import read_pairs
from differad.data.masks import boxes_from_mask, read_mask

SHARED = Path(__file__).parents[3] / "shared" / "data"


def flood_boxes(mask):
    """Boxes of 8-connected regions by walking from pixel to pixel."""
    todo = {tuple(point) for point in np.argwhere(mask)}
    found = []
    while todo:
        stack, region = [todo.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            stack += near
        ys, xs = zip(*region, strict=True)
        found.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_boxes_equal_a_flood_fill(seed):
    mask = np.random.default_rng(seed).random((24, 31)) < 0.2
    assert sorted(boxes_from_mask(mask, gap=0).tolist()) == sorted(flood_boxes(mask))


def test_specks_near_a_defect_belong_to_it():
    mask = np.zeros((100, 200), bool)
    mask[10:20, 10:20] = True
    mask[14, 22] = True  # 2 pixels of background away; 2 % of 200 is 4
    mask[60:65, 60:65] = True
    assert boxes_from_mask(mask).tolist() == [[10, 10, 23, 20], [60, 60, 65, 65]]
    assert boxes_from_mask(mask, gap=0).tolist() == [[10, 10, 20, 20], [60, 60, 65, 65], [22, 14, 23, 15]]
    assert boxes_from_mask(mask, gap=1).tolist() == boxes_from_mask(mask, gap=0).tolist()
    assert boxes_from_mask(mask, gap=2).tolist() == boxes_from_mask(mask).tolist()


def test_an_empty_mask_has_no_box():
    assert boxes_from_mask(np.zeros((9, 9), bool)).shape == (0, 4)


@pytest.mark.parametrize("value", [1, 255])
def test_any_value_but_black_marks(tmp_path, value):
    pixels = np.zeros((4, 5), np.uint8)
    pixels[1, 2] = value
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.argwhere(read_mask(tmp_path / "mask.png")).tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["magnetic_tile", "kolektor_sdd"])
def test_the_labels_of_the_real_masks_are_found(name):
    path = SHARED / name / "pairs.jsonl"
    if not path.exists():
        pytest.skip(f"the real pairs are not here: {path}")
    pairs = [pair for pair in read_pairs(path) if pair.mask is not None]
    same = sum(sorted(boxes_from_mask(read_mask(p.mask)).tolist()) == sorted(p.boxes.tolist()) for p in pairs)
    assert same >= 0.95 * len(pairs)  # whoever labelled them joined specks by a rule of their own
