"""DeepPCB, KolektorSDD, KolektorSDD2 and magnetic tiles, in miniature and on real images."""

import pytest
from PIL import Image

from differad.data.manifest import read_pairs
from differad.data.masks import boxes_from_mask, read_mask
from differad.data.sources.deeppcb import read_deeppcb
from differad.data.sources.sample import ProblemList
from differad.data.sources.surfaces import read_kolektor, read_kolektor2, read_magnetic_tile
from differad.errors import ManifestError

PCB = {
    "PCBData/group00041/00041/00041000_test.jpg": None,
    "PCBData/group00041/00041/00041000_temp.jpg": None,
    "PCBData/group00041/00041/00041001_test.jpg": None,
    "PCBData/group00041/00041/00041001_temp.jpg": None,
    "PCBData/group00041/00041_not/00041000.txt": "466 441 493 470 3\n454 300 493 396 2\n539 259 592 316 3\n",
    "PCBData/group00041/00041_not/00041001.txt": "1,2,3,4,6\n",
    "PCBData/trainval.txt": "group00041/00041/00041000.jpg group00041/00041_not/00041000.txt\n",
    "PCBData/test.txt": "group00041/00041/00041001.jpg group00041/00041_not/00041001.txt\n",
}


def test_deeppcb(plant):
    root = plant(PCB)
    first, second = read_deeppcb(root)
    assert first.image.name == "00041000_test.jpg"
    assert first.template == first.image.with_name("00041000_temp.jpg")
    assert first.boxes.tolist() == [[466, 441, 493, 470], [454, 300, 493, 396], [539, 259, 592, 316]]
    assert (first.defect_type, first.split, first.is_normal) == ("mousebite+short", "train", False)
    assert (second.defect_type, second.split, second.boxes.tolist()) == ("pin-hole", "test", [[1, 2, 3, 4]])
    assert [s.instance_id for s in read_deeppcb(root / "PCBData")] == ["00041000", "00041001"]


def test_a_board_without_defects_is_normal(plant):
    root = plant({**PCB, "PCBData/group00041/00041_not/00041001.txt": "\n"})
    sample = list(read_deeppcb(root))[1]
    assert (sample.is_normal, sample.boxes, sample.defect_type) == (True, None, "")
    assert sample.template is not None


@pytest.mark.parametrize(
    "line", ["1 2 3 4", "5 5 5 9 1", "1 2 3 4 1.5", "1 2 3 4_0 1", "1 2 3 4 1 0.9", "a b c d 1", "1 2 3 nan 1"]
)
def test_deeppcb_broken_labels(plant, line):
    root = plant({**PCB, "PCBData/group00041/00041_not/00041001.txt": line})
    with pytest.raises(ManifestError, match=r"00041001.txt:1: "):
        list(read_deeppcb(root))
    problems = ProblemList()
    assert len(list(read_deeppcb(root, problems))) == len(problems.messages) == 1


@pytest.mark.parametrize(
    ("file", "message"), [("00041/00041001_temp.jpg", "no template"), ("00041_not/00041001.txt", "no labels")]
)
def test_deeppcb_missing_files(plant, file, message):
    root = plant(PCB)
    (root / "PCBData/group00041" / file).unlink()
    with pytest.raises(ManifestError, match=message):
        list(read_deeppcb(root))


def test_deeppcb_wrong_root(plant):
    with pytest.raises(ManifestError, match="no folder PCBData/group00041"):
        read_deeppcb(plant({"images/a.jpg": None}))


KOLEKTOR = {
    "kos01/Part0.jpg": None,
    "kos01/Part0_label.bmp": (0, 0, 0, 0),
    "kos01/Part5.jpg": None,
    "kos01/Part5_label.bmp": (3, 2, 6, 4),
    "kos50/Part0.jpg": None,
    "kos50/Part0_label.bmp": (0, 0, 0, 0),
}


def test_kolektor(plant, facts):
    root = plant(KOLEKTOR)
    samples = list(read_kolektor(root))
    assert facts(samples, root) == [
        ("kos01/Part0.jpg", "kolektor_sdd", True, []),
        ("kos01/Part5.jpg", "kolektor_sdd", False, ["kos01/Part5_label.bmp"]),
        ("kos50/Part0.jpg", "kolektor_sdd", True, []),
    ]
    assert [s.instance_id for s in samples] == ["kos01", "kos01", "kos50"]


def test_kolektor_problems(plant):
    root = plant({**KOLEKTOR, "kos50/Part0_label.bmp": "broken", "kos50/Part1.jpg": None})
    problems = ProblemList()
    assert len(list(read_kolektor(root, problems))) == 2
    assert ["not an image" in problems.messages[0], "no mask" in problems.messages[1]] == [True, True]
    with pytest.raises(ManifestError):
        list(read_kolektor(root))
    with pytest.raises(ManifestError, match="no folder kos01"):
        read_kolektor(root / "kos01")


