"""Prefix sharing in the real trainer: rollouts, losses and gradients equal TRL's; what cannot share says so."""

import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from PIL import Image
from transformers import Qwen2VLProcessor

from differad.training import sharing
from differad.training.pictures import Batch, Pictures
from differad.training.prefix import split_completions
from differad.training.recipe import RlRecipe
from differad.training.rl import DifficultyAwareTrainer, train_rl
from differad.training.sharing import group_rows_by_prompt, has_repeated_prompt, lora_in_autocast_dtype, lora_weights

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
from scripted import make_trainer

from family_checkpoints import FAMILIES as FURTHER
from family_checkpoints import REPEATS_INDEX, build_family
from tiny_models import HIDDEN, build_checkpoint
from tolerance import EPS, FACTOR, assert_as_near, assert_gradients_as_near, flat_gradients, rounding

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
# Images of different sizes, so that prompts differ in length and are padded on the left.
SIZES = ((64, 64), (120, 64), (64, 90), (145, 120))
G = 4
REAL = (
    "data.question=fixed",
    "train.batch_size=8",
    "grpo.resamples=0",
    "grpo.max_new_tokens=5",
    "grpo.mask_truncated=false",
)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Four pairs of noise, each of its own size."""
    folder = tmp_path_factory.mktemp("uneven")
    random, lines = np.random.default_rng(0), []
    for number, (width, height) in enumerate(SIZES):
        names = {side: f"{number}_{side}.png" for side in ("reference", "target")}
        for name in names.values():
            Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)
        lines.append({"id": f"p{number}", "category": "noise", **names, "boxes": [[0, 0, 28, 28]]})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def build(make_recipe, uneven, tmp_path):
    """Trainers of one checkpoint, with and without sharing."""

    def build(*overrides, family=None, share=True):
        own = [f"data.pairs=[{uneven}]", "model.max_pixels=50176", f"grpo.share_prefix={share}", *REAL, *overrides]
        if family is not None:
            folder = tmp_path / family
            if not folder.exists():
                build_family(folder, FURTHER[family]) if family in FURTHER else build_checkpoint(folder, family, None)
            own.append(f"model.checkpoint={folder}")
        trainer = make_trainer(make_recipe("rl", *own), DifficultyAwareTrainer)
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        return trainer

    return build


def roll_out(trainer, pairs=(0, 3), seed=3):
    """What TRL makes of real answers to some pairs."""
    trainer.model.train()
    torch.manual_seed(seed)
    return trainer._generate_and_score_completions([trainer.train_dataset[pair] for pair in pairs for _ in range(G)])


def informative(answers):
    """Rewards, overlaps and misses that mask no group: a random model never writes a box."""
    count = len(answers)
    return [0.0, 1, 0, 1] * (count // G), [0.0] * count, [1.0] * count


def move_adapters(model, seed=5):
    """Adapters begin as nothing; moved, they tell the policy from the reference, which is the same model without them."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=random)


def teach(output, seed=4):
    """Advantages, old and reference values that leave no term of the loss at zero, and a random order of rows."""
    random = torch.Generator().manual_seed(seed)
    shape = output["completion_ids"].shape
    output["completion_mask"] = torch.ones_like(output["completion_mask"])
    output["completion_mask"][1, 3:] = 0
    output["completion_mask"][2] = 0
    output["advantages"] = torch.randn(shape[0], generator=random)
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        output[name] = -4 + 0.1 * torch.randn(shape, generator=random)
    return output


def gradients(trainer, inputs):
    """The loss of one batch and every gradient of it."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_same(found, expected, exact):
    """Losses and gradients are as near to float64 as TRL's own."""
    assert_gradients_as_near(found[1], expected[1], exact[1], terms=HIDDEN)
    # A loss is a mean of terms of size 1, advantages times ratios. It is one number, which may be right by luck; gradients come
    # from the same log-probabilities and are many, so that their relative error is what the loss may have.
    off, true = (flat_gradients(gradients) for gradients in (expected[1], exact[1]))
    error = np.linalg.norm(off - true) / np.linalg.norm(true)
    allowed = FACTOR["float32"] * error + HIDDEN * EPS["float32"]
    assert abs(found[0] - exact[0]) <= allowed, f"loss {found[0]}: more than {allowed:.3g} from float64's {exact[0]}"


