"""Every recipe in the repository loads, and a wrong one is refused with its key."""

from pathlib import Path

import pytest
import yaml

from differad.answers.formats import MODEL_TYPES
from differad.errors import OptionError
from differad.training.recipe import RlRecipe, SftRecipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
KINDS = {"sft": SftRecipe, "rl": RlRecipe}
RUNS = sorted(path for path in RECIPES.glob("*/*.yaml") if path.parent.name not in ("base", "accelerate"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_recipe_loads_and_its_header_runs_it(path):
    phase = {"compare": "sft", "own": "sft"}.get(path.stem, path.stem.partition("-")[0])
    recipe = load_recipe(path, KINDS[phase])
    assert recipe.phase == phase
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    place = path.relative_to(RECIPES.parent).as_posix()
    assert f"differad train {phase} {place}" in header
    assert (recipe.model.lora is not None) == path.stem.endswith("lora")
    # The paper's GRPO, but for the reward: method.md, section 4.
    if phase == "rl":
        assert (recipe.grpo.generations, recipe.grpo.resamples, recipe.grpo.kl) == (8, 3, 0.04)
        assert (recipe.grpo.clip_low, recipe.grpo.clip_high, recipe.grpo.mask_truncated) == (0.2, 0.28, True)


def test_every_model_has_both_phases_full_and_lora():
    names = {path.relative_to(RECIPES).as_posix() for path in RUNS}
    models = ("qwen3.5-0.8b", "qwen3.5-9b", "internvl3.5-2b", "smolvlm2-500m", "gemma4-e2b", "glm4.6v-flash")
    for model in ("qwen3-vl-2b", "qwen3-vl-8b", "qwen2.5-vl-7b", "qwen2-vl-7b", *models):
        assert {f"{model}/{phase}-{kind}.yaml" for phase in KINDS for kind in ("full", "lora")} <= names
    assert {"tiny/sft.yaml", "tiny/rl.yaml"} <= names
    assert "qwen3_vl" in MODEL_TYPES


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_launch_configurations_are_accelerates(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16"
    assert config.num_processes == 4


def write(folder, **changes):
    recipe = {
        "phase": "rl",
        "out": "runs/x",
        "model": {"checkpoint": "a/b"},
        "data": {"pairs": ["p.jsonl"]},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch_size=0"], r"train.batch_size: 0: .*greater than or equal to 1"),
        (["train.lerning_rate=1"], r"train.lerning_rate: no such key"),
        (["grpo.reward=giou"], r"grpo: reward 'giou' is not known; expected one of guarded, dclr, iou"),
        (["grpo.loss=ppo"], r"grpo.loss: 'ppo': Input should be 'grpo'"),
        (["model.checkpoint=null"], r"model: expected one of checkpoint, scratch and tiny"),
        (["data.pairs=[]"], r"data.pairs: .*at least 1 item"),
        (["phase=sft"], r"phase: 'sft': Input should be 'rl'"),
        (["out"], r"'out': expected KEY=VALUE"),
        (["out=[1"], r"'out=\[1': the value is not YAML"),
    ],
)
def test_errors_name_the_key(tmp_path, overrides, message):
    with pytest.raises(OptionError, match=message):
        load_recipe(write(tmp_path), RlRecipe, overrides)


def test_overrides_reach_into_sections(tmp_path):
    recipe = load_recipe(
        write(tmp_path),
        RlRecipe,
        ["train.learning_rate=1e-5", "grpo.vllm={mode: server, url: http://h:1}", "data.seed=3"],
    )
    assert (recipe.train.learning_rate, recipe.data.seed) == (1e-5, 3)
    assert (recipe.grpo.vllm.mode, recipe.grpo.vllm.url) == ("server", "http://h:1")


def test_a_base_lies_below(tmp_path):
    write(tmp_path, train={"batch_size": 2, "seed": 5})
    above = tmp_path / "above.yaml"
    above.write_text("base: recipe.yaml\ntrain: {seed: 6}\n")
    recipe = load_recipe(above, RlRecipe)
    assert (recipe.train.batch_size, recipe.train.seed) == (2, 6)
    above.write_text("base: above.yaml\n")
    with pytest.raises(OptionError, match="builds on itself"):
        load_recipe(above, RlRecipe)


def test_files_that_are_no_recipes(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml", RlRecipe)
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(OptionError, match="holds list; expected a mapping"):
        load_recipe(path, RlRecipe)
    path.write_text("a: [")
    with pytest.raises(OptionError, match="not YAML"):
        load_recipe(path, RlRecipe)
