"""Label Studio's tasks, and invalid exports."""

import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from exchange_parts import line, predicted, sample, truth, write_manifest
from PIL import Image

from differad.data.exchange.registry import export_pairs, import_pairs
from differad.data.manifest import read_pairs
from differad.errors import InputError, ManifestError


@pytest.fixture
def manifest(tmp_path):
    return sample(tmp_path)


def read(manifest, document, **options):
    path, out = manifest.with_name("export.json"), manifest.with_name("out.jsonl")
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return import_pairs("label-studio", path, manifest, out, **options), truth(out)


def region(x=50, y=20, width=25, height=40, **changes):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["defect"]}
    return {"id": "r", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value, **changes}


def annotation(*regions, **changes):
    return {"id": 1, "result": list(regions), "was_cancelled": False, **changes}


def task(*annotations, pair_id="unseen", **changes):
    return {"id": 5, "data": {"image": "/x.png", "pair_id": pair_id}, "annotations": list(annotations), **changes}


def test_the_published_layout(manifest, tmp_path):
    predictions = {"unseen": predicted([8, 5, 16, 10], [0, 0, 8, 5], scores=[0.75, 0.5])}
    done = export_pairs("label-studio", manifest, tmp_path / "sent", predictions=predictions)
    assert done["files"] == ["config.xml", "tasks.json"]
    labelled, normal, unseen = json.loads((tmp_path / "sent" / "tasks.json").read_text())
    assert labelled["data"] == {
        "image": "/data/local-files/?d=t%C3%A4st%20%26%20%3Cset%3E/part%20%230%20100%25%27%22.png",
        "reference": "/data/local-files/?d=good.png",
        "pair_id": "tile/ü 1",
        "category": "tile",
        "group": "",
    }
    assert labelled["annotations"][0]["result"][0] == {
        "id": "pair1-truth-1",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": 80,
        "original_height": 50,
        "image_rotation": 0,
        # 10 / 80, 5 / 50, 20.5 / 80, 20 / 50
        "value": {"rotation": 0, "x": 12.5, "y": 10, "width": 25.625, "height": 40, "rectanglelabels": ["defect"]},
    }
    assert labelled["predictions"] == []
    assert normal["annotations"] == [{"result": []}]  # verified: nothing there
    assert unseen["annotations"] == []
    (prediction,) = unseen["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("differad", 0.75)
    assert [entry["score"] for entry in prediction["result"]] == [0.75, 0.5]
    assert prediction["result"][0]["value"]["x"] == 10  # 8 / 80
    ids = [entry["id"] for one in (labelled, normal, unseen) for kind in ("annotations", "predictions")
           for group in one[kind] for entry in group["result"]]  # fmt: skip
    assert len(ids) == len(set(ids)) == 4


def test_the_interface_shows_the_reference_beside_the_target_and_fits_the_tasks(manifest, tmp_path):
    export_pairs("label-studio", manifest, tmp_path / "sent", url_prefix="https://images.example/")
    view = ET.parse(tmp_path / "sent" / "config.xml").getroot()
    assert {image.get("name"): image.get("value") for image in view.iter("Image")} == {
        "reference": "$reference",
        "image": "$image",
    }
    rectangles = view.find("RectangleLabels")
    assert (rectangles.get("name"), rectangles.get("toName")) == ("label", "image")
    assert rectangles.find("Label").get("value") == "defect"
    data = json.loads((tmp_path / "sent" / "tasks.json").read_text())[0]["data"]
    assert data["reference"] == "https://images.example/good.png"


def test_corrections_are_imported(manifest):
    comment = {"id": "c", "type": "textarea", "from_name": "note", "to_name": "image", "value": {"text": ["hm"]}}
    on_reference = region(to_name="reference")
    tasks = [task(annotation(region(), comment, on_reference)), task(annotation(), pair_id="tile/ü 1")]
    done, back = read(manifest, tasks)
    # 50 % and 25 % of 80, 20 % and 40 % of 50
    assert back == {"tile/ü 1": [], "Tile/Ü 1": [], "unseen": [[40, 10, 60, 30]]}
    assert (done["corrected"], done["kept"]) == (2, 1)


def test_skipped_and_unlabelled_tasks_change_nothing(manifest):
    tasks = [task(annotation(was_cancelled=True)), task(pair_id="tile/ü 1", predictions=[annotation(region())])]
    assert read(manifest, tasks)[1] == truth(manifest)


@pytest.fixture
def in_new_york(monkeypatch):
    """A machine whose time zone is not UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize("turn", [1, -1], ids=["last", "first"])
@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        ({"updated_at": "2024-05-01T10:00:00Z"}, {"updated_at": "2024-05-01T11:00:00Z"}),
        ({"created_at": "2024-05-01T10:00:00Z"}, {"created_at": "2024-05-01T11:00:00Z"}),
        # 10:30 in UTC+2 is 08:30; as text it would be the later one
        ({"updated_at": "2024-05-01T10:30:00+02:00"}, {"updated_at": "2024-05-01T09:00:00Z"}),
        ({"updated_at": "2024-05-01T10:30:00.250000+02:00"}, {"updated_at": "2024-05-01T08:30:00.5"}),  # no zone: UTC
        ({"updated_at": "2024-05-01T10:00:00"}, {"updated_at": "2024-05-01T11:00:00Z"}),  # not the machine's zone
        ({"created_at": "2024-05-01T23:30:00-01:00"}, {"updated_at": "2024-05-02 00:31:00Z"}),
        ({"updated_at": None}, {"updated_at": "1970-01-01T00:00:00+14:00"}),
        ({"created_at": 1714557600}, {"created_at": "2024-05-01T12:00:01+02:00"}),  # 1714557600 is 10:00:00 in UTC
        ({"ground_truth": False, "updated_at": "2025-01-01T00:00:00Z"}, {"ground_truth": True}),
        ({"was_cancelled": True, "updated_at": "2025-01-01T00:00:00Z"}, {}),
    ],
)
def test_of_several_annotations_the_ground_truth_or_the_latest_counts(manifest, other, chosen, turn):
    both = [annotation(region(x=0), **other), annotation(region(), **chosen)]
    assert read(manifest, [task(*both[::turn])])[1]["unseen"] == [[40, 10, 60, 30]]


def test_of_annotations_without_dates_the_last_counts(manifest):
    assert read(manifest, [task(annotation(region(x=0)), annotation(region()))])[1]["unseen"] == [[40, 10, 60, 30]]


def test_a_rotated_rectangle_becomes_the_axis_aligned_box_around_it(manifest):
    # 20 x 20 pixels at (40, 10), turned clockwise by 90 degrees about that corner: to its left, x from 20 to 40
    turned = region()
    turned["value"]["rotation"] = 90
    assert read(manifest, [task(annotation(turned))])[1]["unseen"] == [[20, 10, 40, 30]]


def test_texts_and_numbers_beside_a_region_are_no_boxes(manifest):
    texts = [
        {"type": "textarea", "value": {"text": ["defect 12 (3,4),(30,40)", "[1, 2, 30, 40]"]}},
        {"type": "number", "value": {"number": 12}},
        {"type": "choices", "from_name": "kind", "value": {"choices": ["(1,2),(3,4)", "abnormal"]}},
        {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
    ]
    one = region()
    one["value"]["rectanglelabels"] = ["[0, 0, 9, 9]"]
    assert read(manifest, [task(annotation(*texts))])[1]["unseen"] == []
    manifest.with_name("out.jsonl").unlink()
    assert read(manifest, [task(annotation(one, *texts))])[1]["unseen"] == [[40, 10, 60, 30]]


# The target is 80 x 50 pixels: 10 % are 8 and 5.
DRAWN = {
    "polygonlabels": ({"points": [[10, 10], [30, 10], [30, 40]], "closed": True}, [8, 5, 24, 20]),
    "polygon": ({"points": [[10, 10], [30, 10], [30, 40]]}, [8, 5, 24, 20]),
    # centre (40, 25), radii 8 and 5
    "ellipselabels": ({"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0}, [32, 20, 48, 30]),
    "ellipse": ({"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 90}, [35, 17, 45, 33]),
    "rectangle": ({"x": 50, "y": 20, "width": 25, "height": 40, "rotation": None}, [40, 10, 60, 30]),
}


@pytest.mark.parametrize("kind", DRAWN)
def test_shapes_are_imported_as_the_boxes_around_them(manifest, kind):
    value, expected = DRAWN[kind]
    assert read(manifest, [task(annotation(region(type=kind, value=value)))])[1]["unseen"] == [expected]


def test_a_brush_region_is_imported_as_the_box_around_it(tmp_path):
    (golden, *_) = json.loads((Path(__file__).parents[1] / "label_studio_brush.json").read_text())
    Image.new("RGB", (14, 9)).save(tmp_path / "t.png")
    manifest = write_manifest(tmp_path, [line("t.png", "unseen")])
    value = {"format": "rle", "rle": golden["rle"], "brushlabels": ["defect"]}
    # columns 3 to 10 and rows 2 to 5 of the 14 x 9 pixels
    assert read(manifest, [task(annotation(region(type="brushlabels", value=value)))])[1]["unseen"] == [[3, 2, 11, 6]]


def test_masks_of_annotated_shapes(tmp_path):
    (golden, *_) = json.loads((Path(__file__).parents[1] / "label_studio_brush.json").read_text())
    for name in ("t", "u", "v"):
        Image.new("RGB", (14, 9)).save(tmp_path / f"{name}.png")
    manifest = write_manifest(tmp_path, [line(f"{name}.png", name) for name in ("t", "u", "v")])
    brush = region(type="brushlabels", value={"format": "rle", "rle": golden["rle"]})
    corner = region(x=0, y=0, width=100 / 14, height=100 / 9)  # the first pixel
    tasks = [task(annotation(brush, corner), pair_id="t"), task(annotation(corner), pair_id="u"), task(pair_id="v")]
    done, _ = read(manifest, tasks, masks=tmp_path / "masks")
    assert done["masks"] == 1
    parsed, rectangle, _ = read_pairs(tmp_path / "out.jsonl")
    expected = [[letter == "#" for letter in row] for row in golden["marked"]]
    expected[0][0] = True
    assert (np.asarray(Image.open(parsed.mask).convert("L")) == 255 * np.array(expected)).all()
    assert rectangle.mask is None  # its box says it all
    with pytest.raises(InputError, match="masks: not empty; expected a new or empty folder"):
        read(manifest, tasks, masks=tmp_path / "masks")


def test_a_separate_label_of_a_rectangle_is_no_region(manifest):
    value = region()["value"]
    both = [region(type="rectangle"), region(type="labels", value={**value, "labels": ["defect"]})]
    assert read(manifest, [task(annotation(*both))])[1]["unseen"] == [[40, 10, 60, 30]]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ('[{"data": ', "not JSON, or truncated"),
        ("{}", "holds a dict; expected a list of tasks"),
        ("NaN", "holds a float"),
    ],
)
def test_files_that_are_not_tasks(manifest, document, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, document, skip_bad=True)


def _choice(*choices):
    return {"type": "choices", "from_name": "state", "to_name": "image", "value": {"choices": list(choices)}}


def _rotated_image():
    return region(image_rotation=90)


WRONG = [
    (7, "export.json: 0: "),
    ({"id": 1, "image": "/x.png", "label": []}, "0: data: Field required"),  # the export called JSON-MIN
    ({"data": {"image": "/x.png"}}, r"data\.pair_id: Field required"),
    (task(pair_id="nobody"), "id 'nobody' is not in the manifest"),
    (task(annotations=None), "annotations"),
    (task({"id": 1}), r"annotations\.0\.result: Field required"),
    (task(annotation(7)), r"annotations\.0\.result\.0"),
    (task(annotation(region(x="1"))), "value: x: '1'"),
    (task(annotation(region(x=None))), "value: x"),
    (task(annotation(region(x=float("nan")))), "value: x: .*finite"),
    (task(annotation(region(width=-5))), "-5 by 40 percent; expected sides above 0"),
    (task(annotation(region(x=100))), "no area inside the 80x50 image"),
    (
        task(annotation(region(type="keypointlabels"))),
        "a region of type 'keypointlabels'; expected rectangles, polygons",
    ),
    (task(annotation(region(original_width=40))), r"labelled as 40x\? pixels, but the image is 80x50"),
    (task(annotation(_rotated_image())), "rotated by 90 degrees"),
    (task(annotation(region(type="labels"))), "a region of type 'labels'"),
    (task(annotation(region(type="hologram"))), "a region of type 'hologram'"),
    (
        task(annotation(region(type="polygon", value={"points": [[1, 2], [3, 4], [5, 9]], "closed": False}))),
        "not closed",
    ),
    (task(annotation(region(type="ellipse", value={"x": 9, "y": 9, "radiusX": 0, "radiusY": 1}))), "both above 0"),
    (task(annotation(region(type="brush", value={"format": "rle", "rle": [1, 2, 3]}))), "brush mask that is truncated"),
    (task(annotation(region(type="brush", value={"format": "png", "rle": [1]}))), "value: format"),
    (task(annotation(region(), _choice("normal"))), "called normal, with 1 boxes"),
    (task(annotation(_choice("normal", "abnormal"))), "chosen as 'normal' and 'abnormal'"),
    (task(annotation(updated_at="yesterday")), "updated_at: 'yesterday'"),
]


@pytest.mark.parametrize(("entry", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_tasks_are_named_or_skipped(manifest, entry, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, [entry])
    done, back = read(manifest, [entry], skip_bad=True)
    assert done["skipped"] == 1
    assert back == truth(manifest)


def test_an_id_that_occurs_twice(manifest):
    with pytest.raises(ManifestError, match=r"1: id 'unseen' occurs twice"):
        read(manifest, [task(annotation(region())), task(annotation())])
