"""Misspelt keys of manifests and predictions give one warning each; other unknown keys give none."""

import json
import warnings

import pytest

from differad import InputWarning, ManifestError, read_pairs
from differad.data.keys import closest_key
from differad.data.manifest import PairRecord
from differad.evaluation.predictions import PredictionIndex, read_predictions

LINE = {"id": "a", "reference": "good.png", "target": "a.png"}


def manifest(folder, *lines):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(LINE | {"id": str(number)} | line) + "\n" for number, line in enumerate(lines)))
    return path


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("boxs", "boxes"), ("Boxes", "boxes"), ("bboxes", "boxes"), ("bbox", "boxes"), ("box", "boxes"), (" boxes", "boxes"),
        ("anomolous", "anomalous"), ("is_anomalous", "anomalous"), ("masks", "mask"), ("catagory", "category"),
        ("groups", "group"),
    ],
)  # fmt: skip
def test_a_typing_error_gives_a_warning_with_the_right_key(key, meant, tmp_path):
    path = manifest(tmp_path, {}, {key: [[1, 2, 3, 4]]}, {key: []})
    with pytest.warns(InputWarning) as caught:
        pairs = list(read_pairs(path))
    (said,) = caught  # once, however many lines have it
    assert str(said.message) == f"{path}:2: key {key!r} is not read; is {meant!r} meant?"
    assert pairs[1].extra == {key: [[1, 2, 3, 4]]}  # further keys are kept


# What builders, synthesis and other people's manifests write beside the keys of a pair.
FURTHER = (
    "source", "kind", "split", "view", "product", "reference_product", "facts", "types", "subcategory", "crop_group",
    "box_union", "references", "task", "label", "note",
)  # fmt: skip


def test_unrelated_keys_give_no_warning(tmp_path):
    path = manifest(tmp_path, dict.fromkeys(FURTHER, "x") | {"category": "c"}, {"boxes": [], "boxs": "kept beside"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(iter(read_pairs(path))).extra == dict.fromkeys(FURTHER, "x")


def test_a_missing_key_names_the_similar_one(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"id": "a", "refrence": "g.png", "target": "t.png"}\n')
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:1: reference: 'refrence' is given instead: Field required"):
        list(read_pairs(path))


def test_the_same_for_predictions(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "boxs": [[1, 2, 3, 4]], "comparable": true, "threshold": 0.5}\n')
    for read in (lambda: list(read_predictions(path)), lambda: [PredictionIndex(path).get("a")]):
        with pytest.warns(InputWarning, match=r"p\.jsonl:1: key 'boxs' is not read; is 'boxes' meant\?"):
            (prediction,) = read()
        assert prediction.anomalous is None  # no boxes is no answer, not a normal part


def test_no_other_key_resembles_a_known_one():
    for name in PairRecord.model_fields:
        others = [other for other in PairRecord.model_fields if other != name]
        assert closest_key(name, others) is None
