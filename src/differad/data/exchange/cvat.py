"""CVAT for images 1.1: `annotations.xml` to upload into a task, its export back, and `labels.json` to make the task.

Layout: https://docs.cvat.ai/docs/other/xml_format and the loader and dumper in
https://github.com/cvat-ai/cvat/blob/develop/cvat/apps/dataset_manager/formats/cvat.py, which finds images by name and writes
hundredths of a pixel. The format has no place for ids and references: images are matched by name, and pairs with the same
target share its boxes.

True boxes have the label `defect`. A normal image has the tag `normal`, which distinguishes it from an unlabelled one; the
tag `abnormal` means that the target is abnormal at an unknown place. Polygons, ellipses and masks are imported as the box
around them. Predicted boxes have the label `predicted` and are not imported as truth, unless the annotator changes their
label to `defect`. XML that declares a document type (and with it entities) is refused.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from differad.boxes import as_boxes
from differad.core import Pair
from differad.data.exchange.shared import (
    LABEL,
    Corrections,
    ExportOptions,
    Item,
    Spool,
    finite,
    name_below,
    same_boxes,
)
from differad.data.output_folder import OutputFolder
from differad.data.shapes import Region, bitmap, ellipse, polygon, rotated_about_center, runs_to_mask
from differad.errors import ManifestError
from differad.files import write_lines, write_text

_Stored = dict[str, Any]

PREDICTED = "predicted"
NORMAL = "normal"
ABNORMAL = "abnormal"
_SIDES = ("xtl", "ytl", "xbr", "ybr")
# For the "Raw" tab of CVAT's label constructor.
_LABELS = [
    {"name": LABEL, "type": "rectangle", "attributes": []},
    {
        "name": PREDICTED,
        "type": "rectangle",
        "attributes": [{"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}],
    },
    {"name": NORMAL, "type": "tag", "attributes": []},
    {"name": ABNORMAL, "type": "tag", "attributes": []},
]


def write_cvat(folder: OutputFolder, items: Iterable[Item], options: ExportOptions) -> None:
    """Write `annotations.xml` and `labels.json`.

    Raises ManifestError if pairs with the same target have different boxes, and WriteError.
    """
    with Spool[_Stored](folder.path) as spool:
        # CVAT numbers the frames of a task in the order of their names.
        offsets = sorted((name_below(options.root, item.pair, "target"), spool.add(_stored(item))) for item in items)
        images = (
            (name, [_restored(spool.at(offset)) for _, offset in members])
            for name, members in groupby(offsets, key=lambda offset: offset[0])
        )
        count = len({name for name, _ in offsets})
        write_lines(folder.new_file("annotations.xml"), _document(count, images))
    write_text(folder.new_file("labels.json"), json.dumps(_LABELS, indent=1) + "\n")


def _stored(item: Item) -> _Stored:
    """An item as JSON, without its reference: CVAT has no place for it."""
    boxes, predicted = (None if boxes is None else boxes.tolist() for boxes in (item.boxes, item.predicted))
    pair = {"target": str(item.pair.target), "id": item.pair.id, "boxes": boxes, "anomalous": item.pair.anomalous}
    return {"pair": pair, "size": [item.width, item.height], "predicted": predicted, "scores": item.scores.tolist()}


def _restored(stored: _Stored) -> Item:
    pair, predicted = Pair(reference="", **stored["pair"]), stored["predicted"]
    width, height = stored["size"]
    scores = np.array(stored["scores"], dtype=np.float64)
    return Item(pair, width, height, pair.boxes, None if predicted is None else as_boxes(predicted), scores)


def _document(count: int, images: Iterable[tuple[str, list[Item]]]) -> Iterator[str]:
    """The text of `annotations.xml` for `count` images, each with the items whose target it is."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    for key, text in (("name", "differad"), ("size", str(count)), ("mode", "annotation")):
        ET.SubElement(task, key).text = text
    labels = ET.SubElement(task, "labels")
    for name, kind in ((LABEL, "rectangle"), (PREDICTED, "rectangle"), (NORMAL, "tag"), (ABNORMAL, "tag")):
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "type").text = kind
    ET.indent(root)
    head, end, _ = ET.tostring(root, encoding="unicode").rpartition("\n</annotations>")
    yield f"<?xml version='1.0' encoding='utf-8'?>\n{head}"
    for number, (name, items) in enumerate(images):
        image = _image(number, name, items)
        ET.indent(image, level=1)
        yield f"\n  {ET.tostring(image, encoding='unicode')}"
    yield f"{end}\n"


