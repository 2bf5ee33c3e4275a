"""Evidence against a plain search, place by place, and on maps whose answer is known."""

import cv2
import numpy as np
import pytest

from differad.locators.features.backbone import Backbone
from differad.locators.tiny.evidence import (
    CELL_EXTRA,
    COARSE,
    DISTANCES,
    FINE,
    QUANTILES,
    REACHES,
    WIDTH,
    ReferenceFeatures,
    _self_distance,
    aligned_difference,
    pair_features,
    reference_features,
)
from differad.synthesis.normals import NORMALS
from tolerance import distance_rounding

WHOLE, WINDOW, NARROW, RARITY, MISSING, PIXELS = range(DISTANCES)
# What is at no distance seems to be this far.
CLOSE = float(distance_rounding(COARSE))


def unit(rng, *shape):
    generated = rng.normal(size=shape).astype(np.float32)
    return generated / np.linalg.norm(generated, axis=-1, keepdims=True)


def make_image(height, width, seed=0):
    generated = NORMALS["machined"](np.random.default_rng(seed), 160)
    return np.ascontiguousarray(np.clip(generated[:height, :width], 0, 255).astype(np.uint8))


def apart(one, other):
    """Euclidean distances of vectors (C,) and (..., C), in double precision."""
    return np.linalg.norm(other.astype(float) - one.astype(float), axis=-1)


def assert_same_distances(found, expected):
    """Up to the rounding of COARSE products; squares of differences, which are rounded once, are nearer than that."""
    assert (np.abs(found - expected) <= distance_rounding(COARSE, expected)).all()


def within(place, count, others, reach):
    """Mask of the `others` positions within `reach` of a position, as shares of the side; the nearest always counts."""
    away = np.abs((place + 0.5) / count - (np.arange(others) + 0.5) / others)
    return (away <= reach) | (away <= away.min() + 1e-12)


def self_distance_by_hand(patches):
    rows, columns, _ = patches.shape
    found = np.empty((rows, columns))
    for y in range(rows):
        for x in range(columns):
            away = apart(patches[y, x], patches)
            away[np.ix_(within(y, rows, rows, 0.06), within(x, columns, columns, 0.06))] = np.inf
            found[y, x] = away.min()
    return found


def cells_by_hand(target, patches, self_distance):
    """All features but `missing`, (h, w, C + CELL_EXTRA), of one stride of an unaligned pair."""
    height, width, channels = target.shape
    rows, columns, _ = patches.shape
    found = np.zeros((height, width, channels + CELL_EXTRA))
    for y in range(height):
        for x in range(width):
            away = apart(target[y, x], patches)
            windows = [np.full_like(away, np.inf) for _ in REACHES]
            for window, reach in zip(windows, REACHES, strict=True):
                inside = np.ix_(within(y, height, rows, reach), within(x, width, columns, reach))
                window[inside] = away[inside]
            nearest = np.unravel_index(away.argmin(), away.shape)
            # Fine patches are held against the nearest in the wider window, coarse ones against the nearest anywhere.
            beside = windows[0] if channels == FINE else away
            other = patches[np.unravel_index(beside.argmin(), away.shape)]
            found[y, x, :channels] = 16 * (target[y, x] - other) ** 2
            distances = [away.min(), windows[0].min(), windows[1].min(), self_distance[nearest]]
            found[y, x, channels : channels + MISSING] = distances
    found[..., channels + DISTANCES : -1] = np.quantile(self_distance, QUANTILES)
    return found


def by_hand(target, reference):
    """Rows of evidence: the four fine cells of a patch, row by row, then its coarse one."""
    fine, coarse = (
        cells_by_hand(own, patches, self_distance_by_hand(patches))
        for own, patches in zip(target, reference, strict=True)
    )
    rows = []
    for y in range(coarse.shape[0]):
        for x in range(coarse.shape[1]):
            cells = [fine[2 * y + dy, 2 * x + dx] for dy in (0, 1) for dx in (0, 1)]
            rows.append(np.concatenate([*cells, coarse[y, x]]))
    return np.reshape(rows, (*coarse.shape[:2], -1))


