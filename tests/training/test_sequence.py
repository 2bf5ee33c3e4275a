"""A prompt and its completions as one sequence: the attention mask, and unpacking into the original rows."""

import copy

import pytest

torch = pytest.importorskip("torch")
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: E402

from differad.training.pictures import Batch, Pictures  # noqa: E402
from differad.training.prefix import split_completions  # noqa: E402
from differad.training.sequence import index_in_group, is_cheaper, pack, packed_attention_mask  # noqa: E402
from tolerance import assert_as_near  # noqa: E402

KEEP = 2
IMAGE = 9


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "embed_dim": 8, "hidden_size": 16, "num_heads": 1, "patch_size": 14, "mlp_ratio": 1}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=8)
    return Qwen2VLForConditionalGeneration(config).eval()


def rows(count, keep=KEEP):
    """Two prompts of five and six tokens, the second with `count` answers and the first with one, in turn 1, 0, 1, 1 …"""
    prompts = [[0, 3, 8, IMAGE, 4, 5], [2, 3, 8, IMAGE, 4, 6]]
    order = [1, 0, *[1] * (count - 1)]
    answers = torch.arange(20, 20 + len(order) * keep).view(-1, keep)
    ids = torch.cat([torch.tensor([prompts[each] for each in order]), answers], dim=1)
    mask = torch.ones_like(ids)
    mask[1, 0] = 0
    mask[0, -1] = 0  # the first answer is a token shorter
    patches = torch.cat([torch.full((4, 3 * 2 * 14**2), 0.1 * each) for each in order])
    pictures = Pictures(patches, torch.tensor([[1, 2, 2]] * len(order)), [1] * len(order))
    return Batch(ids, mask, (ids == IMAGE).int(), pictures)


def test_rows_are_packed_behind_their_prompt(model):
    layout = pack(model, split_completions(rows(2), KEEP))
    # Answers 20 21, 22 23 and 24 25 belong to the second, the first and the second prompt.
    assert layout.inputs["input_ids"].tolist() == [
        [2, 3, 8, IMAGE, 4, 6, 20, 21, 6, 24, 25],
        [0, 3, 8, IMAGE, 4, 5, 22, 23, 5, 22, 23],
    ]
    assert layout.labels.tolist()[0] == [-100, -100, -100, -100, -100, -100, 20, -100, -100, 24, 25]
    assert layout.labels.tolist()[1][:8] == [-100, -100, -100, -100, -100, -100, 22, 23]
    position_ids = layout.inputs["position_ids"]
    assert (position_ids[:, :, 5:7] == position_ids[:, :, 8:10]).all()  # both answers begin where the prompt ends
    # Values of the next tokens: those of the answers' own tokens, in the order of the rows.
    values = layout.labels[:, 1:].float()
    assert layout.rows(values).tolist() == [[20, -100], [22, 23], [24, 25]]
    assert len(layout.inputs["pixel_values"]) == 8


def own_logits(model, batch):
    """Logits (B, KEEP, V) of the answers' tokens, in rows of their own."""
    logits = model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        mm_token_type_ids=batch.types,
        pixel_values=batch.pictures.patches,
        image_grid_thw=batch.pictures.grids,
    ).logits
    return logits[:, -KEEP - 1 : -1]


def packed_logits(model, batch, change=lambda inputs: None):
    """The same with packed sequences; `change` may corrupt the inputs."""
    layout = pack(model, split_completions(batch, KEEP))
    change(layout.inputs)
    logits = model(**layout.inputs, use_cache=False).logits
    return torch.stack([layout.rows(logits[:, :-1, token]) for token in range(logits.shape[2])], dim=2)


def compare(model, attention, half, change=lambda inputs: None):
    """Both ways, in single precision or where autocast computes in half of it, against float64."""
    model.set_attn_implementation(attention)
    batch, precise = rows(3), copy.deepcopy(model).double()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found, own = packed_logits(model, batch, change), own_logits(model, batch)
    # A product in half precision is rounded once, for any length.
    terms, dtype = (1, "bfloat16") if half else (model.config.get_text_config().hidden_size, "float32")
    assert_as_near(found, own, own_logits(precise, batch), terms=terms, dtype=dtype)


ATTENTIONS = [("sdpa", False), ("eager", False), ("sdpa", True), ("eager", True)]


@torch.no_grad()
@pytest.mark.parametrize(("attention", "half"), ATTENTIONS)
def test_logits_are_those_of_rows_of_their_own(model, attention, half):
    """With each attention that takes a mask."""
    compare(model, attention, half)


def one_position_off(inputs):
    inputs["position_ids"] = inputs["position_ids"].clone()
    inputs["position_ids"][:, 0, -2] += 1


def one_token_too_many(inputs):
    """The third answer's first token, which predicts its second, attends to the first answer's first."""
    mask = inputs["attention_mask"].clone()
    mask[0, :, -2, 6] = mask[0, :, -2, -2]
    inputs["attention_mask"] = mask


def one_token_too_few(inputs):
    mask = inputs["attention_mask"].clone()
    mask[0, :, -2, 2] = mask[0, :, -2, -1]
    inputs["attention_mask"] = mask


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("wrong", "half"),
    [
        (one_position_off, False),  # too small for an 8-bit mantissa; positions are integers in both
        *((wrong, half) for wrong in (one_token_too_many, one_token_too_few) for half in (False, True)),
    ],
)
def test_the_comparison_rejects_what_is_slightly_wrong(model, attention, wrong, half):
    with pytest.raises(AssertionError, match="from float64"):
        compare(model, attention, half, wrong)


def test_a_token_attends_to_its_prompt_and_its_own_completion():
    allowed = packed_attention_mask(torch.tensor([[0, 1]]), 2, 2).int()[0].tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0],  # padding, which must attend to something
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 1],
    ]


def test_the_index_counts_rows_of_each_group():
    assert index_in_group(torch.tensor([0, 1, 0, 0, 2, 1])).tolist() == [0, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("count", "keep", "attention", "expected"),
    [(8, 2, "sdpa", True), (8, 2, "flash_attention_2", False), (8, 400, "sdpa", False), (1, 2, "sdpa", False)],
)
def test_packing_is_not_cheaper_for_long_or_single_completions(model, count, keep, attention, expected):
    """Width 16: with eight answers of 400 tokens, each token attends to 3,200 keys instead of 400."""
    text = model.config.get_text_config()
    stock = text._attn_implementation
    text._attn_implementation_internal = attention
    try:
        assert is_cheaper(model, split_completions(rows(count, keep), keep)) is expected
    finally:
        text._attn_implementation_internal = stock
