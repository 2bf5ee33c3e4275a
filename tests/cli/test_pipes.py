"""A manifest from a pipe, as bash's `<(…)` gives it: it works, or is refused in one line, and is never an empty report."""

import json
import os
from pathlib import Path

import pytest

from differad.cli.main import run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def manifest(tmp_path):
    """The examples' pairs with absolute paths, since a pipe has no folder of images."""
    lines = [json.loads(line) for line in (EXAMPLES / "pairs.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {name: str(EXAMPLES / line[name]) for name in ("reference", "target", "mask") if line[name]}
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def pipe():
    """`pipe(path)`: the name of a pipe with the file's content (less than a pipe's 64 KiB)."""
    ends = []

    def give(path):
        end, start = os.pipe()
        os.write(start, path.read_bytes())
        os.close(start)
        ends.append(end)
        return f"/dev/fd/{end}"

    yield give
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("command", ["evaluate", "locate", "score", "score predictions", "synthesize"])
def test_what_is_read_twice_is_refused(command, manifest, pipe, tmp_path, capsys):
    predictions = tmp_path / "p.jsonl"
    predictions.write_text(
        "".join(json.dumps({"id": json.loads(line)["id"], "boxes": []}) + "\n" for line in manifest.open())
    )
    out = str(tmp_path / "out")
    arguments = {
        "evaluate": ["evaluate", pipe(manifest), "--out", out],
        "locate": ["locate", "--pairs", pipe(manifest), "--out", out],
        "score": ["score", pipe(manifest), str(predictions)],
        "score predictions": ["score", str(manifest), pipe(predictions)],
        "synthesize": ["synthesize", "--count", "2", "--out", out, "--defects", pipe(manifest)],
    }[command]
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert "can be read only once; save it to a file and name that" in line


def test_what_is_read_once_works(manifest, pipe, tmp_path, capsys):
    sent = tmp_path / "sent"
    assert run(["export", "coco", pipe(manifest), str(sent), "--root", "/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 3
    arguments = [
        "import",
        "coco",
        pipe(sent / "instances.json"),
        pipe(manifest),
        str(tmp_path / "back.jsonl"),
        "--root",
        "/",
    ]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confirmed"] == 3
    arguments = ["split", pipe(manifest), "--by", "category", "--held-out", "board", "--out", str(tmp_path / "sides")]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 3


@pytest.mark.parametrize("command", ["evaluate", "locate"])
def test_a_manifest_without_pairs_is_no_empty_report(command, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    arguments = ["evaluate", str(tmp_path / "empty.jsonl")]
    if command == "locate":
        arguments = ["locate", "--pairs", str(tmp_path / "empty.jsonl")]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "empty.jsonl: no " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["named", "open"])
def test_an_image_from_a_pipe_is_refused_at_once(tmp_path, pipe, capsys, name):
    """A named pipe would block its reader until a writer comes; an open one cannot be read twice."""
    good = EXAMPLES / "board_good.png"
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "start").write_bytes(good.read_bytes()[:5000])
    target = str(tmp_path / "pipe.png") if name == "named" else pipe(tmp_path / "start")
    assert run(["locate", str(good), target, "-m", "difference"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{target}: a pipe or a device; expected an image file" in line
    lines = [{"id": str(i), "reference": str(good), "target": one} for i, one in enumerate((target, str(good)))]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    assert run(["inspect", "--pairs", str(tmp_path / "own.jsonl"), "--out", str(out), "-m", "difference"]) == 4
    assert "1 normal, 1 without an answer" in capsys.readouterr().out
