"""Difficulty-aware GRPO with exact values: resampling, weighting, masking, and their consistency."""

import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForImageTextToText

from differad.errors import OptionError
from differad.training import trl_hooks
from differad.training.advantages import group_advantages
from differad.training.localization import localize
from differad.training.recipe import RlRecipe
from differad.training.rl import DifficultyAwareTrainer, grpo_config, mask_rows, take_rows, train_rl
from differad.training.sft import train_sft
from tolerance import assert_as_near, rounding

sys.path.insert(0, str(Path(__file__).parent))
from scripted import SCRIPT, UNREADABLE, answer, make_trainer, summarise

G = 4
# The whole script is one batch: three groups of four.
BATCH = ("train.batch_size=12", "grpo.resamples=2", "grpo.max_new_tokens=64")
FINAL = [*SCRIPT[0][0], *SCRIPT[1][2], *SCRIPT[2][2]]
TRUTHS = [[[250, 250, 500, 750]]] * G + [[]] * G + [[[500, 0, 1000, 500]]] * G


@pytest.fixture
def scored(make_recipe):
    """A trainer that has scored the script, and what it hands to the loss. Iterations: 2, so that old values are kept."""
    trainer = make_trainer(make_recipe("rl", *BATCH, "grpo.iterations=2", "train.save_every=2"))
    trainer.begin(SCRIPT)
    return trainer, trainer.score([0, 1, 2])


def test_tokens_are_those_of_the_final_rollout(scored):
    trainer, output = scored
    ids = [row[row != trainer._tokenizer.pad_token_id].tolist() for row in output["completion_ids"]]
    assert trainer._decoder(ids) == FINAL
    assert trainer.calls == 1 + 2  # the batch, then twice the uninformative groups
    # Pair 0 was informative at once; pair 1 came right at the second redraw; pair 2 never: all its rewards are 0.
    assert trainer._rollout.resamples.tolist() == [0, 2, 2]
    assert trainer._rollout.uninformative.tolist() == [False, False, True]


def test_rewards_and_weights_belong_to_the_final_rollout(scored):
    trainer, output = scored
    outcomes = localize(FINAL, TRUTHS, [(1000, 1000)] * 12, "guarded")
    assert trainer._rollout.localization.flatten().tolist() == pytest.approx(outcomes.reward.tolist())
    # Pair 0: the box, its upper half (IoU 1/2, centres 125 apart, sides 250 x 500 against 250 x 250), zero box, nothing.
    half = 0.5 + 0.5 * 0.3 * (1 - 125 / math.hypot(250, 500)) * 0.5
    localization = torch.tensor([[1, half, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert outcomes.reward.tolist() == pytest.approx(localization.flatten().tolist())
    form = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64)
    alpha = [(1 + half) / 4, 1 / 4]
    beta = [2 / 4, 2 / 4]  # pair 0: zero box and nothing; pair 1: two boxes on a normal target
    weights = [(math.exp(1 - a) + math.sqrt(1 + b)) / 2 for a, b in zip(alpha, beta, strict=True)]
    expected = group_advantages(localization + form) * torch.tensor([[*weights, 0]], dtype=torch.float64).T
    # Rewards of up to 2 in float32 less their mean, over a spread of 0.4 and more: five times the rounding of G terms.
    assert output["advantages"].tolist() == pytest.approx(expected.flatten().tolist(), abs=5 * rounding(G, 2.0))


def test_log_probabilities_belong_to_the_final_tokens(scored, start):
    _, output = scored
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32).eval()
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
    length = output["completion_ids"].shape[1]

    def log_probabilities(model):
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=torch.cat([output["prompt_mask"], (output["completion_ids"] != 0).long()], dim=1),
                pixel_values=output["pixel_values"],
                image_grid_thw=output["image_grid_thw"],
                mm_token_type_ids=output["mm_token_type_ids"],
            ).logits
        return logits[:, -length - 1 : -1].log_softmax(-1).gather(-1, output["completion_ids"][..., None])[..., 0]

    every = log_probabilities(model)
    exact = log_probabilities(model.double())
    terms = model.config.get_text_config().hidden_size
    mask = output["completion_mask"].bool()
    # The start policy is the reference and, before the first step, the policy itself.
    for name in ("ref_per_token_logps", "old_per_token_logps"):
        assert_as_near(output[name][mask], every[mask], exact[mask], terms=terms)
        assert output[name][2 * G :].abs().max() == 0


