"""COCO label files through `build coco`: shapes become boxes, and a lost label never makes an image normal."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from differad.data.build import BuildOptions, build
from differad.data.pairing import Pairing
from differad.data.sources.coco import read_coco
from differad.data.sources.sample import ProblemList
from differad.errors import InputWarning, ManifestError

WIDTH, HEIGHT = 12, 8  # of every image that `plant` writes for a mark
MARK = (0, 0, 1, 1)


def coco(images, annotations, **more):
    categories = [{"id": 1, "name": "scratch"}, {"id": 2, "name": "dent"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories, **more})


IMAGES = [{"id": 7, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT}, {"id": 8, "file_name": "a.jpg"}]
BOXES = [
    {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4.5], "iscrowd": 0},
    {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5]},
]


@pytest.fixture
def one(plant):
    """The samples of one image b.jpg (12 x 8), and of a normal one beside it, with these annotations."""

    def read(*annotations, image=IMAGES[0], problems=None):
        numbered = [{"id": n, "image_id": 7, "category_id": 1, **a} for n, a in enumerate(annotations)]
        root = plant({"labels.json": coco([image, IMAGES[1]], numbered), "b.jpg": MARK, "a.jpg": None})
        return list(read_coco(root) if problems is None else read_coco(root, problems))

    return read


@pytest.mark.parametrize(
    ("labels", "folder", "split"),
    [
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_train.json", "images", "train"),
        ("test/_annotations.coco.json", "test", "test"),
        ("valid/labels.json", "valid", "val"),
        ("labels.json", ".", ""),
        ("contest/labels.json", "contest", ""),
    ],
)
def test_layouts(plant, labels, folder, split):
    root = plant({labels: coco(IMAGES, BOXES), f"{folder}/a.jpg": None, f"{folder}/b.jpg": MARK}, "board")
    good, bad = read_coco(root)
    assert (good.image.name, good.is_normal, good.boxes) == ("a.jpg", True, None)
    assert (good.split, good.category) == (split, "board")
    assert bad.boxes.tolist() == [[1, 2, 4, 6.5], [0, 0, 5, 5]]  # 1 + 3 = 4, 2 + 4.5 = 6.5
    assert bad.defect_type == "dent+scratch"


def test_a_name_in_two_folders(plant):
    files = {"annotations/instances_val.json": coco(IMAGES, BOXES), "val/a.jpg": None, "val/b.jpg": MARK}
    root = plant({**files, "train/a.jpg": None, "train/b.jpg": MARK})
    assert {sample.image.parent.name for sample in read_coco(root)} == {"val"}  # the file's own split
    root = plant({"annotations/all.json": files["annotations/instances_val.json"], **{
        f"{folder}/{name}": MARK for folder in ("one", "two") for name in ("a.jpg", "b.jpg")}}, "unclear")  # fmt: skip
    with pytest.raises(ManifestError, match=r"a\.jpg is at .*one/a\.jpg and .*two/a\.jpg; expected one"):
        list(read_coco(root))


# Each annotation and the box that it marks.
DRAWN = {
    "polygon": ({"segmentation": [[1, 1, 4, 1, 4, 3]]}, [1, 1, 4, 3]),
    "two parts": ({"segmentation": [[1, 1, 2, 1, 2, 3], [7, 4, 9, 4, 9, 8]]}, [1, 1, 9, 8]),
    "one part, no list around it": ({"segmentation": [1, 1, 4, 1, 4, 3], "bbox": []}, [1, 1, 4, 3]),
    # 12 x 8 down the columns: two columns, then rows 1 to 3 of the third and of the fourth
    "run lengths": ({"segmentation": {"size": [8, 12], "counts": [17, 3, 5, 3, 68]}}, [2, 1, 4, 4]),
    "compressed": ({"segmentation": {"size": [8, 12], "counts": "a03500o1"}}, None),
    "bbox beside its polygon": ({"bbox": [1, 1, 3, 2], "segmentation": [[1, 1, 4, 1, 4, 3]]}, [1, 1, 4, 3]),
    "empty polygon beside": ({"bbox": [1, 1, 3, 2], "segmentation": [[]]}, [1, 1, 4, 3]),
    # 6 x 2 about (5, 4), by a quarter: 2 x 6
    "turned": ({"bbox": [2, 3, 6, 2], "attributes": {"rotation": 90.0}}, [4, 1, 6, 7]),
    "turned, corners beside": (
        {"bbox": [2, 3, 6, 2], "segmentation": [[2, 3, 2, 5, 8, 5, 8, 3]], "attributes": {"rotation": "270"}},
        [4, 1, 6, 7],
    ),
    "turned outline": (
        {"bbox": [4, 1, 2, 6], "segmentation": [[4, 4, 5, 1, 6, 4, 5, 7]], "attributes": {"rotation": 30}},
        [4, 1, 6, 7],
    ),
    "no turn": ({"bbox": [2, 3, 6, 2], "attributes": {"rotation": 0.0, "occluded": False}}, [2, 3, 8, 5]),
    "no attributes": ({"bbox": [2, 3, 6, 2], "attributes": None, "segmentation": None}, [2, 3, 8, 5]),
    "text id": ({"bbox": [2, 3, 6, 2], "image_id": "7"}, [2, 3, 8, 5]),
    "one pixel": ({"bbox": [0, 0, 1, 1]}, [0, 0, 1, 1]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_annotated_shapes_become_boxes(one, name):
    annotation, expected = DRAWN[name]
    if expected is None:
        encoder = pytest.importorskip("pycocotools.mask")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[2:5, 3:7] = 1
        annotation = {"segmentation": {"size": [8, 12], "counts": encoder.encode(mask)["counts"].decode()}}
        expected = [3, 2, 7, 5]
    samples = one(annotation)
    assert [sample.is_normal for sample in samples] == [True, False]
    assert samples[1].boxes.tolist() == [pytest.approx(expected)]


WRONG = [
    ({"bbox": [1, 2, 0, 4]}, "has no area"),
    ({"bbox": [5, 5, -2, 2]}, "has no area; expected width and height above 0"),
    ({"bbox": [1, 2, 3]}, "expected x, y, width, height"),
    ({"bbox": []}, "neither bbox nor segmentation; expected bbox as x, y, width, height"),
    ({"bbox": None, "segmentation": []}, "neither bbox nor segmentation"),
    ({"bbox": [1, 2, "3", 4]}, r"annotations\.0: bbox\.2: '3'"),
    ({"bbox": [1, 2, float("nan"), 4]}, r"bbox\.2"),
    ({"bbox": [0.1, 0.25, 0.5, 0.5]}, "holds fractions of the image's sides; expected pixels"),
    ({"bbox": [0.0, 0.0, 1.0, 1.0]}, "holds fractions"),
    ({"segmentation": [[0.1, 0.1, 0.4, 0.1, 0.4, 0.3]]}, "segmentation .* holds fractions"),
    ({"bbox": [20, 2, 3, 4]}, "no area inside the 12x8 image"),
    ({"segmentation": [[1, 1, 4, 1]]}, "a polygon of 4 numbers"),
    ({"segmentation": [[1, 1, 4, 1, 4, 3, 9]]}, "a polygon of 7 numbers"),
    ({"segmentation": {"size": [12, 8], "counts": [96]}}, r"segmentation\.size \[12, 8\]; expected \[8, 12\]"),
    ({"segmentation": {"size": [8, 12], "counts": [95]}}, "run lengths of 95 pixels; expected 12x8 = 96"),
    ({"segmentation": {"size": [8, 12], "counts": [96]}}, "marks nothing"),
    ({"segmentation": {"size": [8, 12], "counts": "zzz"}}, "compressed counts"),
    ({"bbox": [8, 5, 4, 3], "segmentation": [[0, 0, 2, 0, 2, 2]]}, "mark different places"),
    ({"bbox": [1, 1, 2, 2], "attributes": {"rotation": "left"}}, r"attributes\.rotation 'left'; expected degrees"),
    ({"bbox": [1, 1, 2, 2], "iscrowd": 2}, "iscrowd"),
    ({"bbox": [1, 1, 2, 2], "iscrowd": 1}, r"holds crowd regions \(iscrowd 1\) only"),
    ({"bbox": [1, 1, 2, 2], "image_id": 9}, "image_id 9 is the id of no image, so an image without annotations"),
    ({"bbox": [1, 1, 2, 2], "image_id": "07"}, "image_id '07' is the id of no image"),
    ({"bbox": [1, 1, 2, 2], "image_id": 7.0}, "image_id"),
]


@pytest.mark.parametrize(("annotation", "says"), WRONG, ids=[says for _, says in WRONG])
def test_wrong_annotations_are_refused_or_left_out_with_their_image(one, annotation, says):
    with pytest.raises(ManifestError, match=says):
        one(annotation)
    problems = ProblemList()
    assert "b.jpg" not in {sample.image.name for sample in one(annotation, problems=problems)}
    assert len(problems.messages) == 1


def test_a_lost_annotation_makes_no_image_normal(one):
    problems = ProblemList()
    samples = one({"bbox": [1, 1, 2, 2]}, {"bbox": [1, 1, 2, 2], "image_id": 9}, problems=problems)
    # a.jpg has no annotation: the lost one may be its own.
    assert [(sample.image.name, sample.is_normal) for sample in samples] == [("b.jpg", False)]


def test_a_box_past_the_edge_is_clipped_if_the_file_states_the_size(one):
    with pytest.warns(InputWarning, match=r"labels\.json: 1 boxes extended past their image's edge"):
        samples = one({"bbox": [9, 5, 6, 6]}, {"bbox": [0, 0, 12, 8]})
    assert samples[1].boxes.tolist() == [[9, 5, 12, 8], [0, 0, 12, 8]]
    unsized = {"id": 7, "file_name": "b.jpg"}
    with pytest.raises(ManifestError, match="extends past the 12x8 image, and the file states no width and height"):
        one({"bbox": [9, 5, 6, 6]}, image=unsized)
    assert one({"bbox": [9, 5, 3, 3]}, image=unsized)[1].boxes.tolist() == [[9, 5, 12, 8]]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"width": 24, "height": 16}, "'b.jpg': labelled as 24x16 pixels, but the image is 12x8; expected"),
        ({"width": 8, "height": 12}, "width and height are swapped, as without its EXIF orientation"),
        ({"height": 9}, r"labelled as \?x9 pixels"),
        ({"file_name": "../../x.jpg"}, "leads out"),
        ({"file_name": "none.jpg"}, "neither beside the labels nor in images/"),
        ({"file_name": None}, "no file_name"),
        ({"id": 8}, r"images\.1: image id 8 occurs twice, for 'b.jpg' and 'a.jpg'"),
        ({"id": "8"}, r"images\.1: image id 8 occurs twice"),
    ],
)
def test_wrong_images(one, image, says):
    image = {"id": 7, "file_name": "b.jpg", **image}
    with pytest.raises(ManifestError, match=says):
        one({"bbox": [1, 1, 2, 2], "image_id": image["id"]}, image=image)


def test_an_image_with_two_entries(plant):
    images = [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": ".\\b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    root = plant({"labels.json": coco(images, [{"image_id": 2, "bbox": [1, 1, 2, 2]}]), "b.jpg": MARK, "a.jpg": None})
    with pytest.raises(ManifestError, match=r"b\.jpg has 2 entries; expected one, as its labels are divided"):
        list(read_coco(root))
    problems = ProblemList()
    assert [sample.image.name for sample in read_coco(root, problems)] == ["a.jpg"]
    assert len(problems.messages) == 2


def test_an_annotation_id_that_occurs_twice(one):
    with pytest.raises(ManifestError, match=r"annotations\.1: annotation id 5 occurs twice, at annotations\.0 too"):
        one({"bbox": [1, 1, 2, 2], "id": 5}, {"bbox": [3, 3, 2, 2], "id": 5})


def test_labels_of_the_image_as_stored_by_the_camera(plant):
    root = plant({"labels.json": coco([{"id": 1, "file_name": "t.jpg", "width": 12, "height": 8}],
                                      [{"image_id": 1, "bbox": [8, 1, 4, 2]}])})  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(root / "t.jpg", exif=exif)  # upright: 8 x 12
    with pytest.raises(ManifestError, match=r"labelled as 12x8 pixels, but the image is 8x12: .*EXIF"):
        list(read_coco(root))


def test_crowd_regions_are_left_out_and_counted(one):
    crowd = {"bbox": [0, 0, 12, 8], "iscrowd": 1, "segmentation": {"size": [8, 12], "counts": [0, 96]}}
    with pytest.warns(InputWarning, match=r"labels\.json: 1 crowd regions \(iscrowd 1\) left out"):
        samples = one({"bbox": [1, 1, 2, 2]}, crowd)
    assert samples[1].boxes.tolist() == [[1, 1, 3, 3]]


def test_images_of_differads_own_export(plant):
    images = [{"id": n, "file_name": f"{n}.jpg", **more} for n, more in enumerate(
        [{"labelled": True}, {"labelled": False}, {"labelled": False, "anomalous": True}])]  # fmt: skip
    root = plant({"labels.json": coco(images, []), "0.jpg": None, "1.jpg": None, "2.jpg": None})
    with pytest.warns(InputWarning, match=r"1 unlabelled images left out"):
        normal, unknown = read_coco(root)
    assert (normal.image.name, normal.is_normal) == ("0.jpg", True)
    assert (unknown.image.name, unknown.is_normal, unknown.boxes, unknown.masks) == ("2.jpg", False, None, ())


def test_a_valid_file_gives_no_warning(plant, tmp_path):
    root = plant({"labels.json": coco(IMAGES, BOXES), "a.jpg": (0, 0, 2, 2), "b.jpg": MARK})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = build("coco", root, tmp_path / "out", BuildOptions(Pairing("random", 1, None)), progress=False)
    assert [pair.boxes.tolist() for pair in built.pairs if pair.anomalous] == [[[1, 2, 4, 6.5], [0, 0, 5, 5]]]


def test_broken_files(plant):
    with pytest.raises(ManifestError, match=r"no annotations/\*.json"):
        read_coco(plant({"images/a.jpg": None}))
    for text in ("{", "[]", '{"images": 3, "annotations": []}', '{"images": []}'):
        with pytest.raises(ManifestError, match=r"labels.json: "):
            list(read_coco(plant({"labels.json": text}, "broken")))
    path = plant({"labels.json": b"\xff\xfe"}, "binary")
    with pytest.raises(ManifestError, match="not UTF-8"):
        list(read_coco(path))
