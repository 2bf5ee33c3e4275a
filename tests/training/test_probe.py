"""The probe before a run: if a release has changed, the run trains as TRL does and says so once."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from transformers import cache_utils
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from trl import GRPOTrainer

from differad.errors import InputWarning, OptionError
from differad.locators import grouped, transformers_hooks
from differad.locators.miniature import VOCABULARY
from differad.training import rl, sequence
from differad.training.localization import Outcomes
from differad.training.probe import find_difference, find_masking_difference
from differad.training.rl import DifficultyAwareTrainer, train_rl

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
from scripted import make_trainer

from family_checkpoints import FAMILIES as FURTHER
from family_checkpoints import REPEATS_INDEX, build_family
from tiny_models import build_checkpoint

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
TINY = (
    "model.checkpoint=null",
    "model.tiny={hidden_size: 32, layers: 2, heads: 2, channels: 8, blocks: 1}",
    "model.max_pixels=null",
    "grpo.kl=0",
)


@pytest.fixture
def build(make_recipe, tmp_path):
    def build(*overrides, family=None):
        if family is not None:
            folder = tmp_path / family
            own = build_family(folder, FURTHER[family]) if family in FURTHER else build_checkpoint(folder, family, None)
            overrides = (*overrides, f"model.checkpoint={own}", *["model.max_pixels=null"] * (family in FURTHER))
        return make_trainer(make_recipe("rl", *overrides), DifficultyAwareTrainer)

    return build


def difference(trainer, cache_mb=64, trains_tower=False):
    return find_difference(trainer, trainer._unwrapped(trainer.model), cache_mb, trains_tower=trains_tower)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_these_releases_every_family_shares_as_trl_trains(build, family):
    trainer = build(family=family)
    before = torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for cache_mb, trains_tower in ((64, False), (0, False), (0, True)):
        assert difference(trainer, cache_mb, trains_tower) == {}
    # The run is unchanged: its next random numbers, its weights, its metrics.
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in trainer.model.state_dict().items())
    assert not any(trainer._metrics["train"].values())
    assert not any(weight.grad is not None for weight in trainer.model.parameters())


@pytest.mark.parametrize(
    "overrides",
    [
        TINY,
        (*TINY, "model.freeze_vision=false"),
        ("model.lora={rank: 4, alpha: 8}",),
        ("model.attention=eager",),
        ("grpo.loss=dr_grpo", "grpo.temperature=0.7", "train.more.top_p=0.9"),
        ("grpo.loss=cispo", "grpo.kl=0"),
    ],
)
def test_the_probe_uses_the_runs_settings(build, overrides):
    trainer = build(*overrides)
    assert difference(trainer) == {}
    trainer.check_sharing()
    assert trainer.sharing_summary().startswith("prompts are shared in rollout and loss")


def raising(*_, **__):
    raise AttributeError("'DynamicLayer' object has no attribute 'dtype'")


def other_rows(self, rows):
    self.keys, self.values = self.keys[rows.flip(0)], self.values[rows.flip(0)]


def forgetful_update(stock):
    def update(self, keys, values, *rest, **named):
        return stock(self, 1.001 * keys, values, *rest, **named)

    return update


def louder(stock):
    return lambda self, *given, scaling, **rest: stock(self, *given, scaling=1.001 * scaling, **rest)


def break_(monkeypatch, what):
    """A library whose inside is no longer what the shared way was written for."""
    hooks = transformers_hooks
    broken = {
        "reordering raises": (cache_utils.DynamicLayer, "reorder_cache", raising),
        "reordering gives other rows": (cache_utils.DynamicLayer, "reorder_cache", other_rows),
        "group cache gives other keys": (
            hooks.GroupCacheLayer,
            "update",
            forgetful_update(hooks.GroupCacheLayer.update),
        ),
        "attention is a thousandth off": (
            grouped.GroupAttention,
            "__call__",
            louder(grouped.GroupAttention.__call__),
        ),
        "positions raise": (Qwen2VLModel, "get_rope_index", raising),
        "masks let all see all": (sequence, "to_attention_mask", lambda sees, model: torch.ones_like(sees)),
    }
    owner, name, value = broken[what]
    monkeypatch.setattr(owner, name, value)


RAISED = "AttributeError: 'DynamicLayer' object has no attribute 'dtype'"
# How what is said of each part begins; a part that still works is not named.
BREAKS = {
    "reordering raises": {"rollout": RAISED, "loss": RAISED},
    "reordering gives other rows": {"rollout": "log-probabilities of answer", "loss": "a loss of"},
    "group cache gives other keys": {"rollout": "logits of token"},
    "attention is a thousandth off": {"rollout": "logits of token"},
    "positions raise": {"rollout": RAISED, "loss": RAISED},
    "masks let all see all": {"loss": "a loss of"},
}


def assert_named(found, reasons):
    assert found.keys() == reasons.keys()
    assert all(found[part].startswith(reason) for part, reason in reasons.items())


@pytest.mark.parametrize(("what", "reasons"), BREAKS.items())
def test_a_difference_of_a_release_is_named(build, monkeypatch, what, reasons):
    trainer = build()
    break_(monkeypatch, what)
    assert_named(difference(trainer), reasons)


def other_states(self, rows):
    for states in (self.conv_states, self.recurrent_states):
        states[0] = states[0][rows.flip(0)]


def flat_states(self, rows):
    self.conv_states[0] = self.conv_states[0][rows]
    self.recurrent_states[0] = 0.999 * self.recurrent_states[0][rows]


STATES = {
    "raises": ("reorder_cache", raising, RAISED),
    "gives other rows": ("reorder_cache", other_states, "logits of token"),
    "gives states a thousandth off": ("reorder_cache", flat_states, "logits of token"),
    "is absent": ("reorder_cache", None, "TypeError: 'NoneType' object is not callable"),
}


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe", *["qwen4_exp"] * REPEATS_INDEX])
def test_a_model_whose_layers_keep_states_shares_in_the_rollout_alone(build, family):
    trainer = build(*["train.more.router_aux_loss_coef=0.0"] * (family != "qwen3_5"), family=family)
    assert difference(trainer) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        trainer.check_sharing()
    line = trainer.sharing_summary()
    assert line.startswith("prompts are shared in rollout; not shared in loss (")
    assert line.endswith("has layers that do not keep the keys and values of every token)")


@pytest.mark.parametrize(("name", "value", "reason"), STATES.values(), ids=STATES)
def test_a_cache_whose_states_cannot_be_repeated_is_named(build, monkeypatch, name, value, reason):
    trainer = build(family="qwen3_5")
    monkeypatch.setattr(cache_utils.LinearAttentionCacheLayerMixin, name, value)
    if value is None:  # then no trial is needed
        assert "cannot be repeated" in trainer.sharing_summary()
        return
    assert_named(difference(trainer), {"rollout": reason})
    with pytest.warns(InputWarning, match=r"grpo\.share_prefix: prompts are not shared in rollout: with trl 1"):
        trainer.check_sharing()
    assert trainer.sharing_summary().startswith(f"prompts are not shared in rollout ({reason}")
    assert "; not shared in loss (Qwen3_5ForConditionalGeneration has layers" in trainer.sharing_summary()


def test_the_probe_covers_experts(build):
    """Products of experts by groups have no float64, one by one they have. What balances experts is a loss of whole batches."""
    balanced, free = (build(*more, family="qwen3_vl_moe") for more in ((), ("train.more.router_aux_loss_coef=0.0",)))
    for trainer in (balanced, free):
        assert find_masking_difference(trainer, trainer._unwrapped(trainer.model)) is None
        assert difference(trainer) == {}
        trainer.check_sharing()
    line = "prompts are shared in rollout; not shared in loss (experts are balanced over whole prompts"
    assert balanced.sharing_summary().startswith(line)
    assert free.sharing_summary() == "prompts are shared in rollout and loss"


@pytest.fixture
def informative(monkeypatch):
    """Every second answer is right: a random policy never writes a box and would have nothing to learn."""

    def halves(texts, *_):
        right = np.arange(len(texts)) % 2.0
        return Outcomes(right, right, right == 0)

    monkeypatch.setattr(rl, "localize", halves)


def train(recipe):
    """Losses and norms of gradients of a run's two steps, and the warnings that differad gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_rl(recipe)
    state = json.loads((recipe.out / "checkpoint-2" / "trainer_state.json").read_text())
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    messages = [str(each.message) for each in caught if issubclass(each.category, InputWarning)]
    return [step["loss"] for step in steps], [step["grad_norm"] for step in steps], messages


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"])
def test_losses_with_masked_completions_are_means_of_the_others(build, loss):
    trainer = build(f"grpo.loss={loss}", *(["train.more.importance_sampling_level=sequence"] * (loss == "luspo")))
    assert find_masking_difference(trainer, trainer._unwrapped(trainer.model)) is None


