"""No tensor of a step is float64, which Apple's MPS does not support."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from differad.core import Pair
from differad.locators import load_locator
from differad.training import rl, sharing
from differad.training.recipe import Tiny
from differad.training.rl import train_rl
from differad.training.sft import train_sft
from differad.training.tiny import build_tiny

sys.path.insert(0, str(Path(__file__).parent))
from scripted import SCRIPT, make_trainer


class NoDouble(TorchDispatchMode):
    """Fails at the first operation that takes or makes a float64 tensor, as MPS does.

    What comes from NumPy is seen where it is first taken: making a tensor of an array is no operation.
    """

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        if any(
            isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves((args, kwargs, made))
        ):
            raise TypeError(f"{operation}: a float64 tensor, which MPS has not")
        return made


@pytest.fixture(autouse=True)
def _untried(monkeypatch):
    """The trial at the start of a run compares with float64 on the CPU, which this guard does not tell from a device's."""
    monkeypatch.setattr(sharing, "find_difference", lambda *_, **__: None)
    monkeypatch.setattr(rl, "find_masking_difference", lambda *_: None)


def test_the_guard_notices():
    with NoDouble(), pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()
    with NoDouble(), pytest.raises(TypeError, match="float64"):
        torch.tensor([0.5], dtype=torch.float64)
    with NoDouble(), pytest.raises(TypeError, match="float64"):
        torch.from_numpy(np.ones(2)).float()


def test_a_step_of_reinforcement(make_recipe):
    """Groups that are resampled, weighted and masked, and a step on them."""
    recipe = make_recipe("rl", "train.batch_size=12", "grpo.resamples=2", "grpo.max_new_tokens=64", "train.steps=1")
    trainer = make_trainer(recipe)
    trainer.begin({**SCRIPT, 3: SCRIPT[0]})
    with NoDouble():
        trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_run(make_recipe, phase, pairs):
    recipe = make_recipe(phase, "train.steps=1", f"held_out.pairs=[{pairs}]", "held_out.every=1")
    with NoDouble():
        (train_sft if phase == "sft" else train_rl)(recipe)
    assert (recipe.out / "evaluation" / "step-1" / "metrics.json").is_file()


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_run_of_the_embedded_policy(make_recipe, phase, tmp_path):
    small = {"hidden_size": 32, "heads": 2, "layers": 1, "channels": 8, "blocks": 1}
    with NoDouble():
        folder = build_tiny(tmp_path / "start", Tiny(**small, reading=1), seed=0)
    recipe = make_recipe(phase, f"model.checkpoint={folder}", "model.max_pixels=null", "train.steps=1")
    with NoDouble():
        (train_sft if phase == "sft" else train_rl)(recipe)


def test_an_answer(start, pairs):
    with NoDouble():
        locator = load_locator(str(start), device="cpu", max_new_tokens=4, max_pixels=56 * 56, temperature=1.0)
        pair = Pair(pairs.parent / "0_good.png", pairs.parent / "0_test.png")
        assert locator.locate(pair).model
