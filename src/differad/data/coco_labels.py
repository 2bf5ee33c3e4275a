"""COCO label files as everybody writes them: checked image by image, whatever was drawn turned into its box.

`build coco` and `import coco` both read by this code. Layout: https://cocodataset.org/#format-data (its source is
https://github.com/cocodataset/cocodataset.github.io/blob/master/dataset/format-data.htm). A box is `[x, y, width,
height]` in pixels, measured from 0; CVAT adds its turn about the centre as `attributes.rotation`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from differad.boxes import Boxes, as_boxes, iou
from differad.data.label_files import Size, check_size, clip_to_image, load_json, parse_entry
from differad.data.shapes import Region, bitmap, boxes_of, polygon, rotated_about_center, runs_to_mask, unpack_counts
from differad.errors import InputError, ManifestError

_EXPECTED = "a COCO object with lists 'images' and 'annotations'"
# bbox and segmentation of one annotation differ by a tool's rounding, or mark different places.
_ROUNDING = 2.0
_SAME_PLACE = 0.5
# A box over the edge by more than this share of the longer side tells of a resized image, if the file states no size.
_OVERSHOOT = 0.01
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Id = int | str
Problems = Callable[[str], None]


class CocoImage(BaseModel):
    """One of 'images'; `pair_id`, `labelled` and `anomalous` are keys of differad's own export."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: _Id
    file_name: str | None = None
    width: _Number | None = None
    height: _Number | None = None
    pair_id: str | None = None
    labelled: bool | None = None
    anomalous: bool | None = None

    @property
    def size(self) -> Size:
        """Width and height as far as the file tells them."""
        return self.width, self.height


