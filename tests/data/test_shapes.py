"""Annotated shapes become boxes, compared with arithmetic and with the decoders of other tools.

`label_studio_brush.json` holds brush regions and what `label_studio_sdk.converter.brush` (2.1.2) makes of them:
`rle = mask2rle(mask)` or `encode_rle(rgba.ravel())`, `marked = decode_rle(rle).reshape(height, width, 4)[:, :, 3] > 0`.
"""

import cmath
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from differad.data.shapes import (
    Region,
    bitmap,
    brush_to_mask,
    ellipse,
    polygon,
    rotated,
    rotated_about_center,
    runs_to_mask,
    unpack_counts,
)
from differad.errors import ManifestError

GOLDEN = json.loads((Path(__file__).parent / "label_studio_brush.json").read_text())
a_mask = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda flat: np.reshape(flat, shape)
    )
)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_brush_regions_as_label_studios_own_sdk_reads_them(case):
    mask = brush_to_mask(case["rle"], case["height"], case["width"], "x")
    if "box" in case:
        assert list(bitmap(mask, "x").box) == case["box"]
        assert mask.sum() == (case["box"][2] - case["box"][0]) * (case["box"][3] - case["box"][1])
    else:
        assert ["".join("#" if on else "." for on in row) for row in mask] == case["marked"]


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ([], "truncated"),
        (GOLDEN[0]["rle"][:-4], "truncated"),
        ([*GOLDEN[0]["rle"][:5], 256], "truncated or not made of bytes"),
        ([-1], "not made of bytes"),
        ([255] * 40, "4294967295 values; expected four for each of 14x9 pixels"),
    ],
)
def test_invalid_brush_regions(rle, says):
    with pytest.raises(ManifestError, match=says):
        brush_to_mask(rle, 9, 14, "x")


def test_a_rotated_rectangle():
    # 100 x 10 about (150, 105), by a quarter: 10 x 100
    assert rotated_about_center([100, 100, 200, 110], 90).box == pytest.approx([145, 55, 155, 155])
    # 20 x 20 at (40, 10), clockwise about that corner: to its left
    assert rotated([40, 10, 60, 30], 90, (40, 10)).box == pytest.approx([20, 10, 40, 30])
    assert rotated_about_center([1, 2, 3, 4], 360).box == (1, 2, 3, 4)


@settings(max_examples=200, deadline=None)
@given(st.floats(1, 50), st.floats(1, 50), st.floats(-720, 720))
def test_an_ellipse_touches_the_box_around_it(rx, ry, degrees):
    # Points of the outline as complex numbers, turned by a product: 20,000 of them miss the extreme by 1 - cos(pi / 20000).
    outline = [complex(rx * math.cos(t), ry * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 20_001).tolist()]
    around = np.array(outline) * cmath.exp(1j * math.radians(degrees)) + complex(7, -3)
    expected = [around.real.min(), around.imag.min(), around.real.max(), around.imag.max()]
    assert ellipse((7, -3), (rx, ry), degrees, "x").box == pytest.approx(expected, abs=50 * (math.pi / 20_000) ** 2)


def test_polygons_and_what_has_no_area():
    assert polygon([[[10, 10], [40, 10], [40, 30.5]]], "x").box == (10, 10, 40, 30.5)
    for points in ([], [[1, 2], [3, 4]], [[1, 2], [3, 4], [5]]):
        with pytest.raises(ManifestError, match="expected three or more, each x and y"):
            polygon([points], "x")
    with pytest.raises(ManifestError, match="radii 3 and 0; expected both above 0"):
        ellipse((1, 1), (3, 0), 0, "x")
    with pytest.raises(ManifestError, match="marks nothing"):
        bitmap(np.zeros((3, 4), bool), "x")


@settings(max_examples=200, deadline=None)
@given(a_mask)
def test_run_lengths_as_pycocotools_reads_them(mask):
    encoder = pytest.importorskip("pycocotools.mask")
    height, width = mask.shape
    text = encoder.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert (runs_to_mask(unpack_counts(text, "x"), height, width, "x", by_columns=True) == mask).all()
    assert (encoder.decode({"size": [height, width], "counts": text.encode()}) == mask).all()


def test_run_lengths_along_rows_and_down_columns():
    # .##
    # ..#
    rows, columns = [1, 2, 2, 1], [2, 1, 1, 2]
    expected = [[False, True, True], [False, False, True]]
    assert runs_to_mask(rows, 2, 3, "x", by_columns=False).tolist() == expected
    assert runs_to_mask(columns, 2, 3, "x", by_columns=True).tolist() == expected
    assert bitmap(np.array(expected), "x", (10, 20)).box == (11, 20, 13, 22)