def _image(number: int, name: str, items: list[Item]) -> ET.Element:
    first = items[0]
    for other in items[1:]:
        if not same_boxes(first.boxes, other.boxes) or first.place_unknown != other.place_unknown:
            raise ManifestError(
                f"pairs {first.pair.id!r} and {other.pair.id!r} have one target, {name}, but different boxes or labels; CVAT "
                "knows images by name only, so make them agree or export them from two manifests"
            )
    size = {"width": str(first.width), "height": str(first.height)}
    image = ET.Element("image", {"id": str(number), "name": name, **size})
    tag = ABNORMAL if first.place_unknown else NORMAL if first.pair.anomalous is False else None
    if tag is not None:
        ET.SubElement(image, "tag", {"label": tag, "source": "manual"})
    for box in [] if first.boxes is None else first.boxes.tolist():
        _add_box(image, LABEL, "manual", box)
    for item in items:
        for rank, box in enumerate([] if item.predicted is None else item.predicted.tolist()):
            element = _add_box(image, PREDICTED, "auto", box)
            score = item.score(rank)
            ET.SubElement(element, "attribute", {"name": "score"}).text = "" if score is None else f"{score:.4f}"
    return image


def _add_box(image: ET.Element, label: str, source: str, box: list[float]) -> ET.Element:
    sides = {side: f"{value:.2f}" for side, value in zip(_SIDES, box, strict=True)}
    return ET.SubElement(image, "box", {"label": label, "source": source, "occluded": "0", **sides, "z_order": "0"})


def read_cvat(path: Path, corrections: Corrections) -> None:
    """Read the boxes of an `annotations.xml` into `corrections`; every label but `predicted` counts as a defect.

    An image with the tag `normal` is normal; one with the tag `abnormal` and no box is abnormal at an unknown place; one
    without boxes and tags is unlabelled. Raises ManifestError.
    """
    for number, image in enumerate(_read_images(path)):
        with corrections.entry():
            where = f"{path}: image {number}"
            name = image.attributes.get("name", "")
            ids = corrections.ids_named(where, name)
            where = f"{where} {name!r}"
            size = [
                finite(text, where, key) if (text := image.attributes.get(key)) else None for key in ("width", "height")
            ]
            for pair_id in ids:
                corrections.check_size(where, pair_id, (size[0], size[1]))
                actual = corrections.size(where, pair_id)
                regions = [
                    _parse_shape(*shape, where, actual) for shape in image.shapes if shape[1].get("label") != PREDICTED
                ]
                corrections.add(
                    where, pair_id, regions or None, anomalous=_tagged_state(image.tags, len(regions), where)
                )


def _tagged_state(tags: list[str], regions: int, where: str) -> bool | None:
    """Whether the tags say abnormal; None without such a tag. Raises ManifestError if they contradict each other or the boxes."""
    if NORMAL in tags and regions:
        raise ManifestError(f"{where}: has the tag {NORMAL!r} and {regions} boxes; expected one or the other")
    if NORMAL in tags and ABNORMAL in tags:
        raise ManifestError(f"{where}: has the tags {NORMAL!r} and {ABNORMAL!r}; expected one of them")
    return True if ABNORMAL in tags else False if NORMAL in tags else None


def _parse_shape(kind: str, shape: dict[str, str], where: str, size: tuple[int, int]) -> Region:
    """A shape in an image of `size` (width, height). Raises ManifestError."""
    if kind not in _SHAPES:
        raise ManifestError(f"{where}: holds a {kind}; expected shapes with an area: {', '.join(_SHAPES)}")
    return _SHAPES[kind](shape, f"{where}: {kind}", size)


