"""The comparer and the policy around it: batches, proposals, the dense loss, gradients, and how it is saved."""

import copy
import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="the local extra is not installed")
pytest.importorskip("transformers", reason="the local extra is not installed")
import torch
from transformers import AutoModelForImageTextToText

from differad.locators.tiny.evidence import CELL_EXTRA, COARSE, DISTANCES, FINE, WIDTH
from differad.locators.tiny.model import TinyPolicy, _append_standardised, dense_loss, fourier_features
from differad.locators.tiny.processor import MERGE, REFERENCE_GRID
from differad.locators.tiny.proposals import PROPOSALS, proposals
from tolerance import assert_as_near, assert_rounded, rounding

GRIDS = ((8, 8), (4, 12), (8, 8), (12, 4), (4, 4))


@pytest.fixture(scope="module")
def policy(untaught):
    return AutoModelForImageTextToText.from_pretrained(untaught).eval()


def batch(grids, seed=0):
    """Rows of evidence (P, WIDTH) and grids (2N, 3) of N pairs whose targets have these grids."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [REFERENCE_GRID if number % 2 == 0 else (1, *grids[number // 2]) for number in range(2 * len(grids))]
    return torch.randn(sum(map(math.prod, sizes)), WIDTH, generator=generator), torch.tensor(sizes)


def test_a_batch_of_several_shapes_is_compared_as_one_by_one(policy):
    rows, sizes = batch(GRIDS)
    comparer = policy.model.visual
    with torch.no_grad():
        together = comparer(rows, sizes).pooler_output
        maps = list(comparer.logits)
        parts = torch.split(rows, sizes.prod(dim=1).tolist())
        alone, exact = (
            torch.cat(
                [
                    each(torch.cat(parts[at : at + 2]).to(dtype), sizes[at : at + 2]).pooler_output
                    for at in range(0, len(parts), 2)
                ]
            )
            for each, dtype in ((comparer, torch.float32), (copy.deepcopy(comparer).double(), torch.float64))
        )
    assert_as_near(together, alone, exact, terms=together.shape[-1])
    counts = [PROPOSALS + height * width // MERGE**2 for height, width in GRIDS]
    assert len(together) == sum(counts)
    assert [tuple(each.shape) for each in maps] == [(2 * height, 2 * width) for height, width in GRIDS]
    assert (sizes.prod(dim=1) // MERGE**2).sum() == sum(counts)  # as many as the language model has slots


def test_a_reference_s_rows_say_nothing(policy):
    """All that is known of the reference stands in the target's rows."""
    rows, sizes = batch(GRIDS[:1])
    other = rows.clone()
    other[: math.prod(REFERENCE_GRID)] = 7.0
    with torch.no_grad():
        first, second = (policy.model.visual(each, sizes).pooler_output for each in (rows, other))
    assert torch.equal(first, second)


def test_proposals_are_boxes_around_the_peaks():
    """12 x 20 cells: a square of logit 3 with a rim of -1, and a lower one of logit 1."""
    logits = np.full((12, 20), -8.0, np.float32)
    logits[2:8, 3:9] = -1.0  # probability 0.27, above 0.2 of the peak's 0.95, not above 0.5
    logits[3:7, 4:8] = 3.0
    logits[9:11, 14:19] = 1.0
    found = proposals(logits)
    assert found.shape == (PROPOSALS, 6)
    expected = [
        [4 / 20, 3 / 12, 8 / 20, 7 / 12, 3 / 4, 3 / 4],
        [3 / 20, 2 / 12, 9 / 20, 8 / 12, 3 / 4, (16 * 3 - 20 * 1) / 36 / 4],  # 4 x 4 cells of 3, 20 of -1
        [14 / 20, 9 / 12, 19 / 20, 11 / 12, 1 / 4, 1 / 4],
        [14 / 20, 9 / 12, 19 / 20, 11 / 12, 1 / 4, 1 / 4],
    ]
    assert_rounded(found, expected, terms=36)


@pytest.mark.parametrize("level", [-100.0, 0.0, 100.0])
def test_a_flat_map_proposes_all_of_it(level):
    found = proposals(np.full((8, 8), level, np.float32))
    assert np.isfinite(found).all()
    assert found[0, :4].tolist() == [0, 0, 1, 1]


