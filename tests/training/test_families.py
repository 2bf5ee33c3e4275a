"""Families beyond Qwen-VL: a tiny checkpoint of each is located with, trained, exported and read again by stock transformers."""

from importlib.util import find_spec

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from differad.core import Location
from differad.data.manifest import read_pairs
from differad.errors import OptionError
from differad.locators import load_locator
from differad.training.rl import train_rl
from differad.training.sft import train_sft
from family_checkpoints import FAMILIES, build_family

LIMIT = "model.max_pixels=null"
# What transformers' own processors of these families need beyond what differad installs.
NEEDS = {"mistral3": "torchvision", "lfm2_vl": "torchvision", "smolvlm": "num2words"}


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
    assert not any(name.startswith(("model.visual", "model.vision_", "model.vision_tower")) for name in moved)
    warm = make_recipe("rl", f"model.checkpoint={cold.out / 'model'}", LIMIT, "train.steps=1", f"out={cold.out}-rl")
    summary = train_rl(warm)
    assert summary["steps"] == 1
    shares = (
        "prompts are shared in rollout and loss"
        if folder.name.startswith("glm")
        else "prompts are not shared in rollout"
    )
    assert shares in capfd.readouterr().err
    read = AutoModelForImageTextToText.from_pretrained(warm.out / "model")
    assert type(read).__module__.startswith("transformers.")
    assert len(answers(warm.out / "model", pairs)) == 4