def test_a_loss_with_another_mean_is_refused(make_recipe, monkeypatch):
    """As if TRL had stopped counting masked answers: the factor that makes up for them would be one too many."""
    stock = GRPOTrainer._compute_loss

    def seen_alone(self, model, inputs):
        rows = inputs["completion_mask"].any(dim=1)
        return stock(self, model, inputs) * len(rows) / rows.sum()

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", seen_alone)
    with pytest.raises(
        OptionError, match=r"trl 1\..*: the loss 'grpo' of answers that are left out is not that of the others"
    ):
        train_rl(make_recipe("rl", *RUN, "grpo.loss=grpo"))


RUN = ("grpo.resamples=0", "grpo.mask_truncated=false", "train.save_every=2")


@pytest.mark.parametrize("what", ["reordering raises", "group cache gives other keys"])
@pytest.mark.usefixtures("informative")
def test_a_run_with_a_broken_cache_trains_as_trl_does_with_one_warning(make_recipe, tmp_path, monkeypatch, capfd, what):
    *expected, silent = train(make_recipe("rl", *RUN, "grpo.share_prefix=false", f"out={tmp_path / 'stock'}"))
    assert silent == []
    capfd.readouterr()
    break_(monkeypatch, what)
    *found, messages = train(make_recipe("rl", *RUN))
    if "loss" in BREAKS[what]:
        assert found == expected
    else:  # TRL writes losses with five digits or so
        assert found == [pytest.approx(each, rel=1e-3, abs=2e-5) for each in expected]
    assert all(norm > 1e-3 for norm in found[1])
    (line,) = messages
    where, reason = " and ".join(BREAKS[what]), BREAKS[what]["rollout"]
    assert line.startswith(f"grpo.share_prefix: prompts are not shared in {where}: with trl 1.")
    assert " and transformers 5." in line
    assert reason in line
    error = capfd.readouterr().err
    assert f"differad: prompts are not shared in {where} ({reason}" in error
    assert ("; shared in loss\n" in error) == ("loss" not in BREAKS[what])


