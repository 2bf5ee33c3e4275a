"""Headers of image files: format, size, orientation, depth, channels, pages. No pixel is decoded.

Five formats are opened, each by its own reader and only if its signature matches: PNG, JPEG, TIFF, BMP, WebP.
Broken bytes become an `ImageError`.
"""

import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import cv2
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from differad import tiff
from differad.errors import ImageError, OptionError
from differad.memory import REMEDY, is_out_of_memory

# 200 megapixels: more than any area-scan camera delivers, less than would exhaust a small machine's memory.
MAX_PIXELS = 200_000_000
MAX_PIXELS_VARIABLE = "DIFFERAD_MAX_PIXELS"
ORIENTATION = 0x0112
# Errors that decoders raise on broken bytes. A bug of this package would look like a broken file, so only calls of parsers are
# inside blocks that catch these.
BROKEN = (
    *(OSError, ValueError, SyntaxError, LookupError, EOFError, ArithmeticError, MemoryError, RuntimeError, TypeError),
    *(AssertionError, struct.error, zlib.error, cv2.error, Image.DecompressionBombError),
)
READERS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_FORMATS = "PNG, JPEG, TIFF, BMP or WebP"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_LONGEST_TEXT = 1 << 20
_TIFF_LOSSY = frozenset({6, 7})  # JPEG, old and new
_TIFF_PLAIN = frozenset({0, 1, 2})  # white is zero, black is zero, RGB
_UNSIGNED, _FLOAT, _VOID = 1, 3, 4  # SampleFormat
_PREMULTIPLIED, _STRAIGHT = 1, 2  # ExtraSamples
_PILLOW_LIMIT = threading.RLock()


@dataclass(frozen=True)
class Header:
    """Header of one image of a file. `width` and `height` are pixels as stored, before `orientation` (1 to 8).

    `bits` is the depth of a sample in the file, `stated_bits` the depth that its values use, if the file states it.
    `is_deep`: Pillow would narrow or garble its samples.
    `pages` is the number of images in the file, `index` the position of this one.
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    bits: int = 8
    channels: int = 3
    pages: int = 1
    index: int = 0
    is_lossy: bool = False
    is_deep: bool = False
    is_inverted: bool = False
    has_alpha: bool = False
    has_palette: bool = False
    is_premultiplied: bool = False
    stated_bits: int | None = None
    key: tuple[int, ...] = ()
    page: tiff.Page | None = field(default=None, repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether all decoders give the same pixels: one upright image, up to 8 bits, grey or RGB, no alpha, no palette."""
        is_simple = self.channels in (1, 3) and not (self.has_alpha or self.has_palette or self.is_deep)
        return is_simple and self.pages == 1 and self.orientation == 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def unreadable(name: str, error: BaseException) -> ImageError:
    """The error for an image whose reader raised `error`, one of BROKEN."""
    if is_out_of_memory(error):
        return ImageError(f"{name}: not enough memory to decode it; {REMEDY}")
    return ImageError(f"{name}: broken or truncated image ({error}); export it again")


def pixel_limit(max_pixels: int | None = None) -> int:
    """The maximum number of pixels to decode: the argument, else DIFFERAD_MAX_PIXELS, else 200 million.

    Raises OptionError if it is no positive whole number.
    """
    value: object = os.environ.get(MAX_PIXELS_VARIABLE, "") if max_pixels is None else max_pixels
    if value == "":
        return MAX_PIXELS
    try:
        limit = int(str(value))
    except ValueError:
        limit = 0
    if limit < 1:
        name = MAX_PIXELS_VARIABLE if max_pixels is None else "max_pixels"
        raise OptionError(f"{name}={value!r}: expected a whole number of pixels, at least 1")
    return limit


def parse_header(file: BinaryIO, name: str, page: int | None, limit: int) -> Header:
    """The header of page `page` (from 1; None: the only one). Raises ImageError, also above `limit` pixels."""
    try:
        kind = _format(file)
        header = _HEADERS[kind](file, page or 1) if kind else None
    except BROKEN as error:
        raise unreadable(name, error) from None
    if header is None:
        empty = not file.seek(0, os.SEEK_END)
        what = "empty file; expected an image" if empty else f"not an image that can be read; expected {_FORMATS}"
        raise ImageError(f"{name}: {what}")
    if page is None and header.pages > 1:
        raise ImageError(f"{name}: holds {header.pages} images; name one of them, the first as {Path(name).name}[1]")
    if page is not None and not 1 <= page <= header.pages:
        raise ImageError(f"{name}: page {page} of a file that holds {header.pages}; expected 1 to {header.pages}")
    check_pixels(header.width, header.height, name, limit)
    return header


