"""Images as cameras, scanners and programs write them, and files that are no images."""

import subprocess
import sys
import warnings
from io import BytesIO

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from differad.errors import ImageError, InputError, OptionError, WriteError
from differad.headers import pixel_limit
from differad.images import (
    image_file,
    image_size,
    read_header,
    read_image,
    read_images,
    read_reduced,
    write_drawn,
    write_image,
)

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


@pytest.mark.parametrize(("channels", "planes"), [(3, "contig"), (3, "separate"), (2, "separate"), (2, "contig")])
def test_what_opencv_4_does_not_decode_is_refused_with_the_remedy(tmp_path, channels, planes):
    """Unsigned 32-bit integers in several channels; OpenCV 5 reads them."""
    samples = np.full((4, 6, channels), 200, np.uint32)
    stored = samples if planes == "contig" else np.moveaxis(samples, -1, 0)
    kind, extra = ("rgb", None) if channels == 3 else ("minisblack", ["unassalpha"])
    tifffile.imwrite(
        tmp_path / "a.tif", np.ascontiguousarray(stored), photometric=kind, planarconfig=planes, extrasamples=extra
    )
    if int(cv2.__version__.partition(".")[0]) >= 5:
        shown = 200 if channels == 3 else round(255 - (255 - 200) * 200 / 255)  # grey 200, over white by alpha 200
        assert np.abs(read_image(tmp_path / "a.tif").astype(int) - shown).max() <= 1
        return
    with pytest.raises(
        ImageError, match=r"a\.tif: unsigned samples of 32 bits, .*; pip install 'opencv-python-headless>=5'"
    ):
        read_image(tmp_path / "a.tif")


def test_unsigned_integers_are_not_taken_for_signed_ones(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 6), 2**31 + 5, np.uint32))
    with pytest.raises(ImageError, match=r"samples up to 2\.14748e\+09 are deeper than 16 bits"):
        read_image(tmp_path / "a.tif")


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


