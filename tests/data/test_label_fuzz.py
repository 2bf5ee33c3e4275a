"""Any annotated shape is imported at its place, or refused with a one-line error.

Shapes are drawn at random on images of any EXIF orientation and written as COCO, CVAT and Label Studio have them. Where they
lie is worked out another way: corners turned as complex numbers, ellipses by their quadratic form, masks pixel by pixel.
"""

import cmath
import json
import math
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from differad.data.build import BuildOptions, build
from differad.data.exchange.registry import import_pairs
from differad.data.manifest import read_pairs
from differad.data.pairing import Pairing
from differad.errors import ManifestError

TRANSPOSED = (5, 6, 7, 8)
# Hundredths of a pixel in a manifest; percent of the sides in 1e-6; and float64 in between.
TOLERANCE = 0.0051


@dataclass
class Shape:
    """A shape, its numbers, and the box around it in pixels, computed independently of the readers."""

    kind: str
    numbers: dict
    box: np.ndarray


@dataclass
class Scene:
    """An image (its upright width and height, its EXIF orientation), the size that a file states, and the shapes."""

    width: int
    height: int
    orientation: int
    stated: tuple | None
    shapes: list

    @property
    def is_misstated(self):
        return self.stated not in (None, (self.width, self.height))

    def boxes(self):
        """The expected boxes, clipped to the image."""
        return np.clip([shape.box for shape in self.shapes], 0, [self.width, self.height] * 2)

    def smallest_side(self):
        """Shortest side of the clipped boxes; below a hundredth of a pixel or two it rounds to nothing."""
        return np.subtract(self.boxes()[:, 2:], self.boxes()[:, :2]).min()


def turned(points, center, degrees):
    """Points (N, 2) rotated clockwise about a centre: with y pointing down, a product with exp(i a) does that."""
    plane = (points[:, 0] + 1j * points[:, 1] - complex(*center)) * cmath.exp(1j * math.radians(degrees))
    plane += complex(*center)
    return np.stack([plane.real, plane.imag], axis=1)


def around(points):
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


@st.composite
def a_rectangle(draw, width, height):
    x, y = draw(st.floats(-5, width - 1)), draw(st.floats(-5, height - 1))
    w, h = draw(st.floats(0.5, width)), draw(st.floats(0.5, height))
    degrees = draw(st.sampled_from([0, 0, 90, -90, 360]) | st.floats(-400, 400))
    corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
    numbers = {"x": x, "y": y, "w": w, "h": h, "degrees": degrees}
    return Shape("rectangle", numbers, around(turned(corners, (x + w / 2, y + h / 2), degrees)))


@st.composite
def a_polygon(draw, width, height):
    point = st.tuples(st.floats(0, width), st.floats(0, height))
    points = np.array(draw(st.lists(point, min_size=3, max_size=7)))
    return Shape("polygon", {"points": points}, around(points))


@st.composite
def an_ellipse(draw, width, height):
    cx, cy = draw(st.floats(0, width)), draw(st.floats(0, height))
    rx, ry = draw(st.floats(0.5, width / 2)), draw(st.floats(0.5, height / 2))
    degrees = draw(st.floats(-400, 400))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cos, -sin], [sin, cos]])
    # |x| reaches the square root of the diagonal of R diag(r^2) R'.
    reach = np.sqrt(np.diag(turn @ np.diag([rx**2, ry**2]) @ turn.T))
    numbers = {"cx": cx, "cy": cy, "rx": rx, "ry": ry, "degrees": degrees}
    return Shape("ellipse", numbers, np.concatenate([np.subtract([cx, cy], reach), np.add([cx, cy], reach)]))


@st.composite
def a_mask(draw, width, height):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = np.zeros((height, width), bool)
    x1, y1 = int(rng.integers(width)), int(rng.integers(height))
    x2, y2 = int(rng.integers(x1, width)) + 1, int(rng.integers(y1, height)) + 1
    mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    assume(mask.any())
    rows, columns = np.nonzero(mask)
    return Shape("mask", {"mask": mask}, np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1.0]))


@st.composite
def a_scene(draw, *kinds):
    width, height = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    stated = draw(st.sampled_from([(width, height)] * 4 + [None, (height, width), (2 * width, 2 * height)]))
    shapes = st.lists(st.one_of([kind(width, height) for kind in kinds]), min_size=1, max_size=3)
    return Scene(width, height, draw(st.integers(1, 8)), stated, draw(shapes))