@pytest.mark.parametrize("counts", [[], [5], [7], [-1, 7], [10**30], [6, -6, 6]])
def test_run_lengths_that_do_not_fill_the_image(counts):
    with pytest.raises(ManifestError, match="expected 3x2 = 6"):
        runs_to_mask(counts, 2, 3, "x", by_columns=True)


@pytest.mark.parametrize("text", ["o", "P1o", "é", " ", "~", "o" * 50])
def test_invalid_compressed_counts(text):
    with pytest.raises(ManifestError, match="compressed counts"):
        unpack_counts(text, "x")


def inside(points, x, y):
    """Whether a point lies inside of an outline: the sign of the angle that it is seen to turn by."""
    seen = points[:, 0] + 1j * points[:, 1] - complex(x, y)
    return abs(np.angle(np.roll(seen, -1) / seen).sum()) > math.pi


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 14), st.floats(-3, 14)), min_size=3, max_size=3), st.floats(0, 360))
def test_outlines_mark_pixels_whose_centres_are_inside(triangle, degrees):
    for region in (polygon([triangle], "x"), rotated([2, 3, 9.3, 6.1], degrees, (5, 5))):
        canvas = np.zeros((11, 12), bool)
        region.paint(canvas)
        expected = np.zeros_like(canvas)
        for part in region.parts or (np.array([(2, 3), (9.3, 3), (9.3, 6.1), (2, 6.1)]),):
            expected |= [[inside(part, x + 0.5, y + 0.5) for x in range(12)] for y in range(11)]
        if expected.any():  # a sliver between the centres marks the pixels of its vertices instead
            assert np.count_nonzero(canvas ^ expected) <= on_the_line(region, canvas.shape)
        assert canvas.any()


def on_the_line(region, shape):
    """Pixels whose centre is so close to an outline that rounding decides."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    near = np.zeros(shape, bool)
    for part in region.parts:
        for (x1, y1), (x2, y2) in zip(part, np.roll(part, -1, axis=0), strict=True):
            length = math.hypot(x2 - x1, y2 - y1) or 1.0
            near |= np.abs((x2 - x1) * (ys - y1) - (y2 - y1) * (xs - x1)) / length < 1e-9
    return np.count_nonzero(near)


def test_painted_pixels_have_the_box_of_the_region():
    mask = np.zeros((20, 30), bool)
    for region in (
        Region((3, 4, 9, 6)),
        polygon([[(11, 5), (20, 5), (20, 9), (11, 9)], [(1, 12), (2, 12), (2, 13), (1, 13)]], "x"),
        bitmap(np.array([[False, True], [True, False]]), "x", (25, 15)),
        ellipse((15, 15), (4, 2), 90, "x"),
    ):
        canvas = np.zeros_like(mask)
        region.paint(canvas)
        assert bitmap(canvas, "x").box == pytest.approx(region.box)
        mask |= canvas
    # 12 + 36 + 1 + 2 pixels, and an ellipse of 8 pi = 25.1, give or take its edge
    assert abs(np.count_nonzero(mask) - 51 - 8 * math.pi) < 4


def test_a_sliver_between_the_centres_marks_the_pixels_of_its_vertices():
    canvas = np.zeros((5, 8), bool)
    polygon([[(1.6, 2.6), (4.9, 2.7), (1.6, 2.8)]], "x").paint(canvas)
    assert np.argwhere(canvas).tolist() == [[2, 1], [2, 4]]


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 2), (9.5, 2), (9.5, 4), (1, 4)], True),
        ([(1, 4), (1, 2), (5, 2), (9.5, 2), (9.5, 4)], True),
        ([(1, 2), (9.5, 2), (9.5, 4)], False),  # a triangle has corners of its box only, too
        ([(1, 2), (9.5, 4), (9.5, 2), (1, 4)], False),  # crosses itself
        ([(1, 2), (9.5, 2), (9.4, 4), (1, 4)], False),
    ],
)
def test_which_outlines_are_axis_aligned_rectangles(points, expected):
    assert polygon([points], "x").is_rectangle is expected
    assert polygon([points, points], "x").is_rectangle is False
    assert rotated([1, 2, 3, 4], 180, (2, 3)).is_rectangle is True
