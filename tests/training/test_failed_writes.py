"""A disk that is full, and a power cut, while a policy is trained: one line, whole checkpoints, the same weights in the end."""

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

from differad.errors import WriteError
from differad.training.provenance import RUN_INFO
from differad.training.sft import train_sft
from differad.training.writing import library_writes
from faults import Disk, full_after, no_file_above

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
