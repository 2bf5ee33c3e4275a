"""`differad train` and `differad audit-reward`, as commands."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from differad.cli.audit import audit_command
from differad.cli.train import train_app
from differad.errors import ManifestError, OptionError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def app():
    app = typer.Typer()
    app.command("audit-reward")(audit_command)
    app.add_typer(train_app, name="train")
    return app


def run(app, *arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def existing_inputs(tmp_path):
    """Overrides of a recipe: an existing empty manifest as its data, and an existing folder as its start."""
    (tmp_path / "pairs.jsonl").write_text("")
    pairs = tmp_path / "pairs.jsonl"
    return [f"data.pairs=[{pairs}]", f"held_out.pairs=[{pairs}]"]


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_check_prints_the_whole_recipe(app, phase, existing_inputs, tmp_path):
    start = f"model.tiny.comparer={tmp_path}" if phase == "sft" else f"model.checkpoint={tmp_path}"
    result = run(
        app, "train", phase, str(RECIPES / "tiny" / f"{phase}.yaml"), "train.seed=7", *existing_inputs, start, "--check"
    )
    recipe = json.loads(result.stdout)
    assert (recipe["phase"], recipe["train"]["seed"]) == (phase, 7)


def test_the_shipped_policy_is_there(app, existing_inputs):
    """`model.checkpoint: tiny` is no folder of that name."""
    result = run(app, "train", "sft", str(RECIPES / "tiny" / "own.yaml"), *existing_inputs, "--check")
    assert json.loads(result.stdout)["model"]["checkpoint"] == "tiny"


def test_a_recipe_of_the_other_phase_is_refused(app):
    with pytest.raises(OptionError, match=r"phase: 'rl': Input should be 'sft'"):
        run(app, "train", "sft", str(RECIPES / "tiny" / "rl.yaml"), "--check")


@pytest.mark.parametrize("check", [["--check"], []])
@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        (
            "tiny/sft.yaml",
            0,
            r"^data.pairs: data/tiny/small_siblings/pairs.jsonl: no such file \(and 5 more\); .*training.md",
        ),
        ("qwen3-vl-2b/sft-lora.yaml", 0, r"^data.pairs: data/natural/pairs.jsonl: no such file; "),
        (
            "qwen3-vl-2b/sft-lora.yaml",
            1,
            r"^held_out.pairs: data/held_out/pairs.jsonl: no such file; .*'held_out.pairs=\[",
        ),
        ("tiny/sft.yaml", 2, r"^model.tiny.comparer: runs/tiny/compare/model: no such folder; train it first"),
        ("tiny/rl.yaml", 2, r"^model.checkpoint: runs/tiny/sft/model: no such folder; train it first"),
    ],
)
def test_data_that_is_missing_is_named_before_anything_is_loaded(
    app, existing_inputs, tmp_path, monkeypatch, recipe, given, message, check
):
    monkeypatch.chdir(tmp_path)
    phase = "rl" if "rl" in recipe else "sft"
    with pytest.raises((ManifestError, OptionError), match=message):
        run(app, "train", phase, str(RECIPES / recipe), *existing_inputs[:given], *check)
    assert not (tmp_path / "runs").exists()


def test_a_folder_in_place_of_a_manifest_is_named(app, existing_inputs, tmp_path):
    with pytest.raises(ManifestError, match=rf"data.pairs: {tmp_path}: not a file"):
        run(app, "train", "sft", str(RECIPES / "tiny" / "sft.yaml"), f"data.pairs=[{tmp_path}]", "--check")


def test_help_has_an_example(app):
    assert "Example: differad train rl" in run(app, "train", "rl", "--help").stdout


def test_the_audit_as_table_json_and_image(app, tmp_path):
    table = run(app, "audit-reward", "--save", str(tmp_path / "audit.png")).stdout
    assert "most at IoU < 0.05" in table
    assert (tmp_path / "audit.png").stat().st_size > 5000
    figures = json.loads(run(app, "audit-reward", "--json").stdout)
    assert set(figures["rewards"]) == {"guarded", "dclr", "iou"}
