"""Sharing a prompt changes nothing: logits, losses and gradients equal those of the prompt repeated for each answer."""

import copy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from transformers import AutoModelForImageTextToText, DynamicCache, GenerationConfig  # noqa: E402

from differad.locators.prefix import obstacle  # noqa: E402
from differad.locators.transformers_hooks import with_capacity  # noqa: E402
from differad.training.pictures import Batch, Pictures  # noqa: E402
from differad.training.prefix import (  # noqa: E402
    PromptCache,
    completion_inputs,
    find_prompts,
    generate_shared,
    split_completions,
)
from tolerance import assert_as_near, assert_gradients_as_near  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
from tiny_models import HIDDEN, PATCH, build_checkpoint, generate_plainly  # noqa: E402

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
GROUP, PROMPTS, ANSWER = 3, 2, 7


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    folder = build_checkpoint(tmp_path_factory.mktemp(request.param), request.param, None)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def batch(model, seed=0):
    """Two prompts of different lengths with two images each and three completions each; padded left and right."""
    random = torch.Generator().manual_seed(seed)
    vision = model.config.vision_config
    width = 3 * 2 * PATCH[model.config.model_type] ** 2
    image = model.config.image_token_id
    rows, patches, grids = [], [], []
    for prompt in range(PROMPTS):
        own = torch.tensor([[1, 4, 6], [1, 4 + 2 * prompt, 4]])
        tokens = []
        for grid in own:
            text = torch.randint(5, 60, (3 + prompt,), generator=random)
            count = int(grid.prod()) // vision.spatial_merge_size**2
            tokens += [*text.tolist(), *[image] * count]
        tokens += torch.randint(5, 60, (4,), generator=random).tolist()
        pixels = torch.randn(int(own.prod(dim=1).sum()), width, generator=random)
        rows += [tokens] * GROUP
        patches += [pixels] * GROUP
        grids += [own] * GROUP
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    answers = torch.randint(5, 60, (len(rows), ANSWER), generator=random)
    lengths = torch.randint(2, ANSWER + 1, (len(rows), 1), generator=random)
    answered = (torch.arange(ANSWER) < lengths).long()
    full = torch.cat([ids, answers * answered], dim=1)
    full_mask = torch.cat([mask, answered], dim=1)
    pictures = Pictures(torch.cat(patches), torch.cat(grids), [2] * len(rows))
    return full, full_mask, (full == image).int(), pictures


def log_probs(logits, full, mask):
    taken = torch.log_softmax(logits, dim=-1).gather(2, full[:, -ANSWER:, None])[..., 0]
    return taken * mask[:, -ANSWER:]


def stock(model, full, mask, types, pictures):
    logits = model(
        input_ids=full,
        attention_mask=mask,
        mm_token_type_ids=types,
        pixel_values=pictures.patches,
        image_grid_thw=pictures.grids,
    ).logits
    return log_probs(logits[:, -ANSWER - 1 : -1], full, mask)


def shared(model, full, mask, types, pictures):
    logits = model(**completion_inputs(model, split_completions(Batch(full, mask, types, pictures), ANSWER))).logits
    return log_probs(logits[:, :-1], full, mask)


def test_prompts_with_different_images_are_different(model):
    full, mask, _, pictures = batch(model)
    prompt, seen = full[:, :-ANSWER], mask[:, :-ANSWER]
    assert find_prompts(prompt, seen, pictures.rows()).prompt_index.tolist() == [0, 0, 0, 1, 1, 1]
    other = pictures.patches.clone()
    other[0] += 1  # only the first row's image
    changed = find_prompts(prompt, seen, Pictures(other, pictures.grids, pictures.counts).rows())
    assert changed.prompt_index.tolist() == [0, 1, 1, 2, 2, 2]
    assert changed.first.tolist() == [0, 1, 3]
    assert changed.shared


