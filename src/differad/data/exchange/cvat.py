"""CVAT for images 1.1: `annotations.xml` to upload into a task, its export back, and `labels.json` to make the task.

Layout: https://docs.cvat.ai/docs/other/xml_format and the loader and dumper in
https://github.com/cvat-ai/cvat/blob/develop/cvat/apps/dataset_manager/formats/cvat.py, which finds images by name and writes
hundredths of a pixel. The format has room for neither ids nor references: an image's name tells its pairs, and pairs that
share a target share its boxes.

True boxes have the label `defect`. A normal image carries the tag `normal`, which tells it from one that nobody has labelled.
Predicted boxes have the label `predicted` and never come back as truth, unless the annotator gives them the label `defect`.
XML that declares a document type (and with it entities) is refused.
"""

import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from differad.data.exchange.shared import (
    LABEL,
    Corrections,
    ExportOptions,
    Item,
    finite,
    name_below,
    same_boxes,
    turned,
    write_json,
)
from differad.errors import ManifestError

PREDICTED = "predicted"
NORMAL = "normal"
_SIDES = ("xtl", "ytl", "xbr", "ybr")
_OTHER_SHAPES = frozenset({"polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"})
# For the "Raw" tab of CVAT's label constructor.
_LABELS = [
    {"name": LABEL, "type": "rectangle", "attributes": []},
    {
        "name": PREDICTED,
        "type": "rectangle",
        "attributes": [{"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}],
    },
    {"name": NORMAL, "type": "tag", "attributes": []},
]


def write_cvat(out: Path, items: Sequence[Item], options: ExportOptions) -> None:
    """Write `annotations.xml` and `labels.json`. Raises ManifestError where pairs disagree on one target's boxes."""
    by_name: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_name[name_below(options.root, item.pair, "target")].append(item)
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    for key, text in (("name", "differad"), ("size", str(len(by_name))), ("mode", "annotation")):
        ET.SubElement(task, key).text = text
    labels = ET.SubElement(task, "labels")
    for name, kind in ((LABEL, "rectangle"), (PREDICTED, "rectangle"), (NORMAL, "tag")):
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "type").text = kind
    # CVAT numbers the frames of a task in the order of their names.
    for number, name in enumerate(sorted(by_name)):
        _add_image(root, number, name, by_name[name])
    ET.indent(root)
    (out / "annotations.xml").write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
    write_json(out / "labels.json", _LABELS)


def _add_image(root: ET.Element, number: int, name: str, items: list[Item]) -> None:
    first = items[0]
    for other in items[1:]:
        if not same_boxes(first.boxes, other.boxes):
            raise ManifestError(
                f"pairs {first.pair.id!r} and {other.pair.id!r} have one target, {name}, but different boxes; CVAT knows "
                "images by name only, so make them agree or export them from two manifests"
            )
    size = {"width": str(first.width), "height": str(first.height)}
    image = ET.SubElement(root, "image", {"id": str(number), "name": name, **size})
    if first.boxes is not None and len(first.boxes) == 0:
        ET.SubElement(image, "tag", {"label": NORMAL, "source": "manual"})
    for box in [] if first.boxes is None else first.boxes.tolist():
        _add_box(image, LABEL, "manual", box)
    for item in items:
        for rank, box in enumerate([] if item.predicted is None else item.predicted.tolist()):
            element = _add_box(image, PREDICTED, "auto", box)
            score = item.score(rank)
            ET.SubElement(element, "attribute", {"name": "score"}).text = "" if score is None else f"{score:.4f}"


def _add_box(image: ET.Element, label: str, source: str, box: list[float]) -> ET.Element:
    sides = {side: f"{value:.2f}" for side, value in zip(_SIDES, box, strict=True)}
    return ET.SubElement(image, "box", {"label": label, "source": source, "occluded": "0", **sides, "z_order": "0"})


def read_cvat(path: Path, corrections: Corrections) -> None:
    """Read the boxes of an `annotations.xml` into `corrections`; every label but `predicted` counts as a defect.

    An image with the tag `normal` is normal; one with neither boxes nor tag says nothing. Raises ManifestError.
    """
    for number, image in enumerate(_read_images(path)):
        with corrections.entry():
            place = f"{path}: image {number}"
            name = image.attributes.get("name", "")
            ids = corrections.ids_named(place, name)
            place = f"{place} {name!r}"
            if image.other:
                raise ManifestError(f"{place}: holds a {image.other[0]}; expected rectangles (box) only")
            boxes = [_read_box(box, place) for box in image.boxes if box.get("label") != PREDICTED]
            is_normal = NORMAL in image.tags
            if is_normal and boxes:
                raise ManifestError(
                    f"{place}: has the tag {NORMAL!r} and {len(boxes)} boxes; expected one or the other"
                )
            size = [
                finite(text, place, key) if (text := image.attributes.get(key)) else None for key in ("width", "height")
            ]
            for pair_id in ids:
                corrections.add(place, pair_id, boxes if boxes or is_normal else None, (size[0], size[1]))


def _read_box(box: dict[str, str], place: str) -> list[float]:
    x1, y1, x2, y2 = (finite(box.get(side), place, side) for side in _SIDES)
    degrees = finite(box.get("rotation", "0"), place, "rotation")
    if x2 <= x1 or y2 <= y1:  # turning it would hide this
        raise ManifestError(f"{place}: box {[x1, y1, x2, y2]} has no area; expected xtl < xbr and ytl < ybr")
    return turned([x1, y1, x2, y2], degrees, ((x1 + x2) / 2, (y1 + y2) / 2))


@dataclass
class _Image:
    attributes: dict[str, str]
    boxes: list[dict[str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


class _Images:
    """What the parser reports, as images."""

    def __init__(self, path: Path) -> None:
        self.found: list[_Image] = []
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
            self.found.append(self._open)
        elif self._open is not None:
            if tag == "box":
                self._open.boxes.append(attributes)
            elif tag == "tag":
                self._open.tags.append(attributes.get("label", ""))
            elif tag in _OTHER_SHAPES:
                self._open.other.append(tag)

    def end(self, tag: str) -> None:
        """An element closes."""
        if tag == "image":
            self._open = None

    def refuse(self, *_: object) -> None:
        """A document type is declared: CVAT writes none, and entities can exhaust the memory or read files."""
        raise ManifestError(f"{self._path}: declares a document type; expected CVAT's XML, which has none")


def _read_images(path: Path) -> list[_Image]:
    images = _Images(path)
    parser = expat.ParserCreate()
    parser.StartElementHandler = images.start
    parser.EndElementHandler = images.end
    parser.StartDoctypeDeclHandler = images.refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; expected an export of CVAT for images 1.1") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected CVAT's annotations.xml") from None
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ManifestError(
            f"{path}: no XML, or cut off ({error}); expected an export of CVAT for images 1.1"
        ) from None
    return images.found
