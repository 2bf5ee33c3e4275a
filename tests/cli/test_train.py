"""`differad train` and `differad audit-reward`, as commands."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from differad.cli.audit import audit_command
from differad.cli.train import train_app
from differad.errors import OptionError

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def app():
    app = typer.Typer()
    app.command("audit-reward")(audit_command)
    app.add_typer(train_app, name="train")
    return app


def run(app, *arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, standalone_mode=False)


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_check_prints_the_whole_recipe(app, phase):
    result = run(app, "train", phase, str(RECIPES / "tiny" / f"{phase}.yaml"), "train.seed=7", "--check")
    recipe = json.loads(result.stdout)
    assert (recipe["phase"], recipe["train"]["seed"]) == (phase, 7)


def test_a_recipe_of_the_other_phase_is_refused(app):
    with pytest.raises(OptionError, match=r"phase: 'rl': Input should be 'sft'"):
        run(app, "train", "sft", str(RECIPES / "tiny" / "rl.yaml"), "--check")


def test_help_has_an_example(app):
    assert "Example: differad train rl" in run(app, "train", "rl", "--help").stdout


def test_the_audit_as_table_json_and_picture(app, tmp_path):
    table = run(app, "audit-reward", "--save", str(tmp_path / "audit.png")).stdout
    assert "most at IoU < 0.05" in table
    assert (tmp_path / "audit.png").stat().st_size > 5000
    figures = json.loads(run(app, "audit-reward", "--json").stdout)
    assert set(figures["rewards"]) == {"guarded", "dclr", "iou"}
