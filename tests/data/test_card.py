"""The data card: counts, box sizes, terms, checksums."""

import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest

from differad.core import Pair
from differad.data.build import BuildOptions, build
from differad.data.card import CHECKSUMS, files_of, make_card, sha256, write_card
from differad.data.pairing import Pairing
from differad.errors import InputError, ManifestError
from miniatures import mvtec


@pytest.fixture
def built(tmp_path):
    root = mvtec(tmp_path / "data", categories=("nut",))
    return build("mvtec", root, tmp_path / "out", BuildOptions(Pairing(references=2), group="complex"))


def test_counts_and_box_sizes(built):
    card = make_card(built.pairs, "Nuts")
    assert (card["pairs"], card["anomalous"], card["normal"], card["targets"]) == (12, 6, 6, 6)
    assert card["categories"]["nut"] == {
        "group": "complex", "pairs": 12, "anomalous": 6, "normal": 6, "targets": 6, "boxes_left_to_masks": 0,
        "place_unknown": 0,
    }  # fmt: skip
    assert (card["groups"], card["kinds"]) == ({"complex": 12}, {"scratch": 6})
    boxes = card["boxes"]
    assert (boxes["count"], boxes["width_px"]["p50"], boxes["height_px"]["p100"]) == (6, 20.0, 16.0)
    assert boxes["area_share"]["p50"] == pytest.approx(20 * 16 / 96**2, abs=1e-5)
    assert boxes["sizes"] == {"small": 0, "medium": 6, "large": 0}  # 3.5 % of the image
    assert card["sources"]["mvtec"]["licence"] == "CC BY-NC-SA 4.0"


def test_both_files_and_their_checksums(built, tmp_path):
    out = tmp_path / "out"
    card = write_card(out, make_card(built.pairs, "Nuts | bolts"), out / "pairs.jsonl", files=files_of(built.pairs))
    assert json.loads((out / "card.json").read_text()) == card
    assert card["manifest"]["sha256"] == hashlib.sha256((out / "pairs.jsonl").read_bytes()).hexdigest()
    listed = (out / CHECKSUMS).read_text().splitlines()
    assert len(listed) == card["files"]["count"] == len(files_of(built.pairs))
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", CHECKSUMS], cwd=out, check=True)
    text = (out / "card.md").read_text()
    for part in ("12 pairs: 6 anomalous, 6 normal", "| nut | complex | 12 | 6 | 6 |", "CC BY-NC-SA 4.0", "6 medium"):
        assert part in text


def test_a_card_without_opening_images(tmp_path):
    pairs = [
        Pair("r.png", "gone.png", id="a", category="c", boxes=[[0, 0, 2, 2]]),
        Pair("r.png", "t.png", mask="m.png"),
    ]
    card = make_card(pairs, "Lazy", open_images=False)
    assert "area_share" not in card["boxes"]
    assert (card["anomalous"], card["boxes_left_to_masks"]) == (2, 1)
    assert card["sources"][""]["licence"].startswith("unknown")
    assert make_card([], "Nothing")["boxes"] == {"count": 0}


def test_what_cannot_be_summed(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        sha256(tmp_path / "gone")
    with pytest.raises(ManifestError, match="image in memory"):
        files_of([Pair(np.zeros((2, 2, 3), np.uint8), "t.png")])


@pytest.mark.parametrize("name", ["two\nlines.png", "back\\slash.png", "a\rreturn.png", "plain name.png"])
def test_checksums_of_any_name_can_be_checked(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    (tmp_path / "pairs.jsonl").write_text("")
    write_card(tmp_path, make_card([], "Odd names"), tmp_path / "pairs.jsonl", files=[tmp_path / name])
    (line,) = (tmp_path / CHECKSUMS).read_bytes().decode().split("\n")[:-1]
    assert line.startswith("\\") is (name != "plain name.png")
    if shutil.which("sha256sum"):
        done = subprocess.run(
            ["sha256sum", "--check", "--strict", CHECKSUMS], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_the_card_escapes_html_and_links(tmp_path):
    bad = "<script>alert(1)</script>\n# [x](javascript:alert) | & \u2028<img>"
    pairs = [Pair("r.png", "t.png", id="a", category=bad, group=bad, boxes=[], extra={"source": bad})]
    (tmp_path / "pairs.jsonl").write_text("")
    card = {**make_card(pairs, bad, open_images=False), "notes": [bad]}
    write_card(tmp_path, card, tmp_path / "pairs.jsonl")
    text = (tmp_path / "card.md").read_text()
    assert (
        text.count("&lt;script&gt;alert(1)&lt;/script&gt; # \\[x](javascript:alert)") == 5
    )  # title, note, category, group, source
    assert "<" not in text
    assert "\n# [" not in text
