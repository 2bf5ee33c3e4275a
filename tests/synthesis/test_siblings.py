"""Two parts of a kind in place of one, and pictures cut to other shapes: what changes, and what must not."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.errors import OptionError
from differad.synthesis.draw import BOARD, Drawer, DrawOptions, _cut
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import SyntheticPair
from differad.synthesis.siblings import SURFACES, draw_siblings

SIBLINGS = DrawOptions(seed=3, size=96, siblings=1.0, normal_share=0.0)
# Pairs 0 to 11 of seed 7 at 64 pixels, as they were before there were siblings or other shapes: the part, the defect and
# its box, and the mean grey level of reference and target. Pixels are not compared: they differ between JPEG encoders.
BEFORE = (
    ("machined", "stark", [16, 27, 22, 31], 164.2, 166.4),
    ("printed", "stained", [13, 0, 46, 39], 101.6, 98.6),
    ("board", "", None, 108.5, 102.7),
    ("board", "scratched", [12, 26, 64, 45], 79.2, 74.9),
    ("perforated", "", None, 123.0, 122.3),
    ("grain", "", None, 130.0, 119.7),
    ("perforated", "", None, 73.2, 83.0),
    ("printed", "", None, 120.0, 134.6),
    ("wood", "texture", [42, 28, 56, 46], 101.1, 104.4),
    ("perforated", "stark", [14, 37, 21, 43], 89.2, 96.3),
    ("assembled", "shifted", [3, 35, 20, 55], 126.0, 135.3),
    ("machined", "", None, 134.4, 134.4),
)


def same(a, b):
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("reference", "target", "mask", "pose"))


def apart(pair):
    """Mean difference of the two pictures in grey levels."""
    return float(np.abs(pair.reference.astype(float) - pair.target).mean())


def test_pairs_without_the_options_are_what_they_were():
    drawer = Drawer(DrawOptions(seed=7, size=64))
    for index, (category, kind, box, reference, target) in enumerate(BEFORE):
        pair = drawer.draw(index)
        assert (pair.category, pair.kind, len(pair.boxes)) == (category, kind, int(box is not None))
        if box is not None:
            assert pair.boxes[0] == pytest.approx(box, abs=1)  # a pixel of leeway for another build's rounding
        assert (pair.reference.mean(), pair.target.mean()) == pytest.approx((reference, target), abs=0.5)


def test_a_pair_depends_on_its_options_and_index_alone():
    options = replace(SIBLINGS, siblings=0.5, aspect=2.0, normal_share=0.5)
    forward = [Drawer(options).draw(index) for index in range(8)]
    drawer = Drawer(options)
    backward = [drawer.draw(index) for index in reversed(range(8))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert len({pair.target.tobytes() for pair in forward}) == 8


@pytest.mark.parametrize("category", SURFACES)
def test_siblings_are_of_one_kind_and_not_one_part(category):
    options = replace(SIBLINGS, nuisance=0.0, normal_share=1.0, categories=(category,))
    siblings = [Drawer(options).draw(index) for index in range(6)]
    again = [Drawer(replace(options, siblings=0.0)).draw(index) for index in range(6)]
    assert {pair.category for pair in siblings} == {category}
    assert not any(pair.mask.any() for pair in siblings)
    # Without nuisance a part seen again differs by the lens alone, 1 to 4 levels; another part lies 11 to 41 away.
    assert np.mean([apart(pair) for pair in siblings]) > 4 * np.mean([apart(pair) for pair in again])


def test_the_mask_marks_the_defect_and_nothing_of_the_other_part():
    """The same index with and without defects: what else was drawn is drawn alike, so the targets differ in it alone."""
    damaged, good = Drawer(SIBLINGS), Drawer(replace(SIBLINGS, normal_share=1.0))
    for index in range(16):
        pair, whole = damaged.draw(index), good.draw(index)
        assert np.array_equal(pair.reference, whole.reference)
        assert pair.mask.any()
        assert not whole.mask.any()
        change = np.abs(pair.target.astype(int) - whole.target).max(axis=2)
        # JPEG rings within its 16 x 16 blocks of colour.
        near = cv2.dilate(pair.mask.astype(np.uint8), np.ones((33, 33), np.uint8)) > 0
        assert (change[pair.mask] >= 10).mean() > 0.8, (index, pair.kind)  # visible is 20 levels before noise
        assert change[~near].max(initial=0) <= 10, (index, pair.kind)


def test_the_share_of_siblings_is_kept():
    # Plain parts are boards, to be told apart: no sibling is one.
    options = replace(SIBLINGS, size=32, siblings=0.25, kinds=(BOARD,), normal_share=1.0)
    siblings = sum(Drawer(options).draw(index).category != "board" for index in range(200))
    assert 32 <= siblings <= 68  # 50 expected, standard deviation sqrt(200 * 0.25 * 0.75) = 6.1; three of them


def test_siblings_without_a_surface_to_choose_are_of_what_there_is():
    pair = Drawer(replace(SIBLINGS, categories=("lettered",), kinds=(BOARD,))).draw(0)
    assert (pair.category, pair.kind) == ("lettered", "stark")  # copper cannot be etched on a label


def test_both_pieces_come_from_one_sheet():
    """A sheet whose colour tells the place: the pieces are its upper left and its lower right quarter."""

    def sheet(_, size):
        return np.arange(size * size, dtype=np.float32).reshape(size, size)[..., None] + np.zeros(3, np.float32)

    def plain(seed):
        first, second = draw_siblings(np.random.default_rng(seed), sheet, 64)
        whole = sheet(None, 128)
        return np.allclose(first, whole[:64, :64]) and np.allclose(second, whole[64:, 64:])

    # Bare with chance 0.6 * 0.5 * 0.6 * 0.65 = 0.12: no layout, shade, dirt or rim. Of 100 seeds 12, deviation 3.2.
    assert 3 <= sum(plain(seed) for seed in range(100)) <= 22


@pytest.mark.parametrize("category", ["grain", "perforated"])
def test_pieces_are_pictures(category):
    for seed in range(10):
        for piece in draw_siblings(np.random.default_rng(seed), NORMALS[category], 40):
            assert (piece.shape, piece.dtype) == ((40, 40, 3), np.float32)
            assert np.isfinite(piece).all()


@pytest.mark.parametrize("siblings", [0.0, 1.0])
def test_a_cut_pair_is_a_window_of_the_square_one(siblings):
    """Both pictures, mask and pose: found by where the cut target lies in the square one of the same index."""
    square, cut = (Drawer(replace(SIBLINGS, siblings=siblings, aspect=aspect)) for aspect in (1.0, 2.5))
    shapes = set()
    for index in range(12):
        whole, part = square.draw(index), cut.draw(index)
        height, width = part.mask.shape
        shapes.add((height, width))
        assert part.reference.shape == part.target.shape == (height, width, 3)
        assert max(height, width) == 96
        assert 96 / 2.5 - 0.5 <= min(height, width) <= 96
        places = [
            (x, y)
            for y in range(97 - height)
            for x in range(97 - width)
            if np.array_equal(whole.target[y : y + height, x : x + width], part.target)
        ]
        ((x, y),) = places
        window = np.s_[y : y + height, x : x + width]
        assert np.array_equal(whole.reference[window], part.reference)
        assert np.array_equal(whole.mask[window], part.mask)
        assert part.mask.sum() == whole.mask.sum()  # the defect is whole
        assert (part.boxes + np.array([x, y, x, y])).tolist() == whole.boxes.tolist()
        assert part.facts["area_share"] == pytest.approx(part.mask.sum() / (height * width), abs=1e-6)
    assert len(shapes) > 6


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_pose_of_a_cut_pair_maps_reference_to_target_pixels(data):
    """A place p of the square reference is p - o of the cut one, o its window's corner; so is where the pose maps it."""
    size = data.draw(st.integers(32, 80))
    x1, y1 = (data.draw(st.integers(0, size - 1)) for _ in range(2))
    x2, y2 = (data.draw(st.integers(low + 1, size)) for low in (x1, y1))
    mask = np.zeros((size, size), np.bool_)
    mask[y1:y2, x1:x2] = data.draw(st.booleans())
    rows, columns = np.mgrid[:size, :size]
    numbered = np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8)  # a pixel's colour is its place
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pose = np.eye(3) + rng.normal(0, [[0.05, 0.05, 5], [0.05, 0.05, 5], [1e-4, 1e-4, 0]])
    aspect = data.draw(st.floats(1.01, 4))
    cut = _cut(rng, SyntheticPair(numbered, numbered, mask, pose, "numbered"), aspect)
    origin = cut.target[0, 0, :2].astype(float)
    height, width = cut.mask.shape
    assert cut.target[-1, -1, :2].tolist() == [origin[0] + width - 1, origin[1] + height - 1]
    assert np.array_equal(cut.reference, cut.target)
    assert 16 <= min(height, width) <= max(height, width) == size
    # Rounding a side of at least size / 4 moves the ratio by half a pixel of it; 16 pixels are the least.
    assert size / min(height, width) <= aspect * (1 + 0.5 / min(height, width))
    assert cut.mask.sum() == mask.sum()

    def mapped(pose, points):
        return cv2.perspectiveTransform(points[None], pose)[0]

    points = rng.uniform(0, size, (5, 2))
    np.testing.assert_allclose(mapped(cut.pose, points - origin), mapped(pose, points) - origin, atol=1e-6)


