"""A full disk or a power cut during training: one line, complete checkpoints, the same final weights."""

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the train extra is not installed")
pytest.importorskip("resource", reason="limits of a process are POSIX's")
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from differad.cli.main import run
from differad.errors import WriteError
from differad.training.provenance import RUN_INFO
from differad.training.sft import train_sft
from differad.training.writing import library_writes
from faults import Disk, full_after, no_file_above

WEIGHTS = frozenset({".safetensors", ".pt", ".pth", ".bin"})
SCRATCH = "model={scratch: {hidden_size: 32, layers: 2, heads: 2, vision_depth: 1, vision_size: 32, vocabulary: 1000}}"


@pytest.fixture
def recipe(make_recipe, pairs):
    """Everything that a run writes: start, checkpoints, an evaluation, samples, curves, the policy."""
    held_out = (f"held_out.pairs=[{pairs}]", "held_out.every=2", "held_out.limit=1", "held_out.max_new_tokens=1")
    return make_recipe("sft", SCRATCH, "train.samples_every=2", "train.samples=1", *held_out)


def named(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def check_whole(out):
    """Every checkpoint is marked as whole, and nothing half is there."""
    assert [path for path in out.glob("checkpoint-*") if not (path / RUN_INFO).is_file()] == []
    assert [path.name for path in out.rglob("*.tmp")] == []
    for folder in (out / "model", out / "start"):
        if folder.exists():
            assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(named(folder))


_WHOLE = []


@pytest.fixture
def whole(recipe):
    """An undisturbed run's weights, the names of its files, and how often it asked for room."""
    if not _WHOLE:
        with full_after(recipe.out) as calls:
            train_sft(recipe)
            count = calls()
        _WHOLE.append((weights(recipe.out), named(recipe.out), count))
        shutil.rmtree(recipe.out)
    return _WHOLE[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.75, 0.97])
def test_no_room_for_the_nth_call(recipe, whole, share, monkeypatch):
    """At some of them: a run takes a second and asks for room 60 times."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    expected, names, count = whole
    with (
        full_after(recipe.out, int(share * count)),
        pytest.raises(WriteError, match=r"cannot be (written|made a folder)"),
    ):
        train_sft(recipe)
    check_whole(recipe.out)
    train_sft(recipe, resume=True)
    check_whole(recipe.out)
    assert weights(recipe.out) == expected
    assert named(recipe.out) == names


@pytest.fixture
def commands(make_recipe, pairs, tmp_path):
    """The command line of a phase's smallest run that writes all there is: a step, a checkpoint, an evaluation, samples."""
    held_out = (f"held_out.pairs=[{pairs}]", "held_out.every=1", "held_out.limit=1", "held_out.max_new_tokens=1")
    small = ("train.steps=1", "train.samples_every=1", "train.samples=1", *held_out)
    own = {"sft": (SCRATCH,), "rl": ("grpo.max_new_tokens=1", "grpo.resamples=0", "grpo.generations=2")}

    def command(phase):
        make_recipe(phase)
        return ["train", phase, str(tmp_path / f"{phase}.yaml"), *own[phase], *small, "--quiet"]

    return command


