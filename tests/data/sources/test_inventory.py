"""In every layout no file is ignored silently, but known additional files of published data sets are no error."""

import json

import pytest

from differad.data.sources.aitex import read_aitex
from differad.data.sources.dagm import read_dagm
from differad.data.sources.deeppcb import read_deeppcb
from differad.data.sources.folders import read_folder, read_neg_defective, read_pos_defective
from differad.data.sources.mvtec import read_btad, read_mvtec, read_mvtec2, read_mvtec_loco
from differad.data.sources.real_iad import read_real_iad
from differad.data.sources.sample import ProblemList, walk
from differad.data.sources.surfaces import read_kolektor, read_kolektor2, read_magnetic_tile
from differad.data.sources.visa import read_visa
from differad.data.sources.yolo import read_yolo
from differad.data.sources.zju_leaper import read_zju_leaper
from differad.errors import InputWarning, ManifestError

BLACK, MARK = (0, 0, 0, 0), (1, 1, 4, 3)
ENTRY = {"category": "nut", "anomaly_class": "OK", "image_path": "OK/S1/a_C1_.jpg", "mask_path": None}
SETS = {
    "mvtec": (
        read_mvtec,
        {
            "nut/readme.txt": "",
            "nut/train/good/0.png": None,
            "nut/test/good/0.png": None,
            "nut/test/bad/1.png": None,
            "nut/ground_truth/bad/1_mask.png": MARK,
            "nut/ground_truth/good/0_mask.png": BLACK,
        },
    ),
    "btad": (read_btad, {"01/train/ok/0.bmp": None, "01/test/ko/1.bmp": None, "01/ground_truth/ko/1.png": None}),
    "loco": (
        read_mvtec_loco,
        {"box/train/good/0.png": None, "box/test/a/1.png": None, "box/ground_truth/a/1/000.png": None},
    ),
    "mvtec2": (
        read_mvtec2,
        {
            "can/train/good/0_regular.png": None,
            "can/test_public/bad/1_regular.png": None,
            "can/test_public/ground_truth/bad/1_regular_mask.png": None,
            "can/test_private/0_regular.png": None,
        },
    ),
    "visa": (
        read_visa,
        {
            "nut/Data/Images/Normal/0.JPG": None,
            "nut/Data/Images/Anomaly/1.JPG": None,
            "nut/Data/Masks/Anomaly/1.png": None,
        },
    ),
    "visa with a table": (
        read_visa,
        {
            "split_csv/1cls.csv": "object,split,label,image,mask\nnut,train,normal,nut/Data/Images/Normal/0.JPG,\n",
            "nut/Data/Images/Normal/0.JPG": None,
        },
    ),
    "real_iad": (
        read_real_iad,
        {
            "realiad_1024/nut/OK/S1/a_C1_.jpg": None,
            "realiad_512/nut/OK/S1/a_C1_.jpg": None,
            "realiad_jsons/nut.json": json.dumps({"train": [ENTRY]}),
        },
    ),
    "dagm": (
        read_dagm,
        {
            "Class1/Train/1.PNG": None,
            "Class1/Train/2.PNG": None,
            "Class1/Train/Label/2_label.PNG": None,
            "Class1/Train/Label/Labels.txt": "1\n1\t0\t1.PNG\t0\t0\n2\t1\t2.PNG\t0\t2_label.PNG\n",
        },
    ),
    "dagm, ellipses": (
        read_dagm,
        {"Class1/1.png": None, "Class1_def/1.png": None, "Class1_def/labels.txt": "1 9 5 0 99 99"},
    ),
    "aitex": (
        read_aitex,
        {
            "NODefect_images/1/0001_000_00.png": BLACK,
            "Defect_images/0100_025_08.png": None,
            "Mask_images/0106_010_03_mask.png": None,
            "Defect_images/0106_010_03.png": None,
        },
    ),
    "zju": (
        read_zju_leaper,
        {
            "Images/1.jpg": None,
            "Images/2.jpg": None,
            "Annotations/masks/1.png": BLACK,
            "Annotations/masks/2.png": None,
            "Annotations/xmls/2.xml": "<a/>",
            "ImageSets/Patterns/pattern1.json": '{"normal": {"train": ["1"]}, "defect": {"test": ["2"]}}',
        },
    ),
    "deeppcb": (
        read_deeppcb,
        {
            "fig/overview.png": None,
            "PCBData/group1/1/10_test.jpg": None,
            "PCBData/group1/1/10_temp.jpg": None,
            "PCBData/group1/1_not/10.txt": "1 2 3 4 5\n",
        },
    ),
    "kolektor": (read_kolektor, {"kos01/Part0.jpg": None, "kos01/Part0_label.bmp": BLACK}),
    "kolektor2": (
        read_kolektor2,
        {"train/1.png": None, "train/1_GT.png": BLACK, "test/2.png": None, "test/2_GT.png": MARK},
    ),
    "magnetic_tile": (
        read_magnetic_tile,
        {
            "dataset.jpg": None,
            "MT_Free/Imgs/a.jpg": None,
            "MT_Free/Imgs/a.png": None,
            "MT_Fray/Imgs/b.jpg": None,
            "MT_Fray/Imgs/b.png": None,
        },
    ),
    "folder": (
        read_folder,
        {"good/1.png": None, "bad/1.png": None, "ground_truth/bad/1.png": MARK, "ground_truth/good/1.png": BLACK},
    ),
    "pos": (read_pos_defective, {"neg/1.png": None, "pos/1.jpg": None, "pos/1.png": MARK}),
    "neg": (read_neg_defective, {"nut/pos/1.png": None, "nut/neg/1.png": None, "nut/neg/1_gt.png": MARK}),
    "yolo": (
        read_yolo,
        {
            "images/train/a.png": MARK,
            "images/train/b.png": None,
            "labels/train/a.txt": "0 0.5 0.5 0.5 0.5",
            "labels/train/classes.txt": "scratch",
            "labels/train.cache": "x",
            "README.md": "",
        },
    ),
}


