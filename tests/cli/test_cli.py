"""The command line as a user runs it: real processes, real files, exit codes and streams."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from differad.cli.main import run

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD, DEFECT = EXAMPLES / "board_good.png", EXAMPLES / "board_defect.png"


def differad(*arguments, **keywords):
    """Run the installed command in its own process."""
    command = [sys.executable, "-m", "differad", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **keywords)


@pytest.fixture
def sample():
    (pair,) = [json.loads(line) for line in (EXAMPLES / "pairs.jsonl").open() if "board_defect.png" in line]
    return pair


def test_locate_prints_one_json_document(sample):
    result = differad("locate", GOOD, DEFECT, "--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["anomalous"] is True
    assert document["model"] == "auto"
    assert {"boxes", "scores", "confidence", "reasoning", "answer", "seconds"} <= set(document)
    x1, y1, x2, y2 = document["boxes"][0]
    true = sample["boxes"][0]
    assert x1 < (true[0] + true[2]) / 2 < x2  # the box lies around the middle of the defect
    assert y1 < (true[1] + true[3]) / 2 < y2


def test_locate_for_a_person_and_the_overlay(tmp_path):
    result = differad("locate", GOOD, DEFECT, "--save", tmp_path / "new" / "overlay.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("abnormal\n  box (")
    overlay, target = (np.asarray(Image.open(p).convert("RGB")) for p in (tmp_path / "new" / "overlay.png", DEFECT))
    assert overlay.shape == target.shape
    assert 0 < (overlay != target).any(axis=2).mean() < 0.2  # a box is drawn, the part stays visible


def test_a_normal_part_is_reported_as_normal():
    result = differad("locate", GOOD, GOOD)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("normal\n")


def test_locate_many_then_score(tmp_path):
    out = tmp_path / "predictions.jsonl"
    first = differad("locate", "--pairs", EXAMPLES / "pairs.jsonl", "--out", out, "--json")
    assert first.returncode == 0, first.stderr
    pairs = len((EXAMPLES / "pairs.jsonl").read_text().splitlines())
    assert json.loads(first.stdout) == {"located": pairs, "kept": 0, "failed": 0}
    again = differad("locate", "--pairs", EXAMPLES / "pairs.jsonl", "--out", out, "--json")
    assert json.loads(again.stdout) == {"located": 0, "kept": pairs, "failed": 0}
    assert len(out.read_text().splitlines()) == pairs

    scored = differad("score", EXAMPLES / "pairs.jsonl", out, "--json")
    assert scored.returncode == 0, scored.stderr
    overall = json.loads(scored.stdout)["overall"]
    assert overall["pairs"] == pairs
    assert overall["valid"] == 1.0
    assert set(overall) >= {"miou", "miou_ci95", "acc_0.3", "acc_0.3_ci95", "acc_0.5", "acc_0.7", "macro"}


def test_evaluate_writes_everything_and_score_agrees(tmp_path):
    result = differad("evaluate", EXAMPLES / "pairs.jsonl", "--out", tmp_path, "--json")
    assert result.returncode == 0, result.stderr
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert json.loads(result.stdout) == stored
    assert (tmp_path / "report.html").stat().st_size > 10_000
    scored = json.loads(differad("score", EXAMPLES / "pairs.jsonl", tmp_path / "predictions.jsonl", "--json").stdout)
    assert scored["overall"] == stored["overall"]
    assert scored["categories"] == stored["categories"]


def test_evaluate_prints_a_table(tmp_path):
    result = differad("evaluate", EXAMPLES / "pairs.jsonl", "--out", tmp_path, env={"COLUMNS": "200"})
    assert result.returncode == 0, result.stderr
    for word in ("mIoU", "whole image", "always normal", "report.html"):
        assert word in result.stdout


WRONG = [
    (["locate", "nowhere.png", str(DEFECT)], "nowhere.png: no such file"),
    (["locate", str(GOOD)], "expected REFERENCE and TARGET"),
    (["locate", str(GOOD), str(DEFECT), "--model", "nonsense"], "model 'nonsense'"),
    (["locate", str(GOOD), str(DEFECT), "--model", "openai:nonsense"], "openai:"),
    (["locate", str(GOOD), str(DEFECT), "-o", "nonsense=1"], "option 'nonsense'"),
    (["locate", str(GOOD), str(DEFECT), "-o", "nonsense"], "KEY=VALUE"),
    (["locate", str(GOOD), str(DEFECT), "-o", "nonsense.tolerance=1"], "options of difference, features, tiny"),
    (["locate", str(GOOD), str(DEFECT), "-o", "tiny.nonsense=1"], "it takes tiny.closer, tiny.margin, tiny.threshold"),
    (
        ["locate", str(GOOD), str(DEFECT), "-o", "difference.tolerance=99"],
        "option difference.tolerance=99: expected 0 to",
    ),
    (["locate", str(GOOD), str(DEFECT), "-o", "difference.tolerance=x"], "option difference.tolerance='x' of auto: "),
    (["locate", str(GOOD), str(DEFECT), "-o", "tiny=1"], "tiny.NAME=VALUE"),
    (["locate", str(GOOD), str(DEFECT), "--model", "tiny", "-o", "difference.margin=0"], "'difference.margin'"),
    (["locate", str(GOOD), str(DEFECT), "--save", "x.nonsense"], "names no image format"),
    (["locate", str(GOOD), str(DEFECT), "--nonsense"], "--nonsense"),
    (["locate", "--pairs", "nowhere.jsonl", "--out", "p.jsonl"], "nowhere.jsonl: no such file"),
    (["locate", "--pairs", "nowhere.jsonl"], "--out"),
    (["evaluate", "nowhere.jsonl", "--out", "run"], "nowhere.jsonl: no such file"),
    (["evaluate", str(EXAMPLES / "pairs.jsonl")], "--out"),
    (["score", str(EXAMPLES / "pairs.jsonl"), "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["nonsense"], "nonsense"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(a[-2:]) for a, _ in WRONG])
def test_wrong_input_is_one_line_and_exit_code_2(arguments, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.count("\n") == 1, streams.err
    assert streams.err.startswith("differad: ")
    assert says in streams.err


@pytest.mark.parametrize(
    "command",
    [
        "locate",
        "evaluate",
        "score",
        "models",
        "export",
        "import",
        "build",
        "build-recipe",
        "split",
        "check-leaks",
        "synthesize",
    ],
)
def test_every_command_has_help_with_an_example(command, capsys):
    assert run([command, "--help"]) == 0
    assert f"Example: differad {command}" in capsys.readouterr().out


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("differad 0.")


def test_models_lists_every_kind_with_explained_options(capsys):
    assert run(["models", "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)
    assert [kind["model"] for kind in kinds if kind["default"]] == ["auto"]
    assert all(option["help"] for kind in kinds for option in kind["options"])


def test_models_lists_the_options_of_parts_with_their_defaults(capsys):
    assert run(["models", "--json"]) == 0
    options = {kind["model"]: kind["options"] for kind in json.loads(capsys.readouterr().out)}
    defaults = {option["name"]: option["default"] for option in options["auto"]}
    # What the whole sets (workers of all, max_boxes of features) is not there a second time.
    parts = {"threshold", "tolerance", "margin", "max_boxes", "on_refusal", "max_side"}
    assert {name for name in defaults if "." in name} == {
        *(f"difference.{name}" for name in parts),
        *(f"features.{name}" for name in ("threshold", "fuse", "runtime")),
        *(f"tiny.{name}" for name in ("threshold", "closer", "margin")),
    }
    alone = {option["name"]: option["default"] for option in options["difference"]}
    for name in parts - {"threshold"}:
        assert defaults[f"difference.{name}"] == alone[name]
    assert defaults["difference.threshold"] == 0  # features decides


@pytest.mark.parametrize("where", ["command line", "environment"])
def test_an_option_of_a_part_is_taken_from(where, capsys, monkeypatch):
    if where == "environment":
        monkeypatch.setenv("DIFFERAD_OPTIONS", "features.threshold=1 tiny.margin=0")
    options = ["-o", "features.threshold=1", "-o", "tiny.margin=0"] if where == "command line" else []
    assert run(["locate", str(GOOD), str(DEFECT), "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 1
