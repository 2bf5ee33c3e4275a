"""Families beyond Qwen-VL: a tiny checkpoint of each locates, trains, exports and loads again in stock transformers."""

import json
import math
import pickle
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from differad.answers.formats import FORMATS
from differad.answers.parsing import Frame, format_answer
from differad.answers.prompts import QUESTION
from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.errors import ImageError, OptionError
from differad.locators import load_locator
from differad.locators.checkpoints import load_config
from differad.locators.packed_images import into_rows, into_strip
from differad.locators.processors import load_processor, render_prompt
from differad.rewards import format_scores
from differad.training.localization import localize
from differad.training.loop import run_phase
from differad.training.rl import DifficultyAwareTrainer, build_trainer, can_take_rows, take_rows
from differad.training.sft import train_sft
from family_checkpoints import FAMILIES, REPEATS_INDEX, build_family

LIMIT = "model.max_pixels=null"
# What transformers' own processors of these families need beyond what differad installs.
NEEDS = {"mistral3": "torchvision", "lfm2_vl": "torchvision", "smolvlm": "num2words"}
# What a run says first, where prompts are shared at all.
SHARED = {"glm46v": "prompts are shared in rollout and loss\n"}
SHARED |= dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "prompts are shared in rollout; not shared in loss (")
SHARED["qwen4_exp"] = SHARED["qwen3_5"] if REPEATS_INDEX else "prompts are not shared in rollout ("


def lacks(family):
    """The package that a family's processor needs and that is not installed; None where it can be tried."""
    package = NEEDS.get(family)
    return None if package is None or find_spec(package) else package


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    if package := lacks(request.param):
        pytest.skip(f"{request.param}: its processor needs {package}")
    return build_family(tmp_path_factory.mktemp(request.param), FAMILIES[request.param])


@pytest.mark.parametrize("family", [family for family in NEEDS if lacks(family)])
def test_what_a_processor_needs_is_named_in_one_line(family, tmp_path):
    build_family(tmp_path, FAMILIES[family])
    with pytest.raises(OptionError) as caught:
        load_locator(str(tmp_path))
    assert str(caught.value).endswith(f"processor needs {NEEDS[family]}; pip install {NEEDS[family]}")
    assert "\n" not in str(caught.value)