def test_kolektor2(plant, facts):
    root = plant(
        {
            "train/10000.png": None,
            "train/10000_GT.png": (0, 0, 0, 0),
            "test/20000.png": None,
            "test/20000_GT.png": (1, 1, 2, 2),
        }
    )
    samples = list(read_kolektor2(root))
    assert facts(samples, root) == [
        ("train/10000.png", "kolektor_sdd2", True, []),
        ("test/20000.png", "kolektor_sdd2", False, ["test/20000_GT.png"]),
    ]
    assert [s.split for s in samples] == ["train", "test"]
    with pytest.raises(ManifestError, match="no folder train"):
        read_kolektor2(root / "train")


TILES = {
    "MT_Blowhole/Imgs/exp1_num_3667.jpg": None,
    "MT_Blowhole/Imgs/exp1_num_3667.png": None,
    "MT_Free/Imgs/exp1_num_10.jpg": None,
    "MT_Free/Imgs/exp1_num_10.png": None,
}


def test_magnetic_tile(plant, facts):
    root = plant(TILES)
    samples = list(read_magnetic_tile(root))
    assert facts(samples, root) == [
        ("MT_Blowhole/Imgs/exp1_num_3667.jpg", "magnetic_tile", False, ["MT_Blowhole/Imgs/exp1_num_3667.png"]),
        ("MT_Free/Imgs/exp1_num_10.jpg", "magnetic_tile", True, []),
    ]
    assert samples[0].defect_type == "Blowhole"


def test_magnetic_tile_problems(plant):
    root = plant({**TILES, "MT_Crack/Imgs/exp1_num_1.jpg": None})
    with pytest.raises(ManifestError, match="no mask"):
        list(read_magnetic_tile(root))
    with pytest.raises(ManifestError, match="MT_Fray: no folder Imgs"):
        read_magnetic_tile(plant({**TILES, "MT_Fray/a.jpg": None}))
    with pytest.raises(ManifestError, match="no folder MT_Free"):
        read_magnetic_tile(root / "MT_Free")


def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def test_real_boards(shared, tmp_path):
    """The published label file, written back from the pairs, gives their boxes; templates have the boards' size."""
    pairs = [pair for pair in read_pairs(shared / "deeppcb" / "pairs.jsonl") if len(pair.boxes)]
    for pair in pairs:
        name = pair.target.stem
        folder = tmp_path / "PCBData" / f"group{name[:5]}"
        link(pair.target, folder / name[:5] / f"{name}_test.jpg")
        link(pair.reference, folder / name[:5] / f"{name}_temp.jpg")
        labels = folder / f"{name[:5]}_not" / f"{name}.txt"
        labels.parent.mkdir(exist_ok=True)
        codes = {"open": 1, "short": 2, "mousebite": 3, "spur": 4, "copper": 5, "pin-hole": 6}
        rows = [
            f"{int(x1)} {int(y1)} {int(x2)} {int(y2)} {codes[kind]}"
            for (x1, y1, x2, y2), kind in zip(pair.boxes.tolist(), pair.extra["types"], strict=True)
        ]
        labels.write_text("\n".join(rows))
    samples = {sample.instance_id: sample for sample in read_deeppcb(tmp_path)}
    assert len(samples) == len(pairs) == 100
    for pair in pairs:
        sample = samples[pair.target.stem]
        assert sample.boxes.tolist() == pair.boxes.tolist()
        assert set(sample.defect_type.split("+")) == set(pair.extra["types"])
        with Image.open(sample.image) as image, Image.open(sample.template) as template:
            assert image.size == template.size == (640, 640)


def test_real_commutators(shared, tmp_path):
    """Normality read from the masks agrees with the labels of the pairs, and so do the boxes."""
    pairs = list(read_pairs(shared / "kolektor_sdd" / "pairs.jsonl"))
    for pair in pairs:
        image = tmp_path / "kos01" / pair.target.name
        mask = image.with_name(f"{image.stem}_label.bmp")
        link(pair.target, image)
        if pair.mask is None:
            with Image.open(pair.target) as opened:
                Image.new("L", opened.size).save(mask)
        else:
            with Image.open(pair.mask) as opened:
                opened.save(mask)
    samples = {sample.image.stem: sample for sample in read_kolektor(tmp_path)}
    assert {name: s.is_normal for name, s in samples.items()} == {p.target.stem: not len(p.boxes) for p in pairs}
    bad = [pair for pair in pairs if len(pair.boxes)]
    same = [
        sorted(boxes_from_mask(read_mask(samples[p.target.stem].masks[0])).tolist()) == sorted(p.boxes.tolist())
        for p in bad
    ]
    assert len(bad) == 23
    assert sum(same) >= 0.95 * len(bad)


def test_real_tiles(shared, tmp_path):
    pairs = list(read_pairs(shared / "magnetic_tile" / "pairs.jsonl"))
    for pair in pairs:
        folder = tmp_path / (pair.extra["subcategory"] if len(pair.boxes) else "MT_Free") / "Imgs"
        link(pair.target, folder / pair.target.name)
        if pair.mask is not None:
            link(pair.mask, folder / f"{pair.target.stem}.png")
    samples = {sample.image.stem: sample for sample in read_magnetic_tile(tmp_path)}
    assert len(samples) == len(pairs) == 70
    for pair in pairs:
        sample = samples[pair.target.stem]
        assert sample.is_normal == (not len(pair.boxes))
        assert [mask.resolve() for mask in sample.masks] == ([pair.mask.resolve()] if len(pair.boxes) else [])