def test_distances_are_standardised_per_image():
    cells = torch.randn(2, FINE + CELL_EXTRA, 6, 4)
    found = _append_standardised(cells, FINE)
    assert found.shape == (2, FINE + CELL_EXTRA + DISTANCES, 6, 4)
    assert torch.equal(found[:, : FINE + CELL_EXTRA], cells)
    one = cells[1, FINE + 2].double()
    expected = (one - one.mean()) / (one.std() + 0.02) / 4
    assert_rounded(found[1, FINE + CELL_EXTRA + 2], expected, terms=one.numel())
    assert _append_standardised(torch.ones(1, COARSE + CELL_EXTRA, 4, 4), COARSE)[:, -DISTANCES:].abs().max() == 0


def test_near_values_have_similar_features():
    first, near, far = fourier_features(torch.tensor([0.5, 0.501, 0.7]))
    assert first.shape == (16,)  # 8 frequencies, sine and cosine
    assert torch.linalg.norm(first - near) < torch.linalg.norm(first - far) / 2


def bce(logit, truth):
    probability = 1 / (1 + math.exp(-logit))
    return -truth * math.log(probability) - (1 - truth) * math.log(1 - probability)


def test_the_dense_loss_by_hand():
    """Two pairs: 4 x 4 patches, 64 cells of logit 0.5 with two marked; then a normal one of logit -2."""
    logits = [torch.full((8, 8), 0.5), torch.full((8, 8), -2.0)]
    grids = torch.tensor([REFERENCE_GRID, (1, 4, 4), REFERENCE_GRID, (1, 4, 4)])
    coverage = torch.zeros(2 * (64 + 16), 4)
    coverage[64, 0] = 1 / 16  # the first target's first cell: half of an eighth, so half changed
    coverage[64 + 5, 3] = 0.9  # more than an eighth: changed
    coverage[:64] = 1.0  # rows of a reference are ignored
    probability = 1 / (1 + math.exp(-0.5))
    text = (62 * bce(0.5, 0) + bce(0.5, 0.5) + bce(0.5, 1)) / 64
    overlap = (2 * 1.5 * probability + 1) / (64 * probability + 1.5 + 1)
    expected = (text + 0.2 * (1 - overlap) + bce(-2.0, 0)) / 2
    assert float(dense_loss(logits, coverage, grids)) == pytest.approx(expected, rel=rounding(64, 1.0))


def test_the_dense_loss_depends_on_the_marked_cell():
    """The map that is right where it counts, a cell of the second token's last patch, has the least loss."""
    grids = torch.tensor([REFERENCE_GRID, (1, 4, 8)])
    coverage = torch.zeros(64 + 32, 4)
    coverage[-1, -1] = 1.0
    losses = {}
    for y, x in ((7, 15), (7, 7), (0, 15), (6, 14)):
        logits = torch.full((8, 16), -4.0)
        logits[y, x] = 4.0
        losses[y, x] = float(dense_loss([logits], coverage, grids))
    assert min(losses, key=losses.get) == (7, 15)


def asked(policy, grids, seed=0):
    """Inputs of a whole forward pass: image tokens, then a few others, which are learnt."""
    rows, sizes = batch(grids, seed)
    counts = sizes.prod(dim=1).reshape(-1, 2).sum(dim=1) // MERGE**2
    config = policy.config
    longest = int(counts.max()) + 6
    ids = torch.full((len(grids), longest), 40)
    for number, count in enumerate(counts.tolist()):
        ids[number, :count] = config.image_token_id
        ids[number, 0] = ids[number, PROPOSALS + 1] = config.vision_start_token_id
        ids[number, 1 : PROPOSALS + 1] = config.image_token_id
        ids[number, PROPOSALS + 2 : count + 2] = config.image_token_id
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": rows,
        "image_grid_thw": sizes,
    }


def test_both_losses_reach_the_comparer(policy):
    inputs = asked(policy, GRIDS)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    comparer = policy.model.visual
    policy.zero_grad()
    policy(**inputs, labels=labels).loss.backward()
    assert {name for name, weight in comparer.named_parameters() if weight.grad is None} == set()
    assert all(weight.grad.abs().sum() > 0 for name, weight in comparer.named_parameters() if "weight" in name)
    policy.zero_grad()
    policy(**inputs)
    coverage = torch.rand(len(inputs["pixel_values"]), 4)
    dense_loss(comparer.logits, coverage, inputs["image_grid_thw"]).backward()
    assert comparer.changed.weight.grad.abs().sum() > 0
    assert comparer.fine.weight.grad.abs().sum() > 0
    assert comparer.merge.weight.grad is None  # what comes after the map has no part in it
    policy.zero_grad()


def test_saved_and_loaded_it_is_the_same(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".json",)] == ["model.safetensors"]
    loaded, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    assert isinstance(loaded, TinyPolicy)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        first, second = (model.eval()(**asked(policy, GRIDS[:3])).logits for model in (policy, loaded))
    assert torch.equal(first, second)