@pytest.mark.usefixtures("informative")
def test_a_run_with_working_libraries_shares_and_warns_of_nothing(make_recipe, tmp_path, monkeypatch, capfd):
    *expected, _ = train(make_recipe("rl", *RUN, "grpo.share_prefix=false", f"out={tmp_path / 'stock'}"))
    capfd.readouterr()
    passes, stock = [], Qwen2VLModel.forward

    def forward(self, *given, input_ids=None, **rest):
        if self.config.get_text_config().vocab_size > VOCABULARY:  # of the run, not of its probe
            passes.append(tuple(input_ids.shape))
        return stock(self, *given, input_ids=input_ids, **rest)

    monkeypatch.setattr(Qwen2VLModel, "forward", forward)
    *found, messages = train(make_recipe("rl", *RUN))
    assert messages == []
    assert "differad: prompts are shared in rollout and loss\n" in capfd.readouterr().err
    # Four answers of four tokens at most: whoever takes more tokens at once has a prompt in them, which stands there once.
    assert {rows for rows, length in passes if length > 5} == {1}
    # TRL writes losses with five digits or so; both ways are compared in full in test_sharing.py.
    assert found == [pytest.approx(each, rel=1e-3, abs=2e-5) for each in expected]


@pytest.mark.usefixtures("informative")
def test_image_features_that_a_model_no_longer_takes_are_not_cached(make_recipe, monkeypatch, capfd):
    """As one that reads more of them than what is kept."""
    stock = Qwen2VLModel.forward

    def forward(self, *given, mm_encoder_outputs=None, **rest):
        if mm_encoder_outputs and mm_encoder_outputs["image"].last_hidden_state is None:
            raise AttributeError("'NoneType' object has no attribute 'to_tuple'")
        return stock(self, *given, mm_encoder_outputs=mm_encoder_outputs, **rest)

    monkeypatch.setattr(Qwen2VLModel, "forward", forward)
    losses, _, messages = train(make_recipe("rl", *RUN))
    assert len(losses) == 2
    (line,) = messages
    assert line.startswith("grpo.remember_pictures_mb: image features are not cached: with trl 1.")
    assert "to_tuple" in line
    assert "differad: prompts are shared in rollout and loss; image features are not cached\n" in capfd.readouterr().err
