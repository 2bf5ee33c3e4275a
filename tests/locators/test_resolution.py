"""Images as finely as they show what they show: enlargements undone, resolutions compared."""

import cv2
import numpy as np
import pytest
from PIL import Image

from differad.locators.resolution import at_common_resolution, matched, resolved_share, shrink, without_repeats
from differad.synthesis.pairs import make_pair
from differad.synthesis.textures import TEXTURES


@pytest.fixture(scope="module", params=["board", *TEXTURES])
def image(request):
    return make_pair(np.random.default_rng(3), request.param, size=320).target


def upsample_rows(image, factor, how=cv2.INTER_CUBIC):
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)


@pytest.mark.parametrize("factor", [1.25, 1.5, 2, 2.7, 3])
def test_an_enlargement_by_nearest_neighbour_is_undone_to_the_bit(image, factor):
    by_opencv = upsample_rows(image, factor, cv2.INTER_NEAREST)
    by_pillow = np.asarray(Image.fromarray(image).resize(by_opencv.shape[1::-1], Image.Resampling.NEAREST))
    for large in (by_opencv, by_pillow):
        assert np.array_equal(without_repeats(large), image)


def test_what_was_not_enlarged_comes_back_itself(image):
    smooth = upsample_rows(image, 2)
    spoilt = upsample_rows(image, 2, cv2.INTER_NEAREST)
    spoilt[100:103:2, 50] ^= 255  # two samples that no enlargement explains
    plain = np.full((200, 200, 3), 80, np.uint8)
    for one in (image, smooth, spoilt, plain):
        assert without_repeats(one) is one


def test_a_strip_that_repeats_along_one_side_alone_is_not_an_enlargement():
    rows = np.random.default_rng(0).integers(0, 256, (300, 1, 3), dtype=np.uint8).repeat(200, axis=1)
    assert without_repeats(rows) is rows


@pytest.mark.parametrize("factor", [2, 3])
def test_an_enlargement_resolves_no_more_than_its_original(image, factor):
    # What interpolation adds is not told apart within a quarter, and an image as sharp as pixels allow shows its edges at up to
    # SHARP: it is left up to 0.65 / 0.25 times as large as it could be.
    before, after = resolved_share(image), resolved_share(upsample_rows(image, factor)) * factor
    assert after < 2.6
    assert before < 1 or after > 0.75
    if before < 1:
        assert 0.7 < after / before < 1.5


def test_a_blur_lowers_what_an_image_resolves():
    image = make_pair(np.random.default_rng(3), "board", size=320).target
    shares = [resolved_share(cv2.GaussianBlur(image, (0, 0), blur)) for blur in (1.5, 3, 6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[1] == pytest.approx(0.65 / 3, rel=0.35)  # SHARP over the blur, which dominates the image's own


def test_images_come_to_the_coarser_resolution_of_the_two(image):
    sharp, soft = upsample_rows(image, 2, cv2.INTER_NEAREST), cv2.GaussianBlur(upsample_rows(image, 2), (0, 0), 4)
    reference, target = at_common_resolution(sharp, soft, 8192)
    assert reference.shape == target.shape
    assert max(target.shape) < 320
    reference, target = at_common_resolution(soft, sharp, 8192)
    assert max(target.shape) < 320
    reference, target = at_common_resolution(image, image, 256)
    assert max(target.shape) == 256


def test_only_the_finer_one_is_shrunk_and_only_where_they_differ_plainly(image):
    fine = upsample_rows(image, 2)
    assert matched(image, fine)[0] is image
    same = matched(image, image)
    assert same[0] is image
    assert same[1] is image
    half = shrink(image, 0.5)
    coarse, target = matched(cv2.GaussianBlur(half, (0, 0), 2), image)
    assert max(coarse.shape) == max(half.shape)
    assert max(target.shape) < 320


def test_a_strip_keeps_the_width_that_is_needed():
    strip = np.zeros((64, 4000, 3), np.uint8)
    assert shrink(strip, 0.1).shape == (64, 4000, 3)
    assert shrink(np.zeros((640, 4000, 3), np.uint8), 0.05).shape == (64, 400, 3)