@pytest.mark.filterwarnings("ignore::differad.errors.InputWarning")
@pytest.mark.parametrize("name", SETS)
def test_complete_data_sets_pass(name, plant):
    read, files = SETS[name]
    samples = list(read(plant(files)))
    assert samples or name == "aitex"  # its strip here is smaller than a tile


LEFT_OVER = [
    ("mvtec", "nut/ground_truth/bad/7_mask.png"),
    ("mvtec", "nut/train/good/lot1/0.png"),
    ("mvtec", "nut/train/good/1.heic"),
    ("mvtec", "nut/train/good/1.json"),
    ("mvtec", "nut/test/3.png"),
    ("mvtec", "nut/val/good/3.png"),
    ("mvtec", "other/photo.JPG"),
    ("btad", "01/ground_truth/ko/1.bmp"),
    ("loco", "box/ground_truth/a/2/000.png"),
    ("mvtec2", "can/test_public/ground_truth/bad/9_regular_mask.png"),
    ("visa", "nut/Data/Masks/Anomaly/2.png"),
    ("visa with a table", "nut/Data/Images/Anomaly/7.JPG"),
    ("real_iad", "realiad_1024/nut/NG/BX/S2/b_C1_.jpg"),
    ("real_iad", "realiad_1024/usb/OK/S2/b_C1_.jpg"),
    ("dagm", "Class1/Train/Label/9_label.PNG"),
    ("dagm, ellipses", "Class2_def/1.png"),
    ("aitex", "Mask_images/0044_019_04_mask.png"),
    ("zju", "Annotations/masks/9.png"),
    ("zju", "Images/9.jpg"),
    ("deeppcb", "PCBData/group1/1_not/11.txt"),
    ("deeppcb", "PCBData/group1/1/11_temp.jpg"),
    ("kolektor", "kos01/Part9_label.bmp"),
    ("kolektor2", "test/9_GT.png"),
    ("magnetic_tile", "MT_Fray/Imgs/c.png"),
    ("magnetic_tile", "MT_Fray/d.jpg"),
    ("folder", "ground_truth/bad/9.png"),
    ("folder", "9.png"),
    ("pos", "pos/9_mask.png"),
    ("neg", "nut/other/9.png"),
    ("yolo", "labels/train/9.txt"),
    ("yolo", "labels/9.txt"),
    ("yolo", "images/train/a.cr2"),
    ("yolo", "images/train/x.json"),
]


@pytest.mark.filterwarnings("ignore::differad.errors.InputWarning")
@pytest.mark.parametrize(("name", "extra"), LEFT_OVER)
def test_unaccounted_files_are_named(name, extra, plant):
    read, files = SETS[name]
    whole = [(sample.image.name, sample.is_normal) for sample in read(plant(files))]
    root = plant({**files, extra: MARK if extra.endswith((".png", ".jpg", ".bmp", ".JPG", ".PNG")) else b"x"}, "extra")
    with pytest.raises(ManifestError) as error:
        list(read(root))
    assert str(root / extra) in str(error.value)
    assert "\n" not in str(error.value)
    problems = ProblemList()
    assert [(sample.image.name, sample.is_normal) for sample in read(root, problems)] == whole
    assert [str(root / extra) in message for message in problems.messages] == [True]


@pytest.mark.parametrize(
    ("name", "label", "image"),
    [
        ("folder", "good/1.json", "good/1.png"),
        ("mvtec", "nut/train/good/0.xml", "nut/train/good/0.png"),
        ("yolo", "images/train/b.txt", "images/train/b.png"),
    ],
)
def test_a_file_that_may_be_the_label_of_a_normal_image(name, label, image, plant):
    """LabelImg and LabelMe write beside images, where these layouts have no labels."""
    read, files = SETS[name]
    root = plant({**files, label: "{}"})
    with pytest.raises(ManifestError) as error:
        list(read(root))
    assert str(root / label) in str(error.value)
    assert str(root / image) in str(error.value)
    problems = ProblemList()
    assert root / image not in [sample.image for sample in read(root, problems)]
    assert str(root / image) in problems.messages[0]


