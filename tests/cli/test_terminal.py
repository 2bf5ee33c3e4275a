"""The command line on any terminal: encodings, interruptions, pipes, verbosity, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from differad.cli.locate import describe
from differad.core import Location

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD, DEFECT = EXAMPLES / "board_good.png", EXAMPLES / "board_defect.png"
COMMANDS = (
    ["locate"], ["evaluate"], ["score"], ["build"], ["build-recipe"], ["split"], ["check-leaks"], ["audit-reward"],
    ["synthesize"], ["export"], ["import"], ["models"], ["recipes"], ["train", "sft"], ["train", "rl"],
)  # fmt: skip


def command(*arguments):
    return [sys.executable, "-m", "differad", *map(str, arguments)]


def differad(*arguments, encoding="utf-8", **environment):
    """Run the command with stdout and stderr in an encoding; the output comes as bytes."""
    variables = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, **environment}
    return subprocess.run(command(*arguments), capture_output=True, timeout=120, env=variables)


def manifest(folder, count=1, category="ö 部品"):
    lines = [
        json.dumps({"id": str(i), "category": category, "reference": str(GOOD), "target": str(DEFECT), "boxes": []})
        for i in range(count)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_is_written_in_any_encoding(encoding):
    result = differad("locate", "--help", encoding=encoding)
    assert result.returncode == 0, result.stderr
    assert "Say whether the target is abnormal" in result.stdout.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_category_that_the_terminal_cannot_show_is_escaped(tmp_path, encoding):
    result = differad(
        "evaluate", manifest(tmp_path), "--model", "difference", "--out", tmp_path / "run", encoding=encoding
    )
    assert result.returncode == 0, result.stderr
    table = result.stdout.decode(encoding)
    assert r"\u90e8\u54c1" in table
    assert "all pairs" in table


def test_json_stays_valid_if_characters_cannot_be_shown(tmp_path):
    result = differad(
        "evaluate", manifest(tmp_path), "--model", "difference", "--out", tmp_path / "run", "--json", encoding="ascii"
    )
    assert list(json.loads(result.stdout.decode("ascii"))["categories"]) == ["ö 部品"]


def test_differad_alone_lists_the_commands():
    result = differad()
    assert result.returncode == 0
    assert b"locate" in result.stdout


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_takes_quiet_and_verbose(name):
    help_text = differad(*name, "--help", COLUMNS="120").stdout.decode()
    assert "--quiet" in help_text
    assert "--verbose" in help_text
    assert "Example: differad" in help_text


@pytest.mark.parametrize("overwritten", ["reference", "target", "link"])
def test_save_never_overwrites_what_is_compared(tmp_path, overwritten):
    for name, source in (("reference", GOOD), ("target", DEFECT)):
        (tmp_path / f"{name}.png").write_bytes(source.read_bytes())
    (tmp_path / "link.png").symlink_to(tmp_path / "target.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    result = differad(
        "locate", tmp_path / "reference.png", tmp_path / "target.png", "--save", tmp_path / f"{overwritten}.png"
    )
    assert result.returncode == 2
    assert b"an image that is compared" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_save_never_overwrites_the_file_of_a_page(tmp_path):
    pages = [Image.open(path).convert("RGB") for path in (GOOD, DEFECT)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    before = (tmp_path / "stack.tif").read_bytes()
    for pair in ((GOOD, tmp_path / "stack.tif[2]"), (tmp_path / "stack.tif[1]", DEFECT)):
        result = differad("locate", *pair, "--save", tmp_path / "stack.tif")
        assert result.returncode == 2
        assert b"an image that is compared" in result.stderr
    assert (tmp_path / "stack.tif").read_bytes() == before


def test_the_verdict_does_not_depend_on_writing_the_overlay(tmp_path):
    (tmp_path / "file").write_text("")
    result = differad("locate", GOOD, DEFECT, "--model", "difference", "--save", tmp_path / "file" / "overlay.png")
    assert result.returncode == 2
    assert result.stdout.startswith(b"abnormal")


def test_the_exit_code_reports_an_anomaly_on_request(tmp_path):
    black = tmp_path / "black.png"
    Image.fromarray(np.zeros((320, 320, 3), np.uint8)).save(black)
    codes = [
        differad("locate", *pair, "--model", "difference", "--fail-on-anomaly").returncode
        for pair in ((GOOD, GOOD), (GOOD, DEFECT), (GOOD, black))
    ]
    assert codes == [0, 3, 4]
    assert differad("locate", GOOD, DEFECT, "--model", "difference").returncode == 0
    many = differad(
        "locate", "--pairs", manifest(tmp_path), "--out", tmp_path / "out.jsonl", "--fail-on-anomaly",
        DIFFERAD_MODEL="difference",
    )  # fmt: skip
    assert many.returncode == 3


def test_the_environment_gives_defaults_that_options_override():
    environment = {"DIFFERAD_MODEL": "difference", "DIFFERAD_OPTIONS": "threshold=0.3 max_boxes=2"}
    document = json.loads(differad("locate", GOOD, DEFECT, "--json", **environment).stdout)
    assert (document["model"], document["threshold"]) == ("difference", 0.3)
    document = json.loads(differad("locate", GOOD, DEFECT, "--json", "-m", "features", **environment).stdout)
    assert document["model"] == "features"


def test_a_confidence_is_printed_with_its_threshold():
    location = Location(boxes=[[1, 2, 3, 4]], confidence=0.48, threshold=0.41)
    assert "abnormal with confidence 0.48 (threshold 0.41)" in describe(location)
    assert describe(Location(comparable=False)).startswith("not comparable")


def interrupted_run(tmp_path, *options):
    """`evaluate` of many pairs, interrupted once a few are done; its stderr."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        command("evaluate", manifest(tmp_path, 400), "--model", "difference", "--out", out, *options),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # A test run that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    predictions = out / "predictions.jsonl"
    while time.monotonic() < deadline and not (predictions.exists() and predictions.read_bytes().count(b"\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode(), predictions.read_bytes().count(b"\n")


def test_ctrl_c_reports_where_it_stopped_and_how_to_continue(tmp_path):
    code, err, done = interrupted_run(tmp_path)
    assert code == 130
    (line,) = err.splitlines()
    assert line.startswith("differad: interrupted at difference: ")
    assert line.endswith(" of 400; the same command goes on from there")
    assert abs(int(line.split(": ")[2].split(" of ")[0]) - done) <= 1  # the bar moves after the line is written


def test_an_error_has_its_origin_with_verbose_and_quiet_keeps_the_error():
    for flag, tracebacks in (("--verbose", 1), ("--quiet", 0)):
        result = differad("locate", "none.png", DEFECT, flag)
        assert result.returncode == 2
        assert result.stderr.count(b"Traceback") == tracebacks
        assert b"differad: none.png: no such file" in result.stderr


def test_a_reader_that_has_enough_ends_the_command_quietly():
    result = subprocess.run(
        f"{sys.executable} -m differad models | head -n 1", shell=True, capture_output=True, timeout=60
    )
    assert result.stderr == b""
