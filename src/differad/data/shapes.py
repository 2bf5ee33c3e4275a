"""Annotated shapes as regions: rotated rectangles, polygons, ellipses, brush strokes, run-length masks.

Coordinates are continuous, in pixels, measured from the image's upper left corner; a box is x1, y1, x2, y2, x2 and y2
exclusive. The box of an outline spans its vertices; that of a mask encloses the marked pixels tightly. Angles are degrees,
clockwise in the displayed image. `where` (file and entry) begins every error message.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes
from differad.errors import ManifestError

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]
_MIN_POINTS = 3
# Vertices of an ellipse's outline: at most a tenth of a pixel off for radii up to 1,300.
_ELLIPSE_POINTS = 256
# Bits of a run length: enough for any number of pixels.
_MAX_RUN_BITS = 60


@dataclass(frozen=True, eq=False)
class Region:
    """An annotated shape.

    `box` is the axis-aligned box around it. `parts` are its outlines (N, 2); `mask` (h, w) is a bitmap whose upper left pixel
    is at `corner` (x, y). An axis-aligned rectangle has neither parts nor mask.
    """

    box: tuple[float, float, float, float]
    parts: tuple[Points, ...] = ()
    mask: Mask | None = None
    corner: tuple[int, int] = (0, 0)

    @property
    def is_rectangle(self) -> bool:
        """Whether it covers exactly its axis-aligned box."""
        x1, y1, x2, y2 = self.box
        if self.mask is not None:
            return bool(np.count_nonzero(self.mask) == (x2 - x1) * (y2 - y1))
        # No other outline fills its box.
        return not self.parts or (len(self.parts) == 1 and math.isclose(_area(self.parts[0]), (x2 - x1) * (y2 - y1)))

    def paint(self, canvas: Mask) -> None:
        """Mark the pixels of `canvas` (H, W) whose centres are inside; if none is, the pixels of the vertices."""
        if self.mask is not None:
            (left, top), (height, width) = self.corner, self.mask.shape
            canvas[top : top + height, left : left + width] |= self.mask
            return
        x1, y1, x2, y2 = self.box
        for part in self.parts or (np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]),):
            _fill(canvas, part)


def boxes_of(regions: Sequence[Region]) -> Boxes:
    """The boxes (N, 4) around regions."""
    return as_boxes([region.box for region in regions])


def rotated(box: Sequence[float], degrees: float, pivot: tuple[float, float]) -> Region:
    """A rectangle (x1, y1, x2, y2) in pixels, rotated clockwise about `pivot`."""
    x1, y1, x2, y2 = box
    if degrees % 360 == 0:
        return Region((x1, y1, x2, y2))
    angle = math.radians(degrees)
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)]) - pivot
    # With y pointing down this matrix rotates clockwise.
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return _outlined(corners @ matrix.T + pivot)


def rotated_about_center(box: Sequence[float], degrees: float) -> Region:
    """A rectangle (x1, y1, x2, y2) in pixels, rotated clockwise about its centre."""
    return rotated(box, degrees, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))


def polygon(parts: Sequence[Sequence[Sequence[float]]], where: str) -> Region:
    """A region of one or several outlines of points (x, y). Raises ManifestError for fewer than three points."""
    for points in parts:
        if len(points) < _MIN_POINTS or any(len(point) != 2 for point in points):
            raise ManifestError(f"{where}: a polygon of {len(points)} points; expected three or more, each x and y")
    return _outlined(*(np.array(points, dtype=np.float64) for points in parts))


def ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: float, where: str) -> Region:
    """An ellipse, rotated clockwise about its `center`. Raises ManifestError."""
    if min(radii) <= 0:
        raise ManifestError(f"{where}: an ellipse with radii {radii[0]:g} and {radii[1]:g}; expected both above 0")
    (cx, cy), (rx, ry) = center, radii
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The extreme of x = rx cos(t) cos(a) - ry sin(t) sin(a) over t; y likewise.
    x, y = math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
    steps = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    u, v = rx * np.cos(steps), ry * np.sin(steps)
    outline = np.stack([cx + u * cos - v * sin, cy + u * sin + v * cos], axis=1)
    return Region((cx - x, cy - y, cx + x, cy + y), (outline,))


def bitmap(mask: Mask, where: str, corner: tuple[int, int] = (0, 0)) -> Region:
    """The marked pixels of a mask (H, W) whose upper left pixel is at `corner`. Raises ManifestError if there are none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        raise ManifestError(f"{where}: a mask that marks nothing; draw it again or remove it")
    x1, y1, x2, y2 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    left, top = corner
    # A copy, so that the memory of the whole mask can be freed.
    return Region((left + x1, top + y1, left + x2, top + y2), (), mask[y1:y2, x1:x2].copy(), (left + x1, top + y1))


