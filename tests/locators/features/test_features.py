"""The `features` locator end to end: on synthetic pairs with a known truth, at its limits, and on real pairs if present."""

from pathlib import Path

import numpy as np
import pytest

from differad.boxes import iou
from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.errors import ImageError, InputError, OptionError
from differad.locators.features import FeaturesLocator, FeaturesOptions
from differad.synthesis.normals import NORMALS
from differad.synthesis.pairs import make_pair

REAL = Path(__file__).parents[4] / "shared" / "data"
# Seeds that the calibration never draws.
FRESH = 3_000_000


def unaligned(index, *, anomalous=False, size=256):
    """Two pieces of one surface; a bright square stands for a defect that nobody overlooks."""
    kind = ("grain", "brushed", "perforated", "wood")[index % 4]
    surface = NORMALS[kind](np.random.default_rng(FRESH + index), 2 * size)
    surface = np.clip(surface if surface.ndim == 3 else surface[..., None].repeat(3, axis=2), 0, 255).astype(np.uint8)
    reference, target = surface[:size, :size].copy(), surface[size:, size:].copy()
    boxes = np.empty((0, 4))
    if anomalous:
        x, y = np.random.default_rng(index).integers(40, size - 100, 2)
        target[y : y + 50, x : x + 40] = 255 - target[y : y + 50, x : x + 40][::-1] // 2
        boxes = np.array([[x, y, x + 40, y + 50]], float)
    return Pair(reference, target, id=str(index), boxes=boxes)


def test_defects_of_parts_that_do_not_register_are_found():
    pairs = [unaligned(index, anomalous=True) for index in range(12)]
    outcomes = list(FeaturesLocator(FeaturesOptions(threshold=0.0, fuse=False)).locate_many(pairs))
    overlaps = np.array([iou(o.boxes[:1], p.boxes)[0] for o, p in zip(outcomes, pairs, strict=True)])
    assert overlaps.mean() >= 0.4
    assert (overlaps >= 0.3).mean() >= 0.6


def test_abnormal_pairs_are_more_suspect_than_normal_ones():
    locator = FeaturesLocator()
    abnormal, normal = (
        [o.confidence for o in locator.locate_many(unaligned(i, anomalous=a) for i in range(12))] for a in (True, False)
    )
    assert np.mean(np.array(abnormal)[:, None] > normal) > 0.85


def test_where_the_reference_registers_the_pixels_decide():
    pairs = [
        make_pair(np.random.default_rng(FRESH + index), "board", anomalous=index % 2 == 0).as_pair(str(index))
        for index in range(16)
    ]
    outcomes = list(FeaturesLocator().locate_many(pairs))
    overlaps = [iou(o.boxes[:1], p.boxes).max(initial=0) for o, p in zip(outcomes, pairs, strict=True) if len(p.boxes)]
    assert np.mean(overlaps) >= 0.3  # boxes stand 5 pixels off a truth that is tight
    assert all(o.reasoning.startswith("The reference was aligned by ") for o in outcomes)
    assert sum(o.anomalous for o in outcomes[1::2]) <= 2


def test_the_answer_is_complete_and_repeatable():
    pair = unaligned(0, anomalous=True)
    locator = FeaturesLocator(FeaturesOptions(threshold=0.0, fuse=False))
    first, again = locator.locate(pair), locator.locate(pair)
    streamed = next(iter(locator.locate_many([pair])))
    fresh = FeaturesLocator(FeaturesOptions(threshold=0.0, fuse=False)).locate(pair)
    for other in (again, streamed, fresh):
        assert other.boxes.tolist() == first.boxes.tolist()
        assert other.scores == pytest.approx(first.scores, abs=1e-6)
    assert first.model == "features"
    assert first.seconds > 0
    assert first.confidence == first.scores[0]
    assert (np.diff(first.scores) <= 0).all()
    assert "not aligned" in first.reasoning


