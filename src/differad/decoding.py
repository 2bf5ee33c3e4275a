"""Open image files and decode their samples: 8 bits by Pillow, deeper ones, which Pillow narrows, by OpenCV.

Samples are as the file stores them; `upright` applies the orientation. Broken bytes become an `ImageError`.
"""

import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, MpoImagePlugin

from differad import tiff
from differad.errors import ImageError
from differad.files import is_pipe_or_device
from differad.headers import BROKEN, READERS, Header, no_pillow_limit, parse_header, pixel_limit, unreadable
from differad.webp import check_whole

Samples = NDArray[Any]
_STRIP_PIXELS = 1 << 21
# OpenCV 5 moved this function. Both versions return the previous level.
_set_log_level: Callable[[int], int] = getattr(cv2.utils, "logging", cv2).setLogLevel
_SILENT = 0
_UNSIGNED = 1  # TIFF's sample format
_DIFFERENCES = 2  # TIFF's predictor: each sample as its difference from the previous one


def split_page(source: str | Path) -> tuple[Path, int | None]:
    """The file of `image.tif[2]` and its page from 1; None if no page is named or a file has exactly this name."""
    path = Path(source)
    match = re.fullmatch(r"(.+)\[(\d{1,9})\]", path.name)
    if match is None or os.path.lexists(path):
        return path, None
    return path.with_name(match[1]), int(match[2])


@contextmanager
def opened(source: str | Path | bytes, name: str, max_pixels: int | None = None) -> Iterator[tuple[BinaryIO, Header]]:
    """The opened file and the header of the image `source`. Raises ImageError."""
    limit = pixel_limit(max_pixels)
    if isinstance(source, bytes):
        with BytesIO(source) as content:
            yield content, parse_header(content, name, None, limit)
        return
    path, page = split_page(source)
    if is_pipe_or_device(path):
        raise ImageError(f"{name}: a pipe or a device; expected an image file, so save it to one")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; expected an image") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be opened ({error}); expected an image") from None
    with file:
        yield file, parse_header(file, name, page, limit)


def load(file: BinaryIO, header: Header, name: str, *, at_least: int | None = None) -> Image.Image:
    """The decoded image as stored, orientation not applied; a JPEG at 1/2, 1/4 or 1/8 if `at_least` pixels a side remain.

    Raises ImageError.
    """
    try:
        with no_pillow_limit(header.width * header.height):
            file.seek(0)
            image = _reader(file, header)
            if at_least is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
                image.draft(None, (at_least, at_least))
            image.load()
        if header.format == "WebP" and header.pages == 1:
            file.seek(0)
            check_whole(file.read(), header.width * header.height)
    except BROKEN as error:
        raise unreadable(name, error) from None
    if at_least is None and image.size != (header.width, header.height):
        raise ImageError(
            f"{name}: broken image, its samples have {image.size} pixels and its header other numbers; export it again"
        )
    return image


def load_deep(file: BinaryIO, header: Header, name: str) -> Samples:
    """All samples of an image deeper than 8 bits or signed, (H, W, C) as stored, RGB, alpha last. Raises ImageError."""
    try:
        return _load_deep(file, header, name)
    except ImageError:
        if _is_unsigned_32(header) and int(cv2.__version__.partition(".")[0]) < 5:
            raise ImageError(
                f"{name}: unsigned samples of 32 bits, of which OpenCV {cv2.__version__} decodes only some kinds; "
                "pip install 'opencv-python-headless>=5', or export it with 16 bits"
            ) from None
        raise


def _is_unsigned_32(header: Header) -> bool:
    return header.bits == 32 and header.page is not None and header.page.value(tiff.SAMPLE_FORMAT, 1) == _UNSIGNED


def _load_deep(file: BinaryIO, header: Header, name: str) -> Samples:
    file.seek(0)
    content = file.read()
    try:
        if header.format == "PNG":
            _check_png(content, header)
        elif header.page is not None:
            _check_tiff(header, header.page)
            if header.channels == 2 or header.page.value(tiff.PLANES, 1) != 1:
                return _channel_by_channel(content, tiff.read_layout(file), header, header.page)
            if header.orientation != 1 or header.index:
                content = bytes(tiff.single_page(content, tiff.read_layout(file), header.page))
        samples = _by_opencv(content)
    except BROKEN as error:
        raise unreadable(name, error) from None
    if samples is None and header.channels == 1 and header.bits in (16, 32):
        samples = np.asarray(load(file, header, name))
        samples = samples.view(np.uint32) if _is_unsigned_32(header) else samples  # Pillow reads these as signed
    if samples is None or samples.shape[:2] != (header.height, header.width):
        raise ImageError(f"{name}: samples of {header.bits} bits that cannot be decoded; export it with 8 bits")
    if 8 < header.bits < 16 and samples.dtype == np.uint16:
        samples = samples >> (16 - header.bits)  # OpenCV shifts packed samples to the upper bits
    samples = samples[:, :, None] if samples.ndim == 2 else samples
    if header.channels == 2:
        return samples[:, :, [0, 3]]  # OpenCV copies the grey of a PNG with alpha to three channels
    return samples if samples.shape[2] == 1 else samples[:, :, [2, 1, 0, 3][: samples.shape[2]]]


