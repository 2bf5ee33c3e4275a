"""`differad recipes` lists and copies the recipes of differad."""

import json
from pathlib import Path

import pytest

from differad.cli.main import run

RECIPES = Path(__file__).parents[2] / "recipes"


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_they_are_listed_with_what_they_are(capsys):
    assert run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines)
    assert {name for name in files(RECIPES) if name.endswith((".yaml", ".sh"))} == listed.keys()
    assert listed["tiny/sft.yaml"].startswith("Cold start of the embedded policy")
    assert listed["tiny/train.sh"].startswith("Train the embedded policy from random weights")
    assert run(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"] == listed


@pytest.mark.parametrize("folder_exists", [False, True])
def test_a_copy_has_all_recipes(tmp_path, capsys, folder_exists):
    out = tmp_path / "recipes"
    if folder_exists:
        out.mkdir()
    assert run(["recipes", "--copy", str(out)]) == 0
    assert files(out) == files(RECIPES)
    assert str(out) in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["recipes"]


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("mine")
    assert run(["recipes", "--copy", str(tmp_path)]) == 2
    assert run(["recipes", "--copy", str(tmp_path / "mine.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert files(tmp_path) == {"mine.yaml": b"mine"}
