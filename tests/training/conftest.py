"""Pairs and checkpoints small enough that a training step takes a fraction of a second."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from differad.training.recipe import RlRecipe, Scratch, SftRecipe, load_recipe
from differad.training.scratch import build_small_qwen2_vl

SIDE = 56
# Box of each pair's target; the second and the fourth are normal.
BOXES = ([[14, 14, 28, 42]], [], [[28, 0, 56, 28]], [])


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Weights this small gain nothing from a second thread, and on a busy machine the two wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Four pairs of uniform images, each with its own grey; defects are white."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for number, boxes in enumerate(BOXES):
        image = np.full((SIDE, SIDE, 3), 40 * (number + 1), np.uint8)
        Image.fromarray(image).save(folder / f"{number}_good.png")
        for x1, y1, x2, y2 in boxes:
            image[y1:y2, x1:x2] = 255
        image[0, 0] = number
        Image.fromarray(image).save(folder / f"{number}_test.png")
        names = {"reference": f"{number}_good.png", "target": f"{number}_test.png"}
        lines.append({"id": f"p{number}", "category": "flat", **names, "boxes": boxes, "kind": "blot" if boxes else ""})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def broken_pairs(pairs, tmp_path):
    """The same pairs; the third's target has a header that can be read and pixels that cannot."""
    folder = tmp_path / "broken"
    shutil.copytree(pairs.parent, folder)
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(folder / "2_test.png", format="JPEG")
    data = (folder / "2_test.png").read_bytes()
    (folder / "2_test.png").write_bytes(data[: len(data) - 1000])
    return folder / pairs.name


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A randomly initialised checkpoint, 0.2 million weights."""
    scratch = Scratch(hidden_size=32, layers=2, heads=2, vision_depth=1, vision_size=32, vocabulary=1000)
    return build_small_qwen2_vl(tmp_path_factory.mktemp("start"), scratch, seed=0)


@pytest.fixture
def make_recipe(pairs, start, tmp_path):
    """A recipe of the phase, with overrides, as a user would load it."""

    def make(phase, *overrides):
        recipe = {
            "phase": phase,
            "out": str(tmp_path / "run"),
            "model": {"checkpoint": str(start), "dtype": "float32", "max_pixels": SIDE * SIDE},
            "data": {"pairs": [str(pairs)]},
            "held_out": {"max_new_tokens": 4},
            "train": {
                "steps": 2,
                "batch_size": 4,
                "learning_rate": 1e-3,
                "save_every": 1,
                "samples_every": 0,
                "gradient_checkpointing": False,
                "report_to": [],
            },
        }
        if phase == "rl":
            recipe["grpo"] = {"generations": 4, "max_new_tokens": 4, "resamples": 1}
        path = tmp_path / f"{phase}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return load_recipe(path, RlRecipe if phase == "rl" else SftRecipe, overrides)

    return make
