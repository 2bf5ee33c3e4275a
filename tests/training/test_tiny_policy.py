"""The randomly initialised embedded policy: its tokenizer, template and start weights, and a cold start."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from differad.answers.formats import FORMATS
from differad.answers.parsing import Frame, format_answer
from differad.cli.main import run
from differad.data.manifest import read_pairs
from differad.errors import OptionError
from differad.locators import load_locator
from differad.locators.features.weights import read_safetensors
from differad.locators.local import LocalLocator, LocalOptions
from differad.locators.tiny import WEIGHTS, TinyLocator
from differad.locators.tiny.model import dense_loss
from differad.locators.tiny.processor import MERGE
from differad.locators.tiny.proposals import PROPOSALS
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize
from differad.training.coverage import WithCoverage
from differad.training.data import build_dataset, prompt_messages
from differad.training.policy import load_model, open_checkpoint
from differad.training.recipe import SftRecipe, Tiny, load_recipe
from differad.training.sft import train_sft
from differad.training.tiny import NUMBERS, PHRASES, build_tiny
from tolerance import rounding

SMALL = {"hidden_size": 32, "heads": 2, "layers": 1, "channels": 8, "blocks": 1}
FORMAT = FORMATS["qwen2-vl"]
RECIPES = Path(__file__).parents[2] / "recipes" / "tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("start"), Tiny(**SMALL), seed=0)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("boxes", [[], [[0, 0, 640, 480]], [[5, 6, 7, 9]], [[100.4, 20, 333, 479.6]]])
def test_an_answer_takes_ten_tokens(tokenizer, boxes):
    answer = format_answer(np.array(boxes).reshape(-1, 4), FORMAT, Frame(640, 480), reasoning="")
    # <think></think><answer>( x1 , y1 ),( x2 , y2 )</answer> and the end
    assert len(ids(tokenizer, answer + "<|im_end|>")) == 10
    assert tokenizer.decode(ids(tokenizer, answer)) == answer


def test_numbers_and_phrases_are_single_tokens(tokenizer):
    for text in (*PHRASES, *map(str, range(NUMBERS))):
        assert ids(tokenizer, text) == [tokenizer.convert_tokens_to_ids(text)]
        assert tokenizer.decode(ids(tokenizer, text)) == text
    assert len(ids(tokenizer, "1001")) == 2  # 100 and 1
    # 9 special tokens, 256 bytes of which 10 are digits, 7 phrases, the numbers from 10 on
    assert len(tokenizer) == 9 + 256 + 7 + (1001 - 10)


@pytest.mark.parametrize(
    "text",
    [
        "<think>The cap is gone, 3 mm.</think><answer>(1,2),(3,4)</answer>",
        " two  spaces\n\tand a line ",
        "naïve — 50 µm, Größe",
        "缺陷 在 左上 🔧",
        "Ġ Ċ é \u00ad",  # letters that byte-level tokenizers write other bytes with
        "x , y . 10001 007",
    ],
)
def test_other_text_is_spelt_and_reads_back(tokenizer, text):
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=True) == text


def test_a_prompt_is_two_images(tokenizer):
    messages = prompt_messages("Where?")
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt == f"{slot}{slot}<|im_start|>"
    for content in ("yes", [{"type": "text", "text": "yes"}]):
        whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": content}], tokenize=False)
        assert whole == f"{prompt}yes<|im_end|>"


def test_the_same_seed_gives_the_same_start(folder, tmp_path):
    again, other = (build_tiny(tmp_path / str(seed), Tiny(**SMALL), seed=seed) for seed in (0, 1))
    first, second, third = (load_file(each / "model.safetensors") for each in (folder, again, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)
    pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []


def test_near_numbers_start_out_alike(folder, tokenizer):
    weights = load_file(folder / "model.safetensors")
    (table,) = (values for name, values in weights.items() if "embed_tokens" in name)
    numbers = table[[tokenizer.convert_tokens_to_ids(str(number)) for number in range(NUMBERS)]]
    alike = torch.nn.functional.cosine_similarity
    near, far = alike(numbers[:-1], numbers[1:]), alike(numbers[:-300], numbers[300:])
    assert near.mean() > far.mean() + 0.3
    assert numbers.norm(dim=1).tolist() == pytest.approx(
        [1.5] * NUMBERS, rel=rounding(SMALL["hidden_size"], 1.0)
    )  # none is louder than another


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "set"
    options = SynthesisOptions(seed=1, size=96, normal_share=0.25, grades=("easy",), siblings=0.5, aspect=1.5)
    return synthesize(options, 8, out, progress=False).manifest


def recipe(tmp_path, manifest, **train):
    values = {
        "phase": "sft",
        "out": str(tmp_path / "run"),
        "model": {
            "tiny": SMALL,
            "dtype": "float32",
            "freeze_vision": False,
            "min_pixels": 128 * 128,
            "max_pixels": 128 * 128,
        },
        "data": {
            "pairs": [str(manifest)],
            "question": "fixed",
            "reasoning": False,
            "evidence": str(tmp_path / "evidence"),
        },
        "train": {
            "steps": 1,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "schedule": "constant",
            "gradient_checkpointing": False,
            "samples_every": 0,
            "report_to": [],
            **train,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def history(out, step):
    entries = json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "loss" in entry]


def test_a_cold_start_learns_and_writes_a_model(tmp_path, drawn, capsys):
    path = recipe(tmp_path, drawn, steps=90, save_every=90)
    assert run(["train", "sft", str(path)]) == 0
    capsys.readouterr()
    out = tmp_path / "run"
    losses = [entry["loss"] for entry in history(out, 90)]
    assert np.mean(losses[-4:]) < 0.6 * losses[0]
    # A pair's evidence is computed once and kept; nothing half-written is left.
    assert [path.suffix for path in (tmp_path / "evidence").iterdir()] == [".npy"] * 8
    before, after = (load_file(out / name / "model.safetensors") for name in ("start", "model"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    for part in ("visual.fine", "visual.changed", "embed_tokens"):
        assert any(part in name for name in moved), part
    locator = LocalLocator(str(out / "model"), LocalOptions(device="cpu", max_new_tokens=16))
    location = locator.locate(next(read_pairs(drawn)))
    assert location.answer.startswith("<think></think><answer>(")  # the grammar is learnt first
    own = load_locator(out / "model")  # what `--model` takes runs without torch
    assert isinstance(own, TinyLocator)
    assert 0 <= own.locate(next(read_pairs(drawn))).confidence <= 1
    assert load_locator(out / "checkpoint-90").name == f"tiny@{out}/checkpoint-90"
    with pytest.raises(OptionError, match=r"no checkpoint, but a training run's folder; pass its result, .*run.model"):
        load_locator(out)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_shipped_policy_is_fine_tuned_by_its_recipe(tmp_path, drawn, monkeypatch, dtype):
    """recipes/tiny/own.yaml in small: another policy of the same sizes, which the embedded locator takes."""
    monkeypatch.chdir(tmp_path)
    changed = ("train.steps=2", "train.save_every=2", "train.batch_size=4", f"model.dtype={dtype}")
    own = load_recipe(
        RECIPES / "own.yaml",
        SftRecipe,
        (f"data.pairs=[{drawn}]", "held_out.pairs=[]", "model.min_pixels=16384", "model.max_pixels=16384", *changed),
    )
    assert own.model.start == str(WEIGHTS)
    out = Path(train_sft(own)["model"])
    # The start is among what the run's identity knows.
    assert str(WEIGHTS / "model.safetensors") in (own.out / "inputs.jsonl").read_text()
    locator = load_locator(out)
    assert isinstance(locator, TinyLocator)
    before, after = (read_safetensors(folder / "model.safetensors") for folder in (WEIGHTS, out))
    assert {name: values.shape for name, values in after.items()} == {
        name: values.shape for name, values in before.items()
    }
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    assert locator.locate(next(read_pairs(drawn))).valid


def test_a_step_in_two_parts_is_the_step_of_the_whole(tmp_path, drawn):
    """Eight pairs at once, or four and four: text and map weigh the same, so the gradient is as long."""
    norms = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        path = recipe(folder, drawn, steps=1, save_every=1, batch_size=batch_size, accumulate=accumulate)
        train_sft(load_recipe(path, SftRecipe))
        norms.append((history(folder / "run", 1)[0]["grad_norm"], history(folder / "run", 1)[0]["loss"]))
    # Gradients are sums over some thousand tokens and cells, 4096 eps = 5e-4; a step counted twice would be off by half.
    assert norms[0] == pytest.approx(norms[1], rel=rounding(4096, 2.0))


def test_the_loss_is_the_text_s_and_five_times_the_map_s(tmp_path, drawn):
    """The first step's, of all eight pairs, against the start's own: its forward for the text, `dense_loss` for the map."""
    cold = load_recipe(recipe(tmp_path, drawn, batch_size=8, save_every=1), SftRecipe)
    train_sft(cold)
    source = open_checkpoint(cold.model, cold.out, 0)
    rows = build_dataset(cold.data, source.convention, with_answer=True)
    collate = WithCoverage(DataCollatorForVisionLanguageModeling(source.processor, completion_only_loss=True))
    batch = collate([rows[index] for index in range(8)])
    coverage = batch.pop("coverage")
    policy = load_model(source, cold.model)
    with torch.no_grad():
        text = policy(**batch).loss
    dense = dense_loss(policy.model.visual.logits, coverage, batch["image_grid_thw"])
    # A cell is as likely changed as not: log 2; where 6 of 8 pairs have a small defect, the Dice loss there is nearly 1.
    assert float(dense) == pytest.approx(np.log(2) + 0.2 * 6 / 8, rel=0.1)
    assert history(cold.out, 1)[0]["loss"] == pytest.approx(float(text + 5 * dense), rel=rounding(4096, 2.0))


def test_a_batch_carries_the_truth_of_its_cells(tmp_path, drawn):
    """The batch of the trainer's collator: texts, two images each, and coverage for every row of features."""
    cold = load_recipe(recipe(tmp_path, drawn), SftRecipe)
    source = open_checkpoint(cold.model, tmp_path, 0)
    rows = build_dataset(cold.data, source.convention, with_answer=True)
    batch = WithCoverage(DataCollatorForVisionLanguageModeling(source.processor))([rows[index] for index in range(8)])
    lengths = batch["image_grid_thw"].prod(dim=1).tolist()
    assert len(lengths) == 2 * 8
    assert batch["coverage"].shape == (sum(lengths), 4)
    assert len(batch["pixel_values"]) == sum(lengths)
    shares = [float(part.mean()) for part in torch.split(batch["coverage"], lengths)]
    assert shares[::2] == [0.0] * 8  # of references nothing is marked
    # The mean over all cells is the marked share of the image.
    true = [pair.extra["facts"]["area_share"] if pair.anomalous else 0.0 for pair in read_pairs(drawn)]
    assert shares[1::2] == pytest.approx(true, abs=1e-4)
    slots = (batch["input_ids"] == source.config.image_token_id).sum(dim=1)
    assert slots.tolist() == [PROPOSALS + length // MERGE**2 for length in lengths[1::2]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.checkpoint=a/b"], "expected one of checkpoint, scratch and tiny"),
        (["model.scratch={}"], "expected one of checkpoint, scratch and tiny"),
        (["model.tiny=null"], "expected one of checkpoint, scratch and tiny"),
        (["model.tiny.channels=6"], r"model.tiny.channels: 6: .*multiple of 4"),
        (["model.tiny.hidden_size=20"], "hidden_size 20 over 2 heads: expected a multiple of 8 for each head"),
        (["model.tiny.depth=1"], "model.tiny.depth: no such key"),
    ],
)
def test_a_recipe_names_one_start(tmp_path, overrides, message):
    with pytest.raises(OptionError, match=message):
        load_recipe(recipe(tmp_path, "pairs.jsonl"), SftRecipe, overrides)
