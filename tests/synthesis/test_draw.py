"""Pairs by number: the same for the same options and index, with a defect that shows and a truth that is tight."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from differad.core import Pair
from differad.data.manifest import write_pairs
from differad.errors import InputError, OptionError
from differad.synthesis.draw import GRADES, KINDS, Drawer, DrawOptions
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import VISIBLE_LEVELS

SMALL = DrawOptions(seed=3, size=96, normal_share=0.0)


def same(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("reference", "target", "mask", "boxes"))


def photographs(folder, count=4):
    """Pictures that look nothing alike, in the sizes and modes that folders hold."""
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(cv2.resize(noise, (200 + 40 * number, 150), interpolation=cv2.INTER_CUBIC))
        (picture.convert("L") if number == 1 else picture).save(folder / f"{number}.{'jpg' if number else 'png'}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_and_its_box_is_tight(kind):
    drawer = Drawer(replace(SMALL, kinds=(kind,)))
    pairs = [drawer.draw(index) for index in range(6)]
    assert any(pair.kind == kind for pair in pairs)
    for pair in pairs:
        assert pair.reference.shape == pair.target.shape == (96, 96, 3)
        assert pair.mask.any()
        ys, xs = np.nonzero(pair.mask)
        assert pair.boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        assert pair.facts["area_share"] == pytest.approx(len(xs) / 96**2, abs=1e-6)


def test_only_what_the_mask_marks_differs_when_nothing_else_may():
    drawer = Drawer(replace(SMALL, nuisance=0.0, grades=("easy",)))
    for index in range(30):
        pair = drawer.draw(index)
        change = np.abs(pair.target.astype(int) - pair.reference.astype(int)).max(axis=2)
        # JPEG rings within its 16 x 16 blocks of colour; beyond them only softness of the lens differs.
        near = cv2.dilate(pair.mask.astype(np.uint8), np.ones((33, 33), np.uint8)) > 0
        assert (change[pair.mask] >= VISIBLE_LEVELS / 2).mean() > 0.8, (index, pair.kind)
        if pair.category not in ("board", "lettered"):  # their hard edges change by more than that through the lens
            assert np.quantile(change[~near], 0.99, method="lower") < 60 if (~near).any() else True


def test_a_pair_depends_on_its_options_and_index_alone():
    drawer, again = Drawer(SMALL), Drawer(SMALL)
    forward = [drawer.draw(index) for index in range(6)]
    backward = [again.draw(index) for index in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    other = Drawer(replace(SMALL, seed=4)).draw(0)
    assert not same(forward[0], other)
    assert not same(forward[0], forward[1])


@pytest.mark.parametrize("category", NORMALS)
def test_normal_pairs_hold_no_mark_and_are_seen_anew(category):
    pair = Drawer(replace(SMALL, normal_share=1.0, categories=(category,))).draw(0)
    assert not pair.mask.any()
    assert pair.boxes.shape == (0, 4)
    assert pair.kind == ""
    assert (pair.reference != pair.target).any()


def test_the_share_of_normal_pairs_is_kept():
    drawer = Drawer(replace(SMALL, size=32, normal_share=0.25))
    normal = sum(drawer.draw(index).kind == "" for index in range(200))
    assert 30 <= normal <= 70  # 50 expected, standard deviation sqrt(200 * 0.25 * 0.75) = 6.1; three of them


def test_grades_are_graded():
    area = {}
    for grade in GRADES:
        drawer = Drawer(replace(SMALL, grades=(grade,), kinds=("stark",)))
        area[grade] = np.median([drawer.draw(index).facts["area_share"] for index in range(15)])
    assert area["easy"] > 2 * area["medium"] > 4 * area["hard"]


def test_pictures_of_a_folder_stand_in_for_procedural_parts(tmp_path):
    folder = photographs(tmp_path / "good")
    drawer = Drawer(replace(SMALL, normals=folder))
    pairs = [drawer.draw(index) for index in range(8)]
    assert {pair.category for pair in pairs} <= {"good", "board"}
    assert all(pair.mask.any() for pair in pairs)


def test_natural_pairs_add_or_remove_an_object(tmp_path):
    folder = photographs(tmp_path / "photographs")
    drawer = Drawer(replace(SMALL, photographs=folder, natural_share=1.0))
    pairs = [drawer.draw(index) for index in range(12)]
    assert {pair.kind for pair in pairs} == {"added", "removed"}
    assert {pair.category for pair in pairs} == {"natural"}
    assert all(pair.mask.any() for pair in pairs)


def test_segments_are_the_objects_where_they_are_given(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    picture = np.full((120, 160, 3), 90, np.uint8)
    picture[40:80, 50:90] = (255, 0, 0)
    labels = np.zeros((120, 160), np.uint8)
    labels[40:80, 50:90] = 7
    Image.fromarray(picture).save(folder / "scene.png")
    Image.fromarray(labels).save(folder / "scene_segments.png")
    drawer = Drawer(replace(SMALL, photographs=folder, natural_share=1.0, nuisance=0.0))
    for pair in (drawer.draw(index) for index in range(8)):
        shown = pair.target if pair.kind == "added" else pair.reference
        red = (shown[..., 0] > 180) & (shown[..., 1] < 80)
        assert red[pair.mask].mean() > 0.6  # the rim is blended; a place that is red already changes nothing
        x1, y1, x2, y2 = pair.boxes[0]
        assert 0.06 * 2 * 96 * 0.6 <= max(x2 - x1, y2 - y1) <= 0.25 * 2 * 96 + 4
    Image.fromarray(labels[:50]).save(folder / "scene_segments.png")
    with pytest.raises(InputError, match="expected 160x120 as its image has"):
        drawer.draw(0)


def test_defects_are_cut_from_labelled_pairs(tmp_path):
    target = np.full((60, 80, 3), 128, np.uint8)
    target[20:32, 30:44] = (250, 10, 10)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:32, 30:44] = 255
    for name, pixels in (("good", np.full_like(target, 128)), ("bad", target), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    bank = Pair(
        tmp_path / "good.png", tmp_path / "bad.png", id="1", boxes=[[30, 20, 44, 32]], mask=tmp_path / "mask.png"
    )
    write_pairs(tmp_path / "pairs.jsonl", [bank])
    options = replace(SMALL, kinds=("transplanted",), categories=("grain",), nuisance=0.2)
    plain = Drawer(options).draw(0)
    pair = Drawer(replace(options, defects=tmp_path / "pairs.jsonl")).draw(0)
    assert not same(plain, pair)
    width = pair.boxes[0, 2] - pair.boxes[0, 0]
    assert 0.5 * 14 <= width <= 1.6 * 14 + 4  # 14 x 12 pixels, scaled by 0.6 to 1.4, seen a little larger or smaller
    write_pairs(tmp_path / "normal.jsonl", [replace(bank, boxes=np.empty((0, 4)), mask=None)])
    with pytest.raises(InputError, match="no anomalous pair with a mask"):
        Drawer(replace(options, defects=tmp_path / "normal.jsonl"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 8),
        ("seed", -1),
        ("normal_share", 1.5),
        ("nuisance", -0.1),
        ("kinds", ("dent",)),
        ("categories", ("cheese",)),
        ("grades", ("extreme",)),
        ("natural_share", 0.5),
    ],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(OptionError, match=name):
        DrawOptions(**{name: value})


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(InputError, match="no pictures below it"):
        Drawer(replace(SMALL, normals=tmp_path))


def test_names_of_tables_are_taken_in_any_case():
    mixed = DrawOptions(grades=("Easy", "HARD"), kinds=("Stained",), categories=("Board",))
    assert mixed == DrawOptions(grades=("easy", "hard"), kinds=("stained",), categories=("board",))
    with pytest.raises(OptionError, match="grades='Simple': expected any of easy, medium, hard"):
        DrawOptions(grades=("Simple",))
