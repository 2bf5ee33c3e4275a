"""The Ultralytics layout, and invalid folders."""

import os

import pytest
from exchange_parts import line, make_images, predicted, sample, truth, write_manifest

from differad.data.exchange.registry import export_pairs, import_pairs
from differad.data.exchange.shared import file_name
from differad.data.manifest import read_pairs
from differad.errors import ImageError, ManifestError


@pytest.fixture
def manifest(tmp_path):
    return sample(tmp_path)


@pytest.fixture
def sent(manifest, tmp_path):
    export_pairs("yolo", manifest, tmp_path / "sent")
    return tmp_path / "sent"


def read(manifest, folder, **options):
    out = manifest.with_name("out.jsonl")
    return import_pairs("yolo", folder, manifest, out, **options), truth(out)


def label(sent, pair_id="tile/ü 1"):
    return sent / "labels" / "labelled" / f"{file_name(pair_id)}.txt"


def test_the_published_layout(manifest, tmp_path):
    out = tmp_path / "sent"
    predictions = {"unseen": predicted([0, 0, 8, 5], scores=[0.5]), "Tile/Ü 1": predicted()}
    done = export_pairs("yolo", manifest, out, predictions=predictions)
    assert done["files"] == ["data.yaml", "images", "labels", "pairs.jsonl", "predictions"]
    yaml = (out / "data.yaml").read_text()
    assert "train: images/labelled\nval: images/labelled\nnames:\n  0: defect\n" in yaml
    first, normal, unseen = (file_name(pair_id) for pair_id in ("tile/ü 1", "Tile/Ü 1", "unseen"))
    # 10..30.5 of 80: centre 20.25 / 80, width 20.5 / 80; 5..25 of 50: centre 15 / 50, height 20 / 50
    assert label(out).read_text().splitlines() == [
        "0 0.25312500 0.30000000 0.25625000 0.40000000",
        "0 0.75000000 0.80000000 0.50000000 0.40000000",
    ]
    assert label(out, "Tile/Ü 1").read_text() == ""  # background: verified normal
    assert sorted(path.name for path in (out / "labels").rglob("*.txt")) == sorted([f"{first}.txt", f"{normal}.txt"])
    assert {path.name for path in (out / "images" / "labelled").iterdir()} == {f"{first}.png", f"{normal}.png"}
    assert [path.name for path in (out / "images" / "unlabelled").iterdir()] == [f"{unseen}.png"]
    found = out / "predictions" / "labels"
    assert (found / f"{unseen}.txt").read_text() == "0 0.05000000 0.05000000 0.10000000 0.10000000 0.500000\n"
    assert (found / f"{normal}.txt").read_text() == ""
    assert not (found / f"{first}.txt").exists()
    assert truth(out / "pairs.jsonl") == truth(manifest)


def test_images_are_linked_or_copied_never_reencoded(manifest, tmp_path):
    export_pairs("yolo", manifest, tmp_path / "linked")
    export_pairs("yolo", manifest, tmp_path / "copied", copy=True)
    source = tmp_path / "täst & <set>" / "part #0 100%'\".png"
    linked, copied = (
        tmp_path / kind / "images" / "labelled" / f"{file_name('tile/ü 1')}.png" for kind in ("linked", "copied")
    )
    assert linked.samefile(source)
    assert not copied.samefile(source)
    assert copied.read_bytes() == source.read_bytes()


