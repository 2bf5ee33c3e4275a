"""The published COCO layout, and invalid files."""

import json

import pytest
from exchange_parts import line, make_images, predicted, sample, truth, write_manifest

from differad.data.exchange.registry import export_pairs, import_pairs
from differad.errors import ManifestError


@pytest.fixture
def manifest(tmp_path):
    return sample(tmp_path)


def written(folder, document):
    path = folder / "instances.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def read(manifest, document, **options):
    out = manifest.with_name("out.jsonl")
    return import_pairs("coco", written(manifest.parent, document), manifest, out, **options), truth(out)


def image(**changes):
    return {"id": 1, "pair_id": "unseen", "file_name": "x.png", "width": 80, "height": 50, **changes}


def annotation(bbox, **changes):
    return {"image_id": 1, "category_id": 1, "bbox": bbox, **changes}


def test_the_published_layout(manifest, tmp_path):
    predictions = {"unseen": predicted([1, 2, 4, 6], scores=[0.75]), "Tile/Ü 1": predicted([0, 0, 8, 5])}
    done = export_pairs("coco", manifest, tmp_path / "sent", predictions=predictions)
    assert done["files"] == ["instances.json", "predictions.json"]
    document = json.loads((tmp_path / "sent" / "instances.json").read_text())
    assert list(document) == ["info", "licenses", "images", "annotations", "categories"]
    assert document["categories"] == [{"id": 1, "name": "defect", "supercategory": "defect"}]
    first = document["images"][0]
    assert first == {
        "id": 1,
        "width": 80,
        "height": 50,
        "file_name": "täst & <set>/part #0 100%'\".png",
        "pair_id": "tile/ü 1",
        "reference": "good.png",
        "category": "tile",
        "group": None,
        "labelled": True,
    }
    assert [entry["labelled"] for entry in document["images"]] == [True, True, False]
    assert document["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 5, 20.5, 20],  # x, y, 30.5 - 10, 25 - 5
        "area": 410,  # 20.5 * 20
        "segmentation": [[10, 5, 10, 25, 30.5, 25, 30.5, 5]],
        "iscrowd": 0,
    }
    assert json.loads((tmp_path / "sent" / "predictions.json").read_text()) == [
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 8, 5], "score": 1.0},  # the format demands a score
        {"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.75},
    ]


def test_a_file_of_another_tool_is_matched_by_name(manifest):
    document = {
        "images": [{"id": "7", "file_name": "part #2 100%'\".png", "height": 50}],
        "annotations": [annotation([1, 2, 3, 4], image_id="7", segmentation=[], iscrowd=0)],
    }
    assert read(manifest, document)[1]["unseen"] == [[1, 2, 4, 6]]  # 1 + 3, 2 + 4


def test_a_name_gives_its_boxes_to_every_pair_with_that_target(tmp_path):
    (target, *_) = make_images(tmp_path)
    manifest = write_manifest(tmp_path, [line(target, "a"), line(target, "b")])
    document = {"images": [{"id": 1, "file_name": target}], "annotations": [annotation([1, 2, 3, 4])]}
    assert read(manifest, document)[1] == {"a": [[1, 2, 4, 6]], "b": [[1, 2, 4, 6]]}


def test_boxes_past_the_edge_are_clipped_and_counted(manifest):
    done, back = read(manifest, {"images": [image()], "annotations": [annotation([-2, 40, 12, 30])]})
    assert back["unseen"] == [[0, 40, 10, 50]]
    assert done["cut_boxes"] == 1


def test_a_box_rotated_in_cvat(manifest):
    # 40 x 10 about (40, 25), by a quarter: 10 x 40
    turned = annotation([20, 20, 40, 10], attributes={"rotation": 90.0})
    assert read(manifest, {"images": [image()], "annotations": [turned]})[1]["unseen"] == [[35, 5, 45, 45]]


def test_crowd_regions_are_left_out_and_counted(manifest):
    crowd = annotation([0, 0, 80, 50], iscrowd=1)
    done, back = read(manifest, {"images": [image()], "annotations": [annotation([1, 2, 3, 4]), crowd]})
    assert (back["unseen"], done["crowd_regions"]) == ([[1, 2, 4, 6]], 1)


def test_ids_match_as_text(manifest):
    document = {"images": [image(id="1")], "annotations": [annotation([1, 2, 3, 4])]}
    assert read(manifest, document)[1]["unseen"] == [[1, 2, 4, 6]]


def test_windows_paths_find_their_targets(manifest):
    document = {
        "images": [{"id": 1, "file_name": "täst & <set>\\part #2 100%'\".png"}],
        "annotations": [annotation([1, 2, 3, 4])],
    }
    assert read(manifest, document)[1]["unseen"] == [[1, 2, 4, 6]]