def changed(before, after):
    old, new = (load_file(each / "model.safetensors") for each in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def answers(folder, pairs, **options):
    locator = load_locator(str(folder), max_new_tokens=8, **options)
    outcomes = list(locator.locate_many(read_pairs(pairs)))
    assert all(isinstance(outcome, Location) for outcome in outcomes)
    return [outcome.answer for outcome in outcomes]


class HalfRight(DifficultyAwareTrainer):
    """Generates answers and replaces them: every second one is right, so that each group is informative."""

    def _generate_completions(self, prompt_ids, images, fields, num_generations):
        drawn, _ = super()._generate_completions(prompt_ids, images, fields, num_generations)
        assert len(drawn) == len(prompt_ids)
        assert all(0 < len(ids) <= 8 for ids in drawn)
        if not self._rows:  # a trial before the run
            return drawn, None
        form, tokenizer = self._decoder.format, self.processing_class.tokenizer
        texts = []
        for number, row in enumerate(self._rows):
            boxes = [row["solution"], [] if row["solution"] else [[100, 200, 300, 400]]][number % 2]
            texts.append(format_answer(boxes, form, Frame(1000, 1000), reasoning=""))
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [[*each, tokenizer.eos_token_id] for each in ids], None


def reinforce(recipe):
    """The losses and norms of gradients of a run on answers half of which are right."""
    run_phase(recipe, lambda source, callbacks: build_trainer(recipe, source, callbacks, HalfRight), resume=False)
    state = json.loads((recipe.out / f"checkpoint-{recipe.train.steps}" / "trainer_state.json").read_text())
    return [(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry]


def test_it_locates(folder, pairs):
    """Single and batched answers are equal; sampled answers depend only on the seed."""
    greedy = answers(folder, pairs, batch_size=1)
    assert answers(folder, pairs, batch_size=4) == greedy
    drawn = answers(folder, pairs, batch_size=4, temperature=1.0)
    assert answers(folder, pairs, batch_size=2, temperature=1.0) == drawn != greedy
    assert answers(folder, pairs, batch_size=4, temperature=1.0, seed=1) != drawn


def test_answers_held_to_the_format_can_all_be_read(folder, pairs):
    locator = load_locator(str(folder), max_new_tokens=120, constrain=True)
    for outcome in locator.locate_many(read_pairs(pairs)):
        assert outcome.valid, (outcome.answer, outcome.reasoning)


def test_a_cold_start_and_reinforcement_on_it(folder, pairs, make_recipe, capfd):
    watched = (f"held_out.pairs=[{pairs}]", "held_out.every=1", "train.samples_every=1")
    cold = make_recipe("sft", f"model.checkpoint={folder}", LIMIT, "train.steps=1", *watched)
    train_sft(cold)
    assert json.loads((cold.out / "evaluation" / "step-1" / "metrics.json").read_text())["overall"]["pairs"] == 4
    moved = changed(folder, cold.out / "model")
    assert moved
    assert not any(name.startswith(("model.visual", "model.vision_", "model.vision_tower")) for name in moved)
    own = (
        f"model.checkpoint={cold.out / 'model'}",
        LIMIT,
        "grpo.max_new_tokens=8",
        "train.steps=2",
        "train.save_every=2",
    )
    warm = make_recipe("rl", *own, f"out={cold.out}-rl")
    (_, first), (second_loss, second) = reinforce(warm)
    assert math.isfinite(second_loss)
    assert 0 < first < math.inf
    assert 0 < second < math.inf
    family = json.loads((folder / "config.json").read_text())["model_type"]
    assert SHARED.get(family, "prompts are not shared in rollout and loss (") in capfd.readouterr().err
    read = AutoModelForImageTextToText.from_pretrained(warm.out / "model")
    assert type(read).__module__.startswith("transformers.")
    assert len(answers(warm.out / "model", pairs)) == 4
    assert_reads_as(warm.out / "model", folder)


def assert_reads_as(folder, source):
    """Stock transformers finds the same tokenizer, image processor and settings in both folders."""
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (folder, source)]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert tokenizers[0](QUESTION)["input_ids"] == tokenizers[1](QUESTION)["input_ids"]
    images = [AutoImageProcessor.from_pretrained(each, backend="pil") for each in (folder, source)]
    assert type(images[0]) is type(images[1])
    assert images[0].to_dict() == images[1].to_dict()
    name = "processor_config.json"
    if (source / name).is_file():
        settings, own = (json.loads((each / name).read_text()) for each in (folder, source))
        assert {**settings, "image_processor": None} == {**own, "image_processor": None}
    if find_spec("torchvision"):  # stock processors have a part for videos, which needs it
        stock = AutoProcessor.from_pretrained(folder)
        assert type(stock) is type(AutoProcessor.from_pretrained(source))


def test_glm_shares_prompts_and_its_gradients_are_those_of_trls_own_way(make_recipe, tmp_path):
    """Before the first update; each number is a sum of some thousand float32 products: N * eps = 1e3 * 1.2e-7 apart at most."""
    start = build_family(tmp_path / "start", FAMILIES["glm46v"])
    norms = []
    for shares in ("true", "false"):
        own = (f"model.checkpoint={start}", LIMIT, f"grpo.share_prefix={shares}", f"out={tmp_path / shares}")
        norms.append(reinforce(make_recipe("rl", *own, "train.steps=1", "grpo.max_new_tokens=8"))[0][1])
    assert norms[0] == pytest.approx(norms[1], rel=1.2e-4)
    assert norms[0] > 0


def test_adapters_go_into_the_language_model_alone(folder, make_recipe):
    recipe = make_recipe("sft", f"model.checkpoint={folder}", LIMIT, "model.lora={rank: 2}", "train.steps=1")
    train_sft(recipe)
    moved = changed(folder, recipe.out / "model")
    assert moved
    assert all("language_model." in name or "text_model." in name for name in moved)
    with pytest.raises(OptionError, match=r"model\.lora\.targets: none in .*; its linear layers are .*k_proj"):
        train_sft(
            make_recipe(
                "sft", f"model.checkpoint={folder}", LIMIT, "model.lora={targets: [absent]}", f"out={recipe.out}-none"
            )
        )


def test_experts_answer_padded_prompts_after_a_cold_start(tmp_path):
    """TRL leaves `output_router_logits` in the configuration, which a pass behind a cache cannot do where prompts are padded."""
    build_family(tmp_path, FAMILIES["qwen3_5_moe"])
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["output_router_logits"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    small, large = np.full((56, 56, 3), 90, np.uint8), np.full((112, 112, 3), 90, np.uint8)
    pairs = [Pair(small, small), Pair(large, large)]
    ways = [load_locator(str(tmp_path), max_new_tokens=8, batch_size=size) for size in (1, 2)]
    one_by_one, together = ([outcome.answer for outcome in way.locate_many(pairs)] for way in ways)
    assert together == one_by_one


def test_images_that_a_processor_refuses_stop_no_other(tmp_path):
    """GLM-V's processor takes nothing longer than 200 : 1."""
    build_family(tmp_path, FAMILIES["glm46v"])
    strip, plain = np.full((2, 600, 3), 90, np.uint8), np.full((56, 56, 3), 90, np.uint8)
    outcomes = list(load_locator(str(tmp_path), max_new_tokens=4).locate_many([Pair(plain, strip), Pair(plain, plain)]))
    assert isinstance(outcomes[0], ImageError)
    assert "absolute aspect ratio must be smaller than 200" in str(outcomes[0])
    assert isinstance(outcomes[1], Location)


def test_prompts_are_tokenized_without_pads(tmp_path):
    """Gemma 4's processor pads by default; TRL takes what it gets for tokens."""
    build_family(tmp_path, FAMILIES["gemma4"])
    processor = load_processor(str(tmp_path), load_config(str(tmp_path)))
    chats = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in ("Where?", "Where is it?")]
    both = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    each = [processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0] for chat in chats]
    assert both["input_ids"] == each
    assert len(each[0]) < len(each[1])
    assert both["mm_token_type_ids"] == [[0] * len(ids) for ids in each]