def test_images_to_compare_share_one_depth():
    bright, dark = np.array([[4095]], np.uint16), np.array([[1000]], np.uint16)
    reference, target = read_images(bright, dark)
    assert (reference[0, 0, 0], target[0, 0, 0]) == (255, 1000 // 16)  # 12 bits for both
    assert read_image(dark)[0, 0, 0] == 1000 // 4  # 10 bits on its own
    assert read_images(np.array([[7]], np.uint8), bright)[0][0, 0, 0] == 7  # 8-bit data stays what it is


def test_sixteen_bit_png(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(path)
    assert read_image(path)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_an_array_that_is_rgb_already_is_not_copied():
    """A locator hands the pair that it has read to others, and a large one would be held once more by each."""
    array = two_tone()
    assert read_image(array) is array
    assert not np.shares_memory(read_image(array[:, ::-1]), array)


def test_alpha_is_composited_over_white(tmp_path):
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


def test_exif_orientation_of_a_png_applies_to_its_size_wherever_the_chunk_is(tmp_path):
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
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"huge\.png: 20000x20000 pixels, more than 200,000,000.*shrink"):
            read(path)
    for source in (Image.fromarray(two_tone()), path):
        with pytest.raises(ImageError, match="pixels, more than 10;"):
            read_image(source, max_pixels=10)


def test_the_limit_is_one_number_that_can_be_set(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    Image.fromarray(two_tone()).save(path)  # 24 pixels
    assert pixel_limit() == 200_000_000
    monkeypatch.setenv("DIFFERAD_MAX_PIXELS", "23")
    with pytest.raises(ImageError, match="6x4 pixels, more than 23"):
        read_image(path)
    assert read_image(path, max_pixels=24).shape == (4, 6, 3)
    for value in ("many", "0", "-1", "1.5"):
        monkeypatch.setenv("DIFFERAD_MAX_PIXELS", value)
        with pytest.raises(OptionError, match=f"DIFFERAD_MAX_PIXELS='{value}': expected a whole number"):
            image_size(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_pillows_own_limit_neither_warns_nor_counts(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"image{suffix}"
    Image.new("L", (200, 100), 7).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    for limit in (15_000, 1_000):  # Pillow would warn, and refuse
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(path).shape == (100, 200, 3)
            assert image_size(path) == (200, 100)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_a_large_grey_image_takes_little_more_memory_than_its_result(tmp_path):
    """The result, Pillow's copy and the samples are 3 + 1 + 1 bytes a pixel; strips of 2 million pixels come on top."""
    pytest.importorskip("resource", reason="Windows counts no peak memory this way")
    Image.new("L", (6000, 5000)).save(tmp_path / "large.png")
    script = (
        "import resource, sys\n"
        "from differad.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_image(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "large.png"], capture_output=True, text=True, check=True
    )
    kilobytes = int(done.stdout)
    if sys.platform == "linux":  # elsewhere the unit differs
        assert kilobytes * 1024 < 6000 * 5000 * 5 + 2_000_000 * 8


def test_write_image_round_trip_and_errors(tmp_path):
    write_image(tmp_path / "new" / "image.png", two_tone())
    assert np.array_equal(read_image(tmp_path / "new" / "image.png"), two_tone())
    with pytest.raises(ImageError, match="names no image format"):
        write_image(tmp_path / "image.nonsense", two_tone())
    with pytest.raises(WriteError, match="cannot be made a folder"):
        write_image(tmp_path / "new" / "image.png" / "below.png", two_tone())
    with pytest.raises(ImageError, match="cannot be encoded"):
        write_image(tmp_path / "image.jpg", np.zeros((1, 70_000, 3), np.uint8))


def test_eps_in_a_png_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript, whatever the file's name; so it must never see one."""
    ran = tmp_path / "ran"
    for name in ("gs", "gswin64c"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    Image.new("RGB", (9, 9)).save(tmp_path / "test.eps")
    (tmp_path / "test.eps").rename(tmp_path / "test.png")
    for read in (read_image, image_size, read_header):
        with pytest.raises(ImageError, match=r"test\.png: not an image.*expected PNG, JPEG, TIFF, BMP or WebP"):
            read(tmp_path / "test.png")
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "PDF"])
def test_other_formats_are_never_opened(tmp_path, kind):
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png", kind)
    with pytest.raises(ImageError, match="not an image that can be read"):
        read_image(tmp_path / "image.png")


def test_a_file_may_really_be_named_like_a_page(tmp_path):
    Image.fromarray(two_tone()).save(tmp_path / "a.png[2]", "PNG")
    Image.new("RGB", (3, 3), "white").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png[2]"), two_tone())
    assert read_image(tmp_path / "a.png[1]").shape == (3, 3, 3)
    with pytest.raises(ImageError, match=r"a\.png\[3\]: page 3 of a file that holds 1; expected 1 to 1"):
        image_size(tmp_path / "a.png[3]")
    assert image_file(tmp_path / "a.png[2]").name == "a.png[2]"
    assert image_file(tmp_path / "a.png[1]").name == "a.png"


def test_smaller_copies_are_no_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "scan.tif") as file:
        file.write(two_tone(3, 2), subfiletype=1, photometric="rgb")  # a thumbnail in front
        file.write(two_tone(), photometric="rgb", extratags=[(274, "H", 1, 3, True)])
    assert np.array_equal(read_image(tmp_path / "scan.tif"), two_tone()[::-1, ::-1])
    photograph = Image.fromarray(two_tone(64, 48))
    photograph.save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[photograph.resize((8, 6))])
    assert image_size(tmp_path / "camera.jpg") == (64, 48)
    photograph.save(tmp_path / "stereo.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48), "white")])
    with pytest.raises(ImageError, match=r"holds 2 images; name one of them, the first as stereo\.jpg\[1\]"):
        image_size(tmp_path / "stereo.jpg")
    assert read_image(tmp_path / "stereo.jpg[2]").min() == 255


def test_a_stack_of_imagej_counts_as_its_images(tmp_path):
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 4, 6), np.uint8), imagej=True)
    with pytest.raises(ImageError, match="holds 5 images"):
        read_image(tmp_path / "stack.tif")


