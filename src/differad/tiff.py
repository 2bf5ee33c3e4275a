"""The directories of a TIFF file: what each page holds, read from their entries alone (TIFF 6.0, BigTIFF).

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
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_ASCII = 2
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WANTED = frozenset(
    {SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, ORIENTATION, CHANNELS, HIGHEST}
    | {PLANES, PREDICTOR, EXTRA, SAMPLE_FORMAT}
)
# Longer values of the fields above say nothing that is needed here.
_LONGEST_VALUE = 1 << 16
_MOST_DIRECTORIES = 65_536
_REDUCED, _TRANSPARENCY = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2


@dataclass(frozen=True)
class Layout:
    """How this file writes numbers: byte order, and the wider offsets of BigTIFF."""

    order: str
    is_big: bool

    @property
    def pointer(self) -> str:
        """The `struct` code of an offset."""
        return self.order + ("Q" if self.is_big else "I")

    @property
    def first(self) -> int:
        """Where the offset of the first directory stands."""
        return 8 if self.is_big else 4


@dataclass(frozen=True)
class Field:
    """Whole numbers of one entry, and where in the file the first of them stands."""

    values: tuple[int, ...]
    place: int
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
        """All numbers of a field; none of one that is absent."""
        field = self.fields.get(tag)
        return field.values if field else ()

    @property
    def is_image(self) -> bool:
        """Neither a smaller copy of another page (a thumbnail, a pyramid's level) nor its transparency mask."""
        kind = self.value(SUBFILE, 0)
        return not kind & (_REDUCED | _TRANSPARENCY) and self.value(OLD_SUBFILE, 0) != _OLD_REDUCED

    @property
    def stacked(self) -> int:
        """Images that ImageJ wrote behind each other under this one directory; 1 for a file of anybody else."""
        found = re.search(r"^images=(\d{1,9})\s*$", self.description, re.MULTILINE)
        return int(found[1]) if found and self.description.startswith("ImageJ=") else 1


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
    """The file with `page` as its first one, marked as upright: whoever decodes it turns nothing by itself."""
    changed = bytearray(content)
    struct.pack_into(layout.pointer, changed, layout.first, page.offset)
    orientation = page.fields.get(ORIENTATION)
    if orientation is not None and orientation.values:
        struct.pack_into(layout.order + orientation.code, changed, orientation.place, 1)
    return changed


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
    for tag, kind, length, place in _entries(entries, layout, start):
        if tag in _WANTED and kind in _TYPE_BYTES and length * _TYPE_BYTES[kind] <= _LONGEST_VALUE:
            where = _value_place(file, layout, place, length * _TYPE_BYTES[kind])
            if kind == _ASCII and tag == DESCRIPTION:
                file.seek(where)
                description = file.read(length).decode("latin-1").rstrip("\0")
            elif kind in _INTEGERS:
                code = _INTEGERS[kind]
                fields[tag] = Field(_unpack(file, where, f"{layout.order}{length}{code}"), where, code)
    following = _unpack(file, start + count * entry_bytes, layout.pointer)[0]
    return Page(offset, fields, description), following


def _entries(entries: bytes, layout: Layout, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and the place of the value (or of its offset) of each entry."""
    code = layout.order + ("HHQ8x" if layout.is_big else "HHI4x")
    for number, (tag, kind, length) in enumerate(struct.iter_unpack(code, entries)):
        size = struct.calcsize(code)
        yield tag, kind, length, start + number * size + (12 if layout.is_big else 8)


def _value_place(file: BinaryIO, layout: Layout, place: int, size: int) -> int:
    inline = 8 if layout.is_big else 4
    return place if size <= inline else int(_unpack(file, place, layout.pointer)[0])


def _unpack(file: BinaryIO, place: int, code: str) -> tuple[int, ...]:
    file.seek(place)
    size = struct.calcsize(code)
    content = file.read(size)
    if len(content) < size:
        raise ValueError("it ends inside of its directories")
    return struct.unpack(code, content)
