"""Real-IAD: five views, labels in JSON."""

import json

import pytest

from differad.data.sources.real_iad import read_real_iad
from differad.data.sources.sample import ProblemList
from differad.errors import ManifestError

GOOD = "OK/S0001/audiojack_0001_OK_C1_20231021130235.jpg"
SEEN = "NG/BX/S0001/audiojack__0001_NG_BX_C2_20231021130235.jpg"
UNSEEN = "NG/BX/S0001/audiojack__0001_NG_BX_C3_20231021130235.jpg"
MASK = SEEN.replace(".jpg", ".png")


def entry(image, kind="OK", mask=None):
    return {"category": "audiojack", "anomaly_class": kind, "image_path": image, "mask_path": mask}


def tree(*test, folder="realiad_jsons"):
    document = {
        "meta": {"prefix": "audiojack/", "normal_class": "OK", "pre_transform": False},
        "train": [entry(GOOD)],
        "test": [entry(SEEN, "BX", MASK), entry(UNSEEN), *test],
    }
    images = {f"realiad_1024/audiojack/{name}": None for name in (GOOD, SEEN, UNSEEN, MASK)}
    return {**images, f"{folder}/audiojack.json": json.dumps(document)}


@pytest.mark.parametrize("folder", ["realiad_jsons", "realiad_jsons/realiad_jsons"])
def test_views_and_parts(plant, folder):
    root = plant(tree(folder=folder))
    samples = list(read_real_iad(root))
    assert [(s.view, s.is_normal, s.defect_type, s.split) for s in samples] == [
        ("C1", True, "", "train"),
        ("C2", False, "BX", "test"),
        ("C3", True, "", "test"),  # the defect is not seen from there
    ]
    assert samples[1].masks == (root / "realiad_1024/audiojack" / MASK,)
    assert [s.instance_id for s in samples] == ["audiojack/OK/S0001", "audiojack/NG/BX/S0001", "audiojack/NG/BX/S0001"]


def test_a_label_file_of_an_object_that_was_not_unpacked_is_left_out(plant):
    root = plant({**tree(), "realiad_jsons/usb.json": json.dumps({"train": [], "test": []})})
    assert {s.category for s in read_real_iad(root)} == {"audiojack"}


def test_other_label_folders(plant):
    root = plant({**tree(), **tree(folder="realiad_jsons_sv")})
    assert len(list(read_real_iad(root, labels="realiad_jsons_sv"))) == 3
    with pytest.raises(ManifestError, match=r"no realiad_jsons_x/OBJECT.json"):
        read_real_iad(root, labels="realiad_jsons_x")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("OK/S0009/none.jpg"), "does not exist"),
        (entry("../../x.jpg"), "leads out"),
        (entry(UNSEEN, "BX"), "no mask"),
        (entry(UNSEEN, "BX", "NG/BX/S0001/none.png"), "no mask"),
    ],
)
def test_bad_entries(plant, bad, message):
    root = plant(tree(bad))
    with pytest.raises(ManifestError, match=message):
        list(read_real_iad(root))
    problems = ProblemList()
    assert len(list(read_real_iad(root, problems))) == 3
    assert "audiojack.json: test.2" in problems.messages[0] or "no mask" in problems.messages[0]


def test_broken_layouts(plant):
    with pytest.raises(ManifestError, match="no folder realiad_1024"):
        read_real_iad(plant({"audiojack/OK/a.jpg": None}))
    with pytest.raises(ManifestError, match="unpack the objects there"):
        read_real_iad(plant({"realiad_1024/x.zip": None, "realiad_jsons/audiojack.json": "{}"}, "zipped"))
    root = plant({**tree(), "realiad_jsons/audiojack.json": '{"train": [{"image_path": 3}]}'}, "json")
    with pytest.raises(ManifestError, match=r"audiojack.json: train.0"):
        list(read_real_iad(root))
