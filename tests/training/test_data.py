"""From pairs to rows: texts, numbers and images, for every family that can be trained."""

import json

import pytest

pytest.importorskip("datasets", reason="the train extra is not installed")

from differad.answers.formats import answer_format
from differad.answers.parsing import parse_answer
from differad.answers.prompts import PARAPHRASES, QUESTION
from differad.answers.resize import ResizeRule
from differad.data.manifest import read_pairs
from differad.errors import ImageError, InputWarning, ManifestError
from differad.training.data import AnswerConvention, build_dataset, build_rows, checksum
from differad.training.localization import localize
from differad.training.recipe import Data

# 56 x 56 becomes 112 x 112: two resized pixels for one.
RULE = ResizeRule(28, 112 * 112, 112 * 112)
FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")


def convention(family="qwen2-vl"):
    return AnswerConvention(answer_format(family), RULE)


def rows_of(pairs, family="qwen2-vl", **options):
    return list(build_rows(read_pairs(pairs), Data(pairs=(pairs,), **options), convention(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_is_right_in_the_familys_own_numbers(pairs, family):
    for row, pair in zip(rows_of(pairs, family), read_pairs(pairs), strict=True):
        parsed = parse_answer(row["answer"], answer_format(family), convention(family).frame(56, 56))
        assert parsed.boxes.round().tolist() == pair.boxes.tolist()
        outcome = localize([row["answer"]], [row["solution"]], [row["units"]], "guarded")
        assert (outcome.reward[0], outcome.iou[0], outcome.missed[0]) == (1, 1, False)


def test_numbers_by_hand(pairs):
    first = rows_of(pairs, "qwen2-vl")[0]
    # x 14..28 and y 14..42 of 56: quarters.
    assert first["answer"].endswith("<answer>(250,250),(500,750)</answer>")
    assert (first["solution"], first["units"]) == ([[250, 250, 500, 750]], [1000, 1000])
    resized = rows_of(pairs, "qwen2.5-vl")[0]
    assert resized["answer"].endswith("<answer>(28,28),(56,84)</answer>")
    assert (resized["solution"], resized["units"]) == ([[250, 250, 500, 750]], [112, 112])


def test_reasoning_says_what_where_and_how_large(pairs):
    answers = [row["answer"] for row in rows_of(pairs)]
    # Centre (21, 28) of 56: the middle third both ways; 14 x 28 of 56 x 56 is an eighth.
    assert answers[0].startswith(
        "<think>The target differs from the reference: blot, in the middle centre, large.</think>"
    )
    assert answers[1].startswith("<think>The target shows the part as the reference does.")
    assert rows_of(pairs, reasoning=False)[0]["answer"].startswith("<think></think><answer>")


def test_the_seed_fixes_the_question(pairs):
    first, again, other = (rows_of(pairs, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [row["question"] for row in first] != [row["question"] for row in other]
    assert all(any(row["question"].startswith(text) for text in PARAPHRASES) for row in first)
    assert all(row["question"].startswith(QUESTION) for row in rows_of(pairs, question="fixed"))


def test_rows_open_two_images(pairs):
    dataset = build_dataset(Data(pairs=(pairs,)), convention(), with_answer=True)
    row = dataset[0]
    assert [image.size for image in row["images"]] == [(56, 56), (56, 56)]
    assert [part["type"] for part in row["prompt"][1]["content"]] == ["image", "image", "text"]
    assert row["completion"][0]["role"] == "assistant"
    assert set(build_dataset(Data(pairs=(pairs,)), convention(), with_answer=False)[0]) == {
        "prompt",
        "images",
        "solution",
        "units",
        "id",
        "category",
    }


def test_limit_and_errors(pairs, tmp_path):
    assert len(build_dataset(Data(pairs=(pairs,), limit=3), convention(), with_answer=True)) == 3
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"id": "a", "reference": "r.png", "target": "t.png", "boxes": []}) + "\n")
    with pytest.raises(ImageError, match=r"t.png: no such file"):
        build_dataset(Data(pairs=(path,)), convention(), with_answer=True)
    path.write_text(json.dumps({"id": "a", "reference": "r.png", "target": "t.png"}) + "\n")
    with pytest.raises(ManifestError, match="no pair to train on"):
        build_dataset(Data(pairs=(path,)), convention(), with_answer=True)


def moved(pairs, folder, **first):
    """A manifest in another folder, `first` in place of what its first line says; its path and its lines."""
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    for line in lines:
        line |= {name: str(pairs.parent / line[name]) for name in ("reference", "target")}
    lines[0] |= first
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, lines


def test_unlabelled_pairs_are_left_out_and_counted(pairs, tmp_path):
    path, lines = moved(pairs, tmp_path, boxes=None, mask=None)
    with pytest.warns(InputWarning, match="1 unlabelled pairs are left out of training"):
        dataset = build_dataset(Data(pairs=(path,)), convention(), with_answer=False)
    assert dataset["id"] == [line["id"] for line in lines[1:]]


def test_boxes_of_another_frame_are_not_learned(pairs, tmp_path):
    path, _ = moved(pairs, tmp_path, boxes=[[5000, 5000, 5100, 5100]])
    with pytest.raises(ManifestError, match=r"pair 'p0' .* outside the target"):
        build_dataset(Data(pairs=(path,)), convention(), with_answer=True)


def test_abnormal_pairs_without_a_known_location_are_left_out_and_counted(pairs, tmp_path):
    path, lines = moved(pairs, tmp_path, boxes=None, anomalous=True)
    with pytest.warns(InputWarning, match="1 abnormal pairs without a known location are left out of training"):
        dataset = build_dataset(Data(pairs=(path,)), convention(), with_answer=False)
    assert dataset["id"] == [line["id"] for line in lines[1:]]
    with pytest.raises(ManifestError, match="pair 'p0': nothing says where"):
        rows_of(path)  # a pair without boxes is not normal


def test_the_checksum_changes_with_the_file(pairs, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(pairs.read_bytes())
    assert [*checksum([pairs]).values()] == [*checksum([copy]).values()]
    copy.write_bytes(pairs.read_bytes() + b"\n")
    assert [*checksum([pairs]).values()] != [*checksum([copy]).values()]
