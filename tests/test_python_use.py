"""Use from Python: errors, types, images in memory, values that compare, other processes."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import differad
from differad import DifferadError, ImageError, Location, Pair, load_locator, read_pairs
from differad.cli.main import run
from differad.data.stamps import image_name
from differad.evaluation.run import locate_to_file
from differad.images import image_size, read_image
from differad.locators import EmbeddedLocator
from differad.locators.features import FeaturesLocator

ROOT = Path(__file__).parents[1]
GOOD, DEFECT = ROOT / "examples" / "board_good.png", ROOT / "examples" / "board_defect.png"
PAIR = Pair(GOOD, DEFECT, id="board")
EMBEDDED = ("auto", "difference", "features", "tiny")


def test_every_error_is_at_hand():
    for name in ("ImageError", "InputError", "LocatorError", "ManifestError", "MissingExtraError", "OptionError"):
        assert issubclass(getattr(differad, name), DifferadError)
    with pytest.raises(differad.DifferadError, match=r"nowhere\.png: no such file"):
        load_locator("difference").locate(Pair("nowhere.png", DEFECT))


STRICT = """
from differad import DifferadError, Location, Locator, Pair, load_locator, read_pairs
from differad.locators import EmbeddedLocator

locator = load_locator("difference")
stricter = locator.calibrate(read_pairs("normal.jsonl"), false_alarms=0.02)
print(stricter.options.threshold, load_locator().calibrate([]).options)
named: str = input()
other: Locator = load_locator(named)
if isinstance(other, EmbeddedLocator):
    print(other.options.threshold, other.calibrate([]).name)
location: Location = load_locator("tiny", closer=False).locate(Pair(b"uploaded", "test.png"))
verdict: bool | None = location.anomalous
for outcome in load_locator("openai:x@http://h/v1", family="qwen3-vl").locate_many([]):
    print(outcome if isinstance(outcome, DifferadError) else outcome.to_dict())
