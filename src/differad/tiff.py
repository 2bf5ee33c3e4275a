"""The directories of a TIFF file: the fields of each page, without pixels (TIFF 6.0, BigTIFF).

Knows nothing about pixels. Broken bytes raise ValueError or `struct.error`.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    270,
)
ORIENTATION, CHANNELS, HIGHEST, PLANES, PREDICTOR, EXTRA, SAMPLE_FORMAT = 274, 277, 281, 284, 317, 338, 339
STRIP_OFFSETS, STRIP_ROWS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = (
    273,
    278,
    279,
    322,
    323,
    324,
    325,
)
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
_ASCII = 2
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WANTED = frozenset(
    {SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, ORIENTATION, CHANNELS, HIGHEST}
    | {PLANES, PREDICTOR, EXTRA, SAMPLE_FORMAT}
    | {STRIP_OFFSETS, STRIP_ROWS, STRIP_BYTES, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES}
)
# Longer values of the fields above are not needed.
_LONGEST_VALUE = 1 << 20
_MOST_DIRECTORIES = 65_536
_REDUCED, _TRANSPARENCY = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2


@dataclass(frozen=True)
class Layout:
    """Number format of a file: byte order, and whether offsets are the wider ones of BigTIFF."""

    order: str
    is_big: bool

    @property
    def pointer(self) -> str:
        """The `struct` code of an offset."""
        return self.order + ("Q" if self.is_big else "I")

    @property
    def first(self) -> int:
        """Position of the offset of the first directory."""
        return 8 if self.is_big else 4


@dataclass(frozen=True)
class Field:
    """Integers of one entry, the position of the first in the file, and their `struct` code."""

    values: tuple[int, ...]
    position: int
    code: str


@dataclass(frozen=True)
class Page:
    """One directory: its fields by tag, and the text of its description."""

    offset: int
    fields: dict[int, Field]
    description: str

    def value(self, tag: int, default: int) -> int:
        """The first number of a field."""
        field = self.fields.get(tag)
        return field.values[0] if field and field.values else default

    def values(self, tag: int) -> tuple[int, ...]:
        """All numbers of a field; empty if it is absent."""
        field = self.fields.get(tag)
        return field.values if field else ()

    @property
    def is_image(self) -> bool:
        """Whether the page is neither a smaller copy of another (a thumbnail, a pyramid's level) nor its transparency mask."""
        kind = self.value(SUBFILE, 0)
        return not kind & (_REDUCED | _TRANSPARENCY) and self.value(OLD_SUBFILE, 0) != _OLD_REDUCED

    @property
    def stacked(self) -> int:
        """Number of images that ImageJ wrote one after the other with this directory; 1 for files of other programs."""
        match = re.search(r"^images=(\d{1,9})\s*$", self.description, re.MULTILINE)
        return int(match[1]) if match and self.description.startswith("ImageJ=") else 1


def read_layout(file: BinaryIO) -> Layout:
    """Byte order and width of offsets, from the file's first bytes."""
    file.seek(0)
    head = file.read(4)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 4:
        raise ValueError("no TIFF header")
    return Layout(order, struct.unpack(order + "H", head[2:])[0] == 43)


def read_pages(file: BinaryIO) -> list[Page]:
    """All directories of the file in the order of its chain."""
    layout = read_layout(file)
    offset = _unpack(file, layout.first, layout.pointer)[0]
    pages: list[Page] = []
    visited: set[int] = set()
    while offset:
        if offset in visited or len(visited) >= _MOST_DIRECTORIES:
            raise ValueError("its directories lead in a circle")
        visited.add(offset)
        page, offset = _read_page(file, layout, offset)
        pages.append(page)
    if not pages:
        raise ValueError("it holds no directory")
    return pages


def single_page(content: bytes, layout: Layout, page: Page) -> bytearray:
    """The file with `page` as its first one, marked as upright, so that no decoder rotates it."""
    changed = bytearray(content)
    struct.pack_into(layout.pointer, changed, layout.first, page.offset)
    orientation = page.fields.get(ORIENTATION)
    if orientation is not None and orientation.values:
        struct.pack_into(layout.order + orientation.code, changed, orientation.position, 1)
    return changed


def single_channel(content: bytes, layout: Layout, page: Page, plane: int | None) -> bytearray:
    """The file with a new first page, grey: one plane of `page`, or (None) its interleaved channels as one wide row."""
    channels = page.value(CHANNELS, 1)
    factor = channels if plane is None else 1
    fields = {tag: page.values(tag) for tag in (HEIGHT, COMPRESSION, STRIP_ROWS, TILE_HEIGHT)}
    fields |= {tag: page.values(tag)[:1] for tag in (BITS, SAMPLE_FORMAT)}
    fields |= {tag: tuple(side * factor for side in page.values(tag)) for tag in (WIDTH, TILE_WIDTH)}
    fields |= {PHOTOMETRIC: (1,), CHANNELS: (1,), PLANES: (1,)}
    # The predictor's differences are between pixels of one channel, not of an interleaved row: the caller accumulates them.
    fields[PREDICTOR] = page.values(PREDICTOR) if plane is not None else ()
    for tag in (STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES):
        values = page.values(tag)
        per_channel = len(values) // channels
        fields[tag] = values if plane is None else values[plane * per_channel : (plane + 1) * per_channel]
    return _with_first_page(content, layout, {tag: values for tag, values in sorted(fields.items()) if values})


def _with_first_page(content: bytes, layout: Layout, fields: dict[int, tuple[int, ...]]) -> bytearray:
    kind, code = (16, "Q") if layout.is_big else (4, "I")
    changed = bytearray(content + b"\0" * (len(content) % 2))
    entries = bytearray(struct.pack(layout.order + ("Q" if layout.is_big else "H"), len(fields)))
    for tag, values in fields.items():
        entries += struct.pack(layout.order + "HH" + code, tag, kind, len(values))
        if len(values) > 1:
            entries += struct.pack(layout.pointer, len(changed))
            changed += struct.pack(f"{layout.order}{len(values)}{code}", *values)
        else:
            entries += struct.pack(layout.order + code, values[0])
    struct.pack_into(layout.pointer, changed, layout.first, len(changed))
    return changed + entries + struct.pack(layout.pointer, 0)


def _read_page(file: BinaryIO, layout: Layout, offset: int) -> tuple[Page, int]:
    count_code, entry_bytes = ("Q", 20) if layout.is_big else ("H", 12)
    count = _unpack(file, offset, layout.order + count_code)[0]
    start = offset + struct.calcsize(count_code)
    if count > 65_535:
        raise ValueError(f"a directory of {count} entries")
    file.seek(start)
    entries = file.read(count * entry_bytes)
    if len(entries) < count * entry_bytes:
        raise ValueError("its directory is cut off")
    fields: dict[int, Field] = {}
    description = ""
    for tag, kind, length, position in _entries(entries, layout, start):
        if tag in _WANTED and kind in _TYPE_BYTES and length * _TYPE_BYTES[kind] <= _LONGEST_VALUE:
            value_position = _value_position(file, layout, position, length * _TYPE_BYTES[kind])
            if kind == _ASCII and tag == DESCRIPTION:
                file.seek(value_position)
                description = file.read(length).decode("latin-1").rstrip("\0")
            elif kind in _INTEGERS:
                code = _INTEGERS[kind]
                values = _unpack(file, value_position, f"{layout.order}{length}{code}")
                fields[tag] = Field(values, value_position, code)
    next_offset = _unpack(file, start + count * entry_bytes, layout.pointer)[0]
    return Page(offset, fields, description), next_offset


def _entries(entries: bytes, layout: Layout, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and the position of the value (or of its offset) of each entry."""
    code = layout.order + ("HHQ8x" if layout.is_big else "HHI4x")
    for number, (tag, kind, length) in enumerate(struct.iter_unpack(code, entries)):
        size = struct.calcsize(code)
        yield tag, kind, length, start + number * size + (12 if layout.is_big else 8)


def _value_position(file: BinaryIO, layout: Layout, position: int, size: int) -> int:
    inline = 8 if layout.is_big else 4
    return position if size <= inline else int(_unpack(file, position, layout.pointer)[0])


def _unpack(file: BinaryIO, position: int, code: str) -> tuple[int, ...]:
    file.seek(position)
    size = struct.calcsize(code)
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it ends inside of its directories")
    return struct.unpack(code, content)
