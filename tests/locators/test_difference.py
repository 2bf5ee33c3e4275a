"""The classical locator end to end: on synthetic pairs with a known truth, at its limits, and on real boards if present."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from differad.boxes import iou
from differad.core import Location, Pair
from differad.data.manifest import read_pairs
from differad.errors import ImageError, InputError, OptionError
from differad.locators.difference import DifferenceLocator, DifferenceOptions
from differad.synthesis.pairs import make_pair

REAL = Path(__file__).parents[3] / "shared" / "data"
# Seeds that the calibration never draws: it counts from 0, and its strangers from 100,000.
FRESH = 1_000_000


def synthetic_pair(index, *, anomalous, size=640):
    category = ("board", "grain", "printed", "board")[index % 4]
    return make_pair(np.random.default_rng(FRESH + index), category, anomalous=anomalous, size=size).as_pair(str(index))


def test_defects_are_found():
    locator = DifferenceLocator(DifferenceOptions(margin=0))
    pairs = [synthetic_pair(index, anomalous=True) for index in range(40)]
    outcomes = list(locator.locate_many(pairs))
    overlaps = np.array([iou(o.boxes[:1], p.boxes).max(initial=0) for o, p in zip(outcomes, pairs, strict=True)])
    assert overlaps.mean() >= 0.5
    assert (overlaps >= 0.3).mean() >= 0.75


def test_normal_pairs_under_nuisance_give_no_box():
    outcomes = list(DifferenceLocator().locate_many(synthetic_pair(index, anomalous=False) for index in range(40)))
    assert sum(o.anomalous for o in outcomes) <= 5  # calibrated to 5 %: 2 of 40, 5 is the 98 % quantile
    assert all(o.valid for o in outcomes)


def test_the_answer_is_complete():
    location = DifferenceLocator().locate(synthetic_pair(0, anomalous=True))
    assert location.model == "difference"
    assert location.seconds > 0
    assert location.anomalous
    assert location.confidence == location.scores.max()
    assert (np.diff(location.scores) <= 0).all()
    assert location.reasoning.startswith("The reference was aligned by ")


def test_another_part_is_refused_and_said_so():
    pair = Pair(synthetic_pair(0, anomalous=False).reference, synthetic_pair(3, anomalous=True).target)
    refused = DifferenceLocator().locate(pair)
    assert not refused.valid
    assert not refused.anomalous
    assert refused.confidence is None
    assert refused.reasoning.startswith("The reference does not register with the target (best edge correlation ")
    overlay = DifferenceLocator(DifferenceOptions(on_refusal="overlay")).locate(pair)
    assert overlay.valid
    assert overlay.anomalous
    assert overlay.reasoning.startswith("The reference does not register with the target")


def test_identical_images_are_normal():
    image = make_pair(np.random.default_rng(FRESH), "board").target
    location = DifferenceLocator().locate(Pair(image, image))
    assert not location.anomalous
    assert location.confidence == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 300), (16, 16), (20, 3000)], ids=str)
@pytest.mark.parametrize("fill", ["uniform", "noise"])
def test_images_of_odd_shapes_are_answered(shape, fill):
    rng = np.random.default_rng(0)
    image = np.full((*shape, 3), 128, np.uint8) if fill == "uniform" else rng.integers(0, 256, (*shape, 3), np.uint8)
    location = DifferenceLocator().locate(Pair(image, image.copy()))
    assert location.valid
    assert not location.anomalous


def test_a_spot_on_a_plain_surface():
    rng = np.random.default_rng(2)
    reference, target = (np.clip(rng.normal(140, 3, (240, 320, 1)), 0, 255).astype(np.uint8) for _ in range(2))
    target[100:120, 200:230] //= 3
    location = DifferenceLocator(DifferenceOptions(margin=0)).locate(Pair(reference, target))
    assert iou(location.boxes[:1], np.array([[200.0, 100, 230, 120]]))[0] > 0.6


def test_a_colour_change_of_equal_brightness_is_found():
    target = np.full((200, 200, 3), (120, 120, 120), np.uint8)
    reference = target.copy()
    target[80:110, 80:110] = (200, 85, 110)  # luma 0.299 * 200 + 0.587 * 85 + 0.114 * 110 = 122
    location = DifferenceLocator(DifferenceOptions(margin=0)).locate(Pair(reference, target))
    assert iou(location.boxes[:1], np.array([[80.0, 80, 110, 110]]))[0] > 0.7


def test_another_size_and_boxes_in_pixels_of_the_target():
    pair = synthetic_pair(3, anomalous=True)
    half = cv2.resize(pair.reference, (320, 320), interpolation=cv2.INTER_AREA)
    plain = DifferenceLocator().locate(pair)
    smaller_reference = DifferenceLocator().locate(replace(pair, reference=half))
    bounded = DifferenceLocator(DifferenceOptions(max_side=480)).locate(pair)
    for other in (smaller_reference, bounded):
        assert iou(plain.boxes[:1], other.boxes[:1])[0] > 0.5


def test_the_margin_grows_boxes_and_stays_inside():
    pair = synthetic_pair(0, anomalous=True)
    tight = DifferenceLocator(DifferenceOptions(margin=0)).locate(pair).boxes[0]
    wide = DifferenceLocator(DifferenceOptions(margin=0.01)).locate(pair).boxes[0]
    assert wide == pytest.approx(np.clip(tight + np.array([-6.4, -6.4, 6.4, 6.4]), 0, 640))  # 1 % of 640


def test_one_bad_pair_does_not_stop_a_stream(tmp_path):
    good = synthetic_pair(0, anomalous=True)
    pairs = [good, Pair(tmp_path / "absent.png", good.target, id="bad"), good]
    first, bad, last = DifferenceLocator().locate_many(pairs)
    assert isinstance(first, Location)
    assert isinstance(bad, ImageError)
    assert "absent.png" in str(bad)
    assert last.boxes.tolist() == first.boxes.tolist()


def test_a_stream_is_read_only_as_far_as_needed():
    pair = synthetic_pair(1, anomalous=False)
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield pair

    stream = DifferenceLocator(DifferenceOptions(workers=2)).locate_many(endless())
    for _ in range(5):
        next(stream)
    stream.close()
    assert taken <= 5 + 2 * 2


def test_threads_do_not_change_the_answer_and_opencv_keeps_its_own():
    pairs = [synthetic_pair(index, anomalous=True) for index in range(6)]
    before = cv2.getNumThreads()
    answers = [
        [o.to_dict() | {"seconds": 0} for o in DifferenceLocator(DifferenceOptions(workers=w)).locate_many(pairs)]
        for w in (1, 3, 3)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert cv2.getNumThreads() == before


def test_calibrate_holds_the_share_of_false_alarms():
    strict = DifferenceLocator(DifferenceOptions(threshold=0.0))  # boxes on whatever is left
    fitted = strict.calibrate(
        (synthetic_pair(1000 + index, anomalous=False, size=256) for index in range(60)), false_alarms=0.1
    )
    fresh = [synthetic_pair(2000 + index, anomalous=False, size=256) for index in range(60)]
    alarms = sum(outcome.anomalous for outcome in fitted.locate_many(fresh))
    assert alarms <= 13  # 10 % of 60 is 6; the bound itself rests on 60 draws: 13 is about its 99 % quantile
    assert fitted.options.threshold > 0


def test_calibrate_says_how_many_normals_it_needs():
    with pytest.raises(InputError, match="at least 19"):
        DifferenceLocator().calibrate([synthetic_pair(1, anomalous=False)], false_alarms=0.05)


def test_calibrate_refuses_an_abnormal_pair_by_name():
    normal = synthetic_pair(1, anomalous=False)
    abnormal = Pair(normal.reference, normal.target, id="p7", anomalous=True)
    with pytest.raises(InputError, match="pair 'p7': labelled abnormal"):
        DifferenceLocator().calibrate([normal, abnormal], false_alarms=0.5)


def test_calibrate_raises_what_cannot_be_read(tmp_path):
    with pytest.raises(ImageError):
        DifferenceLocator().calibrate([Pair(tmp_path / "a.png", tmp_path / "b.png")])


@pytest.mark.parametrize(
    ("name", "value"),
    [("threshold", 1.5), ("tolerance", -1), ("margin", 0.5), ("max_boxes", 0), ("max_side", 10), ("workers", -1)],
)
def test_options_out_of_range_are_named(name, value):
    with pytest.raises(OptionError, match=f"{name}={value}"):
        DifferenceOptions(**{name: value})


@pytest.mark.skipif(not (REAL / "deeppcb_single").is_dir(), reason="real pairs are not beside this checkout")
def test_real_boards_do_not_fall_below_a_loose_floor():
    pairs = list(read_pairs(REAL / "deeppcb_single" / "pairs.jsonl"))[::3]
    outcomes = list(DifferenceLocator().locate_many(pairs))
    overlaps = [iou(o.boxes[:1], p.boxes).max(initial=0) for o, p in zip(outcomes, pairs, strict=True) if p.anomalous]
    clean = [not o.anomalous for o, p in zip(outcomes, pairs, strict=True) if not p.anomalous]
    assert np.mean(overlaps) > 0.45
    assert np.mean(clean) > 0.6
