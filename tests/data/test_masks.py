"""Boxes from masks, compared with a plain flood fill."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from differad.data.manifest import read_pairs
from differad.data.masks import boxes_from_mask, decode_mask, read_labels, read_mask
from differad.errors import ImageError, InputWarning

SHARED = Path(__file__).parents[3] / "shared" / "data"


def flood_boxes(mask):
    """Boxes of 8-connected regions by a flood fill pixel by pixel."""
    todo = {tuple(point) for point in np.argwhere(mask)}
    found = []
    while todo:
        stack, region = [todo.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
            todo -= near
            stack += near
        ys, xs = zip(*region, strict=True)
        found.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_boxes_equal_a_flood_fill(seed):
    mask = np.random.default_rng(seed).random((24, 31)) < 0.2
    assert sorted(boxes_from_mask(mask, gap=0).tolist()) == sorted(flood_boxes(mask))


def test_specks_near_a_defect_belong_to_it():
    mask = np.zeros((100, 200), bool)
    mask[10:20, 10:20] = True
    mask[14, 22] = True  # 2 pixels of background away; 2 % of 200 is 4
    mask[60:65, 60:65] = True
    assert boxes_from_mask(mask).tolist() == [[10, 10, 23, 20], [60, 60, 65, 65]]
    assert boxes_from_mask(mask, gap=0).tolist() == [[10, 10, 20, 20], [60, 60, 65, 65], [22, 14, 23, 15]]
    assert boxes_from_mask(mask, gap=1).tolist() == boxes_from_mask(mask, gap=0).tolist()
    assert boxes_from_mask(mask, gap=2).tolist() == boxes_from_mask(mask).tolist()


def test_an_empty_mask_has_no_box():
    assert boxes_from_mask(np.zeros((9, 9), bool)).shape == (0, 4)


@pytest.mark.parametrize("value", [1, 255])
def test_any_value_but_black_marks(tmp_path, value):
    pixels = np.zeros((4, 5), np.uint8)
    pixels[1, 2] = value
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    assert np.argwhere(read_mask(tmp_path / "mask.png")).tolist() == [[1, 2]]


def save(folder, name, pixels, **options):
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def inverted(height=20, width=30):
    pixels = np.full((height, width), 255, np.uint8)
    pixels[5:9, 6:12] = 0
    return pixels


@pytest.mark.parametrize("share", ["small", "large", "all"])
def test_an_inverted_mask_is_named(tmp_path, share):
    pixels = inverted()
    if share == "large":
        pixels[3:17, 4:20] = 0  # 224 of 600 pixels: 62 % marked, and the whole border
    elif share == "all":
        pixels[:] = 255
    with pytest.warns(
        InputWarning, match=r"mask\.png: marks (96|62|100) % of the image and every edge of it; is it inverted"
    ):
        read_mask(save(tmp_path, "mask.png", pixels))


def test_a_large_defect_is_no_inverted_mask(tmp_path):
    pixels = np.zeros((20, 30), np.uint8)
    pixels[1:19, 1:29] = 255  # 84 %, no edge
    stripe = np.zeros((20, 30), np.uint8)
    stripe[4:] = 255  # 80 %, three edges and parts of them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_mask(save(tmp_path, "a.png", pixels)).sum() == 18 * 28
        assert read_mask(save(tmp_path, "b.png", stripe)).sum() == 16 * 30


def test_a_warning_is_given_once_a_file(tmp_path):
    paths = [save(tmp_path, f"{name}.png", inverted()) for name in "ab"]
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("default", InputWarning)
        for path in (*paths, *paths):
            read_mask(path)
    assert [str(one.message).split(":")[0] for one in given] == [str(path) for path in paths]


def test_a_palette_without_its_first_index_goes_by_colour(tmp_path):
    """For example Pillow's own palette has black at index 10: then no index means background."""
    image = Image.frombytes("P", (3, 1), bytes([10, 10, 20]))
    image.putpalette([0] * 33 + [9] * 735)
    image.save(tmp_path / "web.png")
    assert read_mask(tmp_path / "web.png").tolist() == [[False, False, True]]