def scores_and_gradients(model, scores, inputs):
    """Log-probabilities (B, ANSWER) and every gradient of a weighted sum of them."""
    weights = torch.randn(PROMPTS * GROUP, 1, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    logs = scores(model, *inputs)
    (weights * -logs).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return logs.detach(), gradients


def test_losses_and_every_gradient_equal_those_of_repeated_prompts(model):
    inputs = batch(model)
    found, expected = (scores_and_gradients(model, scores, inputs) for scores in (shared, stock))
    exact = scores_and_gradients(copy.deepcopy(model).double(), stock, inputs)
    assert_as_near(found[0], expected[0], exact[0], terms=HIDDEN)
    assert_gradients_as_near(found[1], expected[1], exact[1], terms=HIDDEN)


def test_rows_in_any_order_get_their_own_prompt(model):
    full, mask, types, pictures = batch(model)
    order = torch.tensor([3, 0, 4, 1, 5, 2])
    rows = [pictures.rows()[row] for row in order.tolist()]
    mixed = Pictures(torch.cat([p for p, _ in rows]), torch.cat([g for _, g in rows]), pictures.counts)
    with torch.no_grad():
        straight = stock(model, full, mask, types, pictures)
        crossed = shared(model, full[order], mask[order], types[order], mixed)
        exact = stock(copy.deepcopy(model).double(), full, mask, types, pictures)
    assert_as_near(crossed, straight[order], exact[order], terms=HIDDEN)
    with pytest.raises(AssertionError, match="from float64"):
        assert_as_near(crossed, straight, exact, terms=HIDDEN)


@torch.no_grad()
@pytest.mark.parametrize("wrong", ["position", "mask", "pixels"])
def test_the_comparison_rejects_what_is_slightly_wrong(model, wrong):
    """One answer's positions moved by one, one token of a prompt hidden, one patch a hundredth brighter."""
    full, mask, types, pictures = batch(model)
    exact = stock(copy.deepcopy(model).double(), full, mask, types, pictures)
    straight = stock(model, full, mask, types, pictures)
    inputs = completion_inputs(model, split_completions(Batch(full, mask, types, pictures), ANSWER))
    if wrong == "position":
        inputs["position_ids"] = inputs["position_ids"].clone()
        inputs["position_ids"][:, 4] += 1
        found = log_probs(model(**inputs).logits[:, :-1], full, mask)
    elif wrong == "mask":
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        inputs["attention_mask"][4, 3] = 0
        found = log_probs(model(**inputs).logits[:, :-1], full, mask)
    else:
        patches = pictures.patches.clone()
        patches[0] *= 1.01
        found = shared(model, full, mask, types, Pictures(patches, pictures.grids, pictures.counts))
    with pytest.raises(AssertionError, match="from float64"):
        assert_as_near(found, straight, exact, terms=HIDDEN)


def test_consecutive_rows_keep_their_images(model):
    *_, pictures = batch(model)
    part = pictures.take(slice(2, 5))
    assert part.counts == [2, 2, 2]
    for own, expected in zip(part.rows(), pictures.rows()[2:5], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(own, expected, strict=True))


def test_a_preallocated_cache_equals_the_stock_one():
    random = torch.Generator().manual_seed(0)
    first = torch.randn(2, 1, 3, 4, generator=random)
    prompt_index = torch.tensor([0, 0, 1])
    preallocated, stock = DynamicCache(), DynamicCache()
    for cache in (preallocated, stock):
        cache.update(first, -first, 0)
    with_capacity(preallocated, prompt_index, 2)
    stock.batch_select_indices(prompt_index)
    for _ in range(5):  # beyond its capacity
        fresh = torch.randn(3, 1, 1, 4, generator=random)
        found, expected = preallocated.update(fresh, 2 * fresh, 0), stock.update(fresh, 2 * fresh, 0)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert preallocated.get_seq_length() == 8


@pytest.mark.parametrize("sample", [False, True])
def test_the_same_random_numbers_give_the_same_completions(model, sample):
    full, mask, types, pictures = batch(model)
    ids, seen, kinds = full[:, :-ANSWER], mask[:, :-ANSWER], types[:, :-ANSWER]
    config = GenerationConfig(do_sample=sample, max_new_tokens=6, top_k=0, pad_token_id=0)
    torch.manual_seed(5)
    expected = generate_plainly(model, Batch(ids, seen, kinds, pictures), config)
    torch.manual_seed(5)
    found = generate_shared(model, Batch(ids, seen, kinds, pictures), config)
    assert found.tolist() == expected.tolist()
    if sample:  # members of a group differ, so that the test could fail
        assert len({tuple(row) for row in found[:GROUP].tolist()}) > 1


def test_a_model_that_checkpoints_its_gradients_hands_no_cache_on(model):
    assert obstacle(model) is None
    model.gradient_checkpointing_enable()
    model.train()
    try:
        assert obstacle(model).startswith("gradient checkpointing")
        assert obstacle(model, cached=False) is None
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


@torch.no_grad()
def test_a_cached_prompt_is_not_encoded_again_with_other_padding(model):
    full, mask, types, pictures = batch(model)
    prompt_cache, passes = PromptCache(), []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, __, fields: passes.append(fields["inputs_embeds"].shape[1]), with_kwargs=True
    )
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    prompt = full.shape[1] - ANSWER
    generate_shared(model, Batch(full, mask, types, pictures).until(prompt), config, prompt_cache=prompt_cache)
    assert (len(prompt_cache), passes.count(prompt - 1)) == (PROMPTS, 1)
    # The shorter prompt alone, with fewer pads than it had beside the longer one.
    begin, rows = int(mask[0, :prompt].logical_not().sum()) - 1, slice(0, GROUP)
    assert begin > 0
    own = Batch(full[rows, begin:], mask[rows, begin:], types[rows, begin:], pictures.take(rows))
    del passes[:]
    found = model(**completion_inputs(model, split_completions(own, ANSWER), prompt_cache=prompt_cache)).logits
    assert passes == [ANSWER + 1]
    hook.remove()
    precise = copy.deepcopy(model).double()
    anew, exact = (each(**completion_inputs(each, split_completions(own, ANSWER))).logits for each in (model, precise))
    assert_as_near(found, anew, exact, terms=HIDDEN)
    asked = own.until(prompt - begin).take(slice(0, 1))
    others = [(patches + 1, grids) for patches, grids in asked.pictures.rows()]
    assert prompt_cache.get(model, asked.ids, asked.mask, asked.pictures.rows()) is not None
    assert prompt_cache.get(model, asked.ids, asked.mask, others) is None