def save_image(folder, scene):
    """A JPEG that is upright as `scene` says, once its EXIF orientation is applied."""
    size = (scene.height, scene.width) if scene.orientation in TRANSPOSED else (scene.width, scene.height)
    exif = Image.Exif()
    exif[0x0112] = scene.orientation
    Image.new("RGB", size).save(folder / "t.jpg", exif=exif)
    Image.new("RGB", (8, 8)).save(folder / "good.jpg")


def runs(values):
    """Run lengths that begin with unmarked values."""
    found = [(bool(value), len(list(group))) for value, group in groupby(values)]
    return ([0] if found[0][0] else []) + [length for _, length in found]


def coco_numbers(shape):
    return shape.numbers["points"].ravel() if shape.kind == "polygon" else [shape.numbers.get(n, 2) for n in "xywh"]


def coco_annotation(shape, number):
    numbers, common = shape.numbers, {"id": number, "image_id": 1, "category_id": 1}
    if shape.kind == "rectangle":
        bbox = [numbers[name] for name in "xywh"]
        turn = {"attributes": {"rotation": numbers["degrees"]}} if numbers["degrees"] else {}
        return {**common, "bbox": bbox, **turn}
    if shape.kind == "polygon":
        return {**common, "segmentation": [numbers["points"].ravel().tolist()]}
    mask = numbers["mask"]
    if number % 2:
        counts = runs(mask.ravel(order="F"))
    else:
        encoder = pytest.importorskip("pycocotools.mask")
        counts = encoder.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    return {**common, "segmentation": {"size": list(mask.shape), "counts": counts}}


def write_coco(path, scene, *others):
    size = {} if scene.stated is None else dict(zip(("width", "height"), scene.stated, strict=True))
    annotations = [coco_annotation(shape, number) for number, shape in enumerate(scene.shapes)]
    images = [{"id": 1, "file_name": "t.jpg", **size}, *({"id": name, "file_name": name} for name in others)]
    document = {"images": images, "annotations": annotations}
    path.write_text(json.dumps({**document, "categories": [{"id": 1, "name": "(1,2),(3,4)"}]}))