@pytest.mark.parametrize(("name", "folder"), [("folder", "dent"), ("mvtec", "nut/test/dent"), ("neg", "nut/neg")])
def test_a_folder_without_an_image(name, folder, plant):
    read, files = SETS[name]
    root = plant(
        {**{path: content for path, content in files.items() if not path.startswith(folder)}, f"{folder}/x.pic": "x"}
    )
    with pytest.raises(ManifestError, match=rf"{folder}: holds no image; expected .bmp, .jpeg"):
        list(read(root))


def test_an_error_lists_all_unaccounted_files(plant):
    read, files = SETS["mvtec"]
    root = plant({**files, **{f"nut/train/good/lot/{number:02}.png": None for number in range(30)}})
    with pytest.raises(
        ManifestError, match=r"lot/00.png: .*likewise nut/train/good/lot/01.png, .*20.png, and 9 more\)"
    ):
        list(read(root))
    problems = ProblemList()
    list(read(root, problems))
    assert len(problems.messages) == 30


@pytest.mark.parametrize(
    ("name", "mask", "image"),
    [
        ("mvtec", "nut/ground_truth/good/0_mask.png", "nut/test/good/0.png"),
        ("zju", "Annotations/masks/1.png", "Images/1.jpg"),
        ("folder", "ground_truth/good/1.png", "good/1.png"),
    ],
)
def test_a_normal_image_whose_mask_marks_a_defect(name, mask, image, plant):
    read, files = SETS[name]
    root = plant({**files, mask: MARK})
    with pytest.raises(ManifestError, match=r"marks a defect, but .* is among the good parts"):
        list(read(root))
    problems = ProblemList()
    assert root / image not in [sample.image for sample in read(root, problems)]
    assert str(root / mask) in problems.messages[0]


def test_a_mask_in_a_common_folder_without_a_defect(plant):
    files = {"good/7.png": None, "good/8.png": None, "bad/9.png": None, "masks/9.png": MARK, "masks/7.png": MARK}
    root = plant(files)
    with pytest.raises(ManifestError, match=r"masks/7.png: marks a defect, but .*good/7.png is among the good parts"):
        list(read_folder(root))
    assert [sample.image.name for sample in read_folder(root, ProblemList())] == ["8.png", "9.png"]


def test_two_images_share_one_mask(plant):
    files = {"good/7.png": None, "dent/9.png": None, "scratch/9.jpg": None, "masks/9.png": MARK}
    with pytest.raises(
        ManifestError, match=r"masks/9.png: belongs to .*dent/9.png and .*scratch/9.jpg; expected one image"
    ):
        list(read_folder(plant(files)))
    assert [sample.is_normal for sample in read_folder(plant(files, "again"), ProblemList())] == [True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1\n1\t0\t1.PNG\t0\t0\n2\t0\t2.PNG\t0\t0\n", "2.PNG: has a mask and is good in Labels.txt"),
        ("1\n1\t1\t1.PNG\t0\t0\n2\t1\t2.PNG\t0\t0\n", "1.PNG: no mask at"),
        ("1\n9\t1\t9.PNG\t0\t9_label.PNG\n", "names 9.PNG, which is not in"),
    ],
)
def test_dagm_labels_that_do_not_fit(plant, labels, message):
    _, files = SETS["dagm"]
    with pytest.raises(ManifestError, match=message):
        list(read_dagm(plant({**files, "Class1/Train/Label/Labels.txt": labels})))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1 9 5 0 99 99\n2 9 5 0 99 99", "image 2 is not in"),
        ("1 9 5 0 900 900", r"its ellipse is outside of 512x512 pixels"),
    ],
)
def test_dagm_ellipses_that_do_not_fit(plant, labels, message):
    _, files = SETS["dagm, ellipses"]
    with pytest.raises(ManifestError, match=message):
        list(read_dagm(plant({**files, "Class1_def/labels.txt": labels})))


def test_dagm_two_ellipses_of_one_image(plant):
    _, files = SETS["dagm, ellipses"]
    root = plant({**files, "Class1_def/labels.txt": "1 9 5 0 99 99\n1 9 5 0 30 30"})
    assert list(read_dagm(root))[1].boxes.tolist() == [[90, 94, 108, 104], [21, 25, 39, 35]]


def test_visa_a_normal_row_with_a_mask(plant):
    _, files = SETS["visa with a table"]
    table = "object,split,label,image,mask\nnut,test,normal,nut/Data/Images/Normal/0.JPG,nut/Data/Masks/Anomaly/0.png\n"
    with pytest.raises(ManifestError, match=r"0.JPG: normal at .*1cls.csv:2, with mask"):
        list(read_visa(plant({**files, "split_csv/1cls.csv": table})))


def test_a_category_without_a_test_folder_gives_a_warning(plant):
    with pytest.warns(InputWarning, match="nut: no folder test; only good parts are read there"):
        list(read_mvtec(plant({"nut/train/good/0.png": None})))


def test_cyclic_links_end(plant):
    root = plant({"good/a/1.png": None})
    (root / "good/a/up").symlink_to(root / "good")
    assert [listing.path.name for listing in walk(root / "good")] == ["good", "a"]
