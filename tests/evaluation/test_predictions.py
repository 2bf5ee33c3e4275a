"""Predictions on disk: appended, continued, read by id."""

import json

import pytest

from differad import Location
from differad.errors import ImageError, InputError, ManifestError
from differad.evaluation.predictions import PredictionIndex, PredictionWriter, keep_finished, read_predictions, to_line


def test_an_outcome_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "p.jsonl"
    location = Location(
        [[1, 2, 3, 4.5]], [0.9], 0.7, reasoning="a \ud800 dent", answer="(1,2)", model="m", seconds=0.25
    )
    with PredictionWriter(path) as writer:
        writer.write("a", location)
        writer.write("b", ImageError("b.png: broken"))
        assert len(path.read_text().splitlines()) == 2  # on disk before the file is closed
    first, second = read_predictions(path)
    assert (first.id, first.boxes, first.scores, first.confidence) == ("a", [(1, 2, 3, 4.5)], [0.9], 0.7)
    assert first.reasoning == "a ? dent"  # half a surrogate cannot be stored
    assert (first.answer, first.seconds, first.is_valid) == ("(1,2)", 0.25, True)
    assert (second.id, second.error, second.is_valid, second.boxes) == ("b", "b.png: broken", False, [])


NO_ANSWER = {
    "refused": Location(comparable=False, reasoning="does not register"),
    "unreadable": Location(valid=False, answer="well"),
    "failed": ImageError("b.png: broken"),
}


@pytest.mark.parametrize("outcome", NO_ANSWER.values(), ids=NO_ANSWER.keys())
def test_a_line_without_an_answer_is_null(outcome):
    line = json.loads(to_line("a", outcome))
    assert (line["anomalous"], line["boxes"], line["valid"]) == (None, [], False)


@pytest.mark.parametrize(("boxes", "anomalous"), [([], False), ([[1, 2, 3, 4]], True)])
def test_a_line_agrees_with_its_boxes(boxes, anomalous, tmp_path):
    (tmp_path / "p.jsonl").write_text(to_line("a", Location(boxes)))
    assert json.loads((tmp_path / "p.jsonl").read_text())["anomalous"] is anomalous
    (prediction,) = read_predictions(tmp_path / "p.jsonl")
    assert prediction.anomalous is anomalous


@pytest.mark.parametrize(
    ("fields", "anomalous", "reason"),
    [
        ({}, None, "no reason was given"),  # a misspelt key leaves no boxes: not normal
        ({"boxes": None}, None, "no reason was given"),
        ({"boxes": [], "anomalous": None, "reasoning": "dark"}, None, "dark"),
        ({"boxes": [[1, 2, 3, 4]], "valid": False, "anomalous": True, "answer": "hm"}, None, "unreadable answer 'hm'"),
        ({"boxes": [], "error": "down"}, None, "down"),
        ({"boxes": []}, False, None),
        ({"boxes": [[1, 2, 3, 4]], "anomalous": True}, True, None),
    ],
)
def test_what_is_no_answer_is_not_normal(fields, anomalous, reason, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "a"} | fields))
    (prediction,) = read_predictions(tmp_path / "p.jsonl")
    assert (prediction.anomalous, prediction.why_no_answer) == (anomalous, reason)


@pytest.mark.parametrize(
    "fields", [{"boxes": [], "anomalous": True}, {"boxes": [[1, 2, 3, 4]], "anomalous": False}, {"anomalous": True}]
)
def test_a_line_that_contradicts_itself_is_refused(fields, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "a"} | fields))
    with pytest.raises(ManifestError, match=r"p\.jsonl:1: .*anomalous (True|False) beside \d boxes"):
        list(read_predictions(tmp_path / "p.jsonl"))


def test_the_lines_of_the_interface_are_enough(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "boxes": [[1, 2, 3, 4]]}\n{"id": "b", "boxes": [], "valid": false, "more": 1}\n')
    first, second = read_predictions(path)
    assert first.is_valid
    assert not second.is_valid


@pytest.mark.parametrize(
    ("line", "field"),
    [("{", "line"), ('{"boxes": []}', "id"), ('{"id": "a", "boxes": [[1, 2, 3]]}', r"boxes\.0"), ('{"id": 3}', "id"),
     ('{"id": "a", "confidence": "high"}', "confidence")],
)  # fmt: skip
def test_errors_name_line_and_field(tmp_path, line, field):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "x"}\n' + line + "\n")
    with pytest.raises(ManifestError, match=rf"p\.jsonl:2: {field}"):
        list(read_predictions(path))
    with pytest.raises(ManifestError, match=rf"p\.jsonl:2: {field}"):
        PredictionIndex(path)


def test_a_half_written_line_and_failures_are_done_again(tmp_path):
    path = tmp_path / "p.jsonl"
    lines = [
        to_line("a", Location()),
        to_line("b", ImageError("broken")),
        to_line("c", Location()),
        to_line("d", Location()),
    ]
    path.write_text("".join(lines)[:-10])  # killed while writing d
    assert keep_finished(path) == {"a", "c"}
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert path.read_text().endswith("\n")
    assert keep_finished(tmp_path / "nowhere.jsonl") == set()


def test_by_id_the_last_line_counts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "ä", "boxes": [[1, 2, 3, 4]]}\n\n{"id": "b"}\n{"id": "ä", "boxes": []}\n', encoding="utf-8")
    index = PredictionIndex(path)
    assert len(index) == 2
    assert index.get("ä").boxes == []
    assert index.get("b").id == "b"
    assert index.get("c") is None


def test_unusable_paths(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        PredictionIndex(tmp_path / "nowhere.jsonl")
    with pytest.raises(ManifestError, match="cannot be read"):
        PredictionIndex(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        PredictionWriter(tmp_path / "file" / "p.jsonl")


@pytest.mark.parametrize(
    "more", [{}, {"boxes": []}, {"boxes": [[1, 2, 3, 4]], "anomalous": True, "model": "X9", "note": 1}]
)
@pytest.mark.parametrize("reference", [{"reference": "good.png"}, {"references": ["good.png", "other.png"]}])
def test_a_line_of_a_manifest_is_no_prediction(tmp_path, reference, more):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"id": "a", "target": "a.png"} | reference | more) + "\n")
    for read in (lambda: list(read_predictions(path)), lambda: PredictionIndex(path), lambda: keep_finished(path)):
        with pytest.raises(
            ManifestError, match=r"p\.jsonl:1: .*pair 'a' of a manifest.*; expected a file of predictions"
        ):
            read()


def test_a_prediction_may_name_its_images(tmp_path):
    """As the lines of `inspect --json` do."""
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"id": "a", "target": "a.png", "reference": "good.png", "boxes": [], "scores": []})
    )
    (prediction,) = read_predictions(tmp_path / "p.jsonl")
    assert prediction.anomalous is False
