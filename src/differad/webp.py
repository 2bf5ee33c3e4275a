"""Whether a WebP file arrived whole: it has no checksum, and its decoder takes zeros for pixels as it takes any other bytes.

Format: RFC 9649, section 2. Knows nothing of what the pixels show.
"""

from io import BytesIO

from PIL import WebPImagePlugin

from differad.headers import BROKEN, no_pillow_limit

_PIXELS = (b"VP8 ", b"VP8L")
# A file's data end in a few zeros by themselves: so many do not count, and so many must be needed by some pixel.
_FEW_ZEROS, _NEEDED = 64, 32


def check_whole(content: bytes, pixels: int) -> None:
    """See that no zeros stand in place of a file's last bytes; `pixels` is how many it has. Raises ValueError.

    Pixels that are coded by zeros need these, and the file cannot be decoded without the last of them. Zeros in place of other
    bytes are taken for shorter codes: the last pixel comes before the last byte. Only where all codes are equally long, in an
    image of uniform noise, does this not tell.
    """
    end, place = min(len(content), 8 + int.from_bytes(content[4:8], "little")), 12
    while place + 8 <= end:
        kind, length = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind == bytes(4):
            raise ValueError("its last chunks are zeros, so it did not arrive whole")
        data = content[place + 8 : place + 8 + length]
        zeros = len(data) - len(data.rstrip(b"\0"))
        if kind in _PIXELS and zeros >= _FEW_ZEROS and _decodes(kind, data[:-_NEEDED], pixels):
            raise ValueError(f"its last {zeros} bytes are zeros that no pixel needs, so it did not arrive whole")
        place += 8 + length + length % 2


def _decodes(kind: bytes, data: bytes, pixels: int) -> bool:
    chunk = kind + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)
    content = b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
    try:
        with no_pillow_limit(pixels):
            WebPImagePlugin.WebPImageFile(BytesIO(content)).load()
    except BROKEN:
        return False
    return True
