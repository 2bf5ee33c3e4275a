"""Random small data sets in YOLO's and Folder's layout: the build equals the true labels, or an error names the file."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from differad.data.build import BuildOptions, build
from differad.data.pairing import Pairing
from differad.errors import InputError

ALL = Pairing("random", normal_share=None)
TRANSPOSED = 0x0112
# No shrinking: the time that a failure takes stays bounded too.
FUZZ = settings(max_examples=40, deadline=None, derandomize=True, phases=(Phase.generate,))

sizes = st.tuples(st.integers(12, 40), st.integers(12, 40))
endings = st.sampled_from([".png", ".PNG", ".jpg", ".JPG"])
lots = st.sampled_from(["", "lot1/", "lot1/shift 2/"])


@st.composite
def boxes(draw, size):
    """A box of whole pixels inside of `size` (upright)."""
    width, height = size
    x1, y1 = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    return [x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))]


@st.composite
def parts(draw, most_boxes):
    """An image to generate: its path, size, EXIF orientation, and the boxes of its defects."""
    size = draw(sizes)
    marks = draw(st.lists(boxes(size), min_size=1, max_size=most_boxes, unique_by=tuple))
    return {"lot": draw(lots), "ending": draw(endings), "size": size, "turn": draw(st.integers(1, 8)), "marks": marks}


def save(path, number, part):
    """A file whose upright size is the part's; PNG holds no orientation here."""
    width, height = part["size"]
    turn = part["turn"] if path.suffix.lower() == ".jpg" else 1
    stored = (height, width) if turn >= 5 else (width, height)
    pixels = np.random.default_rng(number).integers(0, 256, (stored[1], stored[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[TRANSPOSED] = turn
    Image.fromarray(pixels).save(path, **({"exif": exif} if turn > 1 else {}))


def line(shape, box, size):
    """A label of a box: as YOLO's four numbers, as a polygon inside it, or as a rotated box about its centre."""
    (x1, y1, x2, y2), (width, height) = box, size
    if shape == "box":
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    else:
        middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
        corners = [(middle_x, y1), (x2, middle_y), (middle_x, y2), (x1, middle_y)]
        corners = corners if shape == "corners" else [*corners, (x1, middle_y - 0.1)]
        values = [value for x, y in corners for value in (x / width, y / height)]
    return " ".join(["0", *(f"{value:.8f}" for value in values)]) + "\n"


def built(source, root, **options):
    """The boxes of each target in the manifest, None for an unknown place; and the problems."""
    with tempfile.TemporaryDirectory() as out:
        found = build(source, root, out, BuildOptions(ALL, **options), progress=False)
        lines = [json.loads(text) for text in (Path(out) / "pairs.jsonl").read_text("utf-8").splitlines()]
    for pair in lines:
        assert pair["boxes"] is not None or pair["anomalous"]
    return {pair["id"].partition("/")[2]: pair["boxes"] for pair in lines}, found.problems


def check(source, root, truth, culprit, **options):
    """Without a `culprit` the build equals `truth`; else the error and the report name it, and no defect became normal."""
    if culprit is None:
        found, problems = built(source, root, **options)
        assert problems == []
        assert found.keys() == truth.keys()
    else:
        with pytest.raises(InputError) as error:
            built(source, root, **options)
        assert culprit in str(error.value)
        assert "\n" not in str(error.value)
        found, problems = built(source, root, skip_bad=True, **options)
        assert any(culprit in problem for problem in problems)
        assert found.keys() <= truth.keys()
    for name, marks in found.items():
        if marks is None or truth[name] is None:
            assert marks is truth[name]
        else:
            given_boxes, parsed = (np.array(sorted(rows)).reshape(-1, 4) for rows in (marks, truth[name]))
            assert given_boxes.shape == parsed.shape, name
            assert np.abs(given_boxes - parsed).max(initial=0) < 0.02


GOOD = {"lot": "", "ending": ".png", "size": (20, 16), "turn": 1, "marks": []}
YOLO_FAULTS = {
    "none": lambda label, image: None,
    "other case": lambda label, image: label.rename(label.with_suffix(".TXT")) and None,
    "other folder": lambda label, image: move(label, label.parents[1] / "other" / label.name),
    "no image": lambda label, image: image.unlink() or label.name,
    "second image": lambda label, image: image.with_suffix(".bmp").write_bytes(image.read_bytes()) and image.name,
    "second label": lambda label, image: label.with_suffix(".TXT").write_text("") or image.stem + ".TXT",
    "no number": lambda label, image: append(label, "0 nan 0.5 0.1 0.1\n"),
    "confidence": lambda label, image: append(label, "0 0.5 0.5 0.1 0.1 0.9\n"),
    "pixels": lambda label, image: append(label, "0 12 8 4 4\n"),
    "outside": lambda label, image: append(label, "0 0.9 0.5 0.4 0.1\n"),
    "no area": lambda label, image: append(label, "0 0.5 0.5 0 0.1\n"),
    "foreign": lambda label, image: image.with_name("x.heic").write_bytes(b"x") and "x.heic",
}


def move(path, place):
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    return place.name


def append(label, text):
    label.write_text(label.read_text() + text)
    return label.name


@FUZZ
@given(
    st.lists(parts(3), min_size=1, max_size=4),
    st.sampled_from(["box", "corners", "polygon"]),
    st.sampled_from(sorted(YOLO_FAULTS)),
    st.data(),
)
def test_yolo(defective, shape, fault, data):
    with tempfile.TemporaryDirectory() as folder:
        root, truth, files = Path(folder), {}, []
        for number, part in enumerate([GOOD, GOOD, *defective]):
            name = f"{part['lot']}{number}"
            image, label = root / f"images/train/{name}{part['ending']}", root / f"labels/train/{name}.txt"
            save(image, number, part)
            label.parent.mkdir(parents=True, exist_ok=True)
            if part["marks"]:
                label.write_text("".join(line(shape, box, part["size"]) for box in part["marks"]))
                files.append((label, image))
            truth[image.relative_to(root).as_posix()] = part["marks"]
        culprit = YOLO_FAULTS[fault](*data.draw(st.sampled_from(files)))
        check("yolo", root, truth, culprit)


def mask_of(part):
    width, height = part["size"]
    mask = np.zeros((height, width), np.uint8)
    for x1, y1, x2, y2 in part["marks"]:
        mask[y1:y2, x1:x2] = 255
    return Image.fromarray(mask)


FOLDER_FAULTS = {
    "none": lambda mask, image, good: None,
    "mask lost": lambda mask, image, good: mask.unlink() or image.name,
    "image lost": lambda mask, image, good: image.unlink() or mask.name,
    "two masks": lambda mask, image, good: (
        mask.with_suffix(".tif").write_bytes(mask.read_bytes()) and mask.stem + ".tif"
    ),
    "two images": lambda mask, image, good: image.with_suffix(".bmp").write_bytes(image.read_bytes()) and image.name,
    "copy": lambda mask, image, good: good.with_name("copy.png").write_bytes(image.read_bytes()) and "copy.png",
    "foreign": lambda mask, image, good: good.with_suffix(".jp2").write_bytes(b"x") and good.stem + ".jp2",
    "text": lambda mask, image, good: image.with_suffix(".json").write_text("{}") and image.stem + ".json",
    "stray": lambda mask, image, good: good.parents[1].joinpath("stray.png").write_bytes(b"x") and "stray.png",
}


@FUZZ
@given(
    st.lists(parts(1), min_size=1, max_size=4),
    st.sampled_from(["_mask.png", ".png", "_gt.bmp", "_mask.PNG"]),
    st.sampled_from(sorted(FOLDER_FAULTS)),
    st.sampled_from([("good", "bad", "ground_truth"), ("OK", "scratch", "Masks"), ("normal", "ng", "gt")]),
    st.data(),
)
def test_folder(defective, mask_ending, fault, names, data):
    normal, kind, masks = names
    with tempfile.TemporaryDirectory() as folder:
        root, truth, files = Path(folder), {}, []
        for number, part in enumerate([GOOD, GOOD, *defective]):
            image = root / f"{kind if part['marks'] else normal}/{part['lot']}{number}{part['ending']}"
            save(image, number, part)
            if part["marks"]:
                mask = root / f"{masks}/{kind}/{part['lot']}{number}{mask_ending}"
                mask.parent.mkdir(parents=True, exist_ok=True)
                mask_of(part).save(mask)
                files.append((mask, image))
            truth[image.relative_to(root).as_posix()] = part["marks"]
        mask, image = data.draw(st.sampled_from(files))
        culprit = FOLDER_FAULTS[fault](mask, image, root / normal / "0.png")
        check("folder", root, truth, culprit)


@FUZZ
@given(st.lists(parts(1), min_size=1, max_size=4), st.booleans(), st.data())
def test_folder_without_masks(defective, some, data):
    """Without any mask every defect is at an unknown place; with one mask the others are an error unless `unmasked`."""
    with tempfile.TemporaryDirectory() as folder:
        root, truth, files = Path(folder), {}, []
        for number, part in enumerate([GOOD, GOOD, *defective]):
            image = root / f"{'bad' if part['marks'] else 'good'}/{part['lot']}{number}{part['ending']}"
            save(image, number, part)
            truth[image.relative_to(root).as_posix()] = None if part["marks"] else []
            files += [(image, part)] if part["marks"] else []
        if some:
            image, part = data.draw(st.sampled_from(files))
            mask = root / "ground_truth" / image.relative_to(root).with_suffix(".png")
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask_of(part).save(mask)
            truth[image.relative_to(root).as_posix()] = part["marks"]
            others = [other for other, _ in files if other != image]
            if others:
                with pytest.raises(InputError, match="no mask at"):
                    built("folder", root)
                check("folder", root, truth, None, unmasked="unknown")
                return
        check("folder", root, truth, None)
