"""`differad synthesize` as a user runs it."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from differad.cli.main import run
from differad.data.manifest import read_pairs
from differad.images import image_size
from differad.synthesis.draw import SynthesisOptions


def command(*arguments):
    return run(["synthesize", *map(str, arguments)])


def test_json_and_workers_in_its_own_process(tmp_path):
    options = ["--count", 12, "--seed", 3, "--size", 64, "--workers", 2, "--out", tmp_path / "set", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "differad", "synthesize", *map(str, options)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["pairs"], document["kept"], document["drawn"], document["format"]) == (12, 0, 12, "folder")
    pairs = list(read_pairs(document["manifest"]))
    assert [pair.id for pair in pairs] == [f"3-{index:08d}" for index in range(12)]
    assert image_size(pairs[0].target) == (64, 64)


def test_a_second_run_continues_and_reports_it(tmp_path, capsys):
    arguments = ["--size", 64, "--out", tmp_path / "set"]
    assert command("--count", 4, *arguments) == 0
    assert command("--count", 6, *arguments) == 0
    assert "6 pairs (" in (out := capsys.readouterr().out)
    assert "4 kept, 2 generated in" in out


def test_options_of_the_drawing(tmp_path):
    kinds = ["--kinds", "scratched", "--kinds", "stained", "--normal-share", 0.25]
    assert command("--count", 12, "--size", 64, "--out", tmp_path / "set", *kinds) == 0
    found = {pair.extra["kind"] for pair in read_pairs(tmp_path / "set" / "pairs.jsonl")}
    assert found <= {"", "scratched", "stained", "stark"}  # stark stands in where neither shows
    noted = json.loads((tmp_path / "set" / "synthesis.json").read_text())["options"]
    assert (noted["kinds"], noted["normal_share"]) == (["scratched", "stained"], 0.25)


def test_siblings_and_other_shapes(tmp_path):
    own = ["--siblings", 0.5, "--aspect", 2]
    assert command("--count", 12, "--size", 64, "--out", tmp_path / "set", *own) == 0
    sizes = {image_size(pair.target) for pair in read_pairs(tmp_path / "set" / "pairs.jsonl")}
    assert len(sizes) > 6
    assert all(max(size) == 64 and min(size) >= 64 / 2 for size in sizes)
    noted = json.loads((tmp_path / "set" / "synthesis.json").read_text())["options"]
    assert (noted["siblings"], noted["aspect"]) == (0.5, 2.0)


def test_shards(tmp_path, capsys):
    assert (
        command("--count", 5, "--size", 64, "--out", tmp_path / "s", "--format", "webdataset", "--shard-size", 2) == 0
    )
    assert len(list((tmp_path / "s").glob("shard-*.tar"))) == 3
    assert "shards.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", 0], "option count=0: expected 1 or more"),
        (["--count", 2, "--engine", "dask"], "option engine='dask': expected any of process, ray"),
        (["--count", 2, "--kinds", "rust-of-ages"], "option kinds='rust-of-ages'"),
        (["--count", 2, "--normals", "/nowhere"], "/nowhere: no images below it"),
        (["--count", 2, "--seed", "x"], "--seed"),
        (["--count", 2, "--siblings", 2], "option siblings=2.0: expected a share in [0, 1]"),
        (["--count", 2, "--aspect", 0.5], "option aspect=0.5: expected 1 to 4"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, capsys, arguments, message):
    assert command("--out", tmp_path / "set", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_other_options_are_refused(tmp_path, capsys):
    assert command("--count", 2, "--size", 64, "--out", tmp_path / "set") == 0
    assert command("--count", 2, "--size", 96, "--out", tmp_path / "set") == 2
    assert "holds a set with size=64, asked for size=96" in capsys.readouterr().err


def test_a_missing_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command("--count", 2, "--out", tmp_path / "set", "--engine", "ray") == 2
    assert "pip install 'differad[ray]'" in capsys.readouterr().err


def test_help_has_an_example_and_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert command("--help") == 0
    out = capsys.readouterr().out
    assert "Example: differad synthesize --count 10000" in out
    for field in fields(SynthesisOptions):
        assert f"--{field.name.replace('_', '-')}" in out
