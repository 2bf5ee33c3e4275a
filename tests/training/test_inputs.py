"""Inputs that must be unchanged to resume a run: images, masks and start weights, by content."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from differad.data.locks import exclusive_run
from differad.data.manifest import read_pairs, write_pairs
from differad.errors import InputError, ManifestError, OptionError
from differad.training.inputs import INPUTS, read_inputs
from differad.training.provenance import describe_run, find_start, write_run_info


@pytest.fixture
def recipe(make_recipe, pairs, start, tmp_path):
    """A recipe whose images and weights are its own, to be changed."""
    shutil.copytree(pairs.parent, tmp_path / "data")
    shutil.copytree(start, tmp_path / "start")
    Image.fromarray(np.full((56, 56), 255, np.uint8)).save(tmp_path / "data" / "mask.png")
    loaded = list(read_pairs(tmp_path / "data" / "pairs.jsonl"))
    object.__setattr__(loaded[0], "mask", tmp_path / "data" / "mask.png")
    write_pairs(tmp_path / "data" / "pairs.jsonl", loaded)
    return make_recipe(
        "sft", f"data.pairs=[{tmp_path / 'data' / 'pairs.jsonl'}]", f"model.checkpoint={tmp_path / 'start'}"
    )


def begin(recipe):
    """A run that has a checkpoint."""
    inputs = read_inputs(recipe)
    folder = recipe.out / "checkpoint-1"
    folder.mkdir(parents=True)
    write_run_info(folder, describe_run(recipe, {}, 1, inputs.contents), 1)
    inputs.write(recipe.out)


def resume(recipe):
    inputs = read_inputs(recipe)
    return find_start(recipe.out, describe_run(recipe, {}, 1, inputs.contents), True, inputs.changed)


def repaint(path):
    """Another content of as many bytes, with the old time of change."""
    status = path.stat()
    time.sleep(0.02)  # a file system counts time in ticks of some milliseconds
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/2_test.png", r"other images \(.*data/2_test\.png has changed\)"),
        ("data/2_good.png", r"other images \(.*data/2_good\.png has changed\)"),
        ("data/mask.png", r"other images \(.*data/mask\.png has changed\)"),
        ("start/model.safetensors", r"other weights \(.*start/model\.safetensors has changed\)"),
    ],
)
def test_a_file_that_changed_is_named(recipe, tmp_path, name, message):
    begin(recipe)
    assert resume(recipe).name == "checkpoint-1"
    repaint(tmp_path / name)
    with pytest.raises(OptionError, match=rf"checkpoint-1: was made with {message}; put them back"):
        resume(recipe)


def test_a_copy_with_new_times_is_the_same(recipe, tmp_path):
    begin(recipe)
    for path in [*(tmp_path / "data").glob("*.png"), *(tmp_path / "start").iterdir()]:
        os.utime(path)
    assert resume(recipe).name == "checkpoint-1"
    (recipe.out / INPUTS).unlink()  # only spares reading
    assert resume(recipe).name == "checkpoint-1"


def test_an_image_that_is_gone_and_one_without_a_record(recipe, tmp_path):
    begin(recipe)
    (tmp_path / "data" / "0_test.png").rename(tmp_path / "data" / "away.png")
    with pytest.raises(OptionError, match=r"other images \(.*0_test\.png has changed\)"):
        resume(recipe)
    (tmp_path / "data" / "away.png").rename(tmp_path / "data" / "0_test.png")
    repaint(tmp_path / "data" / "0_test.png")
    (recipe.out / INPUTS).write_text("broken\n[1]\n")
    with pytest.raises(OptionError, match="was made with other images; put them back"):
        resume(recipe)


def test_a_run_that_is_gone_on_with(recipe, tmp_path):
    sft = pytest.importorskip("differad.training.sft", reason="the train extra is not installed")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": 1})})
    sft.train_sft(recipe)
    repaint(tmp_path / "data" / "1_test.png")
    with pytest.raises(OptionError, match=r"1_test\.png has changed"):
        sft.train_sft(recipe, resume=True)
    with exclusive_run(recipe.out), pytest.raises(InputError, match="run: another run writes to it"):
        sft.train_sft(recipe, resume=True)
    (tmp_path / "data" / "pairs.jsonl").unlink()
    with pytest.raises(ManifestError, match=r"pairs\.jsonl: no such file"):
        sft.train_sft(recipe, resume=True)