def assert_as_trls(found, stock, inputs):
    """The loss and gradients that a trainer found are those of TRL's way, whose trainer ends in float64."""
    expected = gradients(stock, inputs)
    stock.model.double()
    assert_same(found, expected, gradients(stock, inputs))


def assert_log_probabilities(found, expected, stock):
    """Of the policy and of the reference, where there is one; each against rows whole in float64."""
    lora = hasattr(stock.model, "disable_adapter")
    models = {"old_per_token_logps": stock.model, "ref_per_token_logps": stock.model if lora else stock.ref_model}
    ids, mask = (
        torch.cat([expected[f"prompt_{name}"], expected[f"completion_{name}"]], dim=1) for name in ("ids", "mask")
    )
    length, said = expected["completion_ids"].shape[1], expected["completion_mask"].bool()
    assert said.any()
    for name, model in models.items():
        apart = model.disable_adapter() if lora and name.startswith("ref") else nullcontext()
        bare = stock._unwrapped(model)
        experts = bare.get_experts_implementation()
        bare.set_experts_implementation("eager")  # grouped products have no float64
        with torch.no_grad(), apart:
            logits = model.double()(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=expected["pixel_values"],
                image_grid_thw=expected["image_grid_thw"],
                mm_token_type_ids=expected["mm_token_type_ids"],
            ).logits
        model.float()
        bare.set_experts_implementation(experts)
        every = logits[:, -length - 1 : -1].log_softmax(-1).gather(-1, expected["completion_ids"][..., None])[..., 0]
        assert_as_near(found[name][said], expected[name][said], every[said], terms=HIDDEN)


@pytest.fixture
def passes(monkeypatch):
    """How many rows every pass of a model's language model has, while it runs."""
    counts = []

    def watch(trainer):
        for model in (trainer._unwrapped(trainer.model), trainer.ref_model):
            if model is not None:
                model.model.language_model.register_forward_pre_hook(
                    lambda _, __, fields: counts.append(tuple(fields["inputs_embeds"].shape[:2])), with_kwargs=True
                )
        return counts

    return watch


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *((family, ()) for family in FAMILIES),
        ("qwen2_vl", ("model.lora={rank: 4, alpha: 8}",)),
        ("qwen3_vl", ("model.lora={rank: 4, alpha: 8}",)),
        ("qwen2_5_vl", ("model.freeze_vision=false",)),
        ("qwen3_vl", ("model.freeze_vision=false",)),
    ],
)
def test_rollouts_losses_and_gradients_equal_trls(build, passes, family, overrides):
    stock, shared = (
        build(*overrides, "grpo.iterations=2", "train.save_every=2", family=family, share=s) for s in (0, 1)
    )
    for trainer in (stock, shared):
        move_adapters(trainer.model)
        trainer._outcomes = informative
    seen = passes(shared)
    expected, found = roll_out(stock), roll_out(shared)
    prompt = found["prompt_ids"].shape[1]
    assert (found["prompt_mask"].sum(dim=1) < prompt).any()  # padded on the left
    is_image = found["prompt_ids"] == shared._unwrapped(shared.model).config.image_token_id
    assert found["mm_token_type_ids"][:, :prompt].tolist() == is_image.int().tolist()
    # Two pairs, eight answers: encoded once by the policy for rollout and scores, and once by the reference with the answers.
    wide = [(rows, width) for rows, width in seen if width >= prompt - 1]
    answer = found["completion_ids"].shape[1]
    assert wide == [(2, prompt - 1), (2, prompt - 1 + G * (answer + 1))]
    assert found["completion_ids"].tolist() == expected["completion_ids"].tolist()
    assert len({tuple(row) for row in found["completion_ids"].tolist()}) > 2
    assert_log_probabilities(found, expected, stock)
    inputs = teach(expected)
    assert_as_trls(gradients(shared, inputs), stock, inputs)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("qwen3_5", ()),
        ("qwen3_5_moe", ()),
        *[("qwen4_exp", ())] * REPEATS_INDEX,
        ("qwen3_5", ("model.lora={rank: 4, alpha: 8}",)),
    ],
)
def test_a_model_with_states_shares_only_without_gradients(build, passes, family, overrides):
    """Three prompts of three lengths; in the loss, which is TRL's own to the last bit, they stand under each answer."""
    own = (*overrides, "train.batch_size=12", "grpo.iterations=2", "train.save_every=2", "model.max_pixels=null")
    stock, shared = (build(*own, family=family, share=share) for share in (False, True))
    for trainer in (stock, shared):
        move_adapters(trainer.model)
        trainer._outcomes = informative
    seen = passes(shared)
    expected, found = (roll_out(trainer, pairs=(0, 3, 1)) for trainer in (stock, shared))
    prompt = found["prompt_ids"].shape[1]
    assert len(set(found["prompt_mask"].sum(dim=1).tolist())) == 3
    # By the policy for rollout and scores, and by the reference; then only answers, each behind its prompt's last token.
    # States of an index are not cached from the rollout to the scores.
    assert [rows for rows, width in seen if width == prompt - 1] == [3] * (3 if family == "qwen4_exp" else 2)
    assert found["completion_ids"].tolist() == expected["completion_ids"].tolist()
    assert len({tuple(row) for row in found["completion_ids"].tolist()}) > 3
    assert_log_probabilities(found, expected, stock)
    inputs = teach(expected)
    with pytest.warns(UserWarning, match="answers are scored with their prompts repeated: "):
        loss, own_gradients = gradients(shared, inputs)
    expected_loss, expected_gradients = gradients(stock, inputs)
    assert loss == expected_loss
    assert all(torch.equal(gradient, expected_gradients[name]) for name, gradient in own_gradients.items())


