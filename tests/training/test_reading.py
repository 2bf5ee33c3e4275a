"""Box pretraining: random proposals look like the change encoder's, and training on them teaches the policy to copy boxes."""

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from differad.boxes import iou
from differad.data.manifest import read_pairs
from differad.errors import OptionError
from differad.locators.tiny.model import COMPARISON
from differad.locators.tiny.proposals import PROPOSALS, proposals
from differad.synthesis.draw import SynthesisOptions
from differad.synthesis.run import synthesize
from differad.training.reading import pretrain_boxes, random_proposals
from differad.training.recipe import RlRecipe, Tiny, load_recipe
from differad.training.rl import train_rl
from differad.training.tiny import build_tiny

SMALL = {"hidden_size": 32, "heads": 2, "layers": 1, "channels": 8, "blocks": 1}


def test_random_proposals_have_the_encoders_shape_and_only_the_first_two_are_near():
    generated, truth = random_proposals(np.random.default_rng(0), 400)
    assert generated.shape == (400, *proposals(np.zeros((6, 8), np.float32)).shape) == (400, PROPOSALS, 6)
    abnormal = np.array([len(boxes) > 0 for boxes in truth])
    assert 0.55 < abnormal.mean() < 0.75  # 65 % expected; 4 deviations of 400 samples are 0.095
    boxes = np.concatenate([boxes for boxes in truth if len(boxes)])
    overlaps = [
        iou(generated[abnormal, number, :4].numpy().astype(float) * 1000, boxes).mean() for number in range(PROPOSALS)
    ]
    assert min(overlaps[:2]) > 0.6 > 0.2 > max(overlaps[2:])
    assert generated[abnormal, 0, 4].mean() > 0 > generated[~abnormal, 0, 4].mean()


def pretrained(folder, steps):
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    pretrain_boxes(model, tokenizer, steps, seed=1)
    return model


def test_pretraining_is_repeatable_and_changes_only_the_path_from_proposals_to_text(tmp_path):
    folder = build_tiny(tmp_path / "start", Tiny(**SMALL), seed=0)
    before = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    first, second = (pretrained(folder, 2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = {name for name in first if not torch.equal(first[name], before[name])}
    assert {"model.visual.propose.weight", "model.language_model.embed_tokens.weight"} <= moved
    assert not any(f"visual.{part}." in name for name in moved for part in COMPARISON)


def test_a_change_encoder_is_loaded_without_its_language_model(tmp_path):
    earlier = build_tiny(tmp_path / "earlier", Tiny(**SMALL), seed=1)
    own = load_file(build_tiny(tmp_path / "own", Tiny(**SMALL, comparer=earlier), seed=0) / "model.safetensors")
    other = load_file(earlier / "model.safetensors")
    for name in own:
        part = name.removeprefix("model.visual.").partition(".")[0]
        if name.startswith("model.visual.") and part in COMPARISON:
            assert torch.equal(own[name], other[name])
    assert not torch.equal(own["model.visual.merge.weight"], other["model.visual.merge.weight"])
    with pytest.raises(OptionError, match="of another size"):
        build_tiny(tmp_path / "wide", Tiny(**{**SMALL, "channels": 16}, comparer=earlier), seed=0)
    with pytest.raises(OptionError, match=r"no model\.safetensors"):
        build_tiny(tmp_path / "none", Tiny(**SMALL, comparer=tmp_path), seed=0)


def test_reinforcement_runs_on_pairs_of_several_shapes(tmp_path):
    """Prompts of unequal length in one batch: token types must be padded as the prompts are."""
    synthesize(SynthesisOptions(seed=3, size=96, aspect=2.5), 4, tmp_path / "pairs", progress=False)
    shapes = {pair.id for pair in read_pairs(tmp_path / "pairs" / "pairs.jsonl")}
    assert len(shapes) == 4
    build_tiny(tmp_path / "start", Tiny(**SMALL, reading=1), seed=0)
    recipe = {
        "phase": "rl",
        "out": str(tmp_path / "out"),
        "model": {"checkpoint": str(tmp_path / "start"), "dtype": "float32"},
        "data": {"pairs": [str(tmp_path / "pairs" / "pairs.jsonl")], "question": "fixed"},
        "train": {
            "steps": 2,
            "batch_size": 8,
            "save_every": 2,
            "gradient_checkpointing": False,
            "samples_every": 0,
            "report_to": [],
        },
        "grpo": {"generations": 4, "max_new_tokens": 10, "resamples": 1},
    }
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(recipe))
    summary = train_rl(load_recipe(tmp_path / "rl.yaml", RlRecipe))
    assert summary["steps"] == 2
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("start", "out/model"))
    assert all(torch.equal(before[name], after[name]) for name in before if "visual" in name)  # frozen
