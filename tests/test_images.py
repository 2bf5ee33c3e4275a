"""Pictures as cameras, scanners and exports really write them, and files that are none."""

import numpy as np
import pytest
from PIL import Image

from differad.errors import ImageError
from differad.images import image_size, read_image, read_images, write_image

RED, GREEN = (255, 0, 0), (0, 255, 0)


def two_tone(width=6, height=4):
    """Left half red, right half green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = RED
    pixels[:, width // 2 :] = GREEN
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".webp"])
def test_lossless_formats_come_back_unchanged(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(two_tone()).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(path), two_tone())
    assert image_size(path) == (6, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    undo |= {6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # a camera stores the scene turned the other way
    stored = Image.fromarray(two_tone())
    if orientation in undo:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    assert np.array_equal(read_image(path), two_tone())
    assert image_size(path) == (6, 4)


@pytest.mark.parametrize(("depth", "factor"), [(16, 256), (12, 16), (10, 4), (14, 64)])
def test_deep_samples_are_scaled_by_the_depth_they_use(tmp_path, depth, factor):
    deep = np.array([[0, 2**depth // 2, 2**depth - 1]], np.uint16)
    path = tmp_path / "deep.tiff"
    Image.fromarray(deep).save(path)
    expected = (deep // factor).astype(np.uint8)  # [0, 128, 255]
    assert read_image(path)[0, :, 0].tolist() == expected[0].tolist() == [0, 128, 255]


def test_pictures_to_compare_share_one_depth():
    bright, dark = np.array([[4095]], np.uint16), np.array([[1000]], np.uint16)
    reference, target = read_images(bright, dark)
    assert (reference[0, 0, 0], target[0, 0, 0]) == (255, 1000 // 16)  # 12 bits for both
    assert read_image(dark)[0, 0, 0] == 1000 // 4  # 10 bits on its own
    assert read_images(np.array([[7]], np.uint8), bright)[0][0, 0, 0] == 7  # 8-bit data stays what it is


def test_sixteen_bit_png(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(path)
    assert read_image(path)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_alpha_is_laid_over_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    path = tmp_path / "alpha.png"
    Image.fromarray(pixels).save(path)
    assert read_image(path)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(two_tone()).quantize(2)
    image.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), two_tone())
    image.save(tmp_path / "clear.png", transparency=image.getpixel((0, 0)))
    assert read_image(tmp_path / "clear.png")[0, 0].tolist() == [255, 255, 255]
    assert read_image(tmp_path / "clear.png")[0, -1].tolist() == list(GREEN)


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 77, [77] * 3), ("1", 1, [255] * 3)])
def test_grey_and_bilevel_become_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (3, 2), value).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[1, 2].tolist() == expected


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "print.jpg")[4, 4].tolist()
    assert red > 220
    assert green < 40
    assert blue < 40


def test_float_images_and_arrays_in_memory():
    assert read_image(np.array([[0.0, 1.0]]))[0, :, 0].tolist() == [0, 255]
    assert read_image(np.array([[0.0, 255.0]], np.float32))[0, :, 0].tolist() == [0, 255]
    assert read_image(np.array([[True, False]]))[0, :, 1].tolist() == [255, 0]
    assert read_image(Image.new("L", (2, 2), 9)).shape == (2, 2, 3)
    assert image_size(np.zeros((4, 6, 3))) == image_size(Image.new("L", (6, 4))) == (6, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 5)),
        np.zeros(7),
        np.zeros((0, 4)),
        np.zeros((2, 2, 4)),
        np.array([[-1]]),
        np.array([[np.nan]]),
        np.array([[2**20]]),
    ],
)
def test_arrays_that_are_no_image_are_refused(array):
    with pytest.raises(ImageError, match=r"expected|export"):
        read_image(array)


def broken_files(folder):
    whole = folder / "whole.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    data = whole.read_bytes()
    Image.fromarray(noise).save(folder / "whole.jpg")
    yield "empty.png", b""
    yield "text.png", b"this is no image"
    yield "truncated.png", data[: len(data) // 2]
    yield "truncated.jpg", (folder / "whole.jpg").read_bytes()[:900]
    yield "header.png", data[:20]
    yield "flipped.png", data[:60] + bytes(b ^ 255 for b in data[60:200]) + data[200:]


HEADER_IS_WHOLE = {"truncated.jpg", "flipped.png"}  # a size is read from heads alone; the pixels are refused when read


def test_broken_files_are_clear_errors(tmp_path):
    for name, content in broken_files(tmp_path):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
        if name in HEADER_IS_WHOLE:
            assert image_size(tmp_path / name) == (64, 64)
        else:
            with pytest.raises(ImageError, match=name):
                image_size(tmp_path / name)


def test_a_png_turned_by_exif_has_its_size_turned_wherever_the_chunk_stands(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20)).save(tmp_path / "before.png", exif=exif)
    whole = (tmp_path / "before.png").read_bytes()
    start = whole.index(b"eXIf") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4], "big")]
    rest = whole.replace(chunk, b"")
    (tmp_path / "behind.png").write_bytes(rest[:-12] + chunk + rest[-12:])  # IEND is 12 bytes
    for name in ("before.png", "behind.png"):
        assert image_size(tmp_path / name) == (20, 40)
        assert read_image(tmp_path / name).shape == (40, 20, 3)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path)


def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(ImageError, match=r"huge\.png.*shrink"):
        read_image(path)
    with pytest.raises(ImageError, match="6x4 pixels, more than 10"):
        read_image(Image.fromarray(two_tone()), max_pixels=10)


def test_write_image_round_trip_and_errors(tmp_path):
    write_image(tmp_path / "new" / "image.png", two_tone())
    assert np.array_equal(read_image(tmp_path / "new" / "image.png"), two_tone())
    with pytest.raises(ImageError, match="names no image format"):
        write_image(tmp_path / "image.nonsense", two_tone())
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "new" / "image.png" / "below.png", two_tone())