def runs_to_mask(counts: Sequence[int], height: int, width: int, where: str, *, by_columns: bool) -> Mask:
    """A mask (H, W) from run lengths that begin with unmarked pixels: down the columns (COCO) or along the rows (CVAT).

    Raises ManifestError if they do not fill `height` x `width` exactly.
    """
    total = sum(counts)
    if total != height * width or min(counts, default=0) < 0:
        raise ManifestError(f"{where}: run lengths of {total} pixels; expected {width}x{height} = {width * height}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(height, width, order="F" if by_columns else "C")


def unpack_counts(text: str, where: str) -> list[int]:
    """The run lengths in COCO's compressed string. Raises ManifestError.

    Layout: `rleFrString` in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c. pycocotools is not used, since
    it returns uninitialised memory if a string is too short; a test compares with it.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > _MAX_RUN_BITS:
            raise ManifestError(f"{where}: compressed counts with the letter {letter!r}; expected COCO's run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        # From the fourth on, a length is stored as the difference to the one before the last.
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ManifestError(f"{where}: truncated compressed counts; export them again")
    return counts


class _Bits:
    """Reads big-endian numbers of any width from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, width: int) -> int:
        """The next `width` bits. Raises EOFError after the last."""
        end = self._position + width
        if end > 8 * len(self._data):
            raise EOFError
        last = (end + 7) // 8
        number = int.from_bytes(self._data[self._position // 8 : last], "big") >> (8 * last - end)
        self._position = end
        return number & ((1 << width) - 1)


def brush_to_mask(rle: Sequence[int], height: int, width: int, where: str) -> Mask:
    """A mask (H, W) from the bytes of a Label Studio brush region: marked where alpha is above 0. Raises ManifestError.

    The layout is thi.ng's rle-pack of an RGBA image:
    https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/src/index.ts. label-studio-sdk is not used, since it
    installs an OpenCV that overwrites the headless one of this package; a test compares with values of that SDK.
    """
    try:
        bits = _Bits(bytes(rle))
        total, word = bits.read(32), bits.read(5) + 1
        sizes = [bits.read(4) + 1 for _ in range(4)]
        if total != 4 * height * width:
            raise ManifestError(
                f"{where}: a brush mask of {total} values; expected four for each of {width}x{height} pixels"
            )
        marked, lengths = _brush_runs(bits, total, word, sizes)
    except (EOFError, ValueError):
        raise ManifestError(f"{where}: a brush mask that is truncated or not made of bytes; export it again") from None
    return np.repeat(np.array(marked), lengths)[3::4].reshape(height, width)


def _brush_runs(bits: _Bits, total: int, word: int, sizes: list[int]) -> tuple[list[bool], list[int]]:
    """Whether each run's value is above 0, and its length; together `total` values. Raises EOFError."""
    marked: list[bool] = []
    lengths: list[int] = []
    done = 0
    while done < total:
        repeats = bits.read(1)
        length = min(1 + bits.read(sizes[bits.read(2)]), total - done)
        if repeats:
            marked.append(bits.read(word) > 0)
            lengths.append(length)
        else:
            marked += [bits.read(word) > 0 for _ in range(length)]
            lengths += [1] * length
        done += length
    return marked, lengths


def _outlined(*parts: Points) -> Region:
    points = np.concatenate(parts)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return Region((x1, y1, x2, y2), parts)


def _area(part: Points) -> float:
    """The area inside an outline (N, 2), by the shoelace formula."""
    x, y = (part - part[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _fill(canvas: Mask, part: Points) -> None:
    """Mark the pixels of `canvas` whose centres are inside an outline (N, 2), by the even-odd rule."""
    size = canvas.shape[::-1]
    low = np.clip(np.floor(part.min(axis=0)), 0, np.subtract(size, 1)).astype(int)
    high = np.clip(np.ceil(part.max(axis=0)), low + 1, size).astype(int)
    # Only the rectangle around the outline is processed.
    view, points = canvas[low[1] : high[1], low[0] : high[0]], part - low
    height, width = view.shape
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    for (x1, y1), (x2, y2) in zip(points.tolist(), np.roll(points, -1, axis=0).tolist(), strict=True):
        # Rows whose centre y + 0.5 the edge crosses, its lower end excluded.
        first, last = (math.ceil(min(max(y, 0.0), height) - 0.5) for y in sorted((y1, y2)))
        rows = np.arange(first, last)
        if len(rows):
            x = x1 + (rows + 0.5 - y1) * (x2 - x1) / (y2 - y1)
            np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)), 1)
    inside = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    if not inside.any():
        pixels = np.clip(np.floor(points), 0, (width - 1, height - 1)).astype(np.intp)
        inside[pixels[:, 1], pixels[:, 0]] = True
    view |= inside
