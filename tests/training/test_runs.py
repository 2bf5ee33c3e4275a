"""Whole runs on tiny checkpoints: their files, frozen weights, reloading, and resuming after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
import torch
import yaml
from safetensors.torch import load_file

from differad.core import Pair
from differad.data.manifest import read_pairs
from differad.errors import ImageError
from differad.locators import load_locator
from differad.training.policy import InMemoryLocator, load_model, open_checkpoint
from differad.training.recipe import Data, Model, SftRecipe, Train
from differad.training.rl import train_rl
from differad.training.sft import train_sft

sys.path.insert(0, str(Path(__file__).parents[1] / "locators"))
from tiny_models import build_checkpoint


def changed(before, after):
    """Names of the weights that differ between two checkpoint folders."""
    old, new = (load_file(Path(folder) / "model.safetensors") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("train", [train_sft, train_rl])
def test_a_resumed_run_logs_and_saves_as_it_is_now_told(train, make_recipe, capfd):
    phase = "sft" if train is train_sft else "rl"
    train(make_recipe(phase, "train.steps=4", "train.log_every=4", "train.save_every=4"))
    capfd.readouterr()
    recipe = make_recipe(phase, "train.steps=10", "train.log_every=2", "train.save_every=3", "train.keep=9")
    train(recipe, resume=True)
    assert {path.name for path in recipe.out.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (4, 6, 9, 10)}
    history = json.loads((recipe.out / "checkpoint-10" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [4, 6, 8, 10]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["6/10", "8/10", "10/10"]
    assert not [line for line in lines if "trainer_state.json" in line]


def test_a_cold_start_writes_what_it_should(make_recipe, pairs, start):
    recipe = make_recipe(
        "sft", f"held_out.pairs=[{pairs}]", "held_out.every=2", "train.samples_every=2", "train.report_to=[tensorboard]"
    )
    summary = train_sft(recipe)
    out = recipe.out
    assert summary["steps"] == 2
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    # Weights are in safetensors only; pickles hold the trainer's state, and the exported folder has none.
    assert {path.name for path in out.rglob("*.bin")} == {"training_args.bin"}
    pickles = [path for ending in ("bin", "pt", "pth", "pkl") for path in (out / "model").rglob(f"*.{ending}")]
    assert pickles == []
    note = json.loads((out / "checkpoint-2" / "run_info.json").read_text())
    assert (note["step"], note["data"].keys()) == (2, {str(pairs)})
    metrics = json.loads((out / "evaluation" / "step-2" / "metrics.json").read_text())
    assert metrics["overall"]["pairs"] == 4
    history = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2]
    assert [entry["step"] for entry in history if "eval_miou" in entry] == [2]
    page = (out / "samples" / "step-000002.html").read_text()
    assert page.count("<section>") == 4
    assert page.count("data:image/jpeg") == 8
    assert list(out.rglob("events.out.tfevents*"))
    moved = changed(start, out / "model")
    assert moved
    assert not any("visual" in name for name in moved)  # frozen by default


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_the_model_has_our_own_card_and_the_run_none_of_the_trainers(make_recipe, pairs, start, phase):
    recipe = make_recipe(phase, f"held_out.pairs=[{pairs}]", "held_out.every=1", "model.lora={rank: 2}")
    {"sft": train_sft, "rl": train_rl}[phase](recipe)
    assert [path.relative_to(recipe.out).as_posix() for path in recipe.out.glob("README.md")] == []
    card = (recipe.out / "model" / "README.md").read_text(encoding="utf-8")
    assert f"2 steps, from `{start}`" in card
    assert f"- data: `{pairs}` (SHA-256 " in card
    assert "| normal pairs answered as normal | " in card
    for path in recipe.out.rglob("README.md"):  # PEFT leaves one of its own in each checkpoint of adapters
        text = path.read_text(encoding="utf-8")
        assert "trained with differad" in text
        assert not any(word in text for word in ("TRL", "PEFT", "None", "More Information Needed"))
    for step in (1, 2):
        assert f"{step} steps, from" in (recipe.out / f"checkpoint-{step}" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_a_run_is_named_in_one_line(make_recipe, broken_pairs, workers):
    """A worker's own words for it would hold a traceback."""
    with pytest.raises(ImageError) as caught:
        train_rl(make_recipe("rl", f"data.pairs=[{broken_pairs}]", f"train.workers={workers}", "train.steps=4"))
    assert str(caught.value).startswith(f"{broken_pairs.parent / '2_test.png'}: ")
    assert "Traceback" not in str(caught.value)