def check_pixels(width: int, height: int, name: str, limit: int) -> None:
    """Raise ImageError for an image without pixels or with more than `limit`."""
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} pixels; expected at least one")
    if width * height > limit:
        raise ImageError(
            f"{name}: {width}x{height} pixels, more than {limit:,}; cut the image into tiles, shrink it first or raise "
            f"{MAX_PIXELS_VARIABLE}"
        )


@contextmanager
def no_pillow_limit(pixels: int) -> Iterator[None]:
    """Disable Pillow's limit, which is global and warns at half of it: `pixel_limit` was checked already."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels <= limit:  # None: another thread may have disabled it for a moment
        yield
        return
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _format(file: BinaryIO) -> str | None:
    file.seek(0)
    head = file.read(16)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    signatures = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "BMP": b"BM"}
    return next((kind for kind, start in signatures.items() if head.startswith(start)), None)


def _orientation(value: object) -> int:
    """A valid orientation, else 1: viewers show such files as they are stored."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _by_pillow(kind: str, file: BinaryIO) -> tuple[ImageFile.ImageFile, Header]:
    file.seek(0)
    image = READERS[kind](file)
    header = Header(kind, *image.size, _orientation(image.getexif().get(ORIENTATION)))
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    bands = len(image.getbands())
    return image, replace(header, channels=bands, has_alpha=has_alpha, has_palette=image.mode in ("P", "PA"))


def _bmp_header(file: BinaryIO, _page: int) -> Header:
    return _by_pillow("BMP", file)[1]


def _jpeg_header(file: BinaryIO, page: int) -> Header:
    image, header = _by_pillow("JPEG", file)
    frames = _photographs(file) if "mp" in image.info else [(0, header)]
    index, chosen = frames[min(page, len(frames)) - 1]
    return replace(chosen, index=index, pages=len(frames), is_lossy=True)


def _photographs(file: BinaryIO) -> list[tuple[int, Header]]:
    """The images of a Multi-Picture Format JPEG (CIPA DC-007) with their index; smaller ones are previews or gain maps."""
    file.seek(0)
    image = MpoImagePlugin.MpoImageFile(file)
    photographs: list[tuple[int, Header]] = []
    for index in range(image.n_frames):
        try:
            with no_pillow_limit(1 << 62):
                image.seek(index)
        except BROKEN:
            break  # cameras and editors leave entries without an image
        if not photographs or image.width * image.height >= photographs[0][1].width * photographs[0][1].height:
            orientation = _orientation(image.getexif().get(ORIENTATION))
            photographs.append((index, Header("JPEG", *image.size, orientation, channels=len(image.getbands()))))
    return photographs


def _webp_header(file: BinaryIO, page: int) -> Header:
    with no_pillow_limit(1 << 62):
        image, header = _by_pillow("WebP", file)
    pages = int(getattr(image, "n_frames", 1))
    file.seek(0)
    return replace(header, pages=pages, index=min(page, pages) - 1, is_lossy=_holds_lossy_webp(file.read()))


def _holds_lossy_webp(content: bytes) -> bool:
    """Whether any image of a WebP file is lossy (VP8). Format: RFC 9649, section 2."""
    position, end = 12, len(content)
    while position + 8 <= end:
        kind, length = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        if kind == b"VP8 ":
            return True
        # The chunks of a frame follow its 16 bytes.
        position += 24 if kind == b"ANMF" else 8 + length + length % 2
    return False