def test_without_hard_links_symbolic_ones_are_made(manifest, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export_pairs("yolo", manifest, tmp_path / "sent")
    links = list((tmp_path / "sent" / "images").rglob("*.png"))
    assert len(links) == 3
    assert all(path.is_symlink() and path.is_file() for path in links)


def test_a_missing_target(tmp_path):
    make_images(tmp_path)
    manifest = write_manifest(tmp_path, [line("gone.png")])
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        export_pairs("yolo", manifest, tmp_path / "sent")
    assert not (tmp_path / "sent").exists()


def test_corrections_are_imported_and_a_missing_file_changes_nothing(manifest, sent):
    label(sent).write_text("3 0.5 0.5 0.25 0.5\n\n")  # centre (40, 25), 20 x 25; any class is a defect
    label(sent, "Tile/Ü 1").unlink()
    new = sent / "labels" / "unlabelled" / f"{file_name('unseen')}.txt"
    new.parent.mkdir()
    new.write_text("")
    (sent / "labels" / "classes.txt").write_text("defect\n")
    done, back = read(manifest, sent / "data.yaml")
    assert back == {"tile/ü 1": [[30, 12.5, 50, 37.5]], "Tile/Ü 1": [], "unseen": []}
    assert (done["corrected"], done["confirmed"], done["kept"]) == (2, 0, 1)


def test_a_polygon_is_imported_as_the_box_around_it(manifest, sent):
    label(sent).write_text("0 0.25 0.5 0.5 0.5 0.5 0.75\n")  # (20, 25), (40, 25), (40, 37.5)
    assert read(manifest, sent)[1]["tile/ü 1"] == [[20, 25, 40, 37.5]]


def test_an_empty_file_does_not_make_an_exported_abnormal_target_normal(tmp_path):
    (target, *_) = make_images(tmp_path)
    export_pairs("yolo", write_manifest(tmp_path, [line(target, "bad", anomalous=True)]), tmp_path / "sent")
    (tmp_path / "sent" / "labels" / "unlabelled").mkdir()
    (tmp_path / "sent" / "labels" / "unlabelled" / f"{file_name('bad')}.txt").write_text("")
    blank = write_manifest(tmp_path, [line(target, "bad")], "blank.jsonl")
    read(blank, tmp_path / "sent")
    (pair,) = read_pairs(tmp_path / "out.jsonl")
    assert (pair.anomalous, pair.boxes) == (True, None)


def test_boxes_past_the_edge_are_clipped_and_counted(manifest, sent):
    label(sent).write_text("0 0 0.5 0.5 0.2\n")  # x from -20 to 20
    done, back = read(manifest, sent)
    assert back["tile/ü 1"] == [[0, 20, 20, 30]]
    assert done["cut_boxes"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 0.5 0.5 0.1\n", "txt:1: 4 values; expected five: class cx cy width height"),
        ("0 0.5 0.5 0.1 0.1 0.9\n", "6 values"),  # a prediction with its score is no correction
        ("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 x\n", "txt:2: height: 'x'; expected a finite number"),
        ("0 nan 0.5 0.1 0.1\n", "cx: 'nan'; expected a finite number"),
        ("0 0.5 inf 0.1 0.1\n", "cy: 'inf'"),
        ("0 0.5 0.5 -0.005 0.1\n", "no area"),
        ("0 0.5 0.5 -0.1 0.1\n", "between 0 and 1"),
        ("0 0.5 0.5 0 0.1\n", "no area"),
        ("0 40 25 20 25\n", "between 0 and 1, not pixels"),  # pixels instead of parts
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_wrong_labels_are_named_or_skipped(manifest, sent, text, says):
    label(sent).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=says):
        read(manifest, sent)
    done, back = read(manifest, sent, skip_bad=True)
    assert done["skipped"] == 1
    assert back == truth(manifest)


def test_names_of_no_pair_and_names_that_occur_twice(manifest, sent):
    (sent / "labels" / "labelled" / "other.txt").write_text("")
    with pytest.raises(ManifestError, match=r"other\.txt: is the name of no pair"):
        read(manifest, sent)
    (sent / "labels" / "labelled" / "other.txt").unlink()
    (sent / "labels" / "val").mkdir()
    (sent / "labels" / "val" / label(sent).name).write_text("")
    with pytest.raises(ManifestError, match=r"id 'tile/ü 1' occurs twice"):
        read(manifest, sent)


def test_the_manifest_copy_is_not_needed(manifest, sent):
    (sent / "pairs.jsonl").unlink()
    assert read(manifest, sent)[0]["confirmed"] == 2


def test_a_folder_without_labels(manifest, tmp_path):
    with pytest.raises(ManifestError, match="labels: no such folder"):
        read(manifest, tmp_path / "nowhere")