@pytest.mark.parametrize("family", ["gemma4", "minicpmv4_6", "internvl"])
def test_a_processor_goes_to_a_worker_and_back(family, tmp_path):
    build_family(tmp_path, FAMILIES[family])
    processor = load_processor(str(tmp_path), load_config(str(tmp_path)))
    again = pickle.loads(pickle.dumps(processor))
    assert type(again) is type(processor)
    image = np.full((56, 56, 3), 90, np.uint8)
    text = render_prompt(processor, family, "Where?")
    first, second = (each(text=[text], images=[[image, image]], return_tensors="pt") for each in (processor, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_inputs_are_split_by_row_or_image_but_not_concatenated_tiles():
    images = [["a", "b"], ["c", "d"], ["e", "f"]]
    fields = {"pixel_values": torch.arange(6), "mm_token_type_ids": [[0], [1], [2]]}
    assert can_take_rows(fields, images)
    chosen = take_rows(fields, images, [2, 0])
    assert chosen["pixel_values"].tolist() == [4, 5, 0, 1]
    assert chosen["mm_token_type_ids"] == [[2], [0]]
    assert not can_take_rows({**fields, "pixel_values": torch.arange(18)}, images)


def test_strips_of_patches_go_into_rows_and_back():
    """Two prompts, of slices of 2 x 3 and of 1 x 1 and 1 x 2 patches, each patch 2 pixels a side."""
    widths = [2 * 3 * 2, (1 + 2) * 2]
    strips = [torch.randn(1, 3, 2, width) for width in widths]
    sizes = [torch.tensor([[2, 3]]), torch.tensor([[1, 1], [1, 2]])]
    rows = into_rows(list(zip(strips, sizes, strict=True)))
    assert rows["pixel_values"].shape == (2, 1, 3, 2, 12)
    assert rows["pixel_attention_mask"].tolist() == [[[2, 3], [0, 0]], [[1, 1], [1, 2]]]
    back = into_strip({**rows, "input_ids": None})
    assert torch.equal(back["pixel_values"], torch.cat(strips, dim=-1))
    assert torch.equal(back["target_sizes"], torch.cat(sizes))
    assert set(back) == {"pixel_values", "target_sizes", "input_ids"}


def test_the_format_reward_is_of_the_familys_own_syntax():
    for family, form in FORMATS.items():
        box = format_answer([[100, 200, 300, 400]], form, Frame(1000, 1000, (1000, 1000)), reasoning="why")
        zero = format_answer([], form, Frame(1000, 1000, (1000, 1000)), reasoning="why")
        twice = box.replace("</answer>", " and [1, 2, 3, 4]</answer>")
        assert format_scores([box, zero, twice, "?"], form).tolist() == [1, 1, 0, 0], family


def test_the_reward_of_a_family_that_names_y_first():
    answer = '<think></think><answer>```json\n[{"box_2d": [100, 200, 300, 400], "label": "anomaly"}]\n```</answer>'
    for name in ("guarded", "dclr", "iou"):
        outcome = localize([answer], [[[200, 100, 400, 300]]], [(1000, 1000)], name, "yx")
        assert outcome.iou.tolist() == [1.0], name


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(OptionError, match="model type 'llama'; expected one that AutoModelForImageTextToText knows"):
        load_locator(str(tmp_path))
