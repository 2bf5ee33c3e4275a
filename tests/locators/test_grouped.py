"""Groups decoded as one sequence: logits are those of rows of their own, and nothing of the model stays changed."""

import copy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from transformers import AutoModelForImageTextToText, GenerationConfig  # noqa: E402

from differad.locators import grouped  # noqa: E402
from differad.locators.grouped import (  # noqa: E402
    attend_in_steps,
    can_group,
    completions_per_prompt,
    decoding_groups,
    group_attention_mask,
)
from differad.locators.prefix import generate_whole  # noqa: E402
from differad.locators.transformers_hooks import GroupCacheLayer, cache_input, with_capacity  # noqa: E402
from differad.training.pictures import Batch, Pictures  # noqa: E402
from differad.training.prefix import encode_prompts, find_prompts, generate_shared  # noqa: E402
from tolerance import assert_as_near  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
from tiny_models import HIDDEN, PATCH, build_checkpoint, generate_plainly  # noqa: E402

MEMBERS, STEPS = 3, 5
WORDS = (7, 12)  # of the two prompts, so that one of them is padded


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def model(request, tmp_path_factory):
    folder = build_checkpoint(tmp_path_factory.mktemp(request.param), request.param, None)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def prompts(model):
    """Two prompts with a picture each, every one of them three times: tokens, mask, kinds, pictures."""
    random = torch.Generator().manual_seed(0)
    image, grid = model.config.image_token_id, torch.tensor([[1, 4, 4]])
    width = 3 * 2 * PATCH[model.config.model_type] ** 2
    ids, mask, patches = [], [], []
    for words in WORDS:
        text = torch.randint(5, 60, (words,), generator=random).tolist()
        row, pads = [*text[:2], *[image] * 4, *text[2:]], max(WORDS) - words
        ids += [[0] * pads + row] * MEMBERS
        mask += [[0] * pads + [1] * len(row)] * MEMBERS
        patches += [torch.randn(16, width, generator=random)] * MEMBERS
    rows = len(ids)
    pictures = Pictures(torch.cat(patches), grid.repeat(rows, 1), [1] * rows)
    tokens = torch.tensor(ids)
    return tokens, torch.tensor(mask), (tokens == image).int(), pictures


def logits_of(model, ids, mask, cache, tokens):
    """Logits (STEPS, B, V) of the prompts' last tokens and of `tokens` (B, STEPS - 1), one by one."""
    fed = torch.cat([ids[:, -1:], tokens], dim=1)
    found = []
    for step in range(STEPS):
        seen = torch.cat([mask, mask.new_ones(len(mask), step)], dim=1)
        places = (seen.sum(dim=1) - 1 + 3)[None, :, None].expand(3, -1, -1)
        output = model(
            input_ids=fed[:, step : step + 1],
            attention_mask=seen,
            position_ids=places,
            use_cache=True,
            **cache_input(model, cache),
        )
        assert cache.get_seq_length() == ids.shape[1] + step
        found.append(output.logits[:, -1])
    return torch.stack(found)


def apart_logits(model, prompts, tokens):
    """Logits of rows of their own."""
    ids, mask, kinds, pictures = prompts
    known = find_prompts(ids, mask, pictures.rows())
    cache = encode_prompts(model, Batch(ids, mask, kinds, pictures), known)
    with_capacity(cache, known.prompt_index, STEPS)
    return logits_of(model, ids, mask, cache, tokens), cache


def grouped_logits(model, prompts, tokens, fixed=False):
    """Logits of groups decoded as one sequence; `fixed`: in buffers of one size, as on a GPU."""
    ids, mask, kinds, pictures = prompts
    known = find_prompts(ids, mask, pictures.rows())
    cache = encode_prompts(model, Batch(ids, mask, kinds, pictures), known)
    assert can_group(model, cache)
    with decoding_groups(model, cache, mask[known.first, :-1], MEMBERS, STEPS, fixed=fixed):
        return logits_of(model, ids, mask, cache, tokens), cache