class _Belongs(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    image_id: _Id
    id: _Id | None = None


class _Runs(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    size: tuple[int, int]
    counts: list[int] | str


class _Annotation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    category_id: _Id | None = None
    bbox: list[_Number] | None = None
    segmentation: _Runs | list[list[_Number]] | list[_Number] | None = None
    iscrowd: Annotated[int, Field(ge=0, le=1)] | bool | None = None
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the annotations of an image mark.

    `regions` are as drawn, `boxes` (N, 4) those around them in pixels inside of the image, `categories` the name of each;
    `crowds` counts annotations that were left out, `cut` boxes that reached over the edge.
    """

    regions: tuple[Region, ...]
    boxes: Boxes
    categories: tuple[str, ...]
    crowds: int = 0
    cut: int = 0


@dataclass(frozen=True)
class CocoEntry:
    """An image with its annotations, which `drawn` parses once the image's own size is known."""

    where: str
    image: CocoImage
    annotations: tuple[tuple[str, Any], ...] = ()
    names: dict[str, str] = field(default_factory=dict)

    def drawn(self, size: tuple[int, int]) -> Drawn:
        """The boxes of the annotations in an image of `size` (width, height); crowd regions are left out and counted.

        Raises ManifestError where the file tells another size, where an annotation holds what it must not or lies
        outside, and where all are crowd regions.
        """
        whose = f"{self.where}: {_called(self.image)}"
        check_size(whose, self.image.size, size)
        parsed = [(where, parse_entry(_Annotation, raw, where), raw) for where, raw in self.annotations]
        single = [one for one in parsed if not one[1].iscrowd]
        if parsed and not single:
            raise ManifestError(
                f"{whose} holds crowd regions (iscrowd 1) only, which mark no single defect; draw the defects, or "
                "remove the regions where there is none"
            )
        is_ours = self.image.pair_id is not None
        regions = tuple(_region(note, raw, where, size, is_ours=is_ours) for where, note, raw in single)
        boxes, cut = boxes_of(regions), 0
        if regions:
            self._refuse_overshoot(boxes, size, whose)
            boxes, cut = clip_to_image(boxes, *size, whose)
        categories = tuple(self.names.get(str(note.category_id), str(note.category_id)) for _, note, _ in single)
        return Drawn(regions, boxes, categories, len(parsed) - len(single), cut)

    def _refuse_overshoot(self, boxes: Boxes, size: tuple[int, int], whose: str) -> None:
        """Without the size in the file nothing else tells that an image was shrunk after it was labelled."""
        if None not in self.image.size:
            return
        allowed = max(1.0, _OVERSHOOT * max(size))
        over = np.maximum(-boxes[:, :2], boxes[:, 2:] - size).max(axis=1)
        for box, by in zip(boxes.tolist(), over.tolist(), strict=True):
            if by > allowed:
                raise ManifestError(
                    f"{whose}: box {box} reaches out of the {size[0]}x{size[1]} image, and the file states no width "
                    "and height; check that the image was not resized, then add them or correct the box"
                )


def read_coco_file(path: Path, problems: Problems) -> Iterator[CocoEntry]:
    """The images of a file with what is drawn on each.

    Ids match as text, for tools write 1 and "1". Images that share an id, annotations of no image and ids of annotations
    that occur twice go to `problems`; where that returns, every image that they may concern is left out: no image becomes
    normal because its label is lost. Raises ManifestError for a file that is no COCO.
    """
    document = load_json(path, dict, _EXPECTED)
    raw_images, raw_annotations = (_list_in(document, key, path) for key in ("images", "annotations"))
    names = _category_names(document)
    images = _images_by_id(path, raw_images, problems)
    owned, is_lost, spoilt = _annotations_by_image(path, raw_annotations, set(images), problems)
    for key, found in images.items():
        if len(found) == 1 and key not in spoilt and (owned[key] or not is_lost):
            where, image = found[0]
            yield CocoEntry(where, image, tuple(owned[key]), names)


def _category_names(document: dict[str, Any]) -> dict[str, str]:
    """Names by id, as far as there are any: a defect without one is a defect all the same."""
    given = document.get("categories")
    entries = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return {str(one.get("id")): one["name"] for one in entries if isinstance(one.get("name"), str)}


def _images_by_id(path: Path, raw: list[Any], problems: Problems) -> dict[str, list[tuple[str, CocoImage]]]:
    found: dict[str, list[tuple[str, CocoImage]]] = defaultdict(list)
    for number, one in enumerate(raw):
        where = f"{path}: images.{number}"
        try:
            image = parse_entry(CocoImage, one, where)
        except InputError as error:
            problems(str(error))
            continue
        found[str(image.id)].append((where, image))
    for images in found.values():
        if len(images) > 1:
            (_, first), (where, second) = images[:2]
            problems(
                f"{where}: image id {second.id!r} occurs twice, for {_called(first)} and {_called(second)}; expected an "
                "id of its own for every image, as the annotations of both are mixed up"
            )
    return found


def _annotations_by_image(
    path: Path, raw: list[Any], known: set[str], problems: Problems
) -> tuple[dict[str, list[tuple[str, Any]]], bool, set[str]]:
    """Annotations by their image's id, whether any belongs to no image, and the images whose annotations share an id."""
    owned: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    ids: dict[str, tuple[str, str]] = {}
    is_lost = False
    spoilt: set[str] = set()
    for number, one in enumerate(raw):
        where = f"{path}: annotations.{number}"
        try:
            ids_only = {name: one[name] for name in ("id", "image_id") if name in one} if isinstance(one, dict) else one
            owner = parse_entry(_Belongs, ids_only, where)
            key = str(owner.image_id)
            if key not in known:
                raise ManifestError(
                    f"{where}: image_id {owner.image_id!r} is the id of no image, so an image without annotations may be "
                    "defective; expected one of 'images'"
                )
        except InputError as error:
            is_lost = True
            problems(str(error))
            continue
        owned[key].append((where, one))
        if owner.id is None:
            continue
        if str(owner.id) in ids:
            other, first = ids[str(owner.id)]
            spoilt |= {key, first}
            problems(
                f"{where}: annotation id {owner.id!r} occurs twice, at {other.removeprefix(f'{path}: ')} too; expected an "
                "id of its own for each (merged files must be numbered anew)"
            )
        ids.setdefault(str(owner.id), (where, key))
    return owned, is_lost, spoilt


def _called(image: CocoImage) -> str:
    return repr(image.file_name if image.file_name is not None else image.pair_id)


def _list_in(document: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise ManifestError(f"{path}: {key}: {type(value).__name__}; expected {_EXPECTED}")
    return value


def _region(note: _Annotation, raw: Any, where: str, size: tuple[int, int], *, is_ours: bool) -> Region:
    """What an annotation marks: its bbox turned by `attributes.rotation`, or its segmentation."""
    degrees = _rotation(note, where)
    key = "bbox" if note.bbox else "segmentation"
    if not is_ours:
        _refuse_fractions(raw.get(key), where, key)
    outline = _outline(note, where, size)
    if not note.bbox:
        if outline is None:
            raise ManifestError(
                f"{where}: neither bbox nor segmentation; expected bbox as x, y, width, height in pixels"
            )
        return outline
    box = _corners(note.bbox, where)
    if outline is None or (outline.is_rectangle and _near(box, outline.box)):
        # Some readers of COCO need a polygon for a box: its corners, which were not turned with it.
        return rotated_about_center(box, degrees)
    if degrees % 360:
        return outline  # the angle is that of a shape which was exported as its outline
    if not _near(box, outline.box) and iou(as_boxes(box), as_boxes(outline.box))[0] < _SAME_PLACE:
        raise ManifestError(
            f"{where}: bbox {note.bbox} and the segmentation around {list(outline.box)} (x1, y1, x2, y2) mark different "
            "places; expected bbox as x, y, width, height around the segmentation"
        )
    return replace(outline, box=box)


def _corners(bbox: list[float], where: str) -> tuple[float, float, float, float]:
    if len(bbox) != 4:
        raise ManifestError(f"{where}: bbox {bbox}; expected x, y, width, height")
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        raise ManifestError(f"{where}: bbox {bbox} has no area; expected width and height above 0 pixels")
    return x, y, x + width, y + height


def _near(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(np.abs(np.subtract(a, b)).max() <= _ROUNDING)


def _rotation(note: _Annotation, where: str) -> float:
    value = (note.attributes or {}).get("rotation", 0)
    try:
        degrees = float(value)
    except (TypeError, ValueError):
        degrees = float("nan")
    if not np.isfinite(degrees):
        raise ManifestError(f"{where}: attributes.rotation {value!r}; expected degrees")
    return degrees


def _outline(note: _Annotation, where: str, size: tuple[int, int]) -> Region | None:
    """What a segmentation encloses, None where there is none. Raises ManifestError."""
    shape = note.segmentation
    if isinstance(shape, _Runs):
        width, height = size
        if shape.size != (height, width):
            raise ManifestError(
                f"{where}: segmentation.size {list(shape.size)}; expected [{height}, {width}], the image's height and width"
            )
        counts = unpack_counts(shape.counts, where) if isinstance(shape.counts, str) else shape.counts
        return bitmap(runs_to_mask(counts, height, width, where, by_columns=True), where)
    parts = [part for part in _parts(shape or []) if part]
    for part in parts:
        if len(part) % 2 or len(part) < 6:
            raise ManifestError(f"{where}: a polygon of {len(part)} numbers; expected x, y of three or more points")
    points = [[part[at : at + 2] for at in range(0, len(part), 2)] for part in parts]
    return polygon(points, where) if points else None


def _parts(shape: Sequence[Any]) -> list[list[float]]:
    """Some tools write the one part of a polygon without the list around it."""
    return [list(part) for part in shape] if shape and isinstance(shape[0], list) else [list(shape)]


def _refuse_fractions(values: Any, where: str, key: str) -> None:
    """Numbers within 0 and 1, one of them with a decimal point, are shares of the sides: COCO has pixels."""
    flat = list(_numbers(values))
    if flat and all(0 <= value <= 1 for value in flat) and any(isinstance(value, float) for value in flat):
        raise ManifestError(f"{where}: {key} {values} holds fractions of the image's sides; expected pixels")


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, list):
        for value in values:
            yield from _numbers(value)
    elif isinstance(values, int | float):
        yield values
