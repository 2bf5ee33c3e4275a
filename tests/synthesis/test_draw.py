"""Pairs by number: the same for the same options and index, with a visible defect and a tight box."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from differad.core import Pair
from differad.data.manifest import write_pairs
from differad.errors import InputError, OptionError
from differad.synthesis.draw import DIFFICULTIES, KINDS, PairGenerator, SynthesisOptions
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import VISIBLE_LEVELS

SMALL = SynthesisOptions(seed=3, size=96, normal_share=0.0)


def same(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("reference", "target", "mask", "boxes"))


def photographs(folder, count=4):
    """Random images of several sizes, modes and formats."""
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(cv2.resize(noise, (200 + 40 * number, 150), interpolation=cv2.INTER_CUBIC))
        (image.convert("L") if number == 1 else image).save(folder / f"{number}.{'jpg' if number else 'png'}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_visible_and_its_box_is_tight(kind):
    generator = PairGenerator(replace(SMALL, kinds=(kind,)))
    pairs = [generator.generate(index) for index in range(6)]
    assert any(pair.kind == kind for pair in pairs)
    for pair in pairs:
        assert pair.reference.shape == pair.target.shape == (96, 96, 3)
        assert pair.mask.any()
        ys, xs = np.nonzero(pair.mask)
        assert pair.boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        assert pair.facts["area_share"] == pytest.approx(len(xs) / 96**2, abs=1e-6)


def test_without_nuisance_only_masked_pixels_differ():
    generator = PairGenerator(replace(SMALL, nuisance=0.0, grades=("easy",)))
    for index in range(30):
        pair = generator.generate(index)
        change = np.abs(pair.target.astype(int) - pair.reference.astype(int)).max(axis=2)
        # JPEG rings within its 16 x 16 blocks of colour; beyond them only blur differs.
        near = cv2.dilate(pair.mask.astype(np.uint8), np.ones((33, 33), np.uint8)) > 0
        assert (change[pair.mask] >= VISIBLE_LEVELS / 2).mean() > 0.8, (index, pair.kind)
        if pair.category not in ("board", "lettered"):  # blur changes their hard edges by more
            assert np.quantile(change[~near], 0.99, method="lower") < 60 if (~near).any() else True


def test_a_pair_depends_on_its_options_and_index_alone():
    generator, again = PairGenerator(SMALL), PairGenerator(SMALL)
    forward = [generator.generate(index) for index in range(6)]
    backward = [again.generate(index) for index in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    other = PairGenerator(replace(SMALL, seed=4)).generate(0)
    assert not same(forward[0], other)
    assert not same(forward[0], forward[1])


@pytest.mark.parametrize("category", NORMALS)
def test_normal_pairs_have_an_empty_mask_and_two_different_images(category):
    pair = PairGenerator(replace(SMALL, normal_share=1.0, categories=(category,))).generate(0)
    assert not pair.mask.any()
    assert pair.boxes.shape == (0, 4)
    assert pair.kind == ""
    assert (pair.reference != pair.target).any()


def test_the_share_of_normal_pairs_is_kept():
    generator = PairGenerator(replace(SMALL, size=32, normal_share=0.25))
    normal = sum(generator.generate(index).kind == "" for index in range(200))
    assert 30 <= normal <= 70  # 50 expected, standard deviation sqrt(200 * 0.25 * 0.75) = 6.1; three of them


def test_easier_defects_are_larger():
    area = {}
    for grade in DIFFICULTIES:
        generator = PairGenerator(replace(SMALL, grades=(grade,), kinds=("stark",)))
        area[grade] = np.median([generator.generate(index).facts["area_share"] for index in range(15)])
    assert area["easy"] > 2 * area["medium"] > 4 * area["hard"]


def test_images_of_a_folder_replace_procedural_parts(tmp_path):
    folder = photographs(tmp_path / "good")
    generator = PairGenerator(replace(SMALL, normals=folder))
    pairs = [generator.generate(index) for index in range(8)]
    assert {pair.category for pair in pairs} <= {"good", "board"}
    assert all(pair.mask.any() for pair in pairs)


def test_natural_pairs_add_or_remove_an_object(tmp_path):
    folder = photographs(tmp_path / "photographs")
    generator = PairGenerator(replace(SMALL, photographs=folder, natural_share=1.0))
    pairs = [generator.generate(index) for index in range(12)]
    assert {pair.kind for pair in pairs} == {"added", "removed"}
    assert {pair.category for pair in pairs} == {"natural"}
    assert all(pair.mask.any() for pair in pairs)


def test_marked_segments_are_the_objects(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    image = np.full((120, 160, 3), 90, np.uint8)
    image[40:80, 50:90] = (255, 0, 0)
    labels = np.zeros((120, 160), np.uint8)
    labels[40:80, 50:90] = 7
    Image.fromarray(image).save(folder / "scene.png")
    Image.fromarray(labels).save(folder / "scene_segments.png")
    generator = PairGenerator(replace(SMALL, photographs=folder, natural_share=1.0, nuisance=0.0))
    for pair in (generator.generate(index) for index in range(8)):
        shown = pair.target if pair.kind == "added" else pair.reference
        red = (shown[..., 0] > 180) & (shown[..., 1] < 80)
        assert red[pair.mask].mean() > 0.6  # the rim is blended; red pixels that were red before do not change
        x1, y1, x2, y2 = pair.boxes[0]
        assert 0.06 * 2 * 96 * 0.6 <= max(x2 - x1, y2 - y1) <= 0.25 * 2 * 96 + 4
    Image.fromarray(labels[:50]).save(folder / "scene_segments.png")
    with pytest.raises(InputError, match="expected 160x120 as its image has"):
        generator.generate(0)


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
    without_bank = PairGenerator(options).generate(0)
    pair = PairGenerator(replace(options, defects=tmp_path / "pairs.jsonl")).generate(0)
    assert not same(without_bank, pair)
    width = pair.boxes[0, 2] - pair.boxes[0, 0]
    assert 0.5 * 14 <= width <= 1.6 * 14 + 4  # 14 x 12 pixels, scaled by 0.6 to 1.4, shown a little larger or smaller
    write_pairs(tmp_path / "normal.jsonl", [replace(bank, boxes=np.empty((0, 4)), mask=None)])
    with pytest.raises(InputError, match="no anomalous pair with a mask"):
        PairGenerator(replace(options, defects=tmp_path / "normal.jsonl"))


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
        SynthesisOptions(**{name: value})


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(InputError, match="no images below it"):
        PairGenerator(replace(SMALL, normals=tmp_path))


def test_names_of_tables_are_taken_in_any_case():
    mixed = SynthesisOptions(grades=("Easy", "HARD"), kinds=("Stained",), categories=("Board",))
    assert mixed == SynthesisOptions(grades=("easy", "hard"), kinds=("stained",), categories=("board",))
    with pytest.raises(OptionError, match="grades='Simple': expected any of easy, medium, hard"):
        SynthesisOptions(grades=("Simple",))