def test_sliding_window_layers_share_only_without_gradients(build, tmp_path, passes):
    """A window of 16 tokens, which every prompt is longer than."""
    path = build_checkpoint(tmp_path / "qwen2_5_vl", "qwen2_5_vl", None) / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    config["text_config"] |= {"layer_types": ["full_attention", "sliding_attention"]}
    path.write_text(json.dumps(config))
    own = ("grpo.iterations=2", "train.save_every=2")
    stock, shared = (build(*own, family="qwen2_5_vl", share=share) for share in (False, True))
    for trainer in (stock, shared):
        trainer._outcomes = informative
    seen = passes(shared)
    expected, found = roll_out(stock), roll_out(shared)
    prompt = found["prompt_ids"].shape[1]
    assert prompt > 16
    assert {rows for rows, width in seen if width >= prompt - 1} == {2}
    assert found["completion_ids"].tolist() == expected["completion_ids"].tolist()
    assert_log_probabilities(found, expected, stock)
    assert shared.sharing_summary().startswith("prompts are shared in rollout; not shared in loss (")


def test_no_warning_repeats_the_first_line(build):
    trainer = build("model.max_pixels=null", family="qwen3_5")
    inputs = teach(roll_out(trainer))
    assert "; not shared in loss (Qwen3_5" in trainer.sharing_summary()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*share_prefix")
        gradients(trainer, inputs)


