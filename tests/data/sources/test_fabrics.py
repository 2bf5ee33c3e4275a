"""AITEX, ZJU-Leaper and DAGM: fabrics and textures."""

import json
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from differad.data.sources.aitex import read_aitex, tile_boxes, tiles
from differad.data.sources.dagm import ellipse_box, read_dagm
from differad.data.sources.sample import ProblemList
from differad.data.sources.zju_leaper import read_zju_leaper
from differad.errors import ManifestError


def strip(path, marks=None, width=1024):
    """A strip of 256 pixels height: grey, or black with white `marks`."""
    pixels = np.full((256, width), 90 if marks is None else 0, np.uint8)
    for x1, y1, x2, y2 in marks or ():
        pixels[y1:y2, x1:x2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def aitex(tmp_path):
    strip(tmp_path / "NODefect_images/2306881-210020u/0001_000_00.png", width=1000)
    strip(tmp_path / "Defect_images/0044_019_04.png")
    strip(tmp_path / "Mask_images/0044_019_04_mask1.png", [(10, 20, 30, 50)])
    strip(tmp_path / "Mask_images/0044_019_04_mask2.png", [(500, 100, 540, 110)])  # over the border at x = 512
    strip(tmp_path / "Defect_images/0100_025_08.png")  # as published: no mask
    return tmp_path


def test_aitex_tiles(aitex):
    samples = list(read_aitex(aitex))
    normal, cut = samples[:3], samples[3:]
    assert [s.region[0] for s in normal] == [0, 256, 512]  # 1000 // 256 = 3; 232 pixels are dropped
    assert all(s.is_normal and s.view == "00" and s.boxes is None for s in normal)
    assert [(s.region, s.is_normal) for s in cut] == [
        ((0, 0, 256, 256), False),
        ((256, 0, 512, 256), False),
        ((512, 0, 768, 256), False),
        ((768, 0, 1024, 256), True),
    ]
    assert [s.boxes.tolist() for s in cut[:3]] == [
        [[10, 20, 30, 50]],
        [[244, 100, 256, 110]],  # 500 - 256 = 244
        [[0, 100, 28, 110]],  # 540 - 512 = 28
    ]
    assert {(s.instance_id, s.view) for s in cut} == {("0044_019_04", "04")}
    assert {s.defect_type for s in cut} == {"fuzzyball", ""}


def test_tile_boxes_equal_the_strip_s_boxes_away_from_borders(aitex):
    mask = np.zeros((256, 1024), bool)
    mask[5:9, 300:320] = True
    assert tile_boxes(mask, (256, 0, 512, 256)).tolist() == [[44, 5, 64, 9]]
    assert tile_boxes(mask, (0, 0, 256, 256)).shape == (0, 4)


def test_tiles_cover_a_strip_of_4096_pixels():
    assert len(tiles(4096, 256)) == 16
    assert tiles(255, 256) == []
    assert len(tiles(512, 512)) == 4


@pytest.mark.parametrize("size", [(1024, 128), None])
def test_aitex_masks_that_do_not_fit(aitex, size):
    path = aitex / "Mask_images/0044_019_04_mask2.png"
    if size:
        Image.new("L", size).save(path)
    else:
        path.write_bytes(b"not an image")
    with pytest.raises(ManifestError, match="0044_019_04_mask2"):
        list(read_aitex(aitex))
    problems = ProblemList()
    assert len(list(read_aitex(aitex, problems))) == 3
    assert len(problems.messages) == 1


def test_aitex_problems(aitex):
    strip(aitex / "Defect_images/0107_019_04.png")
    strip(aitex / "Defect_images/0108_019_04.png")
    strip(aitex / "Mask_images/0108_019_04_mask.png", [])
    strip(aitex / "Defect_images/holiday.png")
    problems = ProblemList()
    assert len(list(read_aitex(aitex, problems))) == 7
    assert ["no mask" in problems.messages[0], "marks nothing" in problems.messages[1]] == [True, True]
    assert "nnnn_ddd_ff.png" in problems.messages[2]
    with pytest.raises(ManifestError, match="no folder Defect_images"):
        read_aitex(aitex / "Mask_images")


def zju(**more):
    return {
        "Images/000001.jpg": None,
        "Images/000002.jpg": None,
        "Images/000003.jpg": None,
        "Images/000004.jpg": None,
        "Annotations/masks/000002.png": None,
        "Annotations/xmls/000003.xml": "<annotation><pattern>2</pattern><defective>1</defective><bbox><xmin>5</xmin>"
        "<ymin>6.0</ymin><xmax>50</xmax><ymax>60</ymax></bbox></annotation>",
        "ImageSets/Patterns/pattern1.json": json.dumps(
            {"normal": {"train": ["000001"], "test": []}, "defect": {"train": [], "test": ["000002"]}}
        ),
        "ImageSets/Patterns/pattern2.json": json.dumps(
            {"normal": {"train": [], "test": ["000004"]}, "defect": {"train": ["000003"], "test": []}}
        ),
        "ImageSets/Groups/group1.json": json.dumps(
            {"normal": {"train": ["000001"], "test": ["000004"]}, "defect": {"train": ["000003"], "test": ["000002"]}}
        ),
        **more,
    }


def test_zju_leaper(plant, facts):
    root = plant(zju())
    samples = list(read_zju_leaper(root))
    assert facts(samples, root) == [
        ("Images/000001.jpg", "group1", True, []),
        ("Images/000002.jpg", "group1", False, ["Annotations/masks/000002.png"]),
        ("Images/000004.jpg", "group1", True, []),
        ("Images/000003.jpg", "group1", False, []),
    ]
    assert [(s.view, s.split) for s in samples] == [
        ("pattern1", "train"),
        ("pattern1", "test"),
        ("pattern2", "test"),
        ("pattern2", "train"),
    ]
    assert samples[3].boxes.tolist() == [[5, 6, 50, 60]]


def test_zju_leaper_without_groups(plant):
    files = zju()
    del files["ImageSets/Groups/group1.json"]
    assert [s.category for s in read_zju_leaper(plant(files))] == ["pattern1", "pattern1", "pattern2", "pattern2"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Annotations/xmls/000003.xml", "<annotation>", "not XML"),
        ("Annotations/xmls/000003.xml", "<annotation/>", "no mask"),
        ("Annotations/xmls/000003.xml", "<a><bbox><xmin>5</xmin></bbox></a>", "is not a number"),
        ("ImageSets/Patterns/pattern2.json", '{"normal": {}, "defect": {"train": ["../1"]}}', "leads out"),
        ("ImageSets/Patterns/pattern2.json", '{"normal": {}, "defect": {"train": ["9"]}}', "does not exist"),
        ("ImageSets/Patterns/pattern2.json", '{"normal": {}}', "pattern2.json: defect"),
    ],
)
def test_zju_leaper_problems(plant, file, content, message):
    with pytest.raises(ManifestError, match=message):
        list(read_zju_leaper(plant(zju(**{file: content}))))