def _png_header(file: BinaryIO, page: int) -> Header:
    """Read from the chunks' headers, since Pillow decodes all pixels to find an orientation that may come after them."""
    chunks = dict(_png_chunks(file))
    width, height, bits, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    frames = struct.unpack(">I", chunks[b"acTL"][:4])[0] if b"acTL" in chunks else 1
    # The default image counts in addition to the frames, unless it is the first frame.
    pages = max(1, frames + (b"acTL" in chunks and b"fcTL" not in chunks))
    key = chunks.get(b"tRNS", b"") if colour != 3 else b""
    return Header(
        "PNG",
        width,
        height,
        _png_orientation(chunks),
        bits=bits,
        channels=_PNG_CHANNELS[colour],
        pages=pages,
        index=min(page, pages) - 1,
        is_deep=bits > 8,
        has_alpha=colour in (4, 6) or b"tRNS" in chunks,
        has_palette=colour == 3,
        key=struct.unpack(f">{len(key) // 2}H", key[: len(key) // 2 * 2]),
    )


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Chunks that describe the image, in their order. Format: PNG specification, section 5."""
    end, position, has_pixels = file.seek(0, os.SEEK_END), 8, False
    while True:
        file.seek(position)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if position + 12 + length > end or (position == 8 and kind != b"IHDR"):
            raise ValueError("it ends before its last chunk")
        position += 12 + length
        has_pixels |= kind == b"IDAT"
        if kind in (b"IHDR", b"tRNS", b"eXIf") or (kind in (b"acTL", b"fcTL") and not has_pixels):
            yield kind, file.read(length)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            content = file.read(min(length, _LONGEST_TEXT))
            yield content.partition(b"\0")[0], _png_text(kind, content)
        elif kind == b"IEND":
            return


def _png_text(kind: bytes, content: bytes) -> bytes:
    text = content.partition(b"\0")[2]
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    return zlib.decompressobj().decompress(text, _LONGEST_TEXT) if is_packed else text


def _png_orientation(chunks: dict[bytes, bytes]) -> int:
    """Orientation from the EXIF chunk, else from the EXIF that ImageMagick writes as text, else from XMP."""
    content = chunks.get(b"eXIf")
    if content is None and b"Raw profile type exif" in chunks:
        content = bytes.fromhex("".join(chunks[b"Raw profile type exif"].decode("latin-1").split("\n")[3:]))
    exif = Image.Exif()
    if content:
        exif.load(content)
    if ORIENTATION in exif:
        return _orientation(exif[ORIENTATION])
    match = _XMP_ORIENTATION.search(chunks.get(b"XML:com.adobe.xmp", b""))
    return _orientation(int(match[1])) if match else 1


def _tiff_header(file: BinaryIO, page: int) -> Header:
    pages = tiff.read_pages(file)
    images = [(index, entry) for index, entry in enumerate(pages) if entry.is_image] or [(0, pages[0])]
    index, chosen = images[min(page, len(images)) - 1]
    channels = chosen.value(tiff.CHANNELS, 1)
    bits, kind, photometric = (chosen.value(tag, 1) for tag in (tiff.BITS, tiff.SAMPLE_FORMAT, tiff.PHOTOMETRIC))
    extra = chosen.values(tiff.EXTRA)[:1]
    is_planar = channels > 1 and chosen.value(tiff.PLANES, 1) != 1  # Pillow garbles some of these
    is_deep = photometric in _TIFF_PLAIN and (bits > 8 or kind not in (_UNSIGNED, _VOID) or is_planar)
    return Header(
        "TIFF",
        chosen.value(tiff.WIDTH, 0),
        chosen.value(tiff.HEIGHT, 0),
        _orientation(chosen.value(tiff.ORIENTATION, 1)),
        bits=bits,
        channels=channels,
        pages=max(len(images), chosen.stacked),
        index=index,
        is_lossy=chosen.value(tiff.COMPRESSION, 1) in _TIFF_LOSSY,
        is_deep=is_deep,
        has_palette=photometric == 3,
        is_inverted=photometric == 0,
        # All readers take an undeclared fourth channel as alpha.
        has_alpha=channels in (2, 4) and photometric in _TIFF_PLAIN and (not extra or extra[0] in (1, 2, 999)),
        is_premultiplied=extra == (_PREMULTIPLIED,),
        stated_bits=_stated_bits(chosen, bits) if is_deep and kind != _FLOAT else None,
        page=chosen,
    )


def _stated_bits(page: tiff.Page, bits: int) -> int | None:
    """Depth that a TIFF states for its values: by MaxSampleValue, or by samples packed to 9 to 15 bits."""
    highest = max(page.values(tiff.HIGHEST), default=0)
    # Some writers store the image's brightest sample there, which is unrelated to its depth.
    if highest > 255 and (highest + 1).bit_count() == 1:
        return min(highest.bit_length(), bits)
    return bits if 8 < bits < 16 else None


_HEADERS = {
    "PNG": _png_header,
    "JPEG": _jpeg_header,
    "TIFF": _tiff_header,
    "BMP": _bmp_header,
    "WebP": _webp_header,
}