def test_index_0_on_a_transparent_background_marks(tmp_path):
    image = Image.frombytes("P", (3, 1), bytes([1, 0, 1]))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.save(tmp_path / "cut.png", transparency=1)
    assert read_mask(tmp_path / "cut.png").tolist() == [[False, True, False]]


def test_a_mask_of_several_pages_is_refused(tmp_path):
    pages = [Image.new("1", (3, 2)), Image.new("1", (3, 2), 1)]
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="holds 2 images"):
        read_mask(tmp_path / "mask.tif")
    assert not read_mask(tmp_path / "mask.tif[1]").any()


def test_ambiguous_masks_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "nan.tif", np.array([[0, np.nan, 1]], np.float32))
    with pytest.raises(ImageError, match="1 samples of the mask are NaN"):
        read_mask(tmp_path / "nan.tif")
    tifffile.imwrite(tmp_path / "white.tif", np.zeros((4, 4), np.uint16), photometric="miniswhite")
    with pytest.raises(ImageError, match="whose 0 is white"):
        read_mask(tmp_path / "white.tif")
    dot = np.zeros((32, 32), np.uint8)
    dot[10:12, 10:12] = 90
    with pytest.raises(ImageError, match="lossy mask with grey areas"):
        read_mask(save(tmp_path, "dot.jpg", dot))


def test_a_mask_is_rotated_like_any_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((2, 5), np.uint8)
    pixels[0, 4] = 255
    path = save(tmp_path, "mask.png", pixels, exif=exif)
    assert np.array_equal(read_mask(path, (2, 5)), np.rot90(pixels, -1) > 0)
    assert np.array_equal(decode_mask(path.read_bytes(), "member", (2, 5)), np.rot90(pixels, -1) > 0)
    with pytest.raises(ImageError, match="member: mask of 2x5 pixels; expected 5x2"):
        decode_mask(path.read_bytes(), "member", (5, 2))


def test_labels_keep_their_numbers(tmp_path):
    ids = np.array([[0, 300, 300, 40_000]], np.uint16)
    labels = read_labels(save(tmp_path, "ids.png", ids), (4, 1))
    assert labels[0, 0] == 0
    assert len(set(labels[0])) == 3
    with pytest.raises(ImageError, match="lossless map of objects"):
        read_labels(save(tmp_path, "ids.jpg", np.zeros((9, 9), np.uint8)))


def test_the_mask_of_a_pair_has_its_targets_size(tmp_path):
    line = '{"id": "a", "reference": "r.png", "target": "t.png", "mask": "m.png"}\n'
    (tmp_path / "pairs.jsonl").write_text(line)
    pixels = np.zeros((6, 8), np.uint8)
    pixels[2, 3] = 1
    save(tmp_path, "m.png", pixels)
    (pair,) = read_pairs(tmp_path / "pairs.jsonl")  # the target is not here: its size is checked by whoever opens it
    assert pair.boxes.tolist() == [[3, 2, 4, 3]]
    save(tmp_path, "t.png", np.zeros((6, 9), np.uint8))
    with pytest.raises(ImageError, match=r"m\.png: mask of 8x6 pixels; expected 9x6 as its image has"):
        list(read_pairs(tmp_path / "pairs.jsonl"))


@pytest.mark.parametrize("name", ["magnetic_tile", "kolektor_sdd"])
def test_the_labels_of_the_real_masks_are_found(name):
    path = SHARED / name / "pairs.jsonl"
    if not path.exists():
        pytest.skip(f"the real pairs are not here: {path}")
    pairs = [pair for pair in read_pairs(path) if pair.mask is not None]
    same = sum(sorted(boxes_from_mask(read_mask(p.mask)).tolist()) == sorted(p.boxes.tolist()) for p in pairs)
    assert same >= 0.95 * len(pairs)  # whoever labelled them joined specks by a rule of their own
