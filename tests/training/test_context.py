"""vLLM's context is the processor's longest prompt plus the answer."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
from PIL import Image

from differad.errors import OptionError
from differad.training.context import longest_prompt
from differad.training.data import build_dataset
from differad.training.policy import open_checkpoint
from differad.training.rl import build_trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
from tiny_models import build_checkpoint

# Width and height of each pair's reference and target.
SIZES = (((56, 56), (56, 56)), ((120, 56), (56, 200)), ((300, 90), (90, 300)), ((60, 60), (240, 240)))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Pairs of many shapes."""
    folder = tmp_path_factory.mktemp("shapes")
    lines = []
    for number, sizes in enumerate(SIZES):
        names = [f"{number}_{role}.png" for role in ("good", "test")]
        for name, (width, height) in zip(names, sizes, strict=True):
            Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(folder / name)
        lines.append(
            {"id": f"p{number}", "category": "c", "reference": names[0], "target": names[1], "boxes": [[0, 0, 9, 9]]}
        )
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Recorder:
    """Stands for the trainer: vLLM itself needs a GPU."""

    def __init__(self, *, args, train_dataset, processing_class, **_):
        self.config, self.dataset, self.processor = args, train_dataset, processing_class

    def sharing_summary(self):
        return "prompts are not shared: vLLM draws answers its own way"

    def add_callback(self, callback):
        pass


def recorded(recipe):
    return build_trainer(recipe, open_checkpoint(recipe.model, recipe.out, 0), [], Recorder)


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("question", ["drawn", "fixed"])
def test_the_longest_prompt_is_the_processors(make_recipe, tmp_path, shapes, model_type, question):
    folder = build_checkpoint(tmp_path / "start", model_type, None)
    recipe = make_recipe(
        "rl",
        f"model.checkpoint={folder}",
        "model.max_pixels=null",
        f"data.pairs=[{shapes}]",
        f"data.question={question}",
    )
    source = open_checkpoint(recipe.model, recipe.out, 0)
    dataset = build_dataset(recipe.data, source.convention, with_answer=False)
    lengths = []
    for row in dataset:
        text = source.processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        lengths.append(len(source.processor(text=[text], images=[row["images"]])["input_ids"][0]))
    assert len(set(lengths)) == len(SIZES)
    assert longest_prompt(dataset, source.processor.tokenizer) == max(lengths)


def test_the_configuration_that_vllm_gets(make_recipe, shapes):
    own = ("model.max_pixels=null", f"data.pairs=[{shapes}]", "grpo.max_new_tokens=40")
    plain = recorded(make_recipe("rl", *own))
    assert (plain.config.use_vllm, plain.config.vllm_max_model_length) == (False, None)
    longest = longest_prompt(plain.dataset, plain.processor.tokenizer)
    for mode in ("colocate", "server"):
        config = recorded(make_recipe("rl", *own, f"grpo.vllm={{mode: {mode}}}")).config
        assert (config.use_vllm, config.vllm_max_model_length) == (True, longest + 40)
    longer = recorded(make_recipe("rl", *own, "grpo.vllm={max_model_length: 9000}")).config
    assert longer.vllm_max_model_length == 9000
    longer = recorded(make_recipe("rl", *own, "grpo.vllm={}", "train.more.vllm_max_model_length=8000")).config
    assert longer.vllm_max_model_length == 8000
    exact = recorded(make_recipe("rl", *own, f"grpo.vllm={{max_model_length: {longest + 40}}}")).config
    assert exact.vllm_max_model_length == longest + 40
    with pytest.raises(OptionError, match=rf"max_model_length={longest + 39}: .* take {longest + 40} tokens"):
        recorded(make_recipe("rl", *own, f"grpo.vllm={{max_model_length: {longest + 39}}}"))


def test_smaller_images_make_a_shorter_context(make_recipe, shapes):
    own = (f"data.pairs=[{shapes}]", "grpo.vllm={}")
    small, large = (recorded(make_recipe("rl", f"model.max_pixels={side * side}", *own)).config for side in (56, 224))
    # 56 x 56 takes 2 x 2 tokens of 28 x 28 pixels an image; the largest image has at most 8 x 8.
    assert 0 < large.vllm_max_model_length - small.vllm_max_model_length <= 2 * (64 - 1)