@pytest.mark.parametrize("freeze", ["true", "false"])
def test_the_embedded_policy_shares_too(build, freeze):
    """Its tower compares the two images of a pair, so neither may be cached without the other."""
    tiny = "model.tiny={hidden_size: 32, layers: 2, heads: 2, channels: 8, blocks: 1}"
    # TRL loads a reference by the name of its class, which it does not know.
    own = ("model.checkpoint=null", tiny, "grpo.kl=0", f"model.freeze_vision={freeze}", "model.max_pixels=null")
    stock, shared = (build(*own, share=share) for share in (False, True))
    expected, found = roll_out(stock), roll_out(shared)
    assert found["completion_ids"].tolist() == expected["completion_ids"].tolist()
    inputs = teach(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_as_trls(gradients(shared, inputs), stock, inputs)
    assert len(shared._vision_cache(shared.model)) == (2 if freeze == "true" else 0)


@pytest.mark.parametrize("family", [None, "qwen3_5"])
def test_resampled_groups_reuse_their_encoded_prompts(build, passes, family):
    """The second group, resampled alone, has other padding than beside the first."""
    own = ("grpo.resamples=2", "grpo.iterations=2", "train.save_every=2")
    stock, shared = (build(*own, family=family, share=share) for share in (False, True))
    for trainer in (stock, shared):  # the first group learns something at once, the second never
        trainer._outcomes = lambda answers: ([0.0, 1, 0, 1] * (len(answers) == 8) + [0.0] * 4, [0.0] * 8, [1.0] * 8)
    seen = passes(shared)
    expected, found = roll_out(stock), roll_out(shared)
    assert shared._rollout.resamples.tolist() == [0, 2]
    assert found["completion_ids"].tolist() == expected["completion_ids"].tolist()
    assert_log_probabilities(found, expected, stock)
    long = [rows for rows, width in seen if width > 10]  # tokens of one answer are fewer
    assert long == [2, 2]  # the policy's and the reference's
    assert shared._prompt_caches is None  # weights may change from here on


def test_rows_of_a_batch_may_stand_in_any_order(build):
    stock, shared = (build(share=share) for share in (False, True))
    inputs = teach(roll_out(stock))
    order = torch.tensor([5, 0, 3, 7, 4, 1, 6, 2])
    patches = torch.split(inputs["pixel_values"], inputs["image_grid_thw"].prod(dim=1).tolist())
    pictures = [2 * row + side for row in order.tolist() for side in range(2)]
    mixed = {k: v[order] for k, v in inputs.items() if isinstance(v, torch.Tensor) and len(v.shape) and len(v) == 8}
    mixed |= {
        "pixel_values": torch.cat([patches[image] for image in pictures]),
        "image_grid_thw": inputs["image_grid_thw"][pictures],
        "num_images": [2] * 8,
        "num_items_in_batch": inputs["num_items_in_batch"],
    }
    assert_as_trls(gradients(shared, mixed), stock, inputs)


@pytest.mark.parametrize("wrong", ["advantages", "mask", "pixels"])
def test_the_comparison_rejects_what_is_slightly_wrong(build, wrong):
    """One advantage 0.1 % too large, one token too many in a loss, one image 1 % brighter."""
    stock, shared = (build(share=share) for share in (False, True))
    inputs = teach(roll_out(stock))
    spoilt = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    if wrong == "advantages":
        spoilt["advantages"][0] *= 1.001
    elif wrong == "mask":
        spoilt["completion_mask"][1, 3] = 1
    else:
        spoilt["pixel_values"] *= 1.01
    with pytest.raises(AssertionError, match="from float64"):
        assert_as_trls(gradients(shared, spoilt), stock, inputs)


def test_accumulated_batches_hold_whole_groups_and_add_up_to_the_same(build, passes):
    sums = {}
    for way in ("shared", "stock", "exact"):
        share = way == "shared"
        trainer = build("train.batch_size=4", "train.accumulate=2", share=share)
        trainer.model.train()
        torch.manual_seed(3)
        rows = [trainer.train_dataset[pair] for pair in (0, 3) for _ in range(G)]
        score = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda rows, score=score: teach(score(rows))
        counts = passes(trainer) if share else None
        loss = 0.0
        for trainer._step in range(2):
            inputs = trainer._prepare_inputs(rows)
            if way == "exact":  # after the rollout
                trainer.model.double()
            if share:
                del counts[:]
            part = trainer.compute_loss(trainer.model, inputs)
            part.backward()
            loss += part.item()
            if share:  # four answers to one prompt are one sequence
                assert [rows for rows, _ in counts] == [1]
        sums[way] = loss, {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    assert_same(sums["shared"], sums["stock"], sums["exact"])


def test_batches_of_one_prompt_keep_every_row():
    def batch(rows):
        grids = [torch.tensor([[1, 1, row % 2 + 1]]) for row in rows]
        return {
            "prompt_ids": torch.ones(len(rows), 2, dtype=torch.long),
            "prompt_mask": torch.ones(len(rows), 2, dtype=torch.long),
            "advantages": torch.tensor([float(row) for row in rows]),
            "pixel_values": torch.cat([torch.full((row % 2 + 1, 3), row % 2) for row in rows]),
            "image_grid_thw": torch.cat(grids),
            "num_images": [1] * len(rows),
            "num_items_in_batch": torch.tensor(9),
            "missing": None,
        }

    first, second = group_rows_by_prompt([batch([3, 0, 1]), batch([2, 5, 4])])
    assert first["advantages"].tolist() == [3, 1, 5]
    assert second["advantages"].tolist() == [0, 2, 4]
    assert first["pixel_values"].shape == (6, 3)
    assert second["image_grid_thw"].tolist() == [[1, 1, 1]] * 3
    assert (first["num_images"], first["num_items_in_batch"], first["missing"]) == ([1] * 3, 9, None)


def test_a_frozen_tower_encodes_a_pair_once(build):
    trainer = build(family="qwen3_vl")
    encoded = []
    for model in (trainer.model, trainer.ref_model):
        model.model.visual.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].shape[0]))
    inputs = teach(roll_out(trainer))
    trainer.compute_loss(trainer.model, inputs).backward()
    roll_out(trainer)
    patches = inputs["pixel_values"].shape[0]
    assert encoded == [patches // G]  # both pairs, in the first rollout; neither reference nor loss encodes again
    with torch.no_grad():
        next(trainer.model.model.visual.parameters()).mul_(1.5)
    roll_out(trainer)
    assert len(encoded) == 3  # changed weights encode again, and differ from the reference's


def test_images_of_a_group_are_processed_once(build, monkeypatch):
    trainer = build()
    processor = trainer.processing_class
    rows = [trainer.train_dataset[pair]["images"] for pair in (0, 3, 0, 0, 1)]
    slots = ["<|vision_start|><|image_pad|><|vision_end|>" * 2] * len(rows)
    stock = Qwen2VLProcessor._process_images
    prepared = []

    def counting(self, images, **settings):
        prepared.append(len(images))
        return stock(self, images, **settings)

    monkeypatch.setattr(Qwen2VLProcessor, "_process_images", counting)
    found = {kind: processor(images=rows, text=slots, padding=True, return_tensors=kind) for kind in ("pt", "np")}
    assert prepared == [3]  # asked twice for the same
    monkeypatch.setattr(type(processor), "_process_images", stock)
    for kind, own in found.items():
        expected = processor(images=rows, text=slots, padding=True, return_tensors=kind)
        assert own.keys() == expected.keys()
        for name, value in expected.items():
            assert type(own[name]) is type(value)
            assert own[name].tolist() == value.tolist()
    del prepared[:]
    monkeypatch.undo()
    monkeypatch.setattr(Qwen2VLProcessor, "_process_images", counting)
    roll_out(trainer)
    assert prepared == [2]  # TRL processes images before the rollout and again before scoring
    roll_out(trainer)
    assert prepared == [2, 2]


def test_the_vision_cache_is_bounded_and_can_be_off(build):
    trainer = build("grpo.remember_pictures_mb=0")
    encoded = []
    trainer.model.model.visual.register_forward_pre_hook(lambda _, inputs: encoded.append(inputs[0].shape[0]))
    roll_out(trainer)
    roll_out(trainer)
    assert len(encoded) == 2
    trainer = build()
    memory = trainer._vision_cache(trainer.model)
    # Tokens of 28 x 28 pixels, 32 numbers of 4 bytes each, two images: 4, 8 and 20 tokens per image.
    sizes = {0: 1024, 1: 2048, 3: 5120}
    memory._limit = 2100
    for pairs, kept in (((0, 3), 0), ((1,), 1), ((0,), 0)):
        roll_out(trainer, pairs)
        assert (len(memory), memory._size) == (1, sizes[kept])


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_share_under_gradient_checkpointing(build, passes, family):
    stock, shared = (build(family=family, share=share) for share in (False, True))
    inputs = teach(roll_out(stock))
    for trainer in (stock, shared):
        trainer.model.gradient_checkpointing_enable()
    seen = passes(shared)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*share_prefix")
        found = gradients(shared, inputs)
    prompt, answer = inputs["prompt_ids"].shape[1], inputs["completion_ids"].shape[1]
    assert seen == [(2, prompt - 1 + G * (answer + 1))]
    assert_as_trls(found, stock, inputs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_completions_too_long_to_be_packed(build, passes, monkeypatch, checkpointing):
    """They are handed their prompt's cache, which gradient checkpointing would throw away: then TRL's way is taken."""
    monkeypatch.setattr(sharing, "is_cheaper", lambda *_: False)
    trainer = build()
    inputs = teach(roll_out(trainer))
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    seen = passes(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = gradients(trainer, inputs)
    messages = [str(each.message) for each in caught if "share_prefix" in str(each.message)]
    assert [rows for rows, _ in seen] == ([8] if checkpointing else [2, 8])
    assert ["scored with their prompts repeated: gradient checkpointing" in text for text in messages] == [
        True
    ] * checkpointing
    assert_as_trls(found, build(share=False), inputs)


def test_what_cannot_share_says_so_once_and_trains_as_trl(build):
    trainer, reason = build(), "with their prompts repeated: liger"
    trainer.args.use_liger_kernel = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs = teach(roll_out(trainer))
        found = gradients(trainer, inputs)
        gradients(trainer, inputs)
    assert [text for text in map(str, (each.message for each in caught)) if reason in text and "share_prefix" in text]
    messages = [str(each.message) for each in caught if "share_prefix" in str(each.message)]
    assert len(messages) == len(set(messages))
    assert_as_trls(found, build(share=False), inputs)


DROPOUT = "model.lora={rank: 4, alpha: 8, dropout: 0.5}"


def test_with_dropout_prompts_are_not_shared(build):
    """A shared prompt would drop out alike for all its answers; in TRL each answer's does by itself."""
    stock, shared = (build(DROPOUT, share=share) for share in (False, True))
    for trainer in (stock, shared):
        move_adapters(trainer.model)
    expected = roll_out(stock)
    with pytest.warns(
        UserWarning, match=r"share_prefix: answers are (generated|scored) with their prompts repeated: dropout"
    ):
        found = roll_out(shared)
    assert found["completion_ids"].tolist() == expected["completion_ids"].tolist()
    inputs, results = teach(expected), []
    for trainer in (shared, stock):
        torch.manual_seed(6)
        results.append(gradients(trainer, inputs))
    (loss, found), (expected_loss, expected) = results
    assert loss == expected_loss  # the same operations with the same dropout masks, bit by bit
    assert found.keys() == expected.keys()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())
    torch.manual_seed(7)
    assert gradients(stock, inputs)[0] != results[1][0]  # it does drop out


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ((), "prompts are shared in rollout and loss"),
        (("train.gradient_checkpointing=true",), "prompts are shared in rollout and loss"),
        ((DROPOUT,), "prompts are not shared in rollout and loss (dropout: each answer"),
        (("grpo.share_prefix=false",), "prompts are not shared in rollout and loss (grpo.share_prefix=false)"),
    ],
)
def test_a_run_says_first_where_prompts_are_shared(build, overrides, line):
    trainer = build(*overrides, share="grpo.share_prefix=false" not in overrides)
    assert trainer.sharing_summary().startswith(line)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("is_deepspeed_enabled", "prompts are not shared in rollout and loss (DeepSpeed: a sharded model"),
        ("is_fsdp_enabled", "prompts are not shared in rollout and loss (FSDP: a sharded model"),
        ("use_vllm", "prompts are not shared in rollout (vLLM and continuous"),
    ],
)
def test_engines_that_do_not_share_are_named(build, name, line):
    trainer = build()
    setattr(trainer, name, True)
    assert trainer.sharing_summary().startswith(line)


