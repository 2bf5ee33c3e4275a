"""Coverage of cells, compared with masks whose cells can be counted, in the order of the policy's map."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the local extra is not installed")
pytest.importorskip("transformers", reason="the local extra is not installed")
import torch
from PIL import Image

from differad.locators.tiny.model import _cells
from differad.locators.tiny.processor import MERGE
from differad.training.coverage import WithCoverage, coverage_rows
from tolerance import assert_rounded

# A target of 8 x 4 patches: one token above another, each of 4 x 4 patches, a patch of 2 x 2 cells of 8 x 8 pixels.
HEIGHT, WIDTH = 8, 4


def row(folder, marked, boxes=()):
    """A row of the data set; `marked` (H, W) becomes its mask, None: it has boxes alone."""
    target = folder / "target.png"
    Image.fromarray(np.zeros((*(marked if marked is not None else np.zeros((128, 64))).shape, 3), np.uint8)).save(
        target
    )
    mask = ""
    if marked is not None:
        mask = str(folder / "mask.png")
        Image.fromarray(marked.astype(np.uint8) * 255).save(mask)
    return {"mask": mask, "boxes": [list(map(float, box)) for box in boxes], "target": str(target)}


def place(y, x):
    """Row and column of coverage where the cell (y, x) of the map stands: token, patch within it, cell within that."""
    patch_y, patch_x = y // 2, x // 2
    token = patch_y // MERGE * (WIDTH // MERGE) + patch_x // MERGE
    return token * MERGE**2 + patch_y % MERGE * MERGE + patch_x % MERGE, y % 2 * 2 + x % 2


def test_each_cell_stands_at_its_place(tmp_path):
    for y, x in ((0, 0), (0, 1), (1, 0), (3, 5), (7, 7), (8, 0), (15, 6)):
        marked = np.zeros((128, 64), np.bool_)
        marked[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = True
        found = coverage_rows(row(tmp_path, marked), HEIGHT, WIDTH)
        assert (found.shape, found.dtype) == ((32, 4), np.float32)
        assert found[place(y, x)] == 1
        assert found.sum() == 1


def test_a_cell_says_how_much_of_it_is_marked(tmp_path):
    marked = np.zeros((128, 64), np.bool_)
    marked[66:70, 12:24] = True  # rows 66 to 69 of cell row 8; columns 12 to 15 of cell 1, all of cell 2
    found = coverage_rows(row(tmp_path, marked), HEIGHT, WIDTH)
    assert found[place(8, 1)] == pytest.approx(4 * 4 / 64)
    assert found[place(8, 2)] == pytest.approx(4 * 8 / 64)
    assert found.sum() == pytest.approx(48 / 64)


def test_the_models_rows_have_the_order_of_the_mask(tmp_path):
    """A random mask, cell by cell by hand, is what the model's own unfolding of the rows gives."""
    marked = np.random.default_rng(0).random((128, 64)) < 0.3
    rows = torch.from_numpy(coverage_rows(row(tmp_path, marked), HEIGHT, WIDTH))
    cells = _cells(rows[None, :, :, None], (HEIGHT, WIDTH))[0, 0]
    by_hand = [[marked[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean() for x in range(8)] for y in range(16)]
    assert_rounded(cells, by_hand, terms=64)


def test_a_target_of_another_size_is_scaled(tmp_path):
    marked = np.zeros((256, 32), np.bool_)  # twice as high and half as wide as the patches span
    marked[:128, 16:] = True
    found = _cells(torch.from_numpy(coverage_rows(row(tmp_path, marked), HEIGHT, WIDTH))[None, :, :, None], (8, 4))[
        0, 0
    ]
    assert found[:8, 4:].min() == 1
    assert found.sum() == 8 * 4


def test_without_a_mask_the_boxes_count(tmp_path):
    marked = np.zeros((128, 64), np.bool_)
    marked[16:41, 8:20] = marked[100:128, 40:64] = True
    boxes = [[8.4, 16, 20, 40.2], [40, 100, 64, 128]]  # a pixel that a box touches is within it
    by_mask = coverage_rows(row(tmp_path, marked), HEIGHT, WIDTH)
    np.testing.assert_array_equal(coverage_rows(row(tmp_path, None, boxes), HEIGHT, WIDTH), by_mask)


def test_a_normal_pair_has_nothing_marked(tmp_path):
    found = coverage_rows(row(tmp_path, None), HEIGHT, WIDTH)
    assert found.shape == (32, 4)
    assert not found.any()


def test_references_stand_before_their_targets(tmp_path):
    marked = np.ones((128, 64), np.bool_)
    grids = torch.tensor([[1, 4, 16], [1, 8, 4], [1, 4, 16], [1, 4, 4]])
    batch = WithCoverage(lambda rows: {"image_grid_thw": grids})([row(tmp_path, marked), row(tmp_path, None)])
    shares = [float(part.mean()) for part in torch.split(batch["coverage"], [64, 32, 64, 16])]
    assert shares == [0, 1, 0, 0]
