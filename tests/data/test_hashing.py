"""Near-duplicates: found when re-encoded, resized or changed in brightness; parts of one kind are distinguished."""

import io
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from differad.data.hashing import (
    CONTRAST_SHARE,
    NOISE_FLOOR,
    Fingerprint,
    dhash,
    distance,
    fingerprint,
    groups,
    near_duplicates,
)
from differad.errors import OptionError
from differad.synthesis.pairs import make_pair
from differad.synthesis.textures import TEXTURES
from miniatures import damage, part


def test_a_ramp_sets_no_bit_or_all_of_them():
    ramp = np.repeat(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], 80, axis=0).repeat(3, axis=2)
    assert dhash(ramp) == 0  # brighter to the right: no cell is brighter than its right neighbour
    assert dhash(ramp[:, ::-1]) == 2**64 - 1
    assert dhash(np.full((20, 30, 3), 128, np.uint8)) == 0
    assert distance(0b1011, 0b0001) == 2


def altered(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=40)
    yield np.asarray(Image.open(stream).convert("RGB"))
    yield cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    yield np.clip(image.astype(int) + 10, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["board", *TEXTURES])
def test_the_limits_separate_copies_from_other_parts(kind):
    images = [make_pair(np.random.default_rng(s), kind, anomalous=False).target for s in range(4)]
    prints = [fingerprint(image) for image in images]
    assert list(near_duplicates(prints)) == []
    for image, own in zip(images, prints, strict=True):
        copies = [fingerprint(copy) for copy in altered(image)]
        assert {(0, i + 1) for i in range(len(copies))} <= set(near_duplicates([own, *copies]))


def test_a_small_defect_leaves_a_near_duplicate():
    good = part(1)
    assert list(near_duplicates([fingerprint(good), fingerprint(damage(good, (40, 40, 43, 43)))])) == [(0, 1)]


def slow(prints, radius):
    """Every pair compared separately."""
    for (i, a), (j, b) in itertools.combinations(enumerate(prints), 2):
        limit = NOISE_FLOOR + CONTRAST_SHARE * min(np.sqrt(np.mean(a.grey**2)), np.sqrt(np.mean(b.grey**2)))
        if distance(a.hash, b.hash) <= radius and np.sqrt(np.mean((a.grey - b.grey) ** 2)) <= limit:
            yield i, j


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_pieces_find_what_comparing_all_pairs_finds(radius):
    rng = np.random.default_rng(radius)
    bases = rng.integers(0, 2**63, 6)
    prints = []
    for number in range(120):
        value = int(bases[number % 6])
        for bit in rng.choice(64, size=rng.integers(0, 3), replace=False):
            value ^= 1 << int(bit)
        grey = (np.arange(1024) % (5 + number % 6) * 10 + rng.normal(0, 0.7, 1024)).astype(np.float32)
        prints.append(Fingerprint(value, grey - grey.mean()))
    found = list(near_duplicates(prints, radius))
    assert len(found) == len(set(found))  # each once
    assert set(found) == set(slow(prints, radius))
    assert len(found) > 10


def test_many_equal_images_do_not_fill_the_memory():
    grey = np.zeros(1024, np.float32)
    assert len(list(near_duplicates([Fingerprint(0, grey)] * 600))) == 600 * 599 // 2


def test_none_at_all_and_a_radius_that_pieces_cannot_guarantee():
    assert list(near_duplicates([])) == []
    with pytest.raises(OptionError, match="radius=4: expected 0 to 3 bits"):
        list(near_duplicates([fingerprint(part(1))], 4))


def test_groups_are_connected_components():
    assert groups(6, [(4, 1), (5, 4), (2, 3)]) == [0, 1, 2, 2, 1, 1]
