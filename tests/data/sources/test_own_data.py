"""A user's own data: pos/neg folders, anomalib's Folder, COCO and YOLO labels."""

import json

import pytest
from PIL import Image

from differad.data.manifest import read_pairs
from differad.data.sources.coco import read_coco
from differad.data.sources.folders import read_folder, read_neg_defective, read_pos_defective, read_pos_neg
from differad.data.sources.sample import ProblemList
from differad.data.sources.yolo import class_names, read_yolo
from differad.errors import ImageError, ManifestError, OptionError

POS_NEG = {
    "lens/pos/a.jpg": None,
    "lens/pos/a.png": (1, 1, 4, 3),
    "lens/pos/b.png": None,
    "lens/pos/b_mask.png": (1, 1, 4, 3),
    "lens/neg/c.jpg": None,
}


def test_pos_and_neg_mean_what_the_caller_says(plant, facts):
    root = plant(POS_NEG)
    assert facts(read_pos_defective(root), root) == [
        ("lens/neg/c.jpg", "lens", True, []),
        ("lens/pos/a.jpg", "lens", False, ["lens/pos/a.png"]),
        ("lens/pos/b.png", "lens", False, ["lens/pos/b_mask.png"]),
    ]
    problems = ProblemList()
    assert facts(read_neg_defective(root, problems), root) == []
    # With the folders the other way round the good parts have masks that mark defects.
    assert ["a.png: marks a defect, but" in problems.messages[0], "b_mask.png: marks" in problems.messages[1]] == [
        True
    ] * 2
    assert "c.jpg: no mask" in problems.messages[2]
    with pytest.raises(OptionError, match="expected 'pos' or 'neg'"):
        read_pos_neg(root, defective="bad")


def test_pos_and_neg_at_the_root(plant):
    root = plant(POS_NEG) / "lens"
    assert {s.category for s in read_pos_defective(root)} == {"lens"}


def test_pos_neg_broken_layouts(plant, tmp_path):
    with pytest.raises(ManifestError, match="no folder neg"):
        read_pos_defective(plant({"pos/a.jpg": None}))
    with pytest.raises(ManifestError, match="no folder pos"):
        read_pos_defective(plant({"lens/good/a.jpg": None}, "named"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no folders pos and neg"):
        read_pos_defective(tmp_path / "empty")


FOLDER = {
    "good/1.png": None,
    "scratch/2.png": None,
    "dent/3.jpg": None,
    "ground_truth/scratch/2_mask.png": None,
    "ground_truth/dent/3.png": None,
}


def test_folder(plant, facts):
    root = plant(FOLDER, "widget")
    expected = [
        ("good/1.png", "widget", True, []),
        ("dent/3.jpg", "widget", False, ["ground_truth/dent/3.png"]),
        ("scratch/2.png", "widget", False, ["ground_truth/scratch/2_mask.png"]),
    ]
    samples = list(read_folder(root))
    assert facts(samples, root) == expected
    assert [s.defect_type for s in samples] == ["", "dent", "scratch"]
    assert facts(read_folder(root, normal="good", abnormal=("dent",), masks="ground_truth"), root) == expected[:2]


def test_folder_with_all_masks_in_one(plant, facts):
    root = plant({"normal/1.png": None, "abnormal/2.jpg": None, "masks/2.jpg": None})
    assert facts(read_folder(root), root)[1][3] == ["masks/2.jpg"]


def test_masks_beside_the_images_of_a_folder(plant):
    files = {"good/1.png": None, "good/_mask.png": None, "bad/2.jpg": None, "bad/2_mask.png": None}
    with pytest.raises(ManifestError, match=r"2_mask.png: its name says that it is the mask of .*2.jpg"):
        list(read_folder(plant(files)))
    left = [sample.image.name for sample in read_folder(plant(files), ProblemList())]
    assert left == ["1.png", "_mask.png", "2.jpg"]


def test_folder_broken_layouts(plant):
    with pytest.raises(ManifestError, match="no folder good"):
        read_folder(plant({"images/1.png": None}))
    with pytest.raises(ManifestError, match="train: the name does not say that it holds defects"):
        read_folder(plant({"good/1.png": None, "train/2.png": None}, "unmasked"))
    with pytest.raises(ManifestError, match="folders good and ok both have a name for good"):
        read_folder(plant({"good/1.png": None, "ok/2.png": None}, "twice"))
    with pytest.raises(ManifestError, match="no folder spots"):
        read_folder(plant(FOLDER, "named"), abnormal=("spots",))
    with pytest.raises(ManifestError, match="no folder fine"):
        read_folder(plant(FOLDER, "fine"), normal="fine")
    root = plant({**FOLDER, "dent/4.jpg": None}, "missing")
    with pytest.raises(ManifestError, match=r"4.jpg: no mask"):
        list(read_folder(root))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: ['scratch', \"dent\"]\nnc: 2\n", {0: "scratch", 1: "dent"}),
        ("train: images/train\nnames:\n- scratch\n- dent\nnc: 2\n", {0: "scratch", 1: "dent"}),
        ("names:\n  0: scratch  # deep\n  3: 'big dent'\n\nnc: 2\n", {0: "scratch", 3: "big dent"}),
        ("names: {0: scratch, 1: dent}", {0: "scratch", 1: "dent"}),
        ("names: [\n  scratch,\n  dent\n]\nnc: 2\n", {0: "scratch", 1: "dent"}),
        ("nc: 2\n", {}),
        ("names:\nnc: 2\n", {}),
    ],
)
def test_class_names(text, expected):
    assert class_names(text) == expected