def to_array(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    """8-bit samples of a loaded image, upright: (H, W, 1) if it is grey, else (H, W, 3) RGB, alpha composited over white.

    Works in strips, since Pillow's conversion and its export each copy the whole image.
    """
    is_grey = image.mode in ("1", "L") and "transparency" not in image.info
    shape = image.size if orientation >= 5 else image.size[::-1]
    pixels = np.empty((*shape, 1 if is_grey else 3), np.uint8)
    stored = upright(pixels, _INVERSE.get(orientation, orientation))
    for rows, strip in strips(image):
        stored[rows] = np.asarray(strip.convert("L"))[:, :, None] if is_grey else _over_white(strip)
    return pixels


def strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Strips of an image, each with its rows."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        with no_pillow_limit(width * (bottom - top)):
            strip = image.crop((0, top, width, bottom))
        yield slice(top, bottom), strip


def upright(samples: Samples, orientation: int) -> Samples:
    """A view of (H, W, …) with an EXIF orientation, 1 to 8, applied."""
    transposed = samples.swapaxes(0, 1) if orientation >= 5 else samples
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return transposed[rows, columns]


_INVERSE = {6: 8, 8: 6}


def _over_white(image: Image.Image) -> Samples:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # Pillow converts La to RGBA only via LA.
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _reader(file: BinaryIO, header: Header) -> Image.Image:
    if header.page is not None and (header.orientation != 1 or header.index):
        file = BytesIO(tiff.single_page(file.read(), tiff.read_layout(file), header.page))
    elif header.format == "JPEG" and header.index:
        image = MpoImagePlugin.MpoImageFile(file)
        image.seek(header.index)
        return image
    reader = READERS[header.format](file)
    if header.page is None and header.index:
        reader.seek(header.index)
    return reader


def _check_png(content: bytes, header: Header) -> None:
    """Check a PNG's checksums and pixel data, because libpng would print errors on stderr itself. Raises ValueError."""
    if header.pages > 1:
        raise ValueError("frames of more than 8 bits cannot be taken apart")
    position, packed = 8, zlib.decompressobj()
    while position < len(content):
        length, kind = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        end = position + 8 + length
        body = content[position + 8 : end]
        if zlib.crc32(kind + body) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"chunk {kind!r} is damaged")
        while kind == b"IDAT" and body and not packed.eof:
            packed.decompress(body, _STRIP_PIXELS)
            body = packed.unconsumed_tail
        if kind == b"IEND":
            break
        position += 12 + length
    if not packed.eof:
        raise ValueError("its pixels are cut off")


def _check_tiff(header: Header, page: tiff.Page) -> None:
    if header.channels not in (1, 2, 3, 4):
        raise ValueError(f"samples of {header.bits} bits in {header.channels} channels, which cannot be decoded")
    if len(set(page.values(tiff.BITS))) > 1:
        raise ValueError("channels of different depth, which cannot be decoded")


def _channel_by_channel(content: bytes, layout: tiff.Layout, header: Header, page: tiff.Page) -> Samples:
    """Deep samples (H, W, C) of a TIFF in two layouts that OpenCV does not support: separate planes, grey with alpha."""
    height, width, channels = header.height, header.width, header.channels
    if page.value(tiff.PLANES, 1) != 1:
        planes = [_plane(bytes(tiff.single_channel(content, layout, page, index)), page) for index in range(channels)]
        decoded = [plane for plane in planes if plane is not None and plane.shape == (height, width)]
        if len(decoded) == channels:
            return np.stack(decoded, axis=2)
    else:
        predictor = page.value(tiff.PREDICTOR, 1)
        interleaved = _by_opencv(bytes(tiff.single_channel(content, layout, page, None)))
        has_shape = interleaved is not None and interleaved.shape == (height, width * channels)
        if interleaved is not None and has_shape and predictor in (1, _DIFFERENCES):
            samples = interleaved.reshape(height, width, channels)
            step = page.value(tiff.TILE_WIDTH, width)  # each tile starts again
            for left in range(0, width, step) if predictor == _DIFFERENCES else ():
                tile = samples[:, left : left + step]
                np.cumsum(tile, axis=1, dtype=tile.dtype, out=tile)
            return samples
    raise ValueError(f"samples of {header.bits} bits in {channels} channels that cannot be taken apart")


def _plane(content: bytes, page: tiff.Page) -> Samples | None:
    """One channel. OpenCV does not support uncompressed tiles of 8 bits, Pillow does."""
    if page.value(tiff.BITS, 1) == 8 and page.value(tiff.SAMPLE_FORMAT, 1) == 1:
        return np.asarray(READERS["TIFF"](BytesIO(content)))
    return _by_opencv(content)


def _by_opencv(content: bytes) -> Samples | None:
    level = _set_log_level(_SILENT)  # the error alone reports what is broken
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        _set_log_level(level)