def test_identical_images_are_normal():
    image = unaligned(0).target
    for fuse in (True, False):
        location = FeaturesLocator(FeaturesOptions(fuse=fuse)).locate(Pair(image, image))
        assert not location.anomalous
        assert location.confidence < 0.5


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 300), (16, 16), (20, 3000)], ids=str)
@pytest.mark.parametrize("fill", ["uniform", "noise"])
def test_images_of_odd_shapes_are_answered(shape, fill):
    rng = np.random.default_rng(0)
    image = np.full((*shape, 3), 128, np.uint8) if fill == "uniform" else rng.integers(0, 256, (*shape, 3), np.uint8)
    location = FeaturesLocator(FeaturesOptions(fuse=False)).locate(Pair(image, image.copy()))
    assert location.valid
    assert not location.anomalous


def test_boxes_lie_inside_the_target_whatever_the_sizes():
    pair = unaligned(0, anomalous=True)
    small = np.ascontiguousarray(pair.reference[:90, :200])
    location = FeaturesLocator(FeaturesOptions(threshold=0.0)).locate(Pair(small, pair.target))
    assert len(location.boxes) >= 1
    assert (location.boxes >= 0).all()
    assert (location.boxes <= 256).all()


def test_the_map_has_the_target_s_size_and_peaks_at_the_defect():
    pair = unaligned(0, anomalous=True)
    heat = FeaturesLocator().anomaly_map(pair)
    assert heat.shape == (256, 256)
    assert heat.dtype == np.float32
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    left, top, right, bottom = pair.boxes[0]
    assert left - 10 <= x <= right + 10
    assert top - 10 <= y <= bottom + 10


def test_a_further_reference_explains_what_the_first_does_not_show():
    pair = unaligned(1, anomalous=True)
    alone = FeaturesLocator().anomaly_map(pair)
    # The very target as a good part: nothing in it can be abnormal any more.
    helped = FeaturesLocator(references=[pair.target]).anomaly_map(pair)
    assert helped.max() < 0.2 * alone.max()


def test_calibrate_bounds_false_alarms_and_refuses_too_few():
    normals = [unaligned(index, size=128) for index in range(19)]
    locator = FeaturesLocator(FeaturesOptions(fuse=False))
    strict = locator.calibrate(normals, 0.05)  # (19 + 1) * 0.95 = 19: above the largest of 19
    assert not any(o.anomalous for o in strict.locate_many(normals))
    with pytest.raises(InputError, match=r"18 normal pairs with a confidence: .* at least 19"):
        locator.calibrate(normals[:18], 0.05)
    with pytest.raises(OptionError, match=r"false_alarms=1\.5"):
        locator.calibrate(normals, 1.5)


def test_one_bad_pair_does_not_stop_a_stream(tmp_path):
    good = unaligned(0, size=128)
    pairs = [good, Pair(tmp_path / "absent.png", good.target, id="bad"), good]
    first, bad, last = FeaturesLocator().locate_many(pairs)
    assert isinstance(first, Location)
    assert isinstance(bad, ImageError)
    assert last.confidence == pytest.approx(first.confidence)


@pytest.mark.parametrize("wrong", [{"threshold": 2}, {"max_boxes": 0}, {"runtime": "gpu"}, {"workers": -1}], ids=str)
def test_wrong_options_are_named(wrong):
    with pytest.raises(OptionError, match=f"option {next(iter(wrong))}="):
        FeaturesOptions(**wrong)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real pairs beside the checkout")
def test_real_parts_that_do_not_register_are_answered():
    pairs = [pair for _, pair in zip(range(4), read_pairs(REAL / "magnetic_tile" / "pairs.jsonl"), strict=False)]
    outcomes = list(FeaturesLocator().locate_many(pairs))
    assert all(isinstance(outcome, Location) and outcome.valid for outcome in outcomes)
    assert all(0 <= outcome.confidence <= 1 for outcome in outcomes)