def test_the_line_comes_before_the_first_step(make_recipe, capfd):
    train_rl(make_recipe("rl", "train.steps=1"))
    lines = capfd.readouterr().err.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("differad: prompts are shared in"))
    assert first < next(number for number, line in enumerate(lines) if line.startswith("step 1/1 "))


def test_a_model_without_image_positions_does_not_share(build, monkeypatch):
    trainer = build()
    monkeypatch.delattr(type(trainer.model.model), "get_rope_index")
    with pytest.warns(UserWarning, match=r"Qwen2VLForConditionalGeneration gives no positions of images"):
        assert trainer._choose_scoring(trainer.model, []) is None


def test_two_processes_learn_what_one_learns(make_recipe, tmp_path):
    """Weights after two steps: one process with TRL's way against two that share, a group across both."""
    own = ("train.batch_size=12", "grpo.max_new_tokens=64", "train.more.optim=sgd", "train.learning_rate=1.0")
    weights = {}
    for name, overrides in (("one", ("grpo.share_prefix=false",)), ("two", ("train.batch_size=6",))):
        recipe: RlRecipe = make_recipe("rl", *own, *overrides, f"out={tmp_path / name}")
        path = tmp_path / f"{name}.json"
        path.write_text(recipe.model_dump_json())
        processes = str(1 + (name == "two"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        script = Path(__file__).with_name("scripted.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, str(script), str(path), str(tmp_path), "learn"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "grpo.share_prefix: " not in done.stderr  # no warning
        assert done.stderr.count(f"prompts are {'shared' if name == 'two' else 'not shared'} in rollout and loss") == 1
        weights[name] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    before, after = (weights["one"][time] for time in ("before", "after"))
    moved = max(float((after[name] - before[name]).abs().max()) for name in after)
    assert moved > 1e-3
    # A change is a sum over the tokens of 12 rows, at most 256 each; a weight is rounded once a step.
    allowed = rounding(12 * 256, moved) + rounding(2, max(float(weight.abs().max()) for weight in after.values()))
    assert allowed < moved / 500
    for name, expected in after.items():
        np.testing.assert_allclose(weights["two"]["after"][name], expected, rtol=0, atol=allowed)


def distance(found, exact):
    """Relative distance of a loss, and of all gradients as one vector, to those in float64."""
    flat, true = (torch.cat([each[1][name].double().flatten() for name in sorted(exact[1])]) for each in (found, exact))
    return abs(found[0] - exact[0]) / abs(exact[0]), ((flat - true).norm() / true.norm()).item()


@pytest.mark.parametrize(("family", "checkpointing"), list(zip(FAMILIES, (False, True, True), strict=True)))
def test_bfloat16_rounds_as_much_as_trls(build, passes, family, checkpointing):
    """Both ways multiply the same numbers and round each product to bfloat16; they differ in the order of sums alone.

    So what they round before the sums is the same error, and what they round after them is a draw of one size, hardly varying
    over the 10^5 entries of a gradient. Half as much again would be another arithmetic.
    """
    own = ("model.dtype=bfloat16", "grpo.iterations=2", "train.save_every=2")
    stock, shared, exact = (build(*own, family=family, share=share) for share in (False, True, False))
    for part in (exact.model.model.language_model, exact.model.lm_head):
        part.double()  # the frozen tower's features are the same numbers to all three
    drawn = roll_out(stock)
    near = {name: drawn[name].float() for name in ("old_per_token_logps", "ref_per_token_logps")}
    inputs = teach(drawn) | near  # ratios near 1: otherwise exp() would amplify earlier rounding
    seen = passes(shared)
    if checkpointing:
        for trainer in (stock, shared):
            trainer.model.gradient_checkpointing_enable()
    found, expected = (distance(gradients(each, inputs), gradients(exact, inputs)) for each in (shared, stock))
    assert {rows for rows, _ in seen} == {2}
    assert found[1] < 1.5 * expected[1]
    assert found[0] < 1.5 * expected[0] + 2**-8  # one number, whose own rounding may come out at nothing
    assert 1e-4 < expected[1] < 0.5  # it is bfloat16, and a gradient still


def test_adapters_give_the_same_numbers_in_the_precision_of_autocast(build):
    """Bit by bit: autocast would round the same weights in the same way."""
    trainer = build("model.lora={rank: 4}", "model.dtype=bfloat16", family="qwen3_vl")
    model = trainer.model.get_base_model()
    weights = lora_weights(model)
    assert weights
    with torch.no_grad():
        for weight in weights:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.arange(5, 25)[None]
    before = [weight.data.clone() for weight in weights]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(input_ids=ids).logits
        with lora_in_autocast_dtype(model):
            assert {weight.dtype for weight in weights} == {torch.bfloat16}
            narrow = model(input_ids=ids).logits
    assert torch.equal(plain, narrow)
    assert all(torch.equal(weight, value) for weight, value in zip(weights, before, strict=True))


@pytest.mark.parametrize(("second", "again"), [([5, 6], True), ([5, 7], False)])
def test_a_prompt_in_two_batches_is_found(second, again):
    """Two rows each, with the answers 8 and 9; the images are equal, so the texts decide."""
    ids = torch.tensor([[*prompt, answer] for prompt in ([5, 6], second) for answer in (8, 9)])
    pictures = Pictures(torch.ones(16, 3), torch.tensor([[1, 2, 2]]).repeat(4, 1), [1] * 4)
    whole = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids), pictures)
    parts = [split_completions(whole.take(slice(start, start + 2)), 1) for start in (0, 2)]
    assert has_repeated_prompt(parts) is again
    assert not has_repeated_prompt(parts[:1])
