"""VisA in its three layouts."""

import pytest

from differad.data.sources.sample import ProblemList
from differad.data.sources.visa import read_visa
from differad.errors import ManifestError

RAW = {
    "candle/Data/Images/Normal/0000.JPG": None,
    "candle/Data/Images/Normal/0001.JPG": None,
    "candle/Data/Images/Anomaly/000.JPG": None,
    "candle/Data/Masks/Anomaly/000.png": None,
    "candle/image_anno.csv": "image,label,mask\n"
    "candle/Data/Images/Normal/0000.JPG,normal,\n"
    'candle/Data/Images/Anomaly/000.JPG,"chunk of wax missing,foreign particals on candle",'
    "candle/Data/Masks/Anomaly/000.png\n",
}
SPLIT = (
    "object,split,label,image,mask\n"
    "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"
    "candle,test,normal,candle/Data/Images/Normal/0001.JPG,\n"
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png\n"
)
EXPECTED = [
    ("candle/Data/Images/Normal/0000.JPG", "candle", True, []),
    ("candle/Data/Images/Normal/0001.JPG", "candle", True, []),
    ("candle/Data/Images/Anomaly/000.JPG", "candle", False, ["candle/Data/Masks/Anomaly/000.png"]),
]


def test_with_the_split_file(plant, facts):
    root = plant({**RAW, "split_csv/1cls.csv": SPLIT})
    samples = list(read_visa(root))
    assert facts(samples, root) == EXPECTED
    assert [s.split for s in samples] == ["train", "test", "test"]
    assert samples[2].defect_type == "chunk of wax missing,foreign particals on candle"


def test_without_the_split_file_folders_decide(plant, facts):
    root = plant(RAW)
    samples = list(read_visa(root))
    assert facts(samples, root) == EXPECTED
    assert samples[2].defect_type.startswith("chunk of wax")
    assert {s.split for s in samples} == {""}


def test_as_the_authors_script_rearranges_it(plant, facts):
    root = plant(
        {
            "candle/train/good/0000.JPG": None,
            "candle/test/bad/000.JPG": None,
            "candle/ground_truth/bad/000.png": None,
        }
    )
    assert facts(read_visa(root), root)[1] == (
        "candle/test/bad/000.JPG",
        "candle",
        False,
        ["candle/ground_truth/bad/000.png"],
    )


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/passwd", "candle/../../x.jpg", "C:\\x.jpg", ""])
def test_paths_never_leave_the_root(plant, path):
    root = plant({**RAW, "split_csv/1cls.csv": SPLIT + f"candle,test,normal,{path},\n"})
    problems = ProblemList()
    assert len(list(read_visa(root, problems))) == 3
    assert "1cls.csv:5" in problems.messages[0]
    assert "leads out of the data set" in problems.messages[0]
    with pytest.raises(ManifestError, match="leads out"):
        list(read_visa(root))


def test_a_listed_image_that_does_not_exist(plant):
    root = plant({**RAW, "split_csv/1cls.csv": SPLIT + "candle,test,normal,candle/Data/Images/Normal/0009.JPG,\n"})
    with pytest.raises(ManifestError, match=r"1cls.csv:5: .*0009.JPG does not exist"):
        list(read_visa(root))


def test_a_missing_mask(plant):
    root = plant({**RAW, "split_csv/1cls.csv": SPLIT})
    (root / "candle/Data/Masks/Anomaly/000.png").unlink()
    for broken in (root, plant({k: v for k, v in RAW.items() if "Masks" not in k}, "raw")):
        problems = ProblemList()
        assert len(list(read_visa(broken, problems))) == 2
        assert "no mask at" in problems.messages[0]


def test_a_wrong_root_or_table(plant):
    with pytest.raises(ManifestError, match=r"no split_csv/1cls.csv and no OBJECT/Data/Images"):
        read_visa(plant({"photos/a.jpg": None}))
    with pytest.raises(ManifestError, match="no column mask"):
        read_visa(plant({"split_csv/1cls.csv": "object,split,label,image\n"}, "other"))