def test_the_vision_tower_trains_where_it_is_let(make_recipe, start):
    train_sft(make_recipe("sft", "model.freeze_vision=false", "train.steps=1"))
    recipe = make_recipe("sft")
    assert any("visual" in name for name in changed(start, recipe.out / "model"))


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_adapters_are_merged_into_what_is_exported(make_recipe, start, phase):
    overrides = ("model.lora={rank: 4, alpha: 8}", "train.steps=1", "model.freeze_vision=true", "grpo.resamples=0")
    recipe = make_recipe(phase, *overrides[: 3 if phase == "sft" else 4])
    (train_sft if phase == "sft" else train_rl)(recipe)
    moved = changed(start, recipe.out / "model")
    if phase == "sft":  # a random policy earns no reward, so reinforcement learning changes nothing
        assert moved
    assert all("visual" not in name and "proj" in name for name in moved)
    adapters = recipe.out / "checkpoint-1" / "adapter_model.safetensors"
    assert adapters.is_file()


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_every_family_takes_a_step_and_answers_alike_from_memory_and_disk(make_recipe, tmp_path, pairs, model_type):
    folder = build_checkpoint(tmp_path / "start", model_type, None)
    recipe = make_recipe(
        "sft", f"model.checkpoint={folder}", "train.steps=1", "train.batch_size=2", "train.learning_rate=1e-4"
    )
    train_sft(recipe)
    locator = load_locator(str(recipe.out / "model"), max_new_tokens=6, max_pixels=recipe.model.max_pixels)
    source = open_checkpoint(recipe.model.model_copy(update={"checkpoint": str(recipe.out / "model")}), recipe.out, 0)
    live = InMemoryLocator(load_model(source, recipe.model).eval(), source, batch_size=2, max_new_tokens=6)
    pair = next(read_pairs(pairs))
    assert isinstance(pair, Pair)
    assert live.locate(pair).answer == locator.locate(pair).answer
    train_rl(make_recipe("rl", f"model.checkpoint={recipe.out / 'model'}", "train.steps=1", f"out={tmp_path / 'rl'}"))


RUN = (
    "import sys; from differad.training.recipe import RlRecipe, SftRecipe, load_recipe;"
    "from differad.training.{phase} import train_{phase};"
    "train_{phase}(load_recipe(sys.argv[1], {kind}), resume='resume' in sys.argv)"
)


def start_run(phase, path, *flags):
    code = RUN.format(phase=phase, kind={"sft": "SftRecipe", "rl": "RlRecipe"}[phase])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return errors


def losses(out, step):
    history = json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    kept = ("loss", "grad_norm", "reward", "kl", "completions/mean_length", "mean_token_accuracy")
    return [{name: entry[name] for name in kept if name in entry} for entry in history if "loss" in entry]


@pytest.fixture(scope="session")
def taught(pairs, start, tmp_path_factory):
    """A policy that writes boxes, some right and some wrong: what reinforcement needs to have anything to do."""
    out = tmp_path_factory.mktemp("taught")
    recipe = SftRecipe(
        phase="sft",
        out=out,
        model=Model(checkpoint=str(start), dtype="float32", max_pixels=56 * 56),
        data=Data(pairs=(pairs,), question="fixed", reasoning=False),
        train=Train(
            steps=150, batch_size=4, learning_rate=5e-3, gradient_checkpointing=False, report_to=(), samples_every=0
        ),
    )
    train_sft(recipe)
    return out / "model"


# Each process writes its id beside the recipe: torchrun starts it in a session of its own.
IDS = "import os, pathlib, sys; pathlib.Path(sys.argv[1] + os.environ['RANK']).write_text(str(os.getpid()))\n"


