"""Files of every depth, layout and orientation, made by other writers, against an independent reading; and broken ones."""

import io
import struct
import warnings
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from differad.data.masks import read_mask
from differad.errors import ImageError
from differad.images import image_size, read_header, read_image, read_images

BOUNDED = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# How a stored image is turned upright, written out (EXIF 2.3, tag 274).
TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
OPENCV = int(cv2.__version__.partition(".")[0])
seeds = st.integers(0, 2**32 - 1)
orientations = st.integers(1, 8)


def to_eight_bits(samples, bits):
    """Levels of `bits` bits as 8, one in a thousand of them (one of a hundred or more at least) clipped."""
    return np.minimum(samples.astype(np.int64) >> (bits - 8), 255).astype(np.uint8)


def least_bits(samples):
    allowed = max(samples.size // 1000, int(samples.size >= 100))
    return next(bits for bits in (8, 10, 12, 14, 16) if (samples >= 2**bits).sum() <= allowed)


def over_white(colour, alpha):
    """Both 8 bits; different rounding of Pillow and arithmetic changes one level."""
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def as_rgb(samples):
    return np.broadcast_to(samples, (*samples.shape[:2], 3))


def exif_of(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def png_bytes(samples, bits, orientation=1, late=False):
    """A PNG written by hand: any colour type, 8 or 16 bits, its EXIF before or behind the pixels."""
    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = samples.astype(">u2" if bits == 16 else "u1")
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    turned = chunk(b"eXIf", exif_of(orientation).tobytes()[6:]) if orientation != 1 else b""
    body = chunk(b"IDAT", packed)
    return b"\x89PNG\r\n\x1a\n" + head + (body + turned if late else turned + body) + chunk(b"IEND", b"")


@BOUNDED
@given(sizes, st.integers(1, 4), st.sampled_from([8, 10, 12, 14, 16]), orientations, st.booleans(), seeds)
def test_png_of_every_depth_and_layout(tmp_path, size, channels, depth, orientation, late, seed):
    rng = np.random.default_rng(seed)
    samples = rng.integers(0, 2**depth, (size[1], size[0], channels))
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(samples, 8 if depth == 8 else 16, orientation, late))
    colour = samples if channels in (1, 3) else samples[..., :-1]
    shown = as_rgb(to_eight_bits(colour, 8 if depth == 8 else least_bits(colour)))
    if channels in (2, 4):
        alpha = samples[..., -1]
        full = next(2**b - 1 for b in (8, 10, 12, 14, 16) if alpha.max() < 2**b)
        shown = over_white(shown, alpha * (255 / full))
    expected = TURNS[orientation](shown)
    found = read_image(path)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (1 if channels in (2, 4) else 0)
    assert image_size(path) == (found.shape[1], found.shape[0])


@BOUNDED
@given(
    sizes,
    st.sampled_from(["u1", "u2", "i2", "u4", "i4", "f4", "f8"]),
    st.sampled_from([1, 2, 3, 4]),
    st.sampled_from("<>"),
    st.sampled_from([None, "lzw", "deflate", "packbits"]),
    st.booleans(),
    st.booleans(),
    orientations,
    seeds,
)
def test_tiff_of_every_type(tmp_path, size, kind, channels, order, compression, tiled, planar, orientation, seed):
    rng = np.random.default_rng(seed)
    is_float = kind[0] == "f"
    high = 256 if kind == "u1" else 4096
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    samples = (rng.random(shape) if is_float else rng.integers(0, high, shape)).astype(kind)
    path = tmp_path / "image.tif"
    planar = planar and channels > 1
    tifffile.imwrite(
        path,
        np.ascontiguousarray(np.moveaxis(samples, -1, 0)) if planar else samples,
        byteorder=order,
        photometric="minisblack" if channels < 3 else "rgb",
        planarconfig=None if channels == 1 else "separate" if planar else "contig",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression=compression,
        predictor=compression in ("lzw", "deflate") and not is_float,
        tile=(16, 16) if tiled else None,
        extratags=[(274, "H", 1, orientation, True)],
    )
    samples = tifffile.imread(path)
    samples = np.moveaxis(samples, 0, -1) if planar else samples
    samples = samples.reshape(size[1], size[0], channels)
    assert image_size(path) == TURNS[orientation](samples).shape[1::-1]
    if kind == "u4" and OPENCV < 5 and (channels > 1 or order == ">"):  # what it decodes of these is little-endian grey
        with pytest.raises(ImageError, match=r"of 32 bits, of which OpenCV 4\.[\d.]+ decodes .*; pip install 'opencv"):
            read_image(path)
        return
    found = read_image(path)
    colour = samples[..., : 3 if channels >= 3 else 1]
    if is_float:
        shown = np.rint(colour.astype(np.float32) * 255)
    else:
        shown = to_eight_bits(colour, 8 if kind == "u1" else least_bits(colour))
    shown = as_rgb(shown).astype(np.float64)
    if channels in (2, 4):
        alpha = samples[..., -1].astype(np.float64)
        full = 1 if is_float else next(2**b - 1 for b in (8, 10, 12, 14, 16) if alpha.max() < 2**b)
        shown = over_white(shown, alpha * (255 / full))
    assert np.abs(found - TURNS[orientation](shown)).max() <= (1 if channels in (2, 4) else 0)


@BOUNDED
@given(sizes, st.sampled_from(["RGB", "L"]), st.sampled_from(["JPEG", "WEBP", "BMP", "TIFF"]), orientations, seeds)
def test_formats_of_eight_bits_are_turned_once(tmp_path, size, mode, kind, orientation, seed):
    samples = np.random.default_rng(seed).integers(
        0, 256, (size[1], size[0], *([3] if mode == "RGB" else [])), np.uint8
    )
    path = tmp_path / "image"
    options = {} if kind == "BMP" else {"exif": exif_of(orientation)}
    Image.fromarray(samples).save(path, kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    content = path.read_bytes()
    decode = {"JPEG": imagecodecs.jpeg8_decode, "WEBP": imagecodecs.webp_decode, "BMP": imagecodecs.bmp_decode}
    stored = tifffile.imread(path) if kind == "TIFF" else decode[kind](content)
    stored = as_rgb(stored.reshape(size[1], size[0], -1)[..., :3])
    expected = stored if kind == "BMP" else TURNS[orientation](stored)
    assert np.array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[1::-1]


@BOUNDED
@given(st.integers(100, 4000), st.sampled_from([10, 12, 14]), seeds)
def test_hot_samples_change_nothing(count, depth, seed):
    rng = np.random.default_rng(seed)
    plain = rng.integers(2 ** (depth - 1), 2**depth, (1, count), dtype=np.uint16)
    other = (plain // 4).astype(np.uint16)
    hot = plain.copy()
    hot[0, rng.integers(count)] = 65535
    reference, target = read_images(other, hot)
    same = hot == plain
    assert np.array_equal(target[same][:, 0], to_eight_bits(plain, depth)[same])
    assert np.array_equal(reference[..., 0], to_eight_bits(other, depth))


@BOUNDED
@given(st.integers(1, 5), st.sampled_from(["TIFF", "PNG", "WEBP"]), st.integers(0, 7))
def test_a_file_of_several_images_wants_a_page(tmp_path, count, kind, page):
    frames = [np.full((5, 7, 3), 40 * (number + 1), np.uint8) for number in range(count)]
    path = tmp_path / "image"
    images = [Image.fromarray(frame) for frame in frames]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    images[0].save(path, kind, **({"save_all": True, "append_images": images[1:]} if count > 1 else {}), **options)
    if count > 1:
        for read in (read_image, image_size, read_mask):
            with pytest.raises(ImageError, match=f"holds {count} images; name one"):
                read(path)
    else:
        assert np.array_equal(read_image(path), frames[0])
    named = f"{path}[{page}]"
    if 1 <= page <= count:
        assert np.array_equal(read_image(named), frames[page - 1])
        assert image_size(named) == (7, 5)
    else:
        with pytest.raises(ImageError, match=f"expected 1 to {count}"):
            read_image(named)


def samples_of_files():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (12, 9, 3), np.uint8)
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, kind, **({} if kind == "BMP" else {"exif": exif_of(6)}))
        yield buffer.getvalue()
    yield png_bytes(rng.integers(0, 4096, (9, 8, 3)), 16)
    for order in "<>":
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, rng.integers(0, 4096, (9, 8, 3)).astype("u2"), byteorder=order, compression="lzw")
        yield buffer.getvalue()
    for channels, planes in ((2, "contig"), (3, "separate"), (2, "separate")):
        buffer = io.BytesIO()
        shape = (9, 8, channels) if planes == "contig" else (channels, 9, 8)
        kind = "rgb" if channels == 3 else "minisblack"
        extra = ["unassalpha"] if channels == 2 else None
        deep = rng.integers(0, 4096, shape).astype("u2")
        tifffile.imwrite(
            buffer, deep, photometric=kind, planarconfig=planes, extrasamples=extra, compression="lzw", predictor=True
        )
        yield buffer.getvalue()
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"


WHOLE = list(samples_of_files())


def refusal(read, path):
    """The one-line error that refuses a file, empty if it is read. Any other error is a bug."""
    try:
        read(path)
    except ImageError as error:
        return str(error)
    return ""


@settings(BOUNDED, max_examples=300)
@given(
    st.sampled_from(WHOLE),
    st.integers(0, 4000),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
)
def test_broken_bytes_are_an_image_error(tmp_path, content, cut, changes):
    broken = bytearray(content[: max(1, cut)] if cut < len(content) else content)
    for place, value in changes:
        broken[place % len(broken)] = value
    path = tmp_path / "image.png"
    path.write_bytes(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusals = [refusal(read, path) for read in (read_image, image_size, read_mask, read_header)]
    if not refusals[0]:
        assert image_size(path) == read_image(path).shape[1::-1]
    assert all("image.png" in line and "\n" not in line for line in refusals if line)


@settings(BOUNDED, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", *(content[:12] for content in WHOLE)]))
def test_arbitrary_bytes_are_an_image_error(tmp_path, content, start):
    (tmp_path / "image.tif").write_bytes(start + content)
    for read in (read_image, image_size, read_mask):
        refusal(read, tmp_path / "image.tif")