YOLO = {
    "data.yaml": "names: [scratch, dent]\n",
    "images/train/a.jpg": (0, 0, 1, 1),
    "images/train/b.jpg": None,
    "images/train/c.jpg": None,
    "labels/train/a.txt": "1 0.5 0.5 0.5 0.25\n0 0 0 0.5 0 0.5 1\n",
    "labels/train/b.txt": "\n",
}


def test_yolo(plant):
    samples = list(read_yolo(plant(YOLO, "part")))
    assert [(s.image.name, s.is_normal, s.split, s.category) for s in samples] == [
        ("a.jpg", False, "train", "part"),
        ("b.jpg", True, "train", "part"),
        ("c.jpg", True, "train", "part"),
    ]
    # 12 x 8 pixels: 0.25 * 12 = 3, 0.375 * 8 = 3, 0.75 * 12 = 9, 0.625 * 8 = 5; the polygon spans (0, 0) to (0.5, 1).
    assert samples[0].boxes.tolist() == [[3, 3, 9, 5], [0, 0, 6, 8]]
    assert samples[0].defect_type == "dent+scratch"


@pytest.mark.parametrize(
    ("images", "labels", "split"), [("images", "labels", ""), ("valid/images", "valid/labels", "valid")]
)
def test_yolo_layouts(plant, images, labels, split):
    root = plant({f"{images}/a.jpg": (0, 0, 1, 1), f"{labels}/a.txt": "0 0.5 0.5 1 1"})
    assert [(s.boxes.tolist(), s.split, s.defect_type) for s in read_yolo(root)] == [([[0, 0, 12, 8]], split, "0")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5", "expected class cx cy width height"),
        ("0 0.5 0.5 100 100", "not pixels"),
        ("0 0.9 0.5 0.3 0.1", "extends past the image"),
        ("0 0.5 0.5 0.1 0.1 0.87", "labels hold no confidence"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.8", "labels hold no confidence"),
        ("0 0.1 0.1 0.1 0.9 0.1 0.5", "a box without area"),
        ("0 0.5 nan 0.1 0.1", "'nan' is not a number"),
        ("0 0.5 0.5 1_0 0.1", "'1_0' is not a number"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5; expected one of 0, 1 as in data.yaml"),
        ("7 0.5 0.5 0.1 0.1", "class 7; expected one of 0, 1 as in data.yaml"),
        ("0 0.5 0.5 0 0.5", "without area"),
        ("scratch 0.5 0.5 0.1 0.1", "'scratch' is not a number"),
    ],
)
def test_yolo_problems(plant, line, message):
    root = plant({**YOLO, "labels/train/a.txt": line})
    with pytest.raises(ManifestError, match=message):
        list(read_yolo(root))
    problems = ProblemList()
    assert len(list(read_yolo(root, problems))) == 2
    assert "a.txt" in problems.messages[0]


def test_yolo_rotated_boxes_and_repeated_rows(plant):
    turned = "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n"
    root = plant({**YOLO, "labels/train/a.txt": turned + turned})
    assert next(read_yolo(root)).boxes.tolist() == [[3, 2, 9, 6]]  # 0.25 * 12, 0.25 * 8, 0.75 * 12, 0.75 * 8


def test_yolo_fractions_are_those_of_the_upright_image(plant):
    root = plant(YOLO)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(root / "images/train/a.jpg", exif=exif)
    assert next(read_yolo(root)).boxes.tolist() == [[2, 4.5, 6, 7.5], [0, 0, 4, 12]]  # of 8 x 12 pixels


def test_yolo_nested_folders(plant):
    root = plant(
        {
            "images/train/lot/a.jpg": (0, 0, 1, 1),
            "images/train/lot/b.jpg": None,
            "labels/train/lot/a.txt": "0 0.5 0.5 1 1",
        }
    )
    assert [(s.image.name, s.is_normal, s.split) for s in read_yolo(root)] == [
        ("a.jpg", False, "train"),
        ("b.jpg", True, "train"),
    ]


@pytest.mark.parametrize(
    ("label", "image"),
    [
        ("labels/validation/c.txt", "images/train/c.jpg"),
        ("labels/c.txt", "images/train/c.jpg"),
        ("labels/train/C.txt", "images/train/c.jpg"),
        ("labels/train/c.TXT", None),
        ("labels/train/z.txt", None),
    ],
)
def test_yolo_labels_in_another_place(plant, label, image):
    """An unmatched label is named, and an image that it may belong to never counts as normal, even if problems are skipped."""
    root = plant({**YOLO, "images/train/c.jpg": (0, 0, 1, 1), label: "0 0.5 0.5 1 1"})
    if label.endswith(".TXT"):
        assert [s.is_normal for s in read_yolo(root)] == [False, True, False]
        return
    with pytest.raises(ManifestError, match=rf"{label}: no image has this label") as error:
        list(read_yolo(root))
    assert image is None or str(root / image) in str(error.value)
    problems = ProblemList()
    samples = {s.image.name: s.is_normal for s in read_yolo(root, problems)}
    assert samples == ({"a.jpg": False, "b.jpg": True} | ({} if image else {"c.jpg": True}))
    assert len(problems.messages) == (2 if image else 1)


@pytest.mark.parametrize("extra", ["images/train/a.png", "labels/train/a.TXT"])
def test_yolo_two_candidates(plant, extra):
    root = plant({**YOLO, extra: (0, 0, 1, 1) if extra.endswith("png") else ""})
    with pytest.raises(
        ManifestError, match=r"a.jpg: one name for .*a.jpg and .*; expected one label for one image"
    ) as error:
        list(read_yolo(root))
    assert str(root / extra) in str(error.value)
    assert [s.image.name for s in read_yolo(root, ProblemList())] == ["b.jpg", "c.jpg"]


def test_yolo_a_folder_without_labels_is_not_normal(plant):
    root = plant({**YOLO, "images/val/d.jpg": None})
    with pytest.raises(ManifestError, match=r"images/val: no folder .*labels/val; an empty one says"):
        list(read_yolo(root))
    assert len(list(read_yolo(root, ProblemList()))) == 3
    (root / "labels/val").mkdir()
    assert [s.is_normal for s in read_yolo(root)] == [False, True, True, True]


def test_yolo_broken_image_and_root(plant):
    root = plant({**YOLO, "images/train/a.jpg": "broken"})
    with pytest.raises((ManifestError, ImageError), match=r"a.jpg"):
        list(read_yolo(root))
    with pytest.raises(ManifestError, match="no folders images and labels"):
        read_yolo(plant({"images/a.jpg": None}, "unlabelled"))


def test_real_boards_through_coco_and_yolo(shared, tmp_path):
    """Boxes of real pairs, written in both formats, come back (YOLO's shares to a hundredth of a pixel)."""
    pairs = list(read_pairs(shared / "deeppcb" / "pairs.jsonl"))
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").symlink_to(shared.resolve() / "deeppcb" / "target")
    images, annotations = [], []
    for number, pair in enumerate(pairs):
        images.append({"id": number, "file_name": pair.target.name})
        with Image.open(pair.target) as image:
            width, height = image.size
        lines = []
        for x1, y1, x2, y2 in pair.boxes.tolist():
            annotations.append({"image_id": number, "category_id": 0, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append("0 " + " ".join(f"{share:.6f}" for share in shares))
        (tmp_path / "labels" / f"{pair.target.stem}.txt").write_text("\n".join(lines))
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    truth = {pair.target.name: pair.boxes.tolist() for pair in pairs}
    for reader in (read_coco, read_yolo):
        samples = list(reader(tmp_path))
        assert len(samples) == len(pairs) == 130
        for sample in samples:
            boxes = [] if sample.boxes is None else sample.boxes.tolist()
            assert sample.is_normal == (not boxes)
            assert len(boxes) == len(truth[sample.image.name])
            for box, true in zip(boxes, truth[sample.image.name], strict=True):
                assert box == pytest.approx(true, abs=0.01)
