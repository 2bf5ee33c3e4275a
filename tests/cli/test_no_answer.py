"""A refused, unreadable or failed answer is never "normal": null, a reason, and its own exit code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from desk import free_port, say
from differad.cli.main import run

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD, DEFECT = EXAMPLES / "board_good.png", EXAMPLES / "board_defect.png"


@pytest.fixture
def images(tmp_path):
    """A folder with a good board, a defective one, noise that aligns with neither, and a black frame."""
    shutil.copy(GOOD, tmp_path / "good.png")
    shutil.copy(DEFECT, tmp_path / "defect.png")
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(np.zeros_like(noise)).save(tmp_path / "black.png")
    return tmp_path


def write_manifest(folder, *targets, boxes=()):
    lines = [{"id": name, "reference": "good.png", "target": f"{name}.png", "boxes": list(boxes)} for name in targets]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "pairs.jsonl")


def stored(path):
    return {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize("shown", ["text", "json"])
def test_a_refused_pair(images, capsys, shown):
    flags = ["--json"] if shown == "json" else []
    assert run(["locate", str(images / "good.png"), str(images / "noise.png"), "-m", "difference", *flags]) == 4
    streams = capsys.readouterr()
    if shown == "json":
        document = json.loads(streams.out)
        assert (document["anomalous"], document["comparable"], document["boxes"]) == (None, False, [])
    else:
        assert streams.out.startswith("not comparable\n")
    assert streams.err.count("\n") == 1
    assert "noise.png: no answer: The reference does not register" in streams.err


def test_the_overlay_of_no_answer_is_no_clean_part(images):
    overlay = images / "overlay.png"
    assert (
        run(["locate", str(images / "good.png"), str(images / "noise.png"), "-m", "difference", "--save", str(overlay)])
        == 4
    )
    written, noise = (np.asarray(Image.open(images / name).convert("RGB")) for name in ("overlay.png", "noise.png"))
    assert (written != noise).any(axis=2).mean() > 0.01


def test_a_frame_that_shows_nothing_is_wrong_input(images, capsys):
    assert run(["locate", str(images / "good.png"), str(images / "black.png"), "-m", "difference", "--json"]) == 2
    streams = capsys.readouterr()
    assert json.loads(streams.out)["anomalous"] is None
    assert "black.png: is black" in streams.err


def test_an_unreadable_answer(images, desk, capsys):
    desk.reply = lambda number, question: say("<think>hard to say</think>Perhaps.")
    model = f"openai:qwen2-vl@{desk.url}"
    assert run(["locate", str(images / "good.png"), str(images / "defect.png"), "-m", model, "--json"]) == 4
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert (document["anomalous"], document["valid"]) == (None, False)
    assert "no answer: unreadable answer '<think>hard to say" in streams.err


def test_of_many_pairs_each_is_null_and_the_first_reason_is_printed(images, capsys):
    manifest = write_manifest(images, "good", "noise", "defect", "gone")
    out = images / "p.jsonl"
    command = ["locate", "--pairs", manifest, "--out", str(out), "-m", "difference"]
    assert run([*command, "--json"]) == 0  # some have an answer
    counts = json.loads(capsys.readouterr().out)
    assert {name: counts[name] for name in ("located", "kept", "failed", "no_answer")} == {
        "located": 3, "kept": 0, "failed": 1, "no_answer": 1
    }  # fmt: skip
    assert "gone.png: no such file" in counts["first_reasons"]["failed"]
    assert counts["first_reasons"]["no_answer"].startswith("pair 'noise': The reference does not register")
    verdicts = {name: line["anomalous"] for name, line in stored(out).items()}
    assert verdicts == {"good": False, "noise": None, "defect": True, "gone": None}
    assert run([*command, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "0 located, 3 already there, 1 failed: " in said
    assert "  1 failed, the first: " in said
    assert run([*command, "--fail-on-anomaly"]) == 3


def test_many_pairs_without_any_answer(images, capsys):
    manifest = write_manifest(images, "noise", "black")
    out = images / "p.jsonl"
    for _ in range(2):  # located, then kept
        assert run(["locate", "--pairs", manifest, "--out", str(out), "-m", "difference"]) == 4
        assert "p.jsonl: no pair has an answer, the first: pair 'noise': The ref" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["locate", "evaluate"])
def test_no_image_to_be_found(images, command, capsys):
    manifest = write_manifest(images, "gone", "lost")
    arguments = ["locate", "--pairs", manifest] if command == "locate" else ["evaluate", manifest]
    assert run([*arguments, "--out", str(images / "out"), "-m", "difference"]) == 2
    assert "all 2 pairs failed, the first: " in capsys.readouterr().err


def test_a_server_that_is_down(images, capsys):
    model = f"openai:qwen2-vl@http://127.0.0.1:{free_port()}/v1"
    manifest = write_manifest(images, "good", "defect")
    assert run(["evaluate", manifest, "--out", str(images / "run"), "-m", model, "-o", "retries=0"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "all 2 pairs failed, the first: openai:" in streams.err
    assert "no connection" in streams.err
    assert run(["score", manifest, str(images / "run" / "predictions.jsonl")]) == 2
    assert "all of 2 predictions failed, the first: openai:" in capsys.readouterr().err


def test_an_evaluation_reports_missing_answers_with_the_reason(images, capsys):
    manifest = write_manifest(images, "good", "noise", "gone")
    assert run(["evaluate", manifest, "--out", str(images / "run"), "-m", "difference"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 pairs failed; the first: " in table
    assert (
        "1 of 3 pairs have no answer (not comparable, or unreadable), which counts as wrong; the first: pair 'noise'"
        in table
    )
    metrics = json.loads((images / "run" / "metrics.json").read_text())
    assert (metrics["errors"], metrics["no_answer"], metrics["overall"]["valid"]) == (1, 1, pytest.approx(1 / 3))
    assert metrics["first_reasons"]["no_answer"].startswith("pair 'noise': The reference does not register")
    page = (images / "run" / "report.html").read_text()
    assert "Pairs without an answer" in page
    assert "no answer: The reference does not register" in page
    assert "1 failed, the first: " in page


def test_zeros_that_measure_refusals_alone_say_so(images, capsys):
    manifest = write_manifest(images, "noise", "black", boxes=[[1, 1, 9, 9]])
    assert run(["evaluate", manifest, "--out", str(images / "run"), "-m", "difference"]) == 0
    streams = capsys.readouterr()
    assert "none of 2 pairs got an answer that counts, the first: pair 'noise': " in streams.err
    assert "2 of 2 pairs have no answer" in " ".join(streams.out.split())
    assert run(["score", manifest, str(images / "run" / "predictions.jsonl")]) == 0
    assert "2 of 2 pairs have no answer" in " ".join(capsys.readouterr().out.split())


def test_predictions_of_other_pairs_are_no_zeros(images, capsys):
    manifest = write_manifest(images, "good", "defect")
    (images / "p.jsonl").write_text('{"id": "stranger", "boxes": []}\n')
    assert run(["score", manifest, str(images / "p.jsonl")]) == 2
    assert "no prediction for any of 2 pairs, the first: pair 'good'" in capsys.readouterr().err