def start_two(path, *flags):
    """Two processes of one run."""
    script = path.with_suffix(".py")
    script.write_text(IDS + RUN.format(phase="rl", kind="RlRecipe"))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(path), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def kill_two(launcher, path):
    """End both processes at once, and what watches over them first."""
    launcher.send_signal(signal.SIGKILL)
    for rank in "01":
        os.kill(int(Path(f"{path}{rank}").read_text()), signal.SIGKILL)
    launcher.communicate()


def wait_for(path, process):
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_train_together_and_go_on_exactly_after_a_kill(make_recipe, taught, pairs, tmp_path):
    """A group spans both, and some are resampled; a second run is killed at step 2 and continues like the first."""
    own = [f"model.checkpoint={taught}", "train.batch_size=4", "train.steps=4", "train.epochs=4", "data.question=fixed"]
    own += ["grpo.generations=8", "grpo.resamples=1", "grpo.max_new_tokens=36", "train.learning_rate=1e-4"]
    recipe = make_recipe("rl", *own, f"held_out.pairs=[{pairs}]", "held_out.every=2", "train.keep=9")
    paths = {name: tmp_path / f"{name}.yaml" for name in ("whole", "killed")}
    for name, path in paths.items():
        values = recipe.model_copy(update={"out": tmp_path / name}).model_dump(mode="json")
        path.write_text(yaml.safe_dump(values))
    victim = start_two(paths["killed"])
    wait_for(tmp_path / "killed" / "checkpoint-2" / "run_info.json", victim)
    kill_two(victim, paths["killed"])
    assert not (tmp_path / "killed" / "model").exists()
    finish(start_two(paths["killed"], "resume"))
    said = [line for line in finish(start_two(paths["whole"])).splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in said] == ["1/4", "2/4", "3/4", "4/4"]  # one process speaks for both
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    note = json.loads((whole / "checkpoint-2" / "run_info.json").read_text())
    assert note["processes"] == 2
    unbroken = losses(whole, 4)
    assert len(unbroken) == 4
    assert any(entry["grad_norm"] > 0 for entry in unbroken[2:])
    assert losses(killed, 4) == unbroken
    assert changed(whole / "model", killed / "model") == set()
    history = json.loads((whole / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert any(entry.get("groups/redraws") for entry in history)
    for step in (2, 4):  # held-out pairs are shared out, and scored once
        folders = [out / "evaluation" / f"step-{step}" for out in (whole, killed)]
        first, second = (json.loads((folder / "metrics.json").read_text())["overall"] for folder in folders)
        assert first["pairs"] == 4
        assert first == second
    assert load_locator(str(whole / "model")).locate(next(read_pairs(pairs))).answer


@pytest.mark.parametrize("phase", ["sft", "lora", "rl"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(make_recipe, taught, tmp_path, phase):
    """Four pairs, two a step: the second epoch begins at step 3, and the kill comes once step 3 is saved."""
    own = ["train.steps=6", "train.epochs=3", "train.keep=9", "data.question=fixed", "data.reasoning=false"]
    if phase == "rl":
        own += [f"model.checkpoint={taught}", "train.batch_size=8", "train.learning_rate=1e-4"]
        own += ["grpo.generations=4", "grpo.resamples=1", "grpo.max_new_tokens=36"]
    else:
        own += ["train.batch_size=2"] + (["model.lora={rank: 4, alpha: 8}"] if phase == "lora" else [])
    kind = "rl" if phase == "rl" else "sft"
    recipe = make_recipe(kind, *own)
    paths = {}
    for name in ("whole", "killed"):
        paths[name] = tmp_path / f"{name}.yaml"
        values = recipe.model_copy(update={"out": tmp_path / name}).model_dump(mode="json")
        paths[name].write_text(yaml.safe_dump(values))
    whole, victim = (start_run(kind, paths[name]) for name in ("whole", "killed"))
    wait_for(tmp_path / "killed" / "checkpoint-3" / "run_info.json", victim)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (tmp_path / "killed" / "model").exists()
    finish(whole)
    finish(start_run(kind, paths["killed"], "resume"))
    unbroken, resumed = losses(tmp_path / "whole", 6), losses(tmp_path / "killed", 6)
    assert len(unbroken) == 6
    assert any(entry["grad_norm"] > 0 for entry in unbroken[3:])
    assert resumed == unbroken
    assert changed(tmp_path / "whole" / "model", tmp_path / "killed" / "model") == set()
