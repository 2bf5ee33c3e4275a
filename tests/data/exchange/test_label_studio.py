"""Label Studio's tasks, and exports that are not quite them."""

import json
import xml.etree.ElementTree as ET

import pytest
from exchange_parts import predicted, sample, truth

from differad.data.exchange.registry import export_pairs, import_pairs
from differad.errors import ManifestError


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


def test_corrections_come_back(manifest):
    comment = {"id": "c", "type": "textarea", "from_name": "note", "to_name": "image", "value": {"text": ["hm"]}}
    on_reference = region(to_name="reference")
    tasks = [task(annotation(region(), comment, on_reference)), task(annotation(), pair_id="tile/ü 1")]
    done, back = read(manifest, tasks)
    # 50 % and 25 % of 80, 20 % and 40 % of 50
    assert back == {"tile/ü 1": [], "Tile/Ü 1": [], "unseen": [[40, 10, 60, 30]]}
    assert (done["corrected"], done["kept"]) == (2, 1)


def test_skipped_and_untouched_tasks_say_nothing(manifest):
    tasks = [task(annotation(was_cancelled=True)), task(pair_id="tile/ü 1", predictions=[annotation(region())])]
    assert read(manifest, tasks)[1] == truth(manifest)


@pytest.mark.parametrize("turn", [1, -1], ids=["last", "first"])
@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        ({"updated_at": "2024-05-01T10:00:00Z"}, {"updated_at": "2024-05-01T11:00:00Z"}),
        ({"created_at": "2024-05-01T10:00:00Z"}, {"created_at": "2024-05-01T11:00:00Z"}),
        ({"ground_truth": False, "updated_at": "2025-01-01T00:00:00Z"}, {"ground_truth": True}),
        ({"was_cancelled": True, "updated_at": "2025-01-01T00:00:00Z"}, {}),
    ],
)
def test_of_several_annotations_the_ground_truth_or_the_latest_counts(manifest, other, chosen, turn):
    both = [annotation(region(x=0), **other), annotation(region(), **chosen)]
    assert read(manifest, [task(*both[::turn])])[1]["unseen"] == [[40, 10, 60, 30]]


def test_of_annotations_without_dates_the_last_counts(manifest):
    assert read(manifest, [task(annotation(region(x=0)), annotation(region()))])[1]["unseen"] == [[40, 10, 60, 30]]


def test_a_turned_rectangle_becomes_the_upright_one_around_it(manifest):
    # 20 x 20 pixels at (40, 10), turned clockwise by 90 degrees about that corner: to its left, x from 20 to 40
    turned = region()
    turned["value"]["rotation"] = 90
    assert read(manifest, [task(annotation(turned))])[1]["unseen"] == [[20, 10, 40, 30]]


@pytest.mark.parametrize(
    ("document", "says"),
    [('[{"data": ', "no JSON, or cut off"), ("{}", "holds a dict; expected a list of tasks"), ("NaN", "holds a float")],
)
def test_files_that_are_no_tasks(manifest, document, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, document, skip_bad=True)


def _turned_image():
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
    (task(annotation(region(x=100))), "no area inside the 80x50 target"),
    (task(annotation(region(type="polygonlabels"))), "a region of type 'polygonlabels'; expected rectangles only"),
    (task(annotation(region(original_width=40))), "a side of 40 pixels, but its target is 80x50"),
    (task(annotation(_turned_image())), "turned by 90 degrees"),
]


@pytest.mark.parametrize(("entry", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_tasks_are_named_or_skipped(manifest, entry, says):
    with pytest.raises(ManifestError, match=says):
        read(manifest, [entry])
    done, back = read(manifest, [entry], skip_bad=True)
    assert done["skipped"] == 1
    assert back == truth(manifest)


def test_an_id_that_stands_twice(manifest):
    with pytest.raises(ManifestError, match=r"1: id 'unseen' stands twice"):
        read(manifest, [task(annotation(region())), task(annotation())])