def test_the_reference_laid_on_by_the_pose_lies_nearer():
    """Photographs of one part under nuisance, cut: by the pose the mean difference falls."""
    options = DrawOptions(seed=5, size=128, normal_share=1.0, aspect=2.0, categories=("perforated", "printed", "tiled"))
    before, after = [], []
    for index in range(12):
        pair = Drawer(options).draw(index)
        height, width = pair.mask.shape
        laid = cv2.warpPerspective(pair.reference, pair.pose, (width, height), borderMode=cv2.BORDER_REPLICATE)
        for found, reference in ((before, pair.reference), (after, laid)):
            found.append(np.abs(cv2.absdiff(reference, pair.target).astype(float)).mean())
    assert np.mean(after) < 0.8 * np.mean(before)


def test_a_defect_as_wide_as_the_picture_leaves_it_square():
    mask = np.ones((40, 40), np.bool_)
    picture = np.zeros((40, 40, 3), np.uint8)
    pair = SyntheticPair(picture, picture, mask, np.eye(3), "flat", "stark")
    assert _cut(np.random.default_rng(0), pair, 4.0) is pair


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("siblings", -0.1),
        ("siblings", 1.1),
        ("siblings", float("nan")),
        ("aspect", 0.5),
        ("aspect", 4.5),
        ("aspect", float("nan")),
    ],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(OptionError, match=f"option {name}="):
        DrawOptions(**{name: value})


