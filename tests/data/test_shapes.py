"""What annotators draw becomes its box: by arithmetic, and by the decoders that others use.

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
    brush_to_mask,
    ellipse_box,
    mask_box,
    polygon_box,
    runs_to_mask,
    turned,
    turned_about_center,
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
        assert mask_box(mask, "x") == case["box"]
        assert mask.sum() == (case["box"][2] - case["box"][0]) * (case["box"][3] - case["box"][1])
    else:
        assert ["".join("#" if on else "." for on in row) for row in mask] == case["marked"]


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ([], "cut off"),
        (GOLDEN[0]["rle"][:-4], "cut off"),
        ([*GOLDEN[0]["rle"][:5], 256], "cut off or holds no bytes"),
        ([-1], "holds no bytes"),
        ([255] * 40, "4294967295 values; expected four for each of 14x9 pixels"),
    ],
)
def test_brush_regions_that_are_none(rle, says):
    with pytest.raises(ManifestError, match=says):
        brush_to_mask(rle, 9, 14, "x")


def test_a_turned_rectangle():
    # 100 x 10 about (150, 105), by a quarter: 10 x 100
    assert turned_about_center([100, 100, 200, 110], 90) == pytest.approx([145, 55, 155, 155])
    # 20 x 20 at (40, 10), clockwise about that corner: to its left
    assert turned([40, 10, 60, 30], 90, (40, 10)) == pytest.approx([20, 10, 40, 30])
    assert turned_about_center([1, 2, 3, 4], 360) == [1, 2, 3, 4]


@settings(max_examples=200, deadline=None)
@given(st.floats(1, 50), st.floats(1, 50), st.floats(-720, 720))
def test_an_ellipse_touches_the_box_around_it(rx, ry, degrees):
    # Points of the outline as complex numbers, turned by a product: 20,000 of them miss the extreme by 1 - cos(pi / 20000).
    outline = [complex(rx * math.cos(t), ry * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 20_001).tolist()]
    around = np.array(outline) * cmath.exp(1j * math.radians(degrees)) + complex(7, -3)
    expected = [around.real.min(), around.imag.min(), around.real.max(), around.imag.max()]
    assert ellipse_box((7, -3), (rx, ry), degrees, "x") == pytest.approx(expected, abs=50 * (math.pi / 20_000) ** 2)


def test_polygons_and_what_has_no_area():
    assert polygon_box([[10, 10], [40, 10], [40, 30.5]], "x") == [10, 10, 40, 30.5]
    for points in ([], [[1, 2], [3, 4]], [[1, 2], [3, 4], [5]]):
        with pytest.raises(ManifestError, match="expected three or more, each x and y"):
            polygon_box(points, "x")
    with pytest.raises(ManifestError, match="radii 3 and 0; expected both above 0"):
        ellipse_box((1, 1), (3, 0), 0, "x")
    with pytest.raises(ManifestError, match="marks nothing"):
        mask_box(np.zeros((3, 4), bool), "x")


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
    assert mask_box(np.array(expected), "x", (10, 20)) == [11, 20, 13, 22]


@pytest.mark.parametrize("counts", [[], [5], [7], [-1, 7], [10**30], [6, -6, 6]])
def test_run_lengths_that_do_not_fill_the_image(counts):
    with pytest.raises(ManifestError, match="expected 3x2 = 6"):
        runs_to_mask(counts, 2, 3, "x", by_columns=True)


@pytest.mark.parametrize("text", ["o", "P1o", "é", " ", "~", "o" * 50])
def test_compressed_counts_that_are_none(text):
    with pytest.raises(ManifestError, match="compressed counts"):
        unpack_counts(text, "x")