def test_a_page_of_a_tiff_is_turned_as_it_says(tmp_path):
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2730  # to 62790: 16 bits
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        file.write(np.stack([deep] * 3, axis=-1), photometric="rgb")
        file.write(np.stack([deep] * 3, axis=-1), photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    assert np.array_equal(read_image(tmp_path / "pages.tif[1]")[..., 0], deep >> 8)
    assert np.array_equal(read_image(tmp_path / "pages.tif[2]")[..., 0], np.rot90(deep, -1) >> 8)
    assert (image_size(tmp_path / "pages.tif[1]"), image_size(tmp_path / "pages.tif[2]")) == ((6, 4), (4, 6))


@pytest.mark.parametrize("unloaded", [True, False])
def test_a_tiff_opened_by_pillow_is_turned_once(tmp_path, unloaded):
    tifffile.imwrite(tmp_path / "turned.tif", two_tone(), photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    image = Image.open(tmp_path / "turned.tif")
    if not unloaded:
        image.load()
    assert image_size(image) == (4, 6)
    assert np.array_equal(read_image(image), np.rot90(two_tone(), -1))


def test_what_pillow_narrows_is_refused_from_pillow(tmp_path):
    tifffile.imwrite(tmp_path / "deep.tif", np.full((4, 6, 3), 900, np.uint16), photometric="rgb")
    assert read_image(tmp_path / "deep.tif")[0, 0].tolist() == [900 >> 2] * 3
    with Image.open(tmp_path / "deep.tif") as image, pytest.raises(ImageError, match="8 of the 16 bits"):
        read_image(image)


def test_a_stated_depth_is_not_guessed(tmp_path):
    dark = np.full((10, 10), 900, np.uint16)  # would be taken for 10 bits
    tifffile.imwrite(tmp_path / "dark.tif", dark, extratags=[(281, "H", 1, 4095, True)])  # MaxSampleValue
    assert read_header(tmp_path / "dark.tif").stated_bits == 12
    assert read_image(tmp_path / "dark.tif").max() == 900 >> 4
    tifffile.imwrite(tmp_path / "own.tif", dark, extratags=[(281, "H", 1, 900, True)])  # its own brightest sample
    assert read_header(tmp_path / "own.tif").stated_bits is None


def test_white_may_be_zero(tmp_path):
    samples = np.array([[0, 1023, 4095]], np.uint16)
    tifffile.imwrite(tmp_path / "inverted.tif", samples, photometric="miniswhite")
    assert read_image(tmp_path / "inverted.tif")[0, :, 0].tolist() == [255, 255 - 63, 0]


def floats(*values):
    return np.tile(np.array(values, np.float32), (20, 10))


def test_floats_share_one_scale():
    reference, target = read_images(floats(0, 0.5), floats(0.25, 1.02))
    assert (reference[0, 0, 0], reference[0, 1, 0], target[0, 0, 0], target[0, 1, 0]) == (0, 128, 64, 255)
    dark, bright = read_images(floats(0, 3), floats(0, 200))
    assert (dark.max(), bright.max()) == (3, 200)
    assert read_images(floats(0, 0), floats(0, 200))[1].max() == 200  # black says nothing about the scale
    with pytest.raises(ImageError, match="expected one scale"):
        read_images(floats(0, 0.9), floats(0, 230))
    with pytest.raises(ImageError, match="no shares of 1 and too dark"):
        read_image(floats(0, 7))


def test_samples_that_are_no_light_are_refused():
    with pytest.raises(ImageError, match="200 samples are NaN or infinite"):
        read_image(floats(np.nan, 1, 0, np.inf)[:, :20])
    with pytest.raises(ImageError, match="samples below 0, down to -1"):
        read_image(floats(-1, 1))
    assert read_image(floats(-0.004, 0.5))[0, :2, 0].tolist() == [0, 128]  # a black level taken off leaves some noise


def test_deep_samples_are_as_bright_as_eight_bit_ones():
    plain = np.full((10, 10), 48, np.uint8)
    deep = np.full((10, 10), 48 << 4, np.uint16)  # 768 of 12 bits; alone it would pass for 10
    assert read_image(deep).max() == 768 >> 2
    assert [image.max() for image in read_images(plain, deep)] == [48, 48]


def test_a_jpeg_is_read_small_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(two_tone(640, 320)).save(tmp_path / "large.jpg", exif=exif, quality=95)
    small = read_reduced(tmp_path / "large.jpg", 64)
    assert small.shape == (160, 80, 3)  # a quarter: an eighth would leave 40
    assert np.abs(small.astype(int) - read_image(tmp_path / "large.jpg")[2::4, 2::4]).mean() < 2
    write_image(tmp_path / "large.png", two_tone(640, 320))
    assert read_reduced(tmp_path / "large.png", 64).shape == (320, 640, 3)


def webp_of(pixels, **how):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", **how)
    return buffer.getvalue()


def webp_parts():
    """Images whose WebP files end in all the ways: noise, nothing but zeros, a black half, dots, a ramp, lines."""
    random = np.random.default_rng(0)
    side = 160
    noise = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
    half, quarter, ramp, dots = (np.zeros((side, side, 3), np.uint8) for _ in range(4))
    half[: side // 2], quarter[: side // 4] = noise[: side // 2], noise[: side // 4]
    ramp[:] = np.arange(side, dtype=np.uint8)[:, None, None]
    dots[random.random((side, side)) < 0.02] = 255
    lines = np.repeat(noise[:1], side, axis=0)
    return {"noise": noise, "half": half, "quarter": quarter, "ramp": ramp, "dots": dots, "lines": lines}


@pytest.mark.parametrize("method", [0, 4, 6])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_file_is_whole_whatever_it_shows(lossless, method):
    for name, pixels in webp_parts().items():
        with_alpha = np.dstack([pixels, pixels[:, :, :1] // 2 + 100])
        for content in (
            webp_of(pixels, lossless=lossless, method=method),
            webp_of(with_alpha, lossless=lossless, method=method),
            webp_of(pixels, lossless=lossless, method=method, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
        ):
            assert read_image(content).shape == pixels.shape, name


@pytest.mark.parametrize("method", [0, 4])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_file_with_a_zeroed_tail_is_refused(lossless, method):
    """Zeros decode as shorter codes than the original ones, so that some are left over."""
    # Noise of a sensor. Where all values are equally frequent all codes are equally long, and nothing is left over.
    noise = np.random.default_rng(0).normal(128, 20, (160, 160, 3)).astype(np.uint8)
    with_alpha = np.dstack([noise, noise[:, :, :1]])
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    for content in (
        webp_of(noise, lossless=lossless, method=method),
        webp_of(with_alpha, lossless=lossless, method=method),
        webp_of(noise, lossless=lossless, method=method, exif=exif),
    ):
        for share in (0.1, 0.3, 0.6):
            lost = int(share * len(content))
            with pytest.raises(ImageError, match="broken or truncated"):
                read_image(content[:-lost] + bytes(lost))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif"])
def test_an_image_that_was_drawn_is_written_over_and_no_other_file(ending, tmp_path):
    pixels = np.full((20, 30, 3), 90, np.uint8)
    path = tmp_path / f"overlay{ending}"
    write_drawn(path, pixels)
    write_drawn(path, pixels)
    assert read_image(path).shape == pixels.shape
    for content in (lambda: write_image(path, pixels), lambda: path.write_text("mine"), lambda: path.write_bytes(b"")):
        content()
        before = path.read_bytes()
        with pytest.raises(
            InputError, match="exists, and is no image that differad drew; choose another name or remove"
        ):
            write_drawn(path, pixels)
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="no image that differad drew"):
        write_drawn(tmp_path, pixels)
