"""`differad export` and `differad import` as a user runs them."""

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from differad.cli.exchange import export_command, import_command, load_predictions
from differad.data.manifest import read_pairs
from differad.errors import InputWarning, ManifestError

EXAMPLES = Path(__file__).parents[2] / "examples"
app = typer.Typer()
app.command("export")(export_command)
app.command("import")(import_command)


def differad(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def manifest(tmp_path):
    Image.new("RGB", (80, 50)).save(tmp_path / "good.png")
    lines = []
    for number in range(2):
        Image.new("RGB", (80, 50)).save(tmp_path / f"{number}.png")
        one = {"id": f"part/{number}", "reference": "good.png", "target": f"{number}.png", "boxes": [[1, 2, 30, 40]]}
        lines.append(json.dumps(one) + "\n")
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    return tmp_path / "pairs.jsonl"


def test_export_correct_import(manifest, tmp_path):
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text('{"id": "part/1", "boxes": [[5, 5, 9, 9]], "scores": [0.5]}\n')
    sent = differad("export", "label-studio", manifest, tmp_path / "sent", "--predictions", predictions, "--json")
    assert sent.exit_code == 0, sent.output
    assert json.loads(sent.stdout) == {
        "format": "label-studio",
        "pairs": 2,
        "unlabelled": 0,
        "place_unknown": 0,
        "boxes": 2,
        "predictions": 1,
        "unknown_predictions": 0,
        "cut_boxes": 0,
        "files": ["config.xml", "tasks.json"],
    }
    tasks = json.loads((tmp_path / "sent" / "tasks.json").read_text())
    # The annotator accepts the prediction in place of the truth.
    tasks[1]["annotations"] = [{"result": tasks[1]["predictions"][0]["result"]}]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    out = tmp_path / "corrected.jsonl"
    back = differad("import", "label-studio", tmp_path / "export.json", manifest, out, "--json")
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout) == {
        "format": "label-studio",
        "pairs": 2,
        "corrected": 1,
        "confirmed": 1,
        "kept": 0,
        "place_unknown": 0,
        "masks": 0,
        "cut_boxes": 0,
        "crowd_regions": 0,
        "skipped": 0,
        "problems": [],
    }
    assert [pair.boxes.tolist() for pair in read_pairs(out)] == [[[1, 2, 30, 40]], [[5, 5, 9, 9]]]


@pytest.mark.parametrize("name", ["coco", "yolo", "label-studio", "cvat"])
def test_for_a_person(name, manifest, tmp_path):
    sent = differad("export", name, manifest, tmp_path / "sent")
    assert sent.exit_code == 0, sent.output
    assert "2 pairs (0 unlabelled, 2 boxes, 0 predictions)" in sent.stdout
    assert sent.stderr == ""
    file = {"coco": "instances.json", "label-studio": "tasks.json", "cvat": "annotations.xml"}.get(name, "")
    back = differad("import", name, tmp_path / "sent" / file, manifest, tmp_path / "new.jsonl")
    assert back.exit_code == 0, back.output
    assert "0 corrected, 2 confirmed, 0 kept; 0 entries skipped" in back.stdout


def test_what_is_skipped_is_listed_on_stderr(manifest, tmp_path):
    differad("export", "coco", manifest, tmp_path / "sent")
    file = tmp_path / "sent" / "instances.json"
    document = json.loads(file.read_text())
    document["images"][0]["pair_id"] = "nobody"
    file.write_text(json.dumps(document))
    wrong = differad("import", "coco", file, manifest, tmp_path / "new.jsonl")
    assert isinstance(wrong.exception, ManifestError)
    assert wrong.exception.exit_code == 2
    assert "id 'nobody' is not in the manifest" in str(wrong.exception)
    back = differad("import", "coco", file, manifest, tmp_path / "new.jsonl", "--skip-bad", "--json")
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout)["skipped"] == 1
    assert back.stderr.startswith("skipped: ")
    assert "'nobody'" in back.stderr


def test_a_warning_about_predictions_of_no_pair(manifest, tmp_path):
    predictions = tmp_path / "predictions.jsonl"
    predictions.write_text('{"id": "nobody", "boxes": []}\n{"id": "part/0", "boxes": [[70, 0, 90, 9]]}\n')
    sent = differad("export", "coco", manifest, tmp_path / "sent", "--predictions", predictions)
    assert "1 boxes were cut off at the image's edge; 1 predictions have an id" in sent.stderr


def test_the_last_valid_prediction_of_an_id_counts(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(
        '{"id": "a", "boxes": [[1, 2, 3, 4]]}\n{"id": "a", "boxes": [[5, 6, 7, 8]], "scores": [0.5]}\n'
        '{"id": "b", "boxes": [[1, 2, 3, 4]]}\n{"id": "b", "boxes": [], "valid": false}\n{"id": "c", "error": "down"}\n'
    )
    with pytest.warns(
        InputWarning, match="2 predictions are no answers and were left out, the first: pair 'b': no reason"
    ):
        found = load_predictions(path)
    assert list(found) == ["a"]
    assert [part.tolist() for part in found["a"]] == [[[5, 6, 7, 8]], [0.5]]
    path.write_text('{"id": "a", "boxes": [[1, 2, 3, 4]], "scores": [1, 2]}\n')
    with pytest.raises(ManifestError, match="id 'a': 2 scores for 1 boxes"):
        load_predictions(path)


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_has_an_example(command):
    result = differad(command, "--help")
    assert result.exit_code == 0
    assert f"Example: differad {command}" in result.stdout
    assert "coco, yolo, label-studio" in " ".join(result.stdout.split())


def test_the_examples_of_the_repository(tmp_path):
    for name in ("coco", "yolo", "label-studio", "cvat"):
        sent = differad("export", name, EXAMPLES / "pairs.jsonl", tmp_path / name)
        assert sent.exit_code == 0, (sent.output, sent.exception)


def test_a_manifest_is_not_sent_along_as_predictions(manifest, tmp_path):
    sent = differad("export", "coco", manifest, tmp_path / "sent", "--predictions", manifest)
    assert isinstance(sent.exception, ManifestError)
    assert "of a manifest" in str(sent.exception)
    assert not (tmp_path / "sent").exists()