def test_an_uninformative_group_is_masked_and_not_counted(scored):
    trainer, output = scored
    tokens = [len(trainer._tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in FINAL[: 2 * G]]
    assert output["completion_mask"].sum(dim=1).tolist() == [*tokens, 0, 0, 0, 0]
    assert int(output["num_items_in_batch"]) == sum(tokens)


def test_metrics_are_those_of_the_final_rollout(scored):
    trainer, _ = scored
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["iou"] == pytest.approx((1 + 0.5 + 1) / 12)
    assert metrics["miss_rate"] == pytest.approx((2 + 2 + 4) / 12)
    assert metrics["groups/informative"] == pytest.approx(2 / 3)
    assert metrics["groups/redrawn"] == pytest.approx(2 / 3)
    assert metrics["groups/redraws"] == 4
    assert metrics["rewards/format_reward/mean"] == pytest.approx((3 + 3 + 1) / 12)
    lengths = [len(trainer._tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in FINAL]
    assert metrics["completions/mean_length"] == pytest.approx(sum(lengths) / 12)


def test_a_masked_group_has_no_gradient_with_any_loss(scored):
    trainer, output = scored
    trainer.current_gradient_accumulation_steps = 1
    changed = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in output.items()}
    changed["completion_ids"][2 * G :] = trainer._tokenizer.eos_token_id
    changed["advantages"][2 * G :] = 5.0
    losses = inspect.get_annotations(type(trainer._grpo))["loss"].__args__
    assert len(losses) == 8
    for name in losses:
        trainer.loss_type = name
        gradients = [_gradient(trainer, batch) for batch in (output, changed)]
        assert gradients[0].isfinite().all(), name
        assert gradients[0].abs().max() > 0, name
        assert torch.equal(*gradients), name  # what is dropped adds zeros to the same sums


def _gradient(trainer, batch):
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return _flat_gradient(trainer)


def _flat_gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


# Means over what the loss sees, by hand: x (B, C) of every token, mask (B, C), rows of each batch.
MEANS = {
    "grpo": lambda x, mask, _: ((x * mask).sum(1)[mask.any(1)] / mask.sum(1)[mask.any(1)]).mean(),
    "dr_grpo": lambda x, mask, _: (x * mask).sum() / (mask.any(1).sum() * 64),  # 64: the longest answer allowed
    "luspo": lambda x, mask, _: (x * mask).sum() / mask.any(1).sum(),
    "bnpo": lambda x, mask, batches: sum((x * mask)[b].sum() / mask[b].sum() for b in batches) / len(batches),
    "dapo": lambda x, mask, _: (x * mask).sum() / mask.sum(),
}


@pytest.mark.parametrize("share", [True, False])
def test_masked_groups_do_not_lower_the_mean(make_recipe, share):
    """Twelve answers in three accumulated batches: a group is dropped, and of the others one answer was cut off."""
    own = (*BATCH, "train.batch_size=4", "train.accumulate=3", f"grpo.share_prefix={share}")
    trainer = make_trainer(make_recipe("rl", *own))
    torch.manual_seed(0)
    with torch.no_grad():  # away from the reference, so that there is a KL
        for weight in trainer.model.model.language_model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 3
    rows = [trainer.train_dataset[pair] for pair in range(3) for _ in range(G)]
    first = [answer(250, 250, 500, 750), "<think>and so on…", answer(), UNREADABLE]
    for name, mean in MEANS.items():
        trainer.loss_type, trainer._buffered_inputs = name, None
        trainer.begin({**SCRIPT, 0: [first]})
        trainer.model.zero_grad()
        loss = 0.0
        for trainer._step in range(3):
            part = trainer.compute_loss(trainer.model, trainer._prepare_inputs(rows))
            part.backward()
            loss += part.item()
        found = _flat_gradient(trainer)
        expected = _by_hand(trainer, mean)
        assert loss == pytest.approx(expected[0], rel=1e-5), name
        assert (found - expected[1]).norm() < 1e-4 * expected[1].norm(), name


def _by_hand(trainer, mean):
    """The loss of all buffered batches, and its gradient: the surrogate at ratio 1 and the KL, each answer by itself."""
    trainer.model.zero_grad()
    per_token, masks = [], []
    for batch in trainer._buffered_inputs:
        ids, length = batch["completion_ids"], batch["completion_ids"].shape[1]
        logits = trainer.model(
            input_ids=torch.cat([batch["prompt_ids"], ids], dim=1),
            attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            **{name: batch[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")},
        ).logits[:, -length - 1 : -1]
        log_p = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        ahead = batch["ref_per_token_logps"] - log_p
        ratio = (log_p - log_p.detach()).exp()  # TRL weighs the KL by it too
        per_token.append(ratio * (0.04 * (ahead.exp() - ahead - 1) - batch["advantages"][:, None]))
        masks.append(batch["completion_mask"].float())
    assert [int(mask.any(1).sum()) for mask in masks].count(0) <= 1
    assert sum(int(mask.any(1).sum()) for mask in masks) == 7
    batches = [slice(4 * number, 4 * number + 4) for number, mask in enumerate(masks) if mask.any()]
    loss = mean(torch.cat(per_token), torch.cat(masks), batches)
    loss.backward()
    return loss.item(), _flat_gradient(trainer)


def test_a_batch_without_any_informative_group_is_harmless(make_recipe):
    trainer = make_trainer(make_recipe("rl", *BATCH, "grpo.resamples=0"))
    trainer.begin({pair: [[UNREADABLE] * G] for pair in range(3)})
    output = trainer.score([0, 1, 2])
    assert trainer.calls == 1
    assert int(output["num_items_in_batch"]) == 0
    trainer.current_gradient_accumulation_steps = 1
    assert _gradient(trainer, output).abs().max() == 0


def test_a_solved_group_is_neither_resampled_nor_masked(make_recipe):
    trainer = make_trainer(make_recipe("rl", *BATCH))
    trainer.begin({pair: [[answer()] * G] for pair in (1, 3)})
    output = trainer.score([1, 3])
    assert trainer.calls == 1
    assert trainer._rollout.uninformative.tolist() == [False, False]
    assert output["completion_mask"].any(dim=1).all()
    assert output["advantages"].abs().max() == 0


def test_truncated_answers_are_masked(make_recipe):
    trainer = make_trainer(make_recipe("rl", *BATCH))
    trainer.begin({0: [[answer(250, 250, 500, 750), answer(1, 1, 9, 9), "<think>and so on…", answer()]]})
    output = trainer.score([0])
    assert output["completion_mask"].any(dim=1).tolist() == [True, True, False, True]


def test_without_reweighting_the_advantages_are_trls(make_recipe):
    trainer = make_trainer(make_recipe("rl", *BATCH, "grpo.reweight=false"))
    trainer.begin(SCRIPT)
    output = trainer.score([0])
    rewards = trainer._rollout.localization + torch.tensor([[1, 1, 1, 0]])
    expected = group_advantages(rewards)[0].tolist()
    assert output["advantages"].tolist() == pytest.approx(expected, abs=5 * rounding(G, 2.0))


def test_rows_keep_their_own_patches():
    fields = {
        "pixel_values": torch.arange(10.0)[:, None],
        "image_grid_thw": [[1, 1, 1], [1, 1, 2], [1, 1, 3], [1, 2, 2]],
        "mm_token_type_ids": [[0], [1]],
    }
    taken = take_rows(fields, [["a", "b"], ["c", "d"]], [1])
    # The first row's two images have 1 + 2 patches, the second's 3 + 4.
    assert taken["pixel_values"].flatten().tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert taken["image_grid_thw"].tolist() == [[1, 1, 3], [1, 2, 2]]
    assert taken["mm_token_type_ids"] == [[1]]


def test_masking_leaves_other_rows_alone():
    output = {
        "completion_mask": torch.ones(3, 2),
        "advantages": torch.ones(3),
        "ref_per_token_logps": -torch.ones(3, 2),
    }
    mask_rows(output, [1])
    assert output["completion_mask"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert output["advantages"].tolist() == [1, 0, 1]
    assert output["ref_per_token_logps"].tolist() == [[-1, -1], [0, 0], [-1, -1]]


def test_training_starts_at_no_distance_from_the_cold_start(make_recipe):
    trainer = make_trainer(make_recipe("rl", "train.steps=1", "grpo.resamples=0", "grpo.generations=2"), Keeping)
    trainer.train()
    first = trainer.state.log_history[0]
    # exp(d) - d - 1 of log-probabilities that differ by d, some 1e-6: of that four roundings of numbers near 1 are left.
    assert first["kl"] == pytest.approx(0, abs=rounding(4, 1.0))
    for name in ("loss", "iou", "miss_rate", "groups/informative", "groups/redraws", "entropy", "reward"):
        assert name in first


class Keeping(DifficultyAwareTrainer):
    """Real answers; groups count as informative, because a random policy never writes a box."""

    def _gather(self, answers):
        localization, overlap, missed = super()._gather(answers)
        localization = localization + 0.5 * torch.arange(localization.shape[1]) / localization.shape[1]
        return localization, overlap, missed


def test_two_processes_agree_with_one(make_recipe, tmp_path):
    alone = make_trainer(make_recipe("rl", *BATCH))
    alone.begin(SCRIPT)
    expected = summarise(alone, alone.score([0, 1, 2]))
    # Six rows each: the second group spans both processes.
    recipe: RlRecipe = make_recipe("rl", *BATCH, "train.batch_size=6")
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json())
    script = Path(__file__).with_name("scripted.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), str(path), str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found["processes"], expected["processes"]) == (2, 1)
        assert found["uninformative"] == expected["uninformative"] == [False, False, True]
        assert found["resamples"] == expected["resamples"]
        assert found["tokens"] == expected["tokens"]
        assert found["num_items"] == expected["num_items"]
        assert found["advantages"] == pytest.approx(expected["advantages"], rel=1e-6)
        assert found["localization"] == expected["localization"]
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-6)


def test_trls_hooks_are_where_they_were():
    assert trl_hooks.moved_hooks() == []


def test_a_moved_hook_is_named(monkeypatch):
    class Renamed(trl_hooks.GRPOTrainer):
        def _generate_single_turn(self, prompts):
            return prompts

        _get_train_sampler = None

    monkeypatch.setattr(trl_hooks, "GRPOTrainer", Renamed)
    moved = trl_hooks.moved_hooks(Renamed)
    assert any(text.startswith("_generate_single_turn takes ('self', 'prompts')") for text in moved)
    assert "_get_train_sampler is gone" in moved
    monkeypatch.setattr(trl_hooks, "moved_hooks", lambda: moved)
    with pytest.raises(OptionError, match=r"trl 1\..*_get_train_sampler is gone"):
        trl_hooks.check_hooks()


def test_an_order_of_prompts_without_a_generator_is_named(make_recipe, monkeypatch):
    """As if TRL had another kind of sampler."""
    trainer = make_trainer(make_recipe("rl"))
    monkeypatch.setattr(trl_hooks.GRPOTrainer, "_get_train_sampler", lambda self, dataset=None: SequentialSampler([1]))
    with pytest.raises(
        OptionError, match=r"trl 1\..*_get_train_sampler gives a SequentialSampler without a generator; install"
    ):
        trainer._get_train_sampler()
    trainer.args.shuffle_dataset = False
    assert list(trainer._get_train_sampler()) == [0]


@pytest.mark.parametrize("train", [train_rl, train_sft])
def test_prompts_may_keep_their_order(train, make_recipe):
    more = ["train.more.shuffle_dataset=false"] * (train is train_rl)
    assert train(make_recipe("rl" if more else "sft", *more, "train.steps=1", "train.save_every=1"))["steps"] == 1


def test_a_checkpoint_inside_a_rollout_is_refused(make_recipe):
    with pytest.raises(
        OptionError, match=r"train.save_every=1: answers are generated every 2 batches.*a multiple of 2"
    ):
        grpo_config(make_recipe("rl", "grpo.iterations=2"))
    with pytest.raises(OptionError, match=r"GRPOConfig refuses the recipe: .*generations"):
        grpo_config(make_recipe("rl", "grpo.generations=3"))
    with pytest.raises(OptionError, match=r"train.more.lerning: GRPOConfig has no such field"):
        grpo_config(make_recipe("rl", "train.more.lerning=1"))


def test_fewer_pairs_than_a_rollout_takes_are_refused(make_recipe):
    """Four pairs; TRL would end without a step and say nothing."""
    with pytest.raises(
        OptionError, match=r"data.pairs: 4 pairs to train on; expected at least 5.*lower train.batch_size"
    ):
        make_trainer(make_recipe("rl", "train.batch_size=20"))
    assert len(make_trainer(make_recipe("rl", "train.batch_size=16")).get_train_dataloader()) > 0


def test_the_configuration_is_the_recipes(make_recipe):
    config = grpo_config(make_recipe("rl", "train.more.top_p=0.9"))
    assert (config.beta, config.epsilon, config.epsilon_high) == (0.04, 0.2, 0.28)
    assert (config.mask_truncated_completions, config.top_p, config.scale_rewards) == (True, 0.9, "group")
