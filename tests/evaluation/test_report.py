"""The report in a real browser, offline, with a hostile model's words in it."""

import base64
import html
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from parts import PlainDifference, make_pairs

from differad.core import Location, Pair
from differad.evaluation.metrics import PairResult
from differad.evaluation.predictions import Prediction
from differad.evaluation.report import Case, Showcase
from differad.evaluation.run import evaluate

HOSTILE = '<script>document.title = "owned"</script><img src=x onerror="document.title = 1"> & </p> \ud800'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Hostile(PlainDifference):
    def locate(self, pair):
        location = super().locate(pair)
        return Location(location.boxes, location.scores, location.confidence, reasoning=HOSTILE, model=self.name)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    manifest = make_pairs(
        folder / "data", 12, p7={"target": "nowhere.png"}, p0={"target": "1.png"}
    )  # p0: a false alarm
    evaluate([manifest], Hostile(), folder / "out")
    return folder / "out" / "report.html"


def test_everything_is_inside(report):
    page = report.read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    encoded_images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(encoded_images) >= 2 * (6 + 1)  # worst and false alarms, reference and target each
    for encoded in encoded_images:
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        image.load()
        assert max(image.size) <= 360


def test_a_model_s_words_are_only_words(report):
    page = report.read_text(encoding="utf-8")
    assert "<script" not in page
    assert html.escape("<script>document.title", quote=False) in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_real_browser_shows_it(report, tmp_path):
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "shot.png"
    command = [CHROMIUM, *flags, f"--screenshot={shot}", "--window-size=1200,2400", report.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=90)
    dumped = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", report.as_uri()], check=True, capture_output=True, text=True, timeout=90
    ).stdout
    assert "<title>differad: plain</title>" in dumped  # the hostile title did not take
    assert len(re.findall(r'<tr class="category">', dumped)) == 2
    for words in (
        "Worst pairs",
        "Best pairs",
        "False alarms",
        "Failed pairs",
        "whole image",
        "nowhere.png: no such file",
    ):
        assert words in dumped
    image = Image.open(shot).convert("RGB")
    assert image.size == (1200, 2400)
    colors = {color for _, color in image.getcolors(image.width * image.height)}
    assert (0, 114, 178) in colors  # bars of the histogram
    assert len(colors) > 1000  # images are shown, not only text


def case(number, iou, anomalous=True, gave_box=True, confidence=None, has_location=True):
    result = PairResult("a", anomalous, iou, gave_box, True, confidence=confidence, has_location=has_location)
    return Case(Pair("r.png", "t.png", id=str(number)), Prediction(id=str(number)), result)


def test_the_showcase_holds_only_the_extremes():
    showcase = Showcase(shown=2)
    for number, overlap in enumerate([0.5, 0.1, 0.9, 0.3, 1.0, 0.0]):
        showcase.add(case(number, overlap))
    assert [c.result.iou for c in showcase.cases("worst")] == [0.0, 0.1]
    assert [c.result.iou for c in showcase.cases("best")] == [1.0, 0.9]
    assert showcase.histogram == [1, 1, 0, 1, 0, 1, 0, 0, 0, 2]


def test_of_equal_cases_the_first_are_kept_and_confident_misses_come_first():
    showcase = Showcase(shown=2)
    for number in range(5):
        showcase.add(case(number, 0.0, confidence=0.9 if number == 4 else 0.2))
        showcase.add(case(10 + number, 0.0, anomalous=False, confidence=number / 10))
    assert [c.pair.id for c in showcase.cases("worst")] == ["4", "0"]
    assert [c.pair.id for c in showcase.cases("false_alarms")] == ["14", "13"]
    assert showcase.cases("errors") == []


def test_a_pair_at_an_unknown_place_is_no_miss():
    showcase = Showcase(shown=2)
    showcase.add(case(0, 0.0, has_location=False))
    for number, confidence in enumerate((0.3, 0.1, 0.2), start=1):
        showcase.add(case(number, 0.0, gave_box=False, confidence=confidence, has_location=False))
    assert (showcase.cases("worst"), showcase.cases("best"), sum(showcase.histogram)) == ([], [], 0)
    assert [c.pair.id for c in showcase.cases("overlooked")] == ["2", "3"]
    assert [c.pair.id for c in showcase.cases("found")] == ["0"]