def cvat_element(shape):
    numbers = shape.numbers
    if shape.kind == "rectangle":
        sides = {"xtl": numbers["x"], "ytl": numbers["y"]}
        sides |= {"xbr": numbers["x"] + numbers["w"], "ybr": numbers["y"] + numbers["h"]}
        return "box", {**sides, "rotation": numbers["degrees"]}
    if shape.kind == "polygon":
        return "polygon", {"points": ";".join(f"{x!r},{y!r}" for x, y in numbers["points"].tolist())}
    if shape.kind == "ellipse":
        return "ellipse", {**{k: numbers[k] for k in ("cx", "cy", "rx", "ry")}, "rotation": numbers["degrees"]}
    x1, y1, x2, y2 = shape.box.astype(int).tolist()
    part = numbers["mask"][y1:y2, x1:x2]
    rle = ", ".join(map(str, runs(part.ravel())))
    return "mask", {"rle": rle, "left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1}


def write_cvat(path, scene):
    size = "" if scene.stated is None else 'width="{}" height="{}"'.format(*scene.stated)
    elements = []
    for tag, attributes in map(cvat_element, scene.shapes):
        written = " ".join(f"{name}={quoteattr(str(value))}" for name, value in attributes.items())
        elements.append(f'<{tag} label="defect" {written}><attribute name="n">[1, 2, 3, 4]</attribute></{tag}>')
    path.write_text(f'<annotations><image id="0" name="t.jpg" {size}>{"".join(elements)}</image></annotations>')


def brush(mask):
    """Label Studio's bytes of an RGBA image whose alpha is the mask: runs of one length, 16 bits wide."""
    values = np.repeat(mask.ravel(), 4) * 255
    bits = f"{values.size:032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in (3, 4, 8, 16))
    for value, group in groupby(values.tolist()):
        bits += f"111{len(list(group)) - 1:016b}{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def label_studio_region(shape, scene):
    numbers = shape.numbers
    share = np.array([100 / scene.width, 100 / scene.height])
    if shape.kind == "polygon":
        return "polygonlabels", {"points": (numbers["points"] * share).tolist(), "closed": True}
    if shape.kind == "mask":
        return "brushlabels", {"format": "rle", "rle": brush(numbers["mask"])}
    if shape.kind == "ellipse":
        x, y = [numbers["cx"], numbers["cy"]] * share
        radius_x, radius_y = [numbers["rx"], numbers["ry"]] * share
        return "ellipselabels", {
            "x": x,
            "y": y,
            "radiusX": radius_x,
            "radiusY": radius_y,
            "rotation": numbers["degrees"],
        }
    # The upper left corner after the turn about the centre, which is what the turn about that corner starts from.
    x, y, w, h = (numbers[name] for name in "xywh")
    corner = turned(np.array([[x, y]]), (x + w / 2, y + h / 2), numbers["degrees"])[0] * share
    sides = {"width": w * share[0], "height": h * share[1]}
    return "rectanglelabels", {"x": corner[0], "y": corner[1], **sides, "rotation": numbers["degrees"]}


def write_label_studio(path, scene):
    size = {} if scene.stated is None else dict(zip(("original_width", "original_height"), scene.stated, strict=True))
    regions = [(number, *label_studio_region(shape, scene)) for number, shape in enumerate(scene.shapes)]
    result = [{"id": str(n), "type": kind, "to_name": "image", "value": value, **size} for n, kind, value in regions]
    result.append({"type": "textarea", "to_name": "image", "value": {"text": ["(1,2),(3,4)"]}})
    path.write_text(json.dumps([{"data": {"pair_id": "a"}, "annotations": [{"result": result}]}]))


def check_import(name, write, scene):
    """Import the shapes; if they are refused, there must be a reason."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_image(folder, scene)
        write(folder / "file", scene)
        pair = {"id": "a", "reference": "good.jpg", "target": "t.jpg"}
        (folder / "pairs.jsonl").write_text(json.dumps(pair))
        try:
            done = import_pairs(
                name, folder / "file", folder / "pairs.jsonl", folder / "out.jsonl", masks=folder / "masks"
            )
        except ManifestError as error:
            check_refusal(scene, str(error))
            return
        (back,) = read_pairs(folder / "out.jsonl")
        check_boxes(scene, back.boxes)
        bitmaps = [shape.numbers["mask"] for shape in scene.shapes if shape.kind == "mask"]
        if done["masks"] and len(bitmaps) == len(scene.shapes):
            assert (np.asarray(Image.open(back.mask).convert("L")) == 255 * np.any(bitmaps, axis=0)).all()
        elif done["masks"]:
            check_mask_of_outlines(scene, np.asarray(Image.open(back.mask).convert("L")) > 0)


def check_mask_of_outlines(scene, mask):
    """Only pixels that the boxes touch are marked, and all pixels of every bitmap."""
    allowed = np.zeros_like(mask)
    for x1, y1, x2, y2 in scene.boxes():
        allowed[int(y1 - 1e-6) : math.ceil(y2 + 1e-6), int(x1 - 1e-6) : math.ceil(x2 + 1e-6)] = True
    assert not (mask & ~allowed).any()
    for shape in scene.shapes:
        assert shape.kind != "mask" or mask[shape.numbers["mask"]].all()


def check_boxes(scene, boxes):
    assert not scene.is_misstated
    assert scene.smallest_side() > 0
    assert np.allclose(boxes, scene.boxes(), atol=TOLERANCE, rtol=0)


def check_refusal(scene, message):
    assert "\n" not in message
    if scene.is_misstated:
        assert "labelled as" in message
    elif "holds fractions" in message:
        assert any(all(0 <= value <= 1 for value in coco_numbers(shape)) for shape in scene.shapes)
    elif scene.smallest_side() < 0.02:
        assert "no area inside" in message or "extends past" in message
    else:
        # Without a stated size a box far over the edge may tell of a resized image.
        assert scene.stated is None
        assert "extends past" in message


@settings(max_examples=50, deadline=None)
@given(a_scene(a_rectangle, a_polygon, a_mask))
def test_coco_imported(scene):
    check_import("coco", write_coco, scene)


@settings(max_examples=50, deadline=None)
@given(a_scene(a_rectangle, a_polygon, an_ellipse, a_mask))
def test_cvat_imported(scene):
    check_import("cvat", write_cvat, scene)


@settings(max_examples=50, deadline=None)
@given(a_scene(a_rectangle, a_polygon, an_ellipse, a_mask))
def test_label_studio_imported(scene):
    check_import("label-studio", write_label_studio, scene)


@settings(max_examples=50, deadline=None)
@given(a_scene(a_rectangle, a_polygon, a_mask))
@pytest.mark.filterwarnings("ignore::differad.errors.InputWarning")
def test_coco_built(scene):
    options = BuildOptions(Pairing("random", 1, None))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data").mkdir()
        save_image(folder / "data", scene)
        write_coco(folder / "data" / "labels.json", scene, "good.jpg")
        try:
            build("coco", folder / "data", folder / "out", options, progress=False)
        except ManifestError as error:
            check_refusal(scene, str(error))
            return
        (pair,) = [pair for pair in read_pairs(folder / "out" / "pairs.jsonl") if pair.anomalous]
    assert pair.target.name == "t.jpg"
    check_boxes(scene, pair.boxes)