# Channels of both strides, and half of the side of a map of 4 x 4 patches.
WIDE = ((FINE, 4), (COARSE, 2))
# Where in a row the distance of what is missing stands for each cell; it is compared on its own.
MISSING_AT = [cell * (FINE + CELL_EXTRA) + FINE + MISSING for cell in range(4)]
MISSING_AT.append(4 * (FINE + CELL_EXTRA) + COARSE + MISSING)


@pytest.mark.parametrize(
    ("target", "reference"), [((64, 64), (64, 64)), ((64, 96), (80, 48)), ((32, 160), (96, 32))], ids=str
)
def test_pair_features_equal_those_of_a_plain_search(target, reference):
    backbone = Backbone()
    target, reference = make_image(*target), make_image(*reference, seed=1)
    found = pair_features(backbone.patches(target), reference_features(backbone, reference))
    assert found.shape == (target.shape[0] // 16, target.shape[1] // 16, WIDTH)
    assert found.dtype == np.float32
    expected = by_hand(backbone.patches(target), backbone.patches(reference))
    rest = np.setdiff1d(np.arange(WIDTH), MISSING_AT)
    assert_same_distances(found[..., rest], expected[..., rest])
    wrong = by_hand([each[:, ::-1] for each in backbone.patches(target)], backbone.patches(reference))
    with pytest.raises(AssertionError):
        assert_same_distances(found[..., rest], wrong[..., rest])


def missing_by_hand(target, patches):
    """How far each reference patch is from the nearest target patch whose wider window holds it; 2 where none does."""
    height, width, _ = target.shape
    rows, columns, _ = patches.shape
    found = np.full((rows, columns), 2.0)
    for y in range(height):
        for x in range(width):
            inside = np.ix_(within(y, height, rows, REACHES[0]), within(x, width, columns, REACHES[0]))
            found[inside] = np.minimum(found[inside], apart(target[y, x], patches)[inside])
    return found


@pytest.mark.parametrize(("target", "reference"), [((64, 64), (64, 64)), ((64, 96), (80, 48))], ids=str)
def test_what_is_missing_is_what_a_plain_search_finds(target, reference):
    backbone = Backbone()
    target, reference = backbone.patches(make_image(*target)), backbone.patches(make_image(*reference, seed=1))
    found = pair_features(
        target, [ReferenceFeatures(each, self_distance_by_hand(each).astype(np.float32)) for each in reference]
    )
    for own, patches, seen, channels in zip(target, reference, cells(found), (FINE, COARSE), strict=True):
        away = missing_by_hand(own, patches)
        expected = cv2.resize(away, own.shape[1::-1])  # the reference's places, brought to the target's
        assert np.ptp(away) > 0.05
        assert_same_distances(seen[..., channels + MISSING], expected)


def maps(rng, height, width):
    """Random patches of both strides for an image of height x width patches of 16."""
    return [unit(rng, 2 * height, 2 * width, FINE), unit(rng, height, width, COARSE)]


def referenced(patches):
    return [ReferenceFeatures(each, self_distance_by_hand(each).astype(np.float32)) for each in patches]


def cells(found):
    """Rows of evidence as the maps of their cells: (2h, 2w, FINE + CELL_EXTRA) and (h, w, COARSE + CELL_EXTRA)."""
    height, width = found.shape[:2]
    fine = found[..., : 4 * (FINE + CELL_EXTRA)].reshape(height, width, 2, 2, -1)
    return fine.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, -1), found[..., 4 * (FINE + CELL_EXTRA) :]


def test_identical_images_have_distance_zero():
    patches = maps(np.random.default_rng(0), 4, 5)
    for own, channels in zip(cells(pair_features(patches, referenced(patches))), (FINE, COARSE), strict=True):
        assert own[..., :channels].max() < CLOSE
        assert own[..., channels : channels + NARROW + 1].max() < CLOSE
        assert own[..., channels + MISSING].max() < CLOSE


def test_a_patch_that_moved_is_near_in_the_whole_and_far_in_the_windows():
    reference = maps(np.random.default_rng(1), 6, 6)
    target = [each.copy() for each in reference]
    for each in target:
        each[0, 0] = each[-1, -1]
    for own, channels in zip(cells(pair_features(target, referenced(reference))), (FINE, COARSE), strict=True):
        whole, window, narrow = own[0, 0, channels : channels + 3]
        assert whole < CLOSE
        assert window > 0.5  # random directions of 40 dimensions and more are about sqrt(2) apart
        assert narrow >= window
    fine, coarse = cells(pair_features(target, referenced(reference)))
    assert fine[0, 0, :FINE].sum() > 16 * 0.5**2  # held against the window, sum of squares over 16 channels' gain
    assert coarse[0, 0, :COARSE].sum() < CLOSE  # held against the whole