def test_zju_leaper_wrong_root(plant):
    with pytest.raises(ManifestError, match="no folder Annotations"):
        read_zju_leaper(plant({"Images/a.jpg": None}))


LATER = {
    "Class1/Train/0576.PNG": None,
    "Class1/Train/0579.PNG": None,
    "Class1/Train/Label/0579_label.PNG": None,
    "Class1/Train/Label/Labels.txt": "1\n576\t0\t0576.PNG\t0\t0\n579\t1\t0579.PNG\t0\t0579_label.PNG\n",
    "Class1/Test/0001.PNG": None,
    "Class1/Test/Label/Labels.txt": "1\n1\t0\t0001.PNG\t0\t0\n",
}


def test_dagm_later_version(plant, facts):
    root = plant(LATER)
    samples = list(read_dagm(root))
    assert facts(samples, root) == [
        ("Class1/Train/0576.PNG", "Class1", True, []),
        ("Class1/Train/0579.PNG", "Class1", False, ["Class1/Train/Label/0579_label.PNG"]),
        ("Class1/Test/0001.PNG", "Class1", True, []),
    ]
    assert [s.split for s in samples] == ["train", "train", "test"]
    nested = plant({f"Class1/{name}": content for name, content in LATER.items()}, "nested")
    assert [s.category for s in read_dagm(nested)] == ["Class1"] * 3


def test_dagm_flagged_but_without_a_mask(plant):
    root = plant(LATER)
    (root / "Class1/Train/Label/0579_label.PNG").unlink()
    with pytest.raises(ManifestError, match=r"0579.PNG: no mask"):
        list(read_dagm(root))


@pytest.mark.parametrize("separator", ["\t", "\t\n"])
def test_dagm_competition_version(plant, separator):
    lines = f"1{separator}30\t10\t{math.pi / 2}\t100\t200\n2{separator}30.0\t10.0\t0\t500\t5\n"
    root = plant(
        {"Class1/1.png": None, "Class1_def/1.png": None, "Class1_def/2.png": None, "Class1_def/labels.txt": lines}
    )
    samples = list(read_dagm(root))
    assert [s.is_normal for s in samples] == [True, False, False]
    assert samples[1].boxes.tolist() == pytest.approx(np.array([[90, 170, 110, 230]]))  # upright: half sides 10 and 30
    assert samples[2].boxes.tolist() == [[470, 0, 512, 15]]  # cut off at the image's edge


def test_dagm_competition_problems(plant):
    files = {"Class1/1.png": None, "Class1_def/1.png": None, "Class1_def/2.png": None}
    root = plant({**files, "Class1_def/labels.txt": "1\t30\t10\t0\t100\t200\n"})
    with pytest.raises(ManifestError, match=r"2.png: no line in labels.txt"):
        list(read_dagm(root))
    root = plant({**files, "Class1_def/labels.txt": "1\t30\t10\t0\t100\n"})
    with pytest.raises(ManifestError, match="5 values; expected six"):
        list(read_dagm(root))
    root = plant({**files, "Class1_def/labels.txt": "1\t30\tinf\t0\t100\t2\n"})
    with pytest.raises(ManifestError, match="'inf' is not a number"):
        list(read_dagm(root))
    with pytest.raises(ManifestError, match="no Class1_def beside it"):
        read_dagm(plant({"Class1/1.png": None}, "half"))
    with pytest.raises(ManifestError, match="no folder Class1"):
        read_dagm(plant({"a/1.png": None}, "none"))


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.9, -2.8])
def test_the_box_around_an_ellipse_equals_that_of_a_rasterised_one(angle):
    parsed = np.zeros((400, 400), np.uint8)
    cv2.ellipse(parsed, (200, 190), (90, 35), math.degrees(angle), 0, 360, 255, -1)
    ys, xs = np.nonzero(parsed)
    box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert ellipse_box(90, 35, angle, 200, 190)[0] == pytest.approx(box, abs=2)