def test_shares_of_more_than_all_pairs_are_refused():
    with pytest.raises(OptionError, match=r"^siblings=0.7, unaligned=0.7: .* add up to 1 at most"):
        DrawOptions(siblings=0.7, unaligned=0.7)
    DrawOptions(siblings=0.9, unaligned=0.1)  # more than 1 by a rounding


def test_every_share_is_one_of_all_pairs():
    options = replace(SIBLINGS, size=32, siblings=0.5, unaligned=0.5, kinds=(BOARD,), normal_share=1.0)
    drawer = Drawer(options)
    # Siblings are square, as nothing cuts them; unaligned parts have sides of their own.
    shapes = [drawer.draw(index).reference.shape[:2] for index in range(200)]
    siblings = sum(shape == (32, 32) for shape in shapes)
    assert 79 <= siblings <= 121  # 100 expected, standard deviation sqrt(200 / 4) = 7.1; three of them


@pytest.mark.parametrize("size", [32, 64])
def test_unaligned_pairs_of_the_smallest_pictures(size):
    """Marks have a least size, also where the picture is small; pairs 0 and 13 of this seed have some."""
    drawer = Drawer(DrawOptions(seed=0, size=size, unaligned=1.0))
    assert all(min(drawer.draw(index).target.shape[:2]) >= 4 for index in range(40))


UNALIGNED = DrawOptions(seed=5, size=160, unaligned=1.0, normal_share=0.5, categories=("grain", "striped", "lettered"))


def test_two_good_parts_may_have_other_sizes_and_lie_nowhere_on_each_other():
    drawer = Drawer(UNALIGNED)
    pairs = [drawer.draw(index) for index in range(16)]
    assert {pair.category for pair in pairs} == {"grain", "striped"}  # a label has no second piece like it
    assert len({pair.target.shape for pair in pairs}) > 8
    longest = [max(pair.target.shape[:2]) for pair in pairs]
    assert 160 * 160 / 448 - 1 <= min(longest) < max(longest) <= 160 * 720 / 448 + 1
    assert any(pair.reference.shape != pair.target.shape for pair in pairs)


def test_unaligned_pairs_say_what_their_defect_is():
    drawer = Drawer(UNALIGNED)
    pairs = [drawer.draw(index) for index in range(16)]
    anomalous = [pair for pair in pairs if pair.kind]
    assert 3 < len(anomalous) < 13
    for pair in pairs:
        assert bool(pair.kind) == pair.mask.any() == (len(pair.boxes) == 1)
        assert pair.mask.shape == pair.target.shape[:2]
    assert all(pair.facts["area_share"] == pytest.approx(pair.mask.mean(), abs=1e-6) for pair in anomalous)


def test_an_unaligned_pair_depends_on_its_options_and_index_alone():
    backward = [Drawer(UNALIGNED).draw(index) for index in reversed(range(4))][::-1]
    drawer = Drawer(UNALIGNED)
    assert all(same(drawer.draw(index), pair) for index, pair in enumerate(backward))