def test_pairs_that_are_not_mentioned_keep_their_label(manifest):
    done, back = read(manifest, {"images": [image()], "annotations": [annotation([1, 2, 3, 4])]})
    assert back == {**truth(manifest), "unseen": [[1, 2, 4, 6]]}
    assert (done["corrected"], done["kept"]) == (1, 2)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ('{"images": [', "not JSON, or truncated"),
        ("[" * 100_000, "not JSON, or truncated"),
        ("", "not JSON, or truncated"),
        ("[]", "holds a list; expected a COCO object"),
        ({"images": []}, "annotations: NoneType; expected a COCO object"),
        ({"images": {}, "annotations": []}, "images: dict"),
    ],
)
def test_files_that_are_not_coco(manifest, document, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, document, skip_bad=True)


WRONG = [
    ([7], [], r"images\.0"),
    ([image(id=None)], [], r"images\.0: id"),
    ([image(id=True)], [], r"images\.0: id"),
    ([image(pair_id=7)], [], r"images\.0: pair_id: 7"),
    ([image(pair_id="nobody")], [], r"images\.0: id 'nobody' is not in the manifest"),
    ([image(pair_id=None, file_name=None)], [], "neither pair_id nor file_name"),
    ([image(pair_id=None, file_name="nobody.png")], [], "'nobody.png' is the target of no pair"),
    ([image(pair_id=None, file_name="../good.png")], [], "'../good.png' is the target of no pair"),
    ([image(pair_id=None, file_name="")], [], "'' is the target of no pair"),
    ([image(pair_id=None, file_name="/")], [], "'/' is the target of no pair"),
    ([image(width=81)], [], "labelled as 81x50 pixels, but the image is 80x50"),
    ([image(width=50, height=80)], [], "width and height are swapped, as without its EXIF"),
    ([image(), image(id=2)], [], r"images\.1: id 'unseen' occurs twice"),
    ([image(), image(pair_id="Tile/Ü 1")], [], r"images\.1: image id 1 occurs twice"),
    ([image()], [7], r"annotations\.0"),
    ([image()], [annotation([1, 2, 3, 4], image_id=9)], r"annotations\.0: image_id 9 is the id of no image"),
    ([image()], [annotation([1, 2, 3])], r"annotations\.0: bbox"),
    ([image()], [annotation([1, 2, 3, "4"])], r"annotations\.0: bbox\.3: '4'"),
    ([image()], [annotation([1, 2, 3, None])], r"annotations\.0: bbox\.3"),
    ([image()], [annotation([1, 2, 3, float("nan")])], r"annotations\.0: bbox\.3: .*finite"),
    ([image()], [annotation([1, 2, float("inf"), 4])], r"annotations\.0: bbox\.2: .*finite"),
    ([image()], [annotation([1e308, 2, 1e308, 4])], "not finite"),
    ([image()], [annotation([1, 2, -3, 4])], r"annotations\.0: bbox \[1.*, -3.*\] has no area"),
    ([image()], [annotation([1, 2, 0, 4])], "no area"),
    ([image()], [annotation([80, 2, 5, 4])], "no area inside the 80x50 image"),
    ([image()], [annotation([1, 2, 0.001, 4])], "no area"),
    ([image(pair_id=None, file_name="part #2 100%'\".png")], [annotation([0.1, 0.2, 0.5, 0.5])], "holds fractions"),
    ([image()], [annotation([1, 2, 3, 4], id=4), annotation([5, 6, 3, 4], id=4)], "annotation id 4 occurs twice"),
    ([image()], [annotation([1, 2, 3, 4], iscrowd=1)], "crowd regions"),
]


@pytest.mark.parametrize(("images", "annotations", "says"), WRONG, ids=[says for *_, says in WRONG])
def test_wrong_entries_are_named_or_skipped(manifest, images, annotations, says):
    document = {"images": images, "annotations": annotations}
    with pytest.raises(ManifestError, match=says):
        read(manifest, document)
    done, back = read(manifest, document, skip_bad=True)
    assert done["skipped"] == 1
    assert back == truth(manifest)


def test_one_invalid_box_leaves_the_pair_unchanged(manifest):
    boxes = [annotation([1, 2, 3, 4]), annotation([1, 2, -3, 4])]
    done, back = read(manifest, {"images": [image()], "annotations": boxes}, skip_bad=True)
    assert back["unseen"] is None
    assert done["skipped"] == 1


@pytest.mark.parametrize("times", [2, 3])
def test_a_pair_with_several_entries_keeps_its_label(manifest, times):
    images = [image(id=number, pair_id="tile/ü 1", labelled=True) for number in range(times)]
    done, back = read(manifest, {"images": images, "annotations": []}, skip_bad=True)
    assert (back, done["skipped"]) == (truth(manifest), times - 1)


def test_a_name_that_matches_two_targets_needs_the_root(tmp_path):
    for folder in ("one", "two"):
        make_images(tmp_path / folder, 1)
    (name,) = make_images(tmp_path / "one", 1)
    lines = [line(f"one/{name}", "a"), line(f"two/{name}", "b")]
    manifest = write_manifest(tmp_path, lines)
    document = {"images": [{"id": 1, "file_name": name}], "annotations": [annotation([1, 2, 3, 4])]}
    with pytest.raises(ManifestError, match=r"fits .*one.* and .*two.*; give the folder with --root"):
        read(manifest, document)
    assert read(manifest, document, root=tmp_path / "two")[1] == {"a": None, "b": [[1, 2, 4, 6]]}
