"""`pairs.jsonl` in and out; every error names the line and the field."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from differad import read_pairs
from differad.core import Pair
from differad.data.manifest import write_pairs
from differad.errors import ImageError, ManifestError

SHARED = Path(__file__).parents[3] / "shared" / "data"
LINE = {"id": "a", "category": "tile", "reference": "ref/1.png", "target": "t/1.png", "boxes": [[1, 2, 3, 4]]}


def manifest(folder, *lines):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_paths_are_relative_to_the_file_and_further_keys_are_kept(tmp_path):
    (pair,) = read_pairs(manifest(tmp_path, {**LINE, "group": "easy", "kind": "real", "score": 3}))
    assert pair.reference == tmp_path / "ref" / "1.png"
    assert pair.target == tmp_path / "t" / "1.png"
    assert pair.boxes.tolist() == [[1, 2, 3, 4]]
    assert (pair.group, pair.extra) == ("easy", {"kind": "real", "score": 3})


def test_normal_unlabelled_and_labelled_by_mask(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 10:16] = 255  # 4 x 6 pixels
    mask[0:2, 0:2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    bare = {key: value for key, value in LINE.items() if key != "boxes"}
    normal, unlabelled, masked = read_pairs(
        manifest(tmp_path, {**LINE, "boxes": []}, {**bare, "id": "b"}, {**bare, "id": "c", "mask": "mask.png"})
    )
    assert normal.boxes.shape == (0, 4)
    assert unlabelled.boxes is None
    assert masked.boxes.tolist() == [[10, 5, 16, 9], [0, 0, 2, 2]]  # largest region first


def test_reading_streams(tmp_path):
    pairs = read_pairs(manifest(tmp_path, LINE, "not json"))
    assert next(pairs).id == "a"
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:2"):
        next(pairs)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"target": None}, "target"),
        ({"boxes": [[1, 2, 3]]}, r"boxes\.0"),
        ({"boxes": [[3, 2, 1, 4]]}, r"boxes\.0.*x1 < x2"),
        ({"boxes": [[-1, 2, 3, 4]]}, r"boxes\.0\.0"),
        ({"boxes": [["1", 2, 3, 4]]}, r"boxes\.0\.0"),
        ({"boxes": "none"}, "boxes"),
        ({"mask": 3}, "mask"),
    ],
)
def test_errors_name_the_line_and_the_field(tmp_path, change, field):
    path = manifest(tmp_path, LINE, {**LINE, "id": "b", **change})
    with pytest.raises(ManifestError, match=rf"pairs\.jsonl:2: {field}"):
        list(read_pairs(path))


@pytest.mark.parametrize("name", ["id", "reference", "target"])
def test_a_missing_field_is_named(tmp_path, name):
    with pytest.raises(ManifestError, match=rf"pairs\.jsonl:1: {name}: Field required"):
        list(read_pairs(manifest(tmp_path, {key: value for key, value in LINE.items() if key != name})))


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"id": "a"', '{"id": NaN}', "\x00"])
def test_lines_that_are_not_objects(tmp_path, line):
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:1"):
        list(read_pairs(manifest(tmp_path, line)))


def test_an_id_that_occurs_twice(tmp_path):
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:3: id: 'a' occurs twice"):
        list(read_pairs(manifest(tmp_path, LINE, "", LINE)))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        list(read_pairs(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ManifestError, match="cannot be read"):
        list(read_pairs(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(ManifestError, match="not UTF-8"):
        list(read_pairs(tmp_path / "latin.jsonl"))


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\ufeff" + json.dumps(LINE) + "\n\n  \n", encoding="utf-8")
    assert [pair.id for pair in read_pairs(path)] == ["a"]


def test_a_missing_mask_is_named(tmp_path):
    path = manifest(tmp_path, {**{k: v for k, v in LINE.items() if k != "boxes"}, "mask": "m.png"})
    with pytest.raises(ImageError, match=r"m\.png: no such file"):
        list(read_pairs(path))


def test_written_pairs_read_back_the_same(tmp_path):
    path = manifest(tmp_path, {**LINE, "note": "ünïcode"}, {**LINE, "id": "b", "boxes": [], "mask": "m.png"})
    pairs = list(read_pairs(path))
    copy = tmp_path / "deeper" / "copy.jsonl"
    assert write_pairs(copy, pairs) == 2
    again = list(read_pairs(copy))
    for old, new in zip(pairs, again, strict=True):
        assert (old.id, old.category, old.group, old.extra) == (new.id, new.category, new.group, new.extra)
        assert Path(new.target).resolve() == Path(old.target).resolve()
        assert old.boxes.tolist() == new.boxes.tolist()
    assert json.loads(copy.read_text().splitlines()[0])["target"] == "../t/1.png"


def test_pairs_in_memory_cannot_be_written(tmp_path):
    with pytest.raises(ManifestError, match="save it"):
        write_pairs(tmp_path / "p.jsonl", [Pair(np.zeros((2, 2, 3), np.uint8), "t.png", id="x")])


@pytest.mark.parametrize(
    ("name", "pairs", "anomalous"),
    [("deeppcb", 130, 100), ("deeppcb_single", 130, 100), ("magnetic_tile", 70, 50), ("kolektor_sdd", 38, 23)],
)
def test_the_real_manifests(name, pairs, anomalous):
    path = SHARED / name / "pairs.jsonl"
    if not path.exists():
        pytest.skip(f"the real pairs are not here: {path}")
    read = list(read_pairs(path))
    assert (len(read), sum(pair.anomalous for pair in read)) == (pairs, anomalous)
    assert all(Path(pair.reference).is_file() and Path(pair.target).is_file() for pair in read)


def test_abnormal_of_unknown_place_is_read_and_written(tmp_path):
    (pair,) = read_pairs(manifest(tmp_path, {**LINE, "boxes": None, "anomalous": True}))
    assert pair.boxes is None
    assert pair.anomalous is True
    write_pairs(tmp_path / "again.jsonl", [pair])
    line = json.loads((tmp_path / "again.jsonl").read_text())
    assert (line["boxes"], line["anomalous"]) == (None, True)
    (again,) = read_pairs(tmp_path / "again.jsonl")
    assert (again.boxes, again.anomalous) == (None, True)


@pytest.mark.parametrize(("boxes", "anomalous"), [([], True), ([[1, 2, 3, 4]], False)])
def test_a_label_that_contradicts_its_boxes_is_refused(tmp_path, boxes, anomalous):
    with pytest.raises(ManifestError, match=r"pairs\.jsonl:1.*place unknown"):
        list(read_pairs(manifest(tmp_path, {**LINE, "boxes": boxes, "anomalous": anomalous})))


def test_a_label_that_contradicts_its_mask_is_refused(tmp_path):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "mask.png")
    bare = {key: value for key, value in LINE.items() if key != "boxes"}
    with pytest.raises(ManifestError, match="marks 0 defects"):
        list(read_pairs(manifest(tmp_path, {**bare, "mask": "mask.png", "anomalous": True})))


def test_a_manifest_that_was_written_on_windows(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 10:16] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "1.png")
    names = {"reference": "ref\\1.png", "target": "t\\deep\\1.png", "mask": "masks\\1.png", "boxes": None}
    (pair,) = read_pairs(manifest(tmp_path, {**LINE, **names}))
    assert (pair.reference, pair.target) == (tmp_path / "ref" / "1.png", tmp_path / "t" / "deep" / "1.png")
    assert pair.boxes.tolist() == [[10, 5, 16, 9]]
    write_pairs(tmp_path / "again.jsonl", [pair])
    line = json.loads((tmp_path / "again.jsonl").read_text())
    assert (line["reference"], line["target"], line["mask"]) == ("ref/1.png", "t/deep/1.png", "masks/1.png")


@pytest.mark.skipif(os.sep == "\\", reason="a file name cannot hold a backslash here")
def test_a_backslash_in_a_file_name_is_kept(tmp_path):
    (tmp_path / "t\\1.png").touch()
    (pair,) = read_pairs(manifest(tmp_path, {**LINE, "target": "t\\1.png"}))
    assert pair.target == tmp_path / "t\\1.png"
