"""A frame that did not arrive whole is never called normal, and whole ones are never called broken."""

from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from differad import Pair, load_locator
from differad.core import Location
from differad.errors import ImageError
from differad.images import read_image
from differad.locators.broken_frames import frame_fault
from differad.locators.comparable import doubt_normal
from differad.synthesis.boards import sample_style
from differad.synthesis.pairs import make_pair
from differad.synthesis.unaligned import generate_unaligned


def synthetic_pair(kind, seed=0, size=256):
    rng = np.random.default_rng(seed)
    if kind == "unaligned":
        return generate_unaligned(rng, anomalous=False)
    if kind == "binary board":
        return make_pair(rng, "board", anomalous=False, size=size, style=replace(sample_style(rng), binary=True))
    return make_pair(rng, kind, anomalous=False, size=size)


def painted(image, rows, value):
    image = image.copy()
    image[rows] = value
    return image


def broken(image):
    """Faults by their name; a tenth is the least that is lost."""
    height, width = image.shape[:2]
    tenth, half = height // 10, height // 2
    return {
        "black tenth": painted(image, np.s_[-tenth:], 0),
        "grey tenth": painted(image, np.s_[-tenth:], 128),
        "grey top": painted(image, np.s_[:half], 128),
        "black right": painted(image, np.s_[:, -(width // 10) :], 0),
        "half": painted(image, np.s_[half:], 0),
        "repeated half": painted(image, np.s_[half:], image[half]),
        "repeated rows": painted(image, np.s_[half : half + 2 * tenth], image[half]),
        "half twice": painted(image, np.s_[half : 2 * half], image[:half]),
        "hardly exposed": image // 12,
    }


@pytest.mark.parametrize("kind", ["board", "grain", "woven", "brushed", "printed"])
def test_a_broken_frame_has_a_fault(kind):
    pair = synthetic_pair(kind)
    found = {name: frame_fault(pair.reference, target) for name, target in broken(pair.target).items()}
    assert [name for name, fault in found.items() if fault is None] == []
    assert "26 rows" not in found["black tenth"]  # 256 // 10 = 25
    assert "25 rows at the bottom of one colour" in found["black tenth"]
    assert "25 columns at the right of one colour" in found["black right"]


@pytest.mark.parametrize("quality", [None, 30, 90])
def test_whole_frames_have_none(quality):
    for seed in range(12):
        for kind in ("board", "binary board", "grain", "woven", "unaligned"):
            pair = synthetic_pair(kind, seed)
            target = pair.target if quality is None else jpeg(pair.target, quality)
            assert frame_fault(pair.reference, target) is None, (kind, seed)


def jpeg(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def test_a_band_is_found_after_compression():
    pair = synthetic_pair("grain", size=320)
    assert "of one colour" in frame_fault(pair.reference, jpeg(broken(pair.target)["grey top"], 90))


@pytest.mark.parametrize("fill", [0, 128, 255])
def test_a_margin_that_both_have_is_none(fill):
    pair = synthetic_pair("grain")
    reference, target = (
        np.pad(one, ((40, 40), (0, 0), (0, 0)), constant_values=fill) for one in (pair.reference, pair.target)
    )
    assert frame_fault(reference, target) is None
    assert frame_fault(reference, np.roll(target, 5, axis=0)) is None


def test_a_background_that_is_clipped_in_brighter_light_is_none():
    rng = np.random.default_rng(0)
    part = np.full((300, 300, 3), 245.0)
    part[80:220] = synthetic_pair("woven").reference[:140, :256].repeat(2, axis=1)[:, :300]
    reference, target = (
        np.clip(part * gain + rng.normal(0, 3, part.shape), 0, 255).astype(np.uint8) for gain in (1, 1.15)
    )
    assert (target[:60] == 255).all(axis=2).mean() > 0.9
    assert frame_fault(reference, target) is None


def test_a_drawing_without_noise_is_none():
    screen = np.full((300, 400, 3), 240, np.uint8)
    screen[:30] = 60
    for line in range(6):
        cv2.putText(screen, f"line {line}", (40, 70 + 30 * line), 0, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
    other = screen.copy()
    cv2.putText(other, "more", (250, 200), 0, 0.5, (0, 0, 0), 1)
    assert frame_fault(screen, other) is None


def test_an_image_enlarged_by_nearest_neighbour_is_none():
    pair = synthetic_pair("grain")
    assert frame_fault(pair.reference, pair.target.repeat(3, axis=0).repeat(3, axis=1)) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (8, 8), (40, 2000)])
def test_images_of_any_shape_are_checked(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    assert frame_fault(image, image) is None


def test_light_that_changes_between_two_rows_is_a_seam():
    pair = synthetic_pair("grain", size=320)
    target = painted(pair.target, np.s_[160:], pair.target[160:] // 3)
    assert "seam at row 160" in frame_fault(pair.reference, target)


def test_only_a_normal_answer_is_doubted():
    pair = synthetic_pair("grain")
    target = broken(pair.target)["black tenth"]
    doubted = doubt_normal(Location(confidence=0.1), pair.reference, target)
    assert not doubted.comparable
    assert doubted.confidence is None
    assert doubted.reasoning.startswith("The target has 25 rows at the bottom of one colour")
    abnormal = Location(boxes=np.array([[1.0, 1, 9, 9]]))
    assert doubt_normal(abnormal, pair.reference, target) is abnormal


@pytest.mark.parametrize("model", ["auto", "difference"])
def test_a_broken_frame_is_not_normal_and_a_defect_in_it_is_found(model):
    pair = synthetic_pair("printed", seed=0, size=320)
    locator = load_locator(model)
    target = painted(pair.target, np.s_[-32:], 0)
    location = locator.locate(Pair(pair.reference, target))
    assert location.anomalous or not location.comparable
    target[100:130, 100:130] = (255, 0, 0)
    location = locator.locate(Pair(pair.reference, target))
    assert any((box[:2] < 115).all() and (box[2:] > 115).all() for box in location.boxes)


def zeroed(content, share):
    lost = int(share * len(content))
    return content[:-lost] + bytes(lost)


def encoded(pixels, kind, **how):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return buffer.getvalue()


LOSSLESS, LOSSY = {"lossless": True}, {"quality": 90}


def is_refused_or_doubted(locator, reference, content):
    try:
        location = locator.locate(Pair(reference, content))
    except ImageError as error:
        return "\n" not in str(error)
    return location.anomalous or not location.comparable


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize(
    ("kind", "how"),
    [("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WebP", LOSSLESS), ("WebP", LOSSY)],
)
def test_a_file_with_a_zeroed_tail_is_never_normal(kind, how, share):
    """BMP and plain TIFF show a black band, which the frame is judged by; the decoders of the others tell."""
    for name in ("grain", "printed", "board"):
        pair = synthetic_pair(name, size=320)
        content = zeroed(encoded(pair.target, kind, **how), share)
        try:
            pixels = read_image(content)
        except ImageError:
            continue
        assert frame_fault(pair.reference, pixels), name


@pytest.mark.parametrize("model", ["auto", "tiny", "features", "difference"])
def test_nor_is_it_for_any_locator(model):
    pair = synthetic_pair("grain", size=320)
    locator = load_locator(model)
    for kind, how in (("BMP", {}), ("TIFF", {}), ("WebP", LOSSLESS)):
        assert is_refused_or_doubted(locator, pair.reference, zeroed(encoded(pair.target, kind, **how), 1 / 3))


@pytest.mark.parametrize(("kind", "how"), [("BMP", {}), ("TIFF", {}), ("WebP", LOSSLESS), ("WebP", LOSSY)])
def test_a_lower_part_that_is_black_in_both_is_normal(kind, how):
    pair = synthetic_pair("grain", size=320)
    reference, target = (painted(image, np.s_[200:], 0) for image in (pair.reference, pair.target))
    location = load_locator("auto").locate(Pair(encoded(reference, kind, **how), encoded(target, kind, **how)))
    assert location.anomalous is False