def state(out):
    """What a run left: the names of its files, of those that grow their lines, of weights their content."""
    found = []
    for name in named(out):
        path = out / name
        lines = path.read_bytes().count(b"\n") if path.suffix == ".jsonl" else 0
        found.append((name, lines, path.read_bytes() if path.suffix == ".safetensors" else b""))
    return tuple(found)


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_no_room_for_the_nth_call_for_every_n(commands, phase, tmp_path, monkeypatch, capfd):
    """One line, nothing half, and the run goes on to the same weights. What was left once is gone on with once."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    command, out = commands(phase), tmp_path / "run"
    with full_after(out) as calls:
        assert run(command) == 0
        count = calls()
    expected, names = weights(out), named(out)
    assert count > 50
    seen = set()
    for left in range(count):
        shutil.rmtree(out)
        capfd.readouterr()
        with full_after(out, left):
            assert run(command) == 2, left
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"differad: {out}"), left
        assert line.endswith(
            "; make room there, or choose another place; --resume goes on from the last whole checkpoint"
        )
        check_whole(out)
        if state(out) in seen:
            continue
        seen.add(state(out))
        assert run([*command, "--resume"]) == 0, left
        assert (weights(out), named(out)) == (expected, names), left
    assert len(seen) > 3


@pytest.mark.parametrize("size", [20_000, 400_000])
def test_a_write_that_is_cut_off(recipe, whole, size):
    """By the libraries that write weights and states, too."""
    expected, names, _ = whole
    with no_file_above(size), pytest.raises(WriteError, match=r"run.*: cannot be written \("):
        train_sft(recipe)
    check_whole(recipe.out)
    train_sft(recipe, resume=True)
    assert weights(recipe.out) == expected
    assert named(recipe.out) == names


def test_a_whole_checkpoint_survives_a_power_cut(make_recipe, monkeypatch):
    recipe = make_recipe("sft", SCRATCH)
    disk = Disk(recipe.out, monkeypatch)
    train_sft(recipe)
    kept = [*recipe.out.glob("checkpoint-*"), recipe.out / "model", recipe.out / "start"]
    assert len(kept) == 4
    before = [{name: (folder / name).read_bytes() for name in named(folder)} for folder in kept]
    disk.cut_power()
    assert [{name: (folder / name).read_bytes() for name in named(folder)} for folder in kept] == before
    shutil.rmtree(recipe.out / "model")
    assert train_sft(recipe, resume=True)["steps"] == 2


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_a_power_cut_at_any_moment_of_a_run(commands, phase, tmp_path, monkeypatch):
    """A checkpoint marked as complete is complete, and the resumed run ends with the same weights."""
    command, out, copies = commands(phase), tmp_path / "run", tmp_path / "copies"
    with monkeypatch.context() as patched:
        Disk(out, patched, copies)
        assert run(command) == 0
    expected, names = weights(out), named(out)
    whole = {name: (out / name).read_bytes() for name in names if Path(name).suffix in WEIGHTS}
    marked, seen = 0, set()
    for copy in sorted(copies.iterdir()):
        for mark in copy.rglob(RUN_INFO):
            marked += 1
            for path in (path for path in mark.parent.iterdir() if path.suffix in WEIGHTS):
                assert path.read_bytes() == whole[path.relative_to(copy).as_posix().replace("model.tmp", "model")], path
        if state(copy) in seen:
            continue
        seen.add(state(copy))
        shutil.rmtree(out)
        shutil.copytree(copy, out)
        assert run([*command, "--resume"]) == 0, copy
        assert named(out) == names, copy
        assert weights(out) == expected, copy
    assert marked > 2


def test_what_libraries_raise(tmp_path):
    values, model = {"a": torch.zeros(10_000)}, tmp_path / "model"
    refused = pytest.raises(WriteError, match=r"model: cannot be written \(File too large\); make room")
    with no_file_above(1000), refused, library_writes(model):
        save_file(values, tmp_path / "a.safetensors")
    refused = pytest.raises(WriteError, match=r"model: cannot be written \(torch: ")
    with no_file_above(1000), refused, library_writes(model):
        torch.save(values, tmp_path / "a.pt")
    for error in (RuntimeError("shapes differ"), SafetensorError("header too large")):
        with pytest.raises(type(error), match=str(error)), library_writes(tmp_path):
            raise error


def test_lines_of_curves_that_a_power_cut_left(make_recipe):
    recipe = make_recipe("sft", SCRATCH)
    train_sft(recipe)
    curves = recipe.out / "curves.jsonl"
    curves.write_bytes(curves.read_bytes() + b"\0\0\n")
    train_sft(recipe, resume=True)
    assert [json.loads(line)["step"] for line in curves.read_text().splitlines()][:2] == [1, 2]
    assert Path(recipe.out / "model").is_dir()
