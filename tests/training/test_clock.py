"""A run with a time limit: its end and its learning rate."""

import json
import shutil
import time

import pytest
import torch
from transformers import get_scheduler

from differad.errors import OptionError
from differad.training.callbacks import CURVES
from differad.training.clock import Clock, ClockMixin
from differad.training.rl import train_rl
from differad.training.sft import train_sft


class Arguments:
    lr_scheduler_type = "cosine"
    warmup = 0

    def get_warmup_steps(self, _):
        return self.warmup


class Stock:
    """What a trainer does with its schedule, without a model."""

    def __init__(self, name, warmup=0):
        self.args = Arguments()
        self.args.lr_scheduler_type, self.args.warmup = name, warmup

    def create_scheduler(self, steps, optimizer=None):
        return get_scheduler(self.args.lr_scheduler_type, optimizer, self.args.warmup, steps)


class Timed(ClockMixin, Stock):
    pass


def schedule(name, clock, warmup=0, steps=1000):
    trainer = Timed(name, warmup)
    trainer.clock = clock
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return trainer.create_scheduler(steps, optimizer), optimizer


def rate(scheduler, optimizer):
    optimizer.step()
    scheduler.step()
    return scheduler.get_last_lr()[0]


def test_the_rate_falls_with_time_not_with_steps():
    clock = Clock(1.0, {})
    scheduler, optimizer = schedule("linear", clock)
    seen = []
    for clock.spent in (0.0, 15.0, 30.0, 60.0, 70.0):
        seen.append(rate(scheduler, optimizer))
    # One of 1000 steps is done at first: 1/1000; then 15, 30 and 60 of 60 seconds. The end is the end.
    assert seen == pytest.approx([0.999, 0.75, 0.5, 0.0, 0.0], abs=1e-4)


def test_warming_up_is_a_matter_of_steps():
    clock = Clock(1.0, {})
    scheduler, optimizer = schedule("linear", clock, warmup=4)
    clock.spent = 30.0
    assert [rate(scheduler, optimizer) for _ in range(4)] == pytest.approx([0.25, 0.5, 0.75, 0.5], abs=1e-4)


def test_steps_that_end_before_the_time_end_the_schedule():
    clock = Clock(1000.0, {})
    scheduler, optimizer = schedule("linear", clock, steps=4)
    assert [rate(scheduler, optimizer) for _ in range(4)] == pytest.approx([0.75, 0.5, 0.25, 0.0], abs=1e-4)


def test_without_minutes_the_schedule_is_stock():
    mine, optimizer = schedule("cosine", Clock(None, {}), steps=10)
    theirs = get_scheduler("cosine", torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 0, 10)
    assert [rate(mine, optimizer) for _ in range(3)] == [rate(theirs, theirs.optimizer) for _ in range(3)]


def test_a_schedule_that_looks_at_losses_is_refused():
    with pytest.raises(OptionError, match=r"reduce_lr_on_plateau.*expected"):
        schedule("reduce_lr_on_plateau", Clock(1.0, {}))


class Control:
    should_training_stop = False


def test_seconds_of_an_interrupted_run_count():
    run = {}
    clock, control = Clock(1.0, run, {"seconds": 59.5}), Control()
    clock.on_train_begin()
    clock.on_pre_optimizer_step()
    time.sleep(0.51)  # now 60.01 seconds are spent
    clock.on_step_end(None, None, control)
    assert not control.should_training_stop  # the time is read once a step, before the optimiser's part
    clock.on_pre_optimizer_step()
    clock.on_step_end(None, None, control)
    assert control.should_training_stop
    assert run["seconds"] == pytest.approx(60.01, abs=1.0)


def test_a_run_ends_with_its_time(make_recipe):
    recipe = make_recipe("sft", "train.steps=100000", "train.minutes=0.02", "train.save_every=100000")
    summary = train_sft(recipe)
    assert 0 < summary["steps"] < 100000
    # 1.2 seconds and one step more
    assert 1.2 <= summary["seconds"] < 12
    info = json.loads((recipe.out / "model" / "run_info.json").read_text())
    assert info["seconds"] == summary["seconds"]
    lines = [json.loads(line) for line in (recipe.out / CURVES).read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, summary["steps"] + 1))
    rates = [line["learning_rate"] for line in logged]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0]


@pytest.mark.parametrize("limit", ["train.steps=2", "train.minutes=0.0001"])
@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_run_that_is_over_takes_no_further_step(make_recipe, phase, limit):
    """As where the disk was full when the result was to be written."""
    train = {"sft": train_sft, "rl": train_rl}[phase]
    recipe = make_recipe(phase, *(() if "steps" in limit else ("train.steps=50",)), limit)
    steps = train(recipe)["steps"]
    weights = (recipe.out / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(recipe.out / "model")
    assert train(recipe, resume=True)["steps"] == steps
    assert (recipe.out / "model" / "model.safetensors").read_bytes() == weights


def test_curves_of_a_resumed_run_have_each_step_once(make_recipe):
    train_sft(make_recipe("sft", "train.steps=2"))
    recipe = make_recipe("sft", "train.steps=4")
    with (recipe.out / CURVES).open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # what a killed run wrote after its last checkpoint
    train_sft(recipe, resume=True)
    lines = [json.loads(line) for line in (recipe.out / CURVES).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