@pytest.fixture
def answers(prompts):
    """What the members have said, one token a step."""
    return torch.randint(5, 60, (len(prompts[0]), STEPS - 1), generator=torch.Generator().manual_seed(1))


def compare(model, prompts, answers, half, fixed=False):
    """Both ways against float64; returns the largest error allowed, the logits and the caches of both."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        expected, repeated = apart_logits(model, prompts, answers)
        found, kept = grouped_logits(model, prompts, answers, fixed)
    exact, _ = apart_logits(copy.deepcopy(model).double(), prompts, answers)
    # A product in half precision is rounded once, whatever its length.
    terms, dtype = (1, "bfloat16") if half else (HIDDEN, "float32")
    allowed = assert_as_near(found, expected, exact, terms=terms, dtype=dtype)
    return allowed, found, kept, repeated


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_every_step_has_the_logits_of_rows_of_their_own(model, prompts, answers, half):
    """In single precision, and where autocast computes in half of it."""
    allowed, found, kept, repeated = compare(model, prompts, answers, half)
    apart = (found[1:, 0] - found[1:, 1]).double().pow(2).mean(dim=-1).sqrt()
    assert apart.min() > allowed  # members of a group have gone their own ways
    kept, repeated = (sum(layer.keys.numel() for layer in cache.layers) for cache in (kept, repeated))
    prompt = prompts[0].shape[1] - 1
    assert kept / repeated == (prompt + MEMBERS * STEPS) / (MEMBERS * (prompt + STEPS))


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
def test_buffers_of_one_size_give_the_same_logits(model, prompts, answers, half):
    """The way that a GPU records, step by step as it is."""
    allowed, found, kept, _ = compare(model, prompts, answers, half, fixed=True)
    apart = (found[1:, 0] - found[1:, 1]).double().pow(2).mean(dim=-1).sqrt()
    assert apart.min() > allowed
    columns = prompts[0].shape[1] - 1 + MEMBERS * STEPS
    assert kept.layers[0].keys.shape[2] == -(-columns // 8) * 8
    assert "forward" not in vars(model.get_decoder())


def sees_one_token_of_another(sees):
    sees[0, 0, -MEMBERS * STEPS + MEMBERS + 1] = True  # of the second step: in the first they all say the same


def misses_one_token_of_the_prompt(sees):
    sees[-1, 0, -MEMBERS * STEPS - 3] = False


def sees_the_pads(sees):
    sees[:, :, : -MEMBERS * STEPS] = True


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("wrong", [sees_one_token_of_another, misses_one_token_of_the_prompt, sees_the_pads])
def test_the_comparison_rejects_a_wrong_mask(model, prompts, answers, half, wrong, monkeypatch):
    def spoilt(*given):
        sees = group_attention_mask(*given)
        wrong(sees)
        return sees

    monkeypatch.setattr(grouped, "group_attention_mask", spoilt)
    with pytest.raises(AssertionError, match="from float64"):
        compare(model, prompts, answers, half)


@torch.no_grad()
def test_the_comparison_rejects_an_attention_that_is_off_by_a_thousandth(model, prompts, answers, monkeypatch):
    """In single precision alone: half of it keeps 8 bits, in which a thousandth is nothing."""
    call = grouped.GroupAttention.__call__
    monkeypatch.setattr(
        grouped.GroupAttention,
        "__call__",
        lambda self, *given, scaling, **rest: call(self, *given, scaling=1.001 * scaling, **rest),
    )
    with pytest.raises(AssertionError, match="from float64"):
        compare(model, prompts, answers, half=False)


def test_the_model_gets_its_attention_back_whatever_happens(model, prompts):
    ids, mask, kinds, pictures = prompts
    known = find_prompts(ids, mask, pictures.rows())
    with torch.no_grad():
        cache = encode_prompts(model, Batch(ids, mask, kinds, pictures), known)
    text = model.config.get_text_config()
    stock, meanwhile = text._attn_implementation, []

    def fail():
        with decoding_groups(model, cache, mask[known.first, :-1], MEMBERS, 1):
            meanwhile.append(text._attn_implementation)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert meanwhile == [grouped.ATTENTION]
    assert text._attn_implementation == stock
    assert not can_group(model, cache)  # its layers are groups' for good


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 0, 1, 4, 2, 5]])
def test_contiguous_whole_groups_are_decoded_as_one_sequence(model, prompts, order, monkeypatch):
    ids, mask, kinds, pictures = prompts
    rows = pictures.rows()
    patches = torch.cat([rows[row][0] for row in order])
    mixed = Pictures(patches, pictures.grids, pictures.counts)
    made = []
    stock = GroupCacheLayer.__init__
    monkeypatch.setattr(
        GroupCacheLayer, "__init__", lambda self, *given: (made.append(given[2]), stock(self, *given))[1]
    )
    config = GenerationConfig(do_sample=False, max_new_tokens=4, pad_token_id=0, eos_token_id=None)
    found = generate_shared(model, Batch(ids[order], mask[order], kinds[order], mixed), config)
    layers = model.config.get_text_config().num_hidden_layers
    assert made == ([MEMBERS] * layers if order == sorted(order) else [])
    expected = generate_plainly(model, Batch(ids, mask, kinds, pictures), config)
    assert found.tolist() == expected[order].tolist()


def test_a_member_sees_its_prompt_but_for_pads_and_its_own_tokens():
    sees = group_attention_mask(torch.tensor([[0, 1], [1, 1]]), 2, 2).int()
    assert sees.tolist() == [
        [[0, 1, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]],
        [[1, 1, 1, 0, 1, 0], [1, 1, 0, 1, 0, 1]],
    ]


@pytest.mark.parametrize(
    ("prompt_index", "members"),
    [([0, 0, 1, 1], 2), ([0, 1], 1), ([0], 1), ([0, 1, 0, 1], None), ([0, 0, 1], None), ([0, 1, 1, 0], None)],
)
def test_group_sizes_follow_from_the_rows(prompt_index, members):
    assert completions_per_prompt(torch.tensor(prompt_index)) == members


def test_whole_prompts_are_answered_by_fixed_steps_as_by_generate(model, prompts):
    """The way that a locator takes on a GPU: each row is a group of its own."""
    ids, mask, kinds, pictures = prompts
    config = GenerationConfig(do_sample=False, max_new_tokens=4, pad_token_id=0, eos_token_id=None)
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    inputs |= {"pixel_values": pictures.patches, "image_grid_thw": pictures.grids}
    found = generate_whole(model, inputs, config, [], fixed=True)
    expected = generate_plainly(model, Batch(ids, mask, kinds, pictures), config)
    assert found.tolist() == expected[:, ids.shape[1] :].tolist()
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize("half", [False, True])
def test_attention_in_steps_is_as_near_to_float64_as_torchs_own(half):
    random = torch.Generator().manual_seed(4)
    query = torch.randn(2, 3, 6, 16, generator=random)
    key, value = torch.randn(2, 2, 3, 40, 16, generator=random)
    mask = torch.zeros(2, 1, 6, 40).masked_fill_(torch.rand(2, 1, 6, 40, generator=random) < 0.3, -torch.inf)
    own = torch.nn.functional.scaled_dot_product_attention
    exact = own(query.double(), key.double(), value.double(), attn_mask=mask.double())
    if half:
        query, key, value, mask = (each.bfloat16() for each in (query, key, value, mask))
        exact = own(query.double(), key.double(), value.double(), attn_mask=mask.double())
    found, expected = attend_in_steps(query, key, value, mask, None), own(query, key, value, attn_mask=mask)
    terms, dtype = (1, "bfloat16") if half else (40, "float32")
    assert_as_near(found, expected, exact, terms=terms, dtype=dtype)
    assert found.dtype == expected.dtype
