"""What the head of an image file says: format, size, orientation, depth, channels, pages. No pixel is decoded here.

Five formats are opened, each by its own reader and only after its signature was seen: PNG, JPEG, TIFF, BMP, WebP.
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

# 200 megapixels: more than any area-scan camera delivers, less than what exhausts a small machine's memory.
MAX_PIXELS = 200_000_000
MAX_PIXELS_VARIABLE = "DIFFERAD_MAX_PIXELS"
ORIENTATION = 0x0112
# Decoders raise whatever their format's parser meets on broken bytes; a bug of ours in here would show as a broken file,
# which is why only calls into the parsers stand inside.
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
    """What a file says about one of its images. `width` and `height` are pixels as stored, before `orientation` (1 to 8).

    `bits` is the depth of a sample in the file, `stated_bits` the depth that its values use, where the file says so.
    `is_deep`: Pillow would narrow or garble its samples.
    `pages` counts images of the file, `index` is the place of this one in it.
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
        """Whether every decoder gives the same pixels: one upright image, 8 bits or fewer, grey or RGB, nothing more."""
        is_simple = self.channels in (1, 3) and not (self.has_alpha or self.has_palette or self.is_deep)
        return is_simple and self.pages == 1 and self.orientation == 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def unreadable(name: str, error: BaseException) -> ImageError:
    """What an image is said to be whose reader raised `error`, one of BROKEN."""
    if is_out_of_memory(error):
        return ImageError(f"{name}: not enough memory to decode it; {REMEDY}")
    return ImageError(f"{name}: broken or truncated image ({error}); export it again")


def pixel_limit(max_pixels: int | None = None) -> int:
    """The largest number of pixels that is decoded: the argument, else DIFFERAD_MAX_PIXELS, else 200 million.

    Raises OptionError where it is no positive whole number.
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
    """Raises ImageError on an image without pixels or with more than `limit`."""
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} pixels; expected at least one")
    if width * height > limit:
        raise ImageError(
            f"{name}: {width}x{height} pixels, more than {limit:,}; cut the image into tiles, shrink it first or raise "
            f"{MAX_PIXELS_VARIABLE}"
        )


@contextmanager
def no_pillow_limit(pixels: int) -> Iterator[None]:
    """Our own limit was checked; Pillow's, which is the process's and warns at half, would make a second one."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels <= limit:  # None: perhaps another thread took it off for a moment
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
    """1 for what is no orientation: viewers show such files as they are stored."""
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
    """The images of a multi-picture JPEG (CIPA DC-007) with their place in it; smaller ones are previews or gain maps."""
    file.seek(0)
    image = MpoImagePlugin.MpoImageFile(file)
    found: list[tuple[int, Header]] = []
    for index in range(image.n_frames):
        try:
            with no_pillow_limit(1 << 62):
                image.seek(index)
        except BROKEN:
            break  # cameras and editors leave entries that lead nowhere behind
        if not found or image.width * image.height >= found[0][1].width * found[0][1].height:
            orientation = _orientation(image.getexif().get(ORIENTATION))
            found.append((index, Header("JPEG", *image.size, orientation, channels=len(image.getbands()))))
    return found


def _webp_header(file: BinaryIO, page: int) -> Header:
    with no_pillow_limit(1 << 62):
        image, header = _by_pillow("WebP", file)
    pages = int(getattr(image, "n_frames", 1))
    file.seek(0)
    return replace(header, pages=pages, index=min(page, pages) - 1, is_lossy=_holds_lossy_webp(file.read()))


def _holds_lossy_webp(content: bytes) -> bool:
    """Whether any image of a WebP file is a VP8 one. Format: RFC 9649, section 2."""
    place, end = 12, len(content)
    while place + 8 <= end:
        kind, length = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind == b"VP8 ":
            return True
        # A frame's own chunks follow its 16 bytes.
        place += 24 if kind == b"ANMF" else 8 + length + length % 2
    return False


def _png_header(file: BinaryIO, page: int) -> Header:
    """From its chunks' heads alone: Pillow decodes all pixels for an orientation, which may stand behind them."""
    chunks = dict(_png_chunks(file))
    width, height, bits, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    frames = struct.unpack(">I", chunks[b"acTL"][:4])[0] if b"acTL" in chunks else 1
    # The image that plain readers show is a further one, unless it is the first of the animation.
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
    """Chunks that say something about the image, the first one first. Format: PNG specification, section 5."""
    end, place, has_pixels = file.seek(0, os.SEEK_END), 8, False
    while True:
        file.seek(place)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if place + 12 + length > end or (place == 8 and kind != b"IHDR"):
            raise ValueError("it ends before its last chunk")
        place += 12 + length
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
    """From the EXIF chunk, else from the EXIF that ImageMagick writes as text, else from XMP."""
    content = chunks.get(b"eXIf")
    if content is None and b"Raw profile type exif" in chunks:
        content = bytes.fromhex("".join(chunks[b"Raw profile type exif"].decode("latin-1").split("\n")[3:]))
    exif = Image.Exif()
    if content:
        exif.load(content)
    if ORIENTATION in exif:
        return _orientation(exif[ORIENTATION])
    found = _XMP_ORIENTATION.search(chunks.get(b"XML:com.adobe.xmp", b""))
    return _orientation(int(found[1])) if found else 1


def _tiff_header(file: BinaryIO, page: int) -> Header:
    every = tiff.read_pages(file)
    images = [(index, one) for index, one in enumerate(every) if one.is_image] or [(0, every[0])]
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
        # Without a word about it, a fourth channel is alpha to every reader.
        has_alpha=channels in (2, 4) and photometric in _TIFF_PLAIN and (not extra or extra[0] in (1, 2, 999)),
        is_premultiplied=extra == (_PREMULTIPLIED,),
        stated_bits=_stated_bits(chosen, bits) if is_deep and kind != _FLOAT else None,
        page=chosen,
    )


def _stated_bits(page: tiff.Page, bits: int) -> int | None:
    """Depth that a TIFF says its values use: by its highest sample value, or by samples packed to 9 to 15 bits."""
    highest = max(page.values(tiff.HIGHEST), default=0)
    # Some writers put the image's own brightest sample there, which says nothing about its depth.
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
