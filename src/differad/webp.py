"""Detect incomplete WebP files: the format has no checksum, and decoders accept zeros like any other bytes as pixels.

Format: RFC 9649, section 2. Knows nothing of the image's content.
"""

from io import BytesIO

from PIL import WebPImagePlugin

from differad.headers import BROKEN, no_pillow_limit

_PIXELS = (b"VP8 ", b"VP8L")
# Fewer trailing zeros than the first are normal; the last bytes, as many as the second, must be needed by some pixel.
_MIN_ZEROS, _NEEDED = 64, 32


def check_whole(content: bytes, pixels: int) -> None:
    """Check that a file's last bytes were not replaced by zeros; `pixels` is its number of pixels. Raises ValueError.

    Pixels that are coded by zeros need these, and the file cannot be decoded without the last of them. Zeros in place of other
    bytes decode as shorter codes, so the last pixel comes before the last byte. The check fails only if all codes are equally
    long, in an image of uniform noise.
    """
    end, position = min(len(content), 8 + int.from_bytes(content[4:8], "little")), 12
    while position + 8 <= end:
        kind, length = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "little")
        if kind == bytes(4):
            raise ValueError("its last chunks are zeros, so it did not arrive whole")
        data = content[position + 8 : position + 8 + length]
        zeros = len(data) - len(data.rstrip(b"\0"))
        if kind in _PIXELS and zeros >= _MIN_ZEROS and _decodes(kind, data[:-_NEEDED], pixels):
            raise ValueError(f"its last {zeros} bytes are zeros that no pixel needs, so it did not arrive whole")
        position += 8 + length + length % 2


def _decodes(kind: bytes, data: bytes, pixels: int) -> bool:
    chunk = kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
    content = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
    try:
        with no_pillow_limit(pixels):
            WebPImagePlugin.WebPImageFile(BytesIO(content)).load()
    except BROKEN:
        return False
    return True
