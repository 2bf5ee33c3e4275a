"""What annotators draw, as the upright box around it: turned rectangles, polygons, ellipses, brush strokes, run-length masks.

Coordinates are continuous, in pixels, measured from the image's upper left corner; a box is x1, y1, x2, y2, x2 and y2
exclusive. The box of a polygon is its vertices' extremes, that of a mask encloses the marked pixels tightly. Angles are
degrees, clockwise as the image is seen. Every function takes the `place` that its errors name.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from differad.errors import ManifestError

Mask = NDArray[np.bool_]
_CORNERS = 3
# Bits of a run length: more than an image of any size has pixels.
_LONGEST = 60


def turned(box: Sequence[float], degrees: float, pivot: tuple[float, float]) -> list[float]:
    """The upright box around one (x1, y1, x2, y2) that was turned clockwise about `pivot`, in pixels."""
    if degrees % 360 == 0:
        return list(box)
    angle = math.radians(degrees)
    corners = np.array([(x, y) for x in box[::2] for y in box[1::2]]) - pivot
    # With y pointing down this matrix turns clockwise.
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return _extremes(corners @ matrix.T + pivot)


def turned_about_center(box: Sequence[float], degrees: float) -> list[float]:
    """The upright box around one (x1, y1, x2, y2) that was turned clockwise about its own centre, in pixels."""
    return turned(box, degrees, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))


def polygon_box(points: Sequence[Sequence[float]], place: str) -> list[float]:
    """The box around a polygon's vertices (x, y). Raises ManifestError for fewer than three."""
    if len(points) < _CORNERS or any(len(point) != 2 for point in points):
        raise ManifestError(f"{place}: a polygon of {len(points)} points; expected three or more, each x and y")
    return _extremes(np.array(points, dtype=np.float64))


def ellipse_box(center: tuple[float, float], radii: tuple[float, float], degrees: float, place: str) -> list[float]:
    """The box around an ellipse that was turned clockwise about its `center`. Raises ManifestError."""
    if min(radii) <= 0:
        raise ManifestError(f"{place}: an ellipse with radii {radii[0]:g} and {radii[1]:g}; expected both above 0")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The extreme of x = rx cos(t) cos(a) - ry sin(t) sin(a) over t; y likewise.
    x, y = math.hypot(radii[0] * cos, radii[1] * sin), math.hypot(radii[0] * sin, radii[1] * cos)
    return [center[0] - x, center[1] - y, center[0] + x, center[1] + y]


def mask_box(mask: Mask, place: str, corner: tuple[int, int] = (0, 0)) -> list[float]:
    """The box around the marked pixels of a mask (H, W) whose upper left is at `corner`. Raises ManifestError."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        raise ManifestError(f"{place}: a mask that marks nothing; draw it again or remove it")
    left, top = corner
    return [float(v) for v in (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)]


def runs_to_mask(counts: Sequence[int], height: int, width: int, place: str, *, by_columns: bool) -> Mask:
    """A mask (H, W) from run lengths that begin with unmarked pixels: down the columns (COCO) or along the rows (CVAT).

    Raises ManifestError where they do not fill `height` x `width` exactly.
    """
    total = sum(counts)
    if total != height * width or min(counts, default=0) < 0:
        raise ManifestError(f"{place}: run lengths of {total} pixels; expected {width}x{height} = {width * height}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(height, width, order="F" if by_columns else "C")


def unpack_counts(text: str, place: str) -> list[int]:
    """The run lengths in COCO's compressed string. Raises ManifestError.

    Layout: `rleFrString` in https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c. It is read here and not
    by pycocotools, which returns memory that nobody has written where a string is too short; a test compares with it.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > _LONGEST:
            raise ManifestError(f"{place}: compressed counts with the letter {letter!r}; expected COCO's run lengths")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        # From the fourth on, a length is told as the difference to the one before the last.
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ManifestError(f"{place}: compressed counts that are cut off; export them again")
    return counts


class _Bits:
    """Reads big-endian numbers of any width from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def read(self, width: int) -> int:
        """The next `width` bits. Raises EOFError behind the last."""
        end = self._place + width
        if end > 8 * len(self._data):
            raise EOFError
        last = (end + 7) // 8
        number = int.from_bytes(self._data[self._place // 8 : last], "big") >> (8 * last - end)
        self._place = end
        return number & ((1 << width) - 1)


def brush_to_mask(rle: Sequence[int], height: int, width: int, place: str) -> Mask:
    """A mask (H, W) from the bytes of a Label Studio brush region: marked where alpha is above 0. Raises ManifestError.

    The layout is thi.ng's rle-pack of an RGBA image:
    https://github.com/thi-ng/umbrella/blob/develop/packages/rle-pack/src/index.ts. It is read here and not by
    label-studio-sdk, which installs an OpenCV that overwrites the one without windows that this package needs; a test
    compares with values of that SDK.
    """
    try:
        bits = _Bits(bytes(rle))
        total, word = bits.read(32), bits.read(5) + 1
        sizes = [bits.read(4) + 1 for _ in range(4)]
        if total != 4 * height * width:
            raise ManifestError(
                f"{place}: a brush mask of {total} values; expected four for each of {width}x{height} pixels"
            )
        marked, lengths = _brush_runs(bits, total, word, sizes)
    except (EOFError, ValueError):
        raise ManifestError(f"{place}: a brush mask that is cut off or holds no bytes; export it again") from None
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


def _extremes(points: NDArray[np.float64]) -> list[float]:
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
