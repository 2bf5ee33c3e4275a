"""MVTec AD and data sets with similar layouts, in miniature."""

import os

import pytest

from differad.data.sources.mvtec import read_3cad, read_btad, read_mpdd, read_mvtec, read_mvtec2, read_mvtec_loco
from differad.data.sources.sample import ProblemList
from differad.errors import ManifestError

MVTEC = {
    "license.txt": "",
    "bottle/train/good/000.png": None,
    "bottle/test/good/000.png": None,
    "bottle/test/broken_large/000.png": None,
    "bottle/test/broken_large/001.png": None,
    "bottle/ground_truth/broken_large/000_mask.png": None,
    "bottle/ground_truth/broken_large/001_mask.png": None,
    "tile/train/good/000.png": None,
    "tile/train/good/Thumbs.db": None,
    "tile/train/good/.hidden.png": None,
}


def test_mvtec(plant, facts):
    root = plant(MVTEC)
    samples = list(read_mvtec(root))
    assert facts(samples, root) == [
        ("bottle/train/good/000.png", "bottle", True, []),
        ("bottle/test/broken_large/000.png", "bottle", False, ["bottle/ground_truth/broken_large/000_mask.png"]),
        ("bottle/test/broken_large/001.png", "bottle", False, ["bottle/ground_truth/broken_large/001_mask.png"]),
        ("bottle/test/good/000.png", "bottle", True, []),
        ("tile/train/good/000.png", "tile", True, []),
    ]
    assert [(s.split, s.defect_type) for s in samples[:2]] == [("train", ""), ("test", "broken_large")]
    assert all(s.boxes is None and s.template is None for s in samples)


def test_one_category_is_a_root_too(plant, facts, monkeypatch):
    root = plant(MVTEC) / "bottle"
    assert len(list(read_mvtec(root))) == 4
    monkeypatch.chdir(root)
    assert {sample.category for sample in read_mvtec(type(root)("."))} == {"bottle"}


def test_a_wrong_root_is_reported_before_the_first_sample(plant, tmp_path):
    root = plant({"bottle/000.png": None})
    with pytest.raises(ManifestError, match=r"bottle: no folder train/good; MVTec AD keeps good parts there"):
        read_mvtec(root)
    with pytest.raises(ManifestError, match="no such folder"):
        read_mvtec(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match="unpack the archive"):
        read_mvtec(root / "bottle" / "000.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="CATEGORY/train/good"):
        read_mvtec(tmp_path / "empty")


def test_a_category_without_normal_images_among_complete_ones(plant):
    root = plant({**MVTEC, "wood/test/scratch/000.png": None, "notes/a.txt": ""})
    with pytest.raises(ManifestError, match="wood: no folder train/good"):
        read_mvtec(root)


def test_a_missing_mask_is_refused_or_reported(plant):
    root = plant({**MVTEC, "bottle/test/broken_large/002.png": None})
    with pytest.raises(ManifestError, match=r"002.png: no mask at .*002_mask.png"):
        list(read_mvtec(root))
    problems = ProblemList()
    assert len(list(read_mvtec(root, problems))) == 5
    assert len(problems.messages) == 1


def test_a_name_that_is_not_utf_8_is_a_problem(plant):
    root = plant(MVTEC)
    try:
        (root / "bottle/train/good" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    problems = ProblemList()
    assert len(list(read_mvtec(root, problems))) == 5
    assert ["is not UTF-8" in message for message in problems.messages] == [True]
    problems.messages[0].encode("utf-8")


def test_3cad_masks_have_the_image_s_name(plant, facts):
    root = plant(
        {
            "Copper_Stator/train/good/a.png": None,
            "Copper_Stator/test/scratch/b.png": None,
            "Copper_Stator/ground_truth/scratch/b.png": None,
        }
    )
    assert facts(read_3cad(root), root)[1][3] == ["Copper_Stator/ground_truth/scratch/b.png"]


def test_mpdd(plant):
    root = plant(
        {"tubes/train/good/0.png": None, "tubes/test/bad/1.png": None, "tubes/ground_truth/bad/1_mask.png": None}
    )
    assert [sample.is_normal for sample in read_mpdd(root)] == [True, False]


def test_btad_masks_end_differently_by_product(plant, facts):
    root = plant(
        {
            "01/train/ok/0000.bmp": None,
            "01/test/ko/0000.bmp": None,
            "01/ground_truth/ko/0000.png": None,
            "03/train/ok/0000.bmp": None,
            "03/test/ok/0400.bmp": None,
            "03/test/ko/0001.bmp": None,
            "03/ground_truth/ko/0001.bmp": None,
        }
    )
    assert facts(read_btad(root), root) == [
        ("01/train/ok/0000.bmp", "01", True, []),
        ("01/test/ko/0000.bmp", "01", False, ["01/ground_truth/ko/0000.png"]),
        ("03/train/ok/0000.bmp", "03", True, []),
        ("03/test/ko/0001.bmp", "03", False, ["03/ground_truth/ko/0001.bmp"]),
        ("03/test/ok/0400.bmp", "03", True, []),
    ]


def test_loco_has_several_masks_per_image(plant, facts):
    root = plant(
        {
            "pushpins/train/good/000.png": None,
            "pushpins/validation/good/000.png": None,
            "pushpins/test/good/000.png": None,
            "pushpins/test/logical_anomalies/000.png": None,
            "pushpins/test/structural_anomalies/000.png": None,
            "pushpins/ground_truth/logical_anomalies/000/000.png": None,
            "pushpins/ground_truth/logical_anomalies/000/001.png": None,
            "pushpins/ground_truth/structural_anomalies/000/000.png": None,
        }
    )
    samples = list(read_mvtec_loco(root))
    assert [s.split for s in samples] == ["train", "validation", "test", "test", "test"]
    assert [(s.defect_type, len(s.masks)) for s in samples if not s.is_normal] == [
        ("logical_anomalies", 2),
        ("structural_anomalies", 1),
    ]
    (root / "pushpins/ground_truth/structural_anomalies/000/000.png").unlink()
    with pytest.raises(ManifestError, match="no mask"):
        list(read_mvtec_loco(root))


def test_mvtec2_light_is_the_view(plant):
    root = plant(
        {
            "can/train/good/000_regular.png": None,
            "can/validation/good/000_regular.png": None,
            "can/test_public/good/000_shift_1.png": None,
            "can/test_public/bad/000_overexposed.png": None,
            "can/test_public/bad/000_regular.png": None,
            "can/test_public/ground_truth/bad/000_overexposed_mask.png": None,
            "can/test_public/ground_truth/bad/000_regular_mask.png": None,
            "can/test_private/000_regular.png": None,
            "can/test_private_mixed/000_mixed.png": None,
        }
    )
    samples = list(read_mvtec2(root))
    assert [(s.split, s.view, s.is_normal) for s in samples] == [
        ("train", "regular", True),
        ("validation", "regular", True),
        ("test", "shift_1", True),
        ("test", "overexposed", False),
        ("test", "regular", False),
    ]
    assert samples[3].instance_id == samples[4].instance_id  # the same can in two lights
    assert len({s.instance_id for s in samples}) == 4  # number 000 of another folder is another can
    with pytest.raises(ManifestError, match="no folder test_public"):
        read_mvtec2(plant({"can/train/good/000_regular.png": None}, "part"))