"""


def test_a_type_checker_knows_what_load_locator_returns(tmp_path):
    (tmp_path / "user.py").write_text(STRICT)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "user.py")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "MYPYPATH": str(ROOT / "src")}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_a_file_are_an_image(kind):
    uploaded = kind(DEFECT.read_bytes())
    np.testing.assert_array_equal(read_image(uploaded), read_image(DEFECT))
    assert image_size(uploaded) == image_size(DEFECT)
    assert load_locator("difference").locate(Pair(GOOD, uploaded)) == load_locator("difference").locate(PAIR)


def test_images_in_bytes_are_compared_completely():
    assert image_name(b"a\0") != image_name(b"a") != image_name(b"a\0\0")
    assert image_name(b"a") == image_name(bytearray(b"a"))


WRONG = [
    None,
    3,
    b"",
    b"no image",
    ["a.png"],
    np.array([None, None]),
    {"path": "a.png"},
    np.full((64, 64, 3), None),
    np.full((64, 64), "x"),
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("place", ["reference", "target"])
def test_input_that_is_no_image_affects_only_its_pair(wrong, place, tmp_path):
    pairs = [replace(PAIR, id="before"), replace(PAIR, id="wrong", **{place: wrong}), replace(PAIR, id="after")]
    first, error, last = load_locator("difference").locate_many(pairs)
    assert isinstance(error, ImageError)
    assert len(str(error).splitlines()) == 1
    assert first == last
    assert first.anomalous
    with pytest.warns(differad.InputWarning, match="1 of 3 pairs failed"):
        counts = locate_to_file(pairs, load_locator("difference"), tmp_path / "p.jsonl", progress=False)
    assert (counts["located"], counts["failed"]) == (2, 1)


def test_none_is_named():
    with pytest.raises(ImageError, match="None: is no image; expected a path, the bytes of an image file"):
        load_locator("difference").locate(Pair(None, DEFECT))


def test_arrays_are_rgb():
    rgb = np.asarray(Image.open(DEFECT).convert("RGB"))
    np.testing.assert_array_equal(read_image(rgb), read_image(DEFECT))


def test_equal_locations_are_equal():
    locator = load_locator("difference")
    once, again = locator.locate(PAIR), locator.locate(PAIR)
    assert once == again == replace(once, seconds=once.seconds + 1)
    assert len({once, again}) == 1
    assert once != replace(once, boxes=once.boxes + 1)
    assert once != replace(once, confidence=None)
    assert Location() != Location(valid=False)
    assert Location() != "normal"


def pair(**values):
    return Pair(**{"reference": "good.png", "target": "test.png", "id": "a", "boxes": [[1, 2, 3, 4]], **values})


def test_equal_pairs_are_equal(tmp_path):
    assert pair() == pair(reference=Path("good.png"), boxes=np.array([[1.0, 2, 3, 4]]))
    assert len({pair(), pair(), pair(extra={"lot": [7]})}) == 2  # further keys need not be hashable
    others = ({"target": "other.png"}, {"id": "b"}, {"boxes": []}, {"boxes": None}, {"boxes": None, "anomalous": True})
    more = ({"category": "x"}, {"mask": Path("m.png")}, {"group": "g"}, {"extra": {"lot": 7}}, {"target": b"test.png"})
    for values in (*others, *more):
        assert pair() != pair(**values)
        assert pair(**values) == pair(**values)
    assert pair() != "a"
    (tmp_path / "pairs.jsonl").write_text('{"id": "a", "reference": "good.png", "target": "test.png"}\n')
    assert list(read_pairs(tmp_path / "pairs.jsonl")) == list(read_pairs(tmp_path / "pairs.jsonl"))


def test_pairs_of_images_in_memory_are_equal_by_their_content():
    pixels = np.asarray(Image.open(DEFECT).convert("RGB"))
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    kinds = (np.array, Image.fromarray, np.ndarray.tobytes)
    for kind in kinds:
        assert pair(target=kind(pixels)) == pair(target=kind(pixels.copy()))
        assert hash(pair(target=kind(pixels))) == hash(pair(target=kind(pixels.copy())))
        assert pair(target=kind(pixels)) != pair(target=kind(changed))
    assert pair(target=pixels) != pair(target=pixels[:-1])
    assert len({pair(target=kind(pixels)) for kind in kinds}) == 3  # three kinds are three images


def test_a_threshold_found_is_one_of_the_command_line(tmp_path, capsys):
    """docs/python.md: the printed threshold of `calibrate` gives the same verdicts on the command line."""
    rng = np.random.default_rng(0)
    good = np.asarray(Image.open(GOOD).convert("RGB"))
    for number in range(4):
        noisy = np.clip(good + rng.normal(0, 3 + number, good.shape), 0, 255).astype(np.uint8)
        noisy[100 : 102 + number, 100:103] = 255  # good parts of a kind that the default calls abnormal
        Image.fromarray(noisy).save(tmp_path / f"{number}.png")
    normals = [Pair(GOOD, tmp_path / f"{number}.png") for number in range(4)]
    for model in ("difference", "auto"):
        default = load_locator(model)
        assert default.locate(normals[3]).anomalous
        locator = default.calibrate(normals, false_alarms=0.2)
        option = f"threshold={locator.options.threshold}"
        location = locator.locate(normals[3])
        run(["locate", str(GOOD), str(tmp_path / "3.png"), "--model", model, "-o", option, "--json"])
        document = json.loads(capsys.readouterr().out)
        assert document["anomalous"] is False is location.anomalous
        assert document["threshold"] == location.to_dict()["threshold"] == round(locator.options.threshold, 4)
        out = tmp_path / model
        targets = [str(tmp_path / f"{number}.png") for number in range(4)]
        assert run(["inspect", str(GOOD), *targets, "--out", str(out), "--model", model, "-o", option]) == 0
        capsys.readouterr()


@pytest.mark.parametrize("location", [Location(), Location([[1, 2, 3, 4]]), Location(valid=False)])
def test_a_location_is_no_condition(location):
    with pytest.raises(TypeError, match="ask location"):
        bool(location)


def test_a_location_becomes_json():
    location = load_locator("difference").locate(PAIR)
    assert json.loads(json.dumps(location.to_dict())) == location.to_dict()


@pytest.mark.parametrize("model", EMBEDDED)
def test_an_embedded_locator_can_be_sent(model):
    locator = load_locator(model, threshold=0.3)
    before = locator.locate(PAIR)
    sent = pickle.dumps(locator)
    assert len(sent) < 20_000  # weights are read again from their files, caches are left behind
    arrived = pickle.loads(sent)
    assert isinstance(arrived, EmbeddedLocator)
    assert arrived.options == locator.options
    assert arrived.locate(PAIR) == before


def test_further_references_are_sent_along():
    locator = FeaturesLocator(references=[DEFECT])
    assert pickle.loads(pickle.dumps(locator)).locate(PAIR) == locator.locate(PAIR)


def test_a_process_pool():
    locator = load_locator()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(locator.locate, [PAIR, PAIR])) == [locator.locate(PAIR)] * 2
