"""The contact sheet opens offline and escapes names."""

import re
from dataclasses import replace

import pytest

from differad.core import Pair
from differad.data.build import BuildOptions, build
from differad.data.sheet import pick, write_sheet
from miniatures import mvtec


@pytest.fixture
def pairs(tmp_path):
    return build("mvtec", mvtec(tmp_path / "data"), tmp_path / "out", BuildOptions(group="complex structure")).pairs


def test_pairs_by_group_and_category(pairs, tmp_path):
    page = tmp_path / "sheet.html"
    assert write_sheet(page, pairs, "Nuts & tiles", shown=3) == 6
    text = page.read_text()
    assert text.count("<img ") == 12
    assert re.findall(r'src="(.{0,22})', text) == ["data:image/jpeg;base64"] * 12
    assert "<h2>complex structure</h2>" in text
    assert "Nuts &amp; tiles" in text
    assert text.count("scratch, 1 box") == 4
    assert not re.search("https?:", text)
    assert "default-src 'none'" in text


def test_names_are_escaped_and_broken_images_reported(pairs, tmp_path):
    bad = [
        replace(pairs[0], category="<script>alert(1)</script>"),
        replace(pairs[1], target=tmp_path / "gone.png", category="b"),
    ]
    write_sheet(tmp_path / "sheet.html", bad, "t")
    text = (tmp_path / "sheet.html").read_text()
    assert "<script>" not in text
    assert "gone.png: no such file" in text


def test_boxes_left_to_masks_are_drawn(pairs, tmp_path):
    lazy = [replace(pair, boxes=None) for pair in pairs if pair.mask is not None]
    write_sheet(tmp_path / "sheet.html", lazy, "t", shown=2)
    assert (tmp_path / "sheet.html").read_text().count("scratch, 1 box") == 4


def test_the_choice_is_spread_and_ends_with_a_normal_pair():
    bad = [Pair("r", "t", id=f"b{i}", boxes=[[0, 0, 1, 1]]) for i in range(9)]
    good = [Pair("r", "t", id=f"g{i}", boxes=[]) for i in range(2)]
    assert [pair.id for pair in pick(good + bad, 4)] == ["b0", "b4", "b8", "g0"]
    assert [pair.id for pair in pick(bad, 2)] == ["b0", "b8"]
    assert [pair.id for pair in pick(good, 4)] == ["g0"]
    assert [pair.id for pair in pick(good + bad, 1)] == ["b0"]
    assert pick([], 4) == []