def _box(shape: dict[str, str], where: str, _: tuple[int, int]) -> Region:
    x1, y1, x2, y2 = (finite(shape.get(side), where, side) for side in _SIDES)
    if x2 <= x1 or y2 <= y1:  # a rotation would hide this
        raise ManifestError(f"{where}: {[x1, y1, x2, y2]} has no area; expected xtl < xbr and ytl < ybr")
    return rotated_about_center([x1, y1, x2, y2], _degrees(shape, where))


def _polygon(shape: dict[str, str], where: str, _: tuple[int, int]) -> Region:
    points = [point.split(",") for point in shape.get("points", "").split(";")]
    return polygon([[[finite(value, where, "points") for value in point] for point in points]], where)


def _ellipse(shape: dict[str, str], where: str, _: tuple[int, int]) -> Region:
    cx, cy, rx, ry = (finite(shape.get(name), where, name) for name in ("cx", "cy", "rx", "ry"))
    return ellipse((cx, cy), (rx, ry), _degrees(shape, where), where)


def _mask(shape: dict[str, str], where: str, size: tuple[int, int]) -> Region:
    left, top, width, height = (_whole(shape.get(name), where, name) for name in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
        raise ManifestError(
            f"{where}: {width}x{height} pixels at {left}, {top}; expected a mask inside the {size[0]}x{size[1]} image"
        )
    counts = [_whole(text, where, "rle") for text in shape.get("rle", "").split(",")]
    return bitmap(runs_to_mask(counts, height, width, where, by_columns=False), where, (left, top))


def _degrees(shape: dict[str, str], where: str) -> float:
    return finite(shape.get("rotation", "0"), where, "rotation")


def _whole(text: str | None, where: str, field: str) -> int:
    value = finite(text, where, field)
    if value != int(value):
        raise ManifestError(f"{where}: {field}: {text!r}; expected a whole number of pixels")
    return int(value)


_SHAPES: dict[str, Callable[[dict[str, str], str, tuple[int, int]], Region]] = {
    "box": _box,
    "polygon": _polygon,
    "ellipse": _ellipse,
    "mask": _mask,
}


@dataclass
class _Image:
    attributes: dict[str, str]
    shapes: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


class _Images:
    """Collects the images from the parser's events."""

    def __init__(self, path: Path) -> None:
        self.images: list[_Image] = []
        self._path = path
        self._open: _Image | None = None
        self._is_first = True

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element opens."""
        if self._is_first and tag != "annotations":
            raise ManifestError(f"{self._path}: root element {tag!r}; expected 'annotations' of CVAT for images 1.1")
        self._is_first = False
        if tag == "track":
            raise ManifestError(
                f"{self._path}: holds a track; expected an export as 'CVAT for images 1.1', not for video"
            )
        if tag == "image":
            self._open = _Image(attributes)
            self.images.append(self._open)
        elif self._open is not None:
            if tag == "tag":
                self._open.tags.append(attributes.get("label", ""))
            elif tag != "attribute":  # of a shape or a tag
                self._open.shapes.append((tag, attributes))

    def end(self, tag: str) -> None:
        """An element closes."""
        if tag == "image":
            self._open = None

    def refuse(self, *_: object) -> None:
        """A document type is declared: CVAT writes none, and entities can exhaust the memory or read files."""
        raise ManifestError(f"{self._path}: declares a document type; expected CVAT's XML, which has none")


def _read_images(path: Path) -> list[_Image]:
    handler = _Images(path)
    parser = expat.ParserCreate()
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    parser.StartDoctypeDeclHandler = handler.refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; expected an export of CVAT for images 1.1") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected CVAT's annotations.xml") from None
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ManifestError(
            f"{path}: not XML, or truncated ({error}); expected an export of CVAT for images 1.1"
        ) from None
    return handler.images