def test_what_is_missing_shows_where_it_was():
    """A patch of the reference that the target lacks: nothing of the target's own is far, yet its place says so."""
    target = [np.repeat(np.repeat(unit(np.random.default_rng(3), 1, 1, n), 2 * s, 0), 2 * s, 1) for n, s in WIDE]
    reference = [each.copy() for each in target]
    for each in reference:
        each[2, 1] = unit(np.random.default_rng(4), each.shape[2])
    for own, channels in zip(cells(pair_features(target, referenced(reference))), (FINE, COARSE), strict=True):
        assert own[..., channels + WHOLE].max() < CLOSE
        missing = own[..., channels + MISSING].copy()
        assert missing[2, 1] > 0.5
        missing[2, 1] = 0
        assert missing.max() < CLOSE


def test_what_repeats_is_less_rare():
    rng = np.random.default_rng(2)
    unique = maps(rng, 6, 6)
    motif = [unit(rng, 4, 4, FINE), unit(rng, 2, 2, COARSE)]
    repeating = [np.tile(each, (3, 3, 1)) for each in motif]
    # The motif's copy is a third of the side away.
    for patches, least, most in ((unique, 0.5, 2.0), (repeating, 0.0, CLOSE)):
        for own, channels in zip(cells(pair_features(patches, referenced(patches))), (FINE, COARSE), strict=True):
            said = np.concatenate([own[..., [channels + RARITY]], own[..., channels + DISTANCES : -1]], axis=-1)
            assert least <= said.min() <= said.max() <= most


def test_self_distance_leaves_out_the_surroundings():
    """Smooth patches are all near their neighbours: self-distance leaves out 0.06 of the sides, here one position of 20."""
    angle = np.linspace(0, np.pi / 2, 20)
    line = np.zeros((20, FINE), np.float32)
    line[:, 0], line[:, 1] = np.cos(angle), np.sin(angle)
    patches = np.repeat(line[None], 20, axis=0)  # columns differ, rows do not
    by_rows = self_distance_by_hand(patches)
    assert by_rows.max() < CLOSE  # the same column two rows off
    assert_same_distances(_self_distance(patches), by_rows)
    alone = patches[:1]  # a single row: two columns off is the nearest that counts
    chord = 2 * np.sin((angle[2] - angle[0]) / 2)
    assert_same_distances(_self_distance(alone), np.full((1, 20), chord))


def test_pixel_differences_are_in_their_cell():
    patches = maps(np.random.default_rng(7), 2, 4)
    pixels = np.zeros((32, 64), np.float32)
    pixels[9, 30], pixels[31, 63] = 4.0, np.e - 1
    found = cells(pair_features(patches, referenced(patches), pixels))
    for own, channels, where in zip(found, (FINE, COARSE), ({(1, 3), (3, 7)}, {(0, 1), (1, 3)}), strict=True):
        seen = own[..., channels + PIXELS]
        assert {tuple(place) for place in np.argwhere(seen > 0)} == where
        assert sorted(seen[seen > 0]) == pytest.approx([0.7, 0.7 * np.log(5)])
        assert (own[..., -1] == 1).all()
    for own, channels in zip(cells(pair_features(patches, referenced(patches))), (FINE, COARSE), strict=True):
        assert not own[..., channels + PIXELS].any()
        assert not own[..., -1].any()


def test_a_reference_is_aligned_if_it_shows_the_same_part():
    part = make_image(160, 160)
    damaged = np.roll(part, 3, axis=1)
    damaged[60:80, 90:110] = 255 - damaged[60:80, 90:110]
    pixels = aligned_difference(part, damaged)
    assert pixels.shape == (160, 160)
    assert pixels[62:78, 92:108].mean() > 3  # the units of noise from which difference takes note
    assert np.median(pixels) < 1
    assert (
        aligned_difference(part, np.asarray(NORMALS["lettered"](np.random.default_rng(0), 160), dtype=np.uint8)) is None
    )
