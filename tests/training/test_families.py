"""Families beyond Qwen-VL: a tiny checkpoint of each is located with, trained, exported and read again by stock transformers."""

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from differad.core import Location
from differad.data.manifest import read_pairs
from differad.locators import load_locator
from differad.training.rl import train_rl
from differad.training.sft import train_sft
from family_checkpoints import FAMILIES, build_family

LIMIT = "model.max_pixels=null"


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return build_family(tmp_path_factory.mktemp(request.param), FAMILIES[request.param])


def changed(before, after):
    old, new = (load_file(each / "model.safetensors") for each in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def answers(folder, pairs, **options):
    locator = load_locator(str(folder), max_new_tokens=8, **options)
    outcomes = list(locator.locate_many(read_pairs(pairs)))
    assert all(isinstance(outcome, Location) for outcome in outcomes)
    return [outcome.answer for outcome in outcomes]


def test_it_locates(folder, pairs):
    """One by one and padded into one batch it says the same; what is drawn depends on the seed alone."""
    greedy = answers(folder, pairs, batch_size=1)
    assert answers(folder, pairs, batch_size=4) == greedy
    drawn = answers(folder, pairs, batch_size=4, temperature=1.0)
    assert answers(folder, pairs, batch_size=2, temperature=1.0) == drawn != greedy
    assert answers(folder, pairs, batch_size=4, temperature=1.0, seed=1) != drawn


def test_a_cold_start_and_reinforcement_on_it(folder, pairs, make_recipe, capfd):
    cold = make_recipe("sft", f"model.checkpoint={folder}", LIMIT, "train.steps=1")
    train_sft(cold)
    moved = changed(folder, cold.out / "model")
    assert moved
    assert not any("vision" in name or "visual" in name for name in moved)
    warm = make_recipe("rl", f"model.checkpoint={cold.out / 'model'}", LIMIT, "train.steps=1", f"out={cold.out}-rl")
    summary = train_rl(warm)
    assert summary["steps"] == 1
    assert "prompts are not shared in rollout and loss (" in capfd.readouterr().err
    read = AutoModelForImageTextToText.from_pretrained(warm.out / "model")
    assert type(read).__module__.startswith("transformers.")
    assert len(answers(warm.out / "model", pairs)) == 4
