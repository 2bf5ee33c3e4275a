"""From a data set on disk to a manifest, and the errors for invalid data."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from differad.data import build as module
from differad.data.build import BuildOptions, build
from differad.data.card import make_card, write_card
from differad.data.manifest import read_pairs
from differad.data.pairing import Pairing
from differad.data.sheet import write_sheet
from differad.data.sources.registry import SOURCES
from differad.data.sources.sample import Sample
from differad.data.splits import split_by_instance
from differad.errors import ImageError, InputError, ManifestError, OptionError
from miniatures import SIZE, marked, mvtec, part, save

LAZY = BuildOptions(Pairing("random"), boxes=False)


def lines(out):
    return [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]


@pytest.fixture
def root(tmp_path):
    return mvtec(tmp_path / "data")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_a_manifest_points_at_the_original_files(root, out):
    built = build("mvtec", root, out, BuildOptions(group="complex structure"))
    assert built.summary() == {
        "samples": 18, "pairs": 12, "anomalous": 6, "place_unknown": 0, "normal": 6, "skipped": 0, "problems": []
    }  # fmt: skip
    assert [path.name for path in out.iterdir()] == ["pairs.jsonl"]
    first = next(line for line in lines(out) if line["boxes"])
    assert first == {
        "source": "mvtec",
        "kind": "scratch",
        "split": "test",
        "id": "mvtec/nut/test/scratch/000.png",
        "category": "nut",
        "reference": "../data/nut/train/good/000.png",
        "target": "../data/nut/test/scratch/000.png",
        "boxes": [[10, 20, 30, 36]],
        "mask": "../data/nut/ground_truth/scratch/000_mask.png",
        "group": "complex structure",
    }
    for pair in read_pairs(out / "pairs.jsonl"):
        assert Path(pair.reference).is_file()
        assert Path(pair.target).is_file()
        assert Path(pair.reference).resolve() != Path(pair.target).resolve()


def test_lazily_no_image_is_opened(root, out):
    whole = build("mvtec", root, out, BuildOptions(Pairing("random")))
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    lazy = build("mvtec", root, out.with_name("lazy"), LAZY)
    assert [pair.id for pair in lazy.pairs] == [pair.id for pair in whole.pairs]
    assert [pair.reference for pair in lazy.pairs] == [pair.reference for pair in whole.pairs]
    assert sum(pair.boxes is None for pair in lazy.pairs) == lazy.summary()["anomalous"] == 6
    masked = next(line for line in lines(out.with_name("lazy")) if line["mask"])
    # Whoever reads the mask later learns that a black one contradicts the label.
    assert (masked["boxes"], masked["anomalous"]) == (None, True)


def test_boxes_read_from_masks_later_equal_those_of_the_build(root, out):
    build("mvtec", root, out)
    build("mvtec", root, out.with_name("lazy"), BuildOptions(boxes=False))
    now, later = (
        {pair.id: pair.boxes.tolist() for pair in read_pairs(folder / "pairs.jsonl")}
        for folder in (out, out.with_name("lazy"))
    )
    assert now == later


@pytest.mark.parametrize(("files", "links"), [("copy", 1), ("link", 2)])
def test_copies_and_links_keep_names_and_bytes(root, out, files, links):
    build("mvtec", root, out, BuildOptions(files=files))
    for line in lines(out):
        for name in filter(None, (line["reference"], line["target"], line["mask"])):
            assert name.startswith("files/")
            original = root / name.removeprefix("files/")
            assert (out / name).read_bytes() == original.read_bytes()
            assert (out / name).stat().st_nlink == links


def test_links_between_file_systems_are_symbolic(root, out, monkeypatch):
    def refuse_link(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse_link)
    build("mvtec", root, out, BuildOptions(files="link"))
    assert (out / lines(out)[0]["target"]).is_symlink()


def test_several_masks_of_one_image_become_one(tmp_path, out):
    root = tmp_path / "loco"
    for number in range(3):
        save(root / f"box/train/good/{number:03}.png", part(number))
    save(root / "box/test/logical/000.png", part(9))
    save(root / "box/ground_truth/logical/000/000.png", marked((2, 2, 10, 10)))
    save(root / "box/ground_truth/logical/000/001.png", marked((60, 60, 70, 90)))
    build("mvtec_loco", root, out, BuildOptions(Pairing("random", normal_share=0), boxes=False))
    (line,) = lines(out)
    assert line["boxes"] == [[60, 60, 70, 90], [2, 2, 10, 10]]  # 300 pixels before 64
    assert line["mask"] == "masks/box/test/logical/000.png.png"
    mask = np.asarray(Image.open(out / line["mask"]).convert("L"))
    assert (mask > 0).sum() == 300 + 64


def strip(seed):
    return np.concatenate([part(seed, 256), part(seed + 1, 256)], axis=1)


@pytest.fixture
def aitex(tmp_path):
    root = tmp_path / "aitex"
    save(root / "NODefect_images/1/0001_000_04.png", strip(0))
    save(root / "NODefect_images/1/0002_000_04.png", strip(10))
    save(root / "Defect_images/0003_002_04.png", strip(20))
    mask = np.zeros((256, 512), np.uint8)
    mask[30:50, 300:340] = 255
    save(root / "Mask_images/0003_002_04_mask.png", mask)
    return root


def test_tiles_of_a_strip_are_cropped_losslessly(aitex, out):
    build("aitex", aitex, out, BuildOptions(Pairing(normal_share=0)))
    (line,) = lines(out)
    assert line["target"] == "images/Defect_images/0003_002_04.png@256,0.png"
    assert line["id"] == "aitex/Defect_images/0003_002_04.png@256,0"
    assert line["boxes"] == [[44, 30, 84, 50]]  # 300 - 256 = 44
    assert (line["product"], line["view"]) == ("aitex/0003_002_04", "04")
    assert line["reference_product"] in ("aitex/0001_000_04", "aitex/0002_000_04")
    whole = np.asarray(Image.open(aitex / "Defect_images/0003_002_04.png"))
    assert (np.asarray(Image.open(out / line["target"])) == whole[:, 256:]).all()
    mask = np.asarray(Image.open(out / line["mask"]).convert("L")) > 0
    assert mask.shape == (256, 256)
    assert mask.sum() == 20 * 40


def test_several_references_give_pairs_that_share_a_target(root, out):
    build("mvtec", root, out, BuildOptions(Pairing(references=2, normal_share=0), categories=("nut",)))
    found = lines(out)
    assert [line["id"] for line in found[:2]] == ["mvtec/nut/test/scratch/000.png", "mvtec/nut/test/scratch/000.png#1"]
    assert len({line["reference"] for line in found[:2]}) == 2
    assert len(found) == 6


def corrupt(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def small_mask(root):
    save(root / "nut/ground_truth/scratch/001_mask.png", marked((1, 1, 5, 5), size=SIZE // 2))


def black_mask(root):
    save(root / "nut/ground_truth/scratch/001_mask.png", np.zeros((SIZE, SIZE), np.uint8))


TROUBLES = {
    "truncated target": (lambda root: corrupt(root / "nut/test/scratch/001.png"), "broken or truncated image", True),
    "truncated reference": (lambda root: corrupt(root / "nut/train/good/001.png"), "broken or truncated image", True),
    "broken mask": (lambda root: corrupt(root / "nut/ground_truth/scratch/001_mask.png"), "broken or truncated", False),
    "mask of another size": (small_mask, "48x48 pixels; expected 96x96 as its image", False),
    "mask without a mark": (black_mask, "marks nothing, but", False),
    "no mask": (lambda root: (root / "nut/ground_truth/scratch/001_mask.png").unlink(), "no mask at", False),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_problems_are_refused_or_listed(root, out, trouble):
    spoil, message, needs_check = TROUBLES[trouble]
    spoil(root)
    check = BuildOptions(Pairing("random"), check=needs_check)
    with pytest.raises((ManifestError, ImageError), match=message) as caught:
        build("mvtec", root, out, check)
    assert "\n" not in str(caught.value)
    skipping = BuildOptions(Pairing("random"), check=needs_check, skip_bad=True)
    built = build("mvtec", root, out.with_name("skipped"), skipping)
    assert [message in problem for problem in built.problems] == [True]
    assert built.summary()["skipped"] == 1
    assert not any("001" in pair.id and "nut/test/scratch" in pair.id for pair in built.pairs) or "reference" in trouble


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """A source that yields the samples given."""

    def plan(samples):
        source = SOURCES["mvtec"]
        fake = type(source)(lambda root, problems: iter(samples), "fake", "own", "", "")
        monkeypatch.setattr(module, "find_source", lambda name: fake)

    return plan


def test_an_image_that_is_listed_twice_or_is_outside(tmp_path, out, listed):
    root = tmp_path / "root"
    good = [Sample(save(root / f"{n}.png", part(n)), "c", True) for n in range(3)]
    outside = Sample(save(tmp_path / "outside.png", part(7)), "c", True)
    climbing = Sample(root / ".." / "outside.png", "c", True)
    cases = (good[0], "listed twice"), (outside, "is outside of"), (climbing, "is outside of")
    for number, (bad, message) in enumerate(cases):
        listed([*good, bad])
        with pytest.raises(ManifestError, match=message):
            build("fake", root, out, LAZY)
        built = build("fake", root, out.with_name(f"skipped{number}"), BuildOptions(skip_bad=True))
        assert [message in problem for problem in built.problems] == [True]
        assert len(built.pairs) == 3


def test_boxes_that_extend_past_the_image(tmp_path, out, listed):
    root = tmp_path / "root"
    good = Sample(save(root / "good.png", part(0)), "c", True)
    listed([good, Sample(save(root / "bad.png", part(1)), "c", False, boxes=[[0, 0, SIZE + 1, 5]])])
    with pytest.raises(ManifestError, match=r"bad.png: boxes \[\[0, 0, 97, 5\]\] extend past its 96x96 pixels"):
        build("fake", root, out, BuildOptions(check=True))


def test_a_name_that_is_not_utf_8(root, out):
    try:
        (root / "nut/train/good" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(ManifestError, match="is not UTF-8; rename the file"):
        build("mvtec", root, out, LAZY)
    built = build("mvtec", root, out, BuildOptions(Pairing("random"), skip_bad=True))
    assert built.summary()["skipped"] == 1
    with pytest.raises(InputError, match="not UTF-8; a manifest could not name it"):
        build("mvtec", root, out.with_name(os.fsdecode(b"\xe9")), LAZY)
    with pytest.raises(InputError, match="rename the folder"):
        build("mvtec", Path(os.fsdecode(b"\xe9")), out.with_name("new"), LAZY)


def test_nothing_is_overwritten(root, out):
    build("mvtec", root, out, LAZY)
    with pytest.raises(InputError, match="not empty; expected a new or empty folder"):
        build("mvtec", root, out, LAZY)
    with pytest.raises(InputError, match="cannot be made a folder"):
        build("mvtec", root, out / "pairs.jsonl", LAZY)


def test_options_that_do_not_fit(root, out):
    with pytest.raises(OptionError, match=r"category 'bolt': not in .*; expected some of nut, tile"):
        build("mvtec", root, out, BuildOptions(categories=("bolt",)))
    with pytest.raises(OptionError, match="source 'mvtek' is not known"):
        build("mvtek", root, out.with_name("b"))
    with pytest.raises(OptionError, match="files='move': expected one of point, copy, link"):
        BuildOptions(files="move")
    with pytest.raises(ManifestError, match=r"nut/test/scratch/000.png: the data set gives no template"):
        build("mvtec", root, out.with_name("c"), BuildOptions(Pairing("given", normal_share=0)))
    given = BuildOptions(Pairing("given"), skip_bad=True)
    with pytest.raises(ManifestError, match="no pair to write"):
        build("mvtec", root, out.with_name("d"), given)


def small(path, seed):
    return save(path, part(seed, 32))


@pytest.fixture
def factory(tmp_path):
    """`good/` and `bad/` without masks."""
    root = tmp_path / "factory"
    for number in range(3):
        small(root / f"good/lot{number}/{number}.png", number)
        small(root / f"bad/{number}.png", 10 + number)
    return root


def test_defects_at_an_unknown_place(factory, out):
    built = build("folder", factory, out, BuildOptions(Pairing(normal_share=None)))
    summary = built.summary()
    assert (summary["anomalous"], summary["place_unknown"], summary["normal"]) == (3, 3, 3)
    unknown = [line for line in lines(out) if line["boxes"] is None]
    assert [(line["anomalous"], line["mask"], line["kind"]) for line in unknown] == [(True, None, "bad")] * 3
    pairs = [pair for pair in read_pairs(out / "pairs.jsonl") if pair.anomalous]
    assert [pair.boxes for pair in pairs] == [None] * 3
    card = make_card(built.pairs, "factory")
    assert (card["anomalous"], card["place_unknown"], card["boxes"]["count"]) == (3, 3, 0)
    write_card(out, card, out / "pairs.jsonl")
    assert "3 anomalous of unknown place" in (out / "card.md").read_text("utf-8")
    write_sheet(out / "sheet.html", built.pairs, "factory")
    assert (out / "sheet.html").read_text("utf-8").count("bad, place unknown") == 3
    sides = split_by_instance(list(read_pairs(out / "pairs.jsonl")), {"a": 0.5, "b": 0.5}, references=False)
    assert sum(pair.anomalous and pair.boxes is None for side in sides.values() for pair in side) == 3
    assert build("folder", factory, out.with_name("checked"), BuildOptions(check=True)).summary()["place_unknown"] == 3


def test_a_build_inside_the_data_set_is_ignored(factory):
    first = build("folder", factory, factory / "pairs", BuildOptions(files="copy"))
    assert build("folder", factory, factory / "again").summary() == first.summary()


def test_defects_of_which_some_have_masks(factory, out):
    save(factory / "ground_truth/bad/0_mask.png", marked((4, 4, 9, 9), 32))
    with pytest.raises(ManifestError, match=r"bad/1.png: no mask at .*1_mask.png; .* \(--unmasked unknown\)"):
        build("folder", factory, out)
    skipped = build("folder", factory, out.with_name("skipped"), BuildOptions(skip_bad=True))
    assert [Path(problem.split(":")[0]).name for problem in skipped.problems] == ["1.png", "2.png"]
    assert skipped.summary()["place_unknown"] == 0
    said = build("folder", factory, out.with_name("said"), BuildOptions(unmasked="unknown"))
    assert (said.summary()["anomalous"], said.summary()["place_unknown"]) == (3, 2)
    with pytest.raises(OptionError, match="--unmasked unknown: mvtec needs a mask or boxes for each defect"):
        build("mvtec", factory, out.with_name("other"), BuildOptions(unmasked="unknown"))
    with pytest.raises(OptionError, match="unmasked='maybe': expected one of error, unknown"):
        BuildOptions(unmasked="maybe")


@pytest.mark.parametrize(("source", "bad"), [("pos_defective", "pos"), ("neg_defective", "neg")])
def test_pos_and_neg_without_masks(tmp_path, out, source, bad):
    root = tmp_path / "data"
    for number in range(2):
        small(root / f"lens/pos/shift/{number}.png", number)
        small(root / f"lens/neg/{number}.png", 10 + number)
    built = build(source, root, out, BuildOptions(Pairing(normal_share=None)))
    assert [pair.anomalous for pair in built.pairs] == [f"/{bad}/" in pair.id for pair in built.pairs]
    assert built.summary()["place_unknown"] == 2


@pytest.mark.parametrize("method", ["nearest", "random"])
def test_a_copy_of_the_target_is_no_reference(factory, out, method):
    for copy in ("copy.png", "lot9/again.png"):
        (factory / "good" / copy).parent.mkdir(exist_ok=True)
        (factory / "good" / copy).write_bytes((factory / "good/lot0/0.png").read_bytes())
    for seed in range(5):
        options = BuildOptions(Pairing(method, normal_share=None, references=3, seed=seed))
        built = build("folder", factory, out.with_name(f"{seed}"), options)
        for pair in built.pairs:
            assert pair.reference.read_bytes() != pair.target.read_bytes()
        counts = Counter(pair.id.partition("#")[0].removeprefix("folder/") for pair in built.pairs)
        assert counts["good/copy.png"] == 2  # five good parts, of which three are this one
        assert counts["bad/0.png"] == 3


def test_a_file_that_is_normal_and_defective(factory, out):
    (factory / "good/x.png").write_bytes((factory / "bad/1.png").read_bytes())
    with pytest.raises(
        ManifestError, match=r"good/x.png: the same file as .*bad/1.png, but one is good and one defective"
    ):
        build("folder", factory, out)
    built = build("folder", factory, out.with_name("skipped"), BuildOptions(skip_bad=True))
    assert len(built.problems) == 1
    assert not {"x.png", "1.png"} & {pair.target.name for pair in built.pairs if pair.anomalous}
    assert not any(pair.reference.name == "x.png" for pair in built.pairs)


def test_a_template_that_is_the_board_itself(tmp_path, out):
    folder = tmp_path / "pcb/group1"
    small(folder / "1/10_test.jpg", 1)
    (folder / "1/10_temp.jpg").write_bytes((folder / "1/10_test.jpg").read_bytes())
    (folder / "1_not").mkdir()
    (folder / "1_not/10.txt").write_text("1 2 9 9 3")
    with pytest.raises(ManifestError, match=r"10_temp.jpg: the same file as .*10_test.jpg, which is defective"):
        build("deeppcb", tmp_path / "pcb", out)


@pytest.mark.parametrize(("edge", "built"), [(32, [[3, 4, 32, 9]]), (32.4, [[3, 4, 32, 9]]), (33, None), (400, None)])
def test_boxes_outside_are_found_without_a_check(tmp_path, out, listed, edge, built):
    root = tmp_path / "root"
    good = Sample(small(root / "good.png", 0), "c", True)
    bad = Sample(small(root / "bad.png", 1), "c", False, boxes=[[3, 4, edge, 9]])
    listed([good, bad])
    options = Pairing(normal_share=0)
    if built:
        build("fake", root, out, BuildOptions(options))
        assert lines(out)[0]["boxes"] == built
        return
    with pytest.raises(ManifestError, match=r"bad.png: boxes .* extend past its 32x32 pixels"):
        build("fake", root, out, BuildOptions(options))
    lazily = build("fake", root, out.with_name("lazy"), BuildOptions(Pairing("random", normal_share=0), sizes=False))
    assert len(lazily.pairs) == 1  # nothing was opened


def test_an_image_that_is_listed_as_normal_and_as_defective(tmp_path, out, listed):
    root = tmp_path / "root"
    good = [Sample(small(root / f"{n}.png", n), "c", True) for n in range(3)]
    listed([*good, Sample(good[0].image, "c", False, boxes=[[0, 0, 1, 1]])])
    built = build("fake", root, out, BuildOptions(skip_bad=True))
    assert ["0.png: listed as good and as defective" in problem for problem in built.problems] == [True]
    assert {pair.target.name for pair in built.pairs} == {"1.png", "2.png"}


def test_a_black_mask_of_a_defect_is_never_a_normal_sample(root, out):
    black_mask(root)
    build("mvtec", root, out, BuildOptions(Pairing("random"), boxes=False))
    with pytest.raises(ManifestError, match=r"anomalous True, but its mask .*001_mask.png marks 0 defects"):
        list(read_pairs(out / "pairs.jsonl"))
