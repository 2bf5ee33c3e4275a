"""Reads COCO label files of any tool, checks them image by image and turns every shape into its box.

`build coco` and `import coco` both use this code. Layout: https://cocodataset.org/#format-data (its source is
https://github.com/cocodataset/cocodataset.github.io/blob/master/dataset/format-data.htm). A box is `[x, y, width,
height]` in pixels, measured from 0; CVAT adds its rotation about the centre as `attributes.rotation`.
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
# bbox and segmentation of one annotation may differ by rounding (pixels); below this IoU they mark different places.
_TOLERANCE = 2.0
_MIN_IOU = 0.5
# If the file states no size, a box past the edge by more than this share of the longer side means a resized image.
_MAX_OVERSHOOT = 0.01
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Id = int | str
Problems = Callable[[str], None]


class CocoImage(BaseModel):
    """An entry of 'images'; `pair_id`, `labelled` and `anomalous` are keys of differad's own export."""

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
        """Width and height, each None if the file does not state it."""
        return self.width, self.height


class _AnnotationIds(BaseModel):
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
class ParsedAnnotations:
    """The annotations of an image.

    `regions` are the shapes as annotated, `boxes` (N, 4) the boxes around them in pixels, clipped to the image, `categories`
    the category name of each. `crowds` counts crowd regions, which are left out, `clipped` the boxes that were clipped.
    """

    regions: tuple[Region, ...]
    boxes: Boxes
    categories: tuple[str, ...]
    crowds: int = 0
    clipped: int = 0


@dataclass(frozen=True)
class CocoEntry:
    """An image with its raw annotations, which `parse` reads once the image's actual size is known."""

    where: str
    image: CocoImage
    annotations: tuple[tuple[str, Any], ...] = ()
    names: dict[str, str] = field(default_factory=dict)

    def parse(self, size: tuple[int, int]) -> ParsedAnnotations:
        """Parse the annotations for an image of `size` (width, height); crowd regions are left out and counted.

        Raises ManifestError if the file states another size, if an annotation is invalid or outside the image, or if all
        are crowd regions.
        """
        subject = f"{self.where}: {_quoted_name(self.image)}"
        check_size(subject, self.image.size, size)
        parsed = [(where, parse_entry(_Annotation, raw, where), raw) for where, raw in self.annotations]
        single = [one for one in parsed if not one[1].iscrowd]
        if parsed and not single:
            raise ManifestError(
                f"{subject} holds crowd regions (iscrowd 1) only, which mark no single defect; draw the defects, or "
                "remove the regions where there is none"
            )
        is_ours = self.image.pair_id is not None
        regions = tuple(_region(annotation, raw, where, size, is_ours=is_ours) for where, annotation, raw in single)
        boxes, clipped = boxes_of(regions), 0
        if regions:
            self._refuse_overshoot(boxes, size, subject)
            boxes, clipped = clip_to_image(boxes, *size, subject)
        categories = tuple(
            self.names.get(str(annotation.category_id), str(annotation.category_id)) for _, annotation, _ in single
        )
        return ParsedAnnotations(regions, boxes, categories, len(parsed) - len(single), clipped)

    def _refuse_overshoot(self, boxes: Boxes, size: tuple[int, int], subject: str) -> None:
        """Detect an image that was shrunk after labelling, if the file states no size. Raises ManifestError."""
        if None not in self.image.size:
            return
        allowed = max(1.0, _MAX_OVERSHOOT * max(size))
        over = np.maximum(-boxes[:, :2], boxes[:, 2:] - size).max(axis=1)
        for box, by in zip(boxes.tolist(), over.tolist(), strict=True):
            if by > allowed:
                raise ManifestError(
                    f"{subject}: box {box} extends past the {size[0]}x{size[1]} image, and the file states no width "
                    "and height; check that the image was not resized, then add them or correct the box"
                )


def read_coco_file(path: Path, problems: Problems) -> Iterator[CocoEntry]:
    """The images of a file with their annotations.

    Ids are compared as text, since tools write 1 and "1". Images that share an id, annotations without an image and repeated
    annotation ids go to `problems`. If that returns, every image that may be affected is left out: no image becomes normal
    because its label is lost. Raises ManifestError for a file that is not COCO.
    """
    document = load_json(path, dict, _EXPECTED)
    raw_images, raw_annotations = (_list_in(document, key, path) for key in ("images", "annotations"))
    names = _category_names(document)
    images = _images_by_id(path, raw_images, problems)
    by_image, has_orphans, ambiguous = _annotations_by_image(path, raw_annotations, set(images), problems)
    for key, same_id in images.items():
        if len(same_id) == 1 and key not in ambiguous and (by_image[key] or not has_orphans):
            where, image = same_id[0]
            yield CocoEntry(where, image, tuple(by_image[key]), names)


def _category_names(document: dict[str, Any]) -> dict[str, str]:
    """Category names by id. Names may be missing: a defect without a category name is still a defect."""
    categories = document.get("categories")
    entries = [one for one in categories if isinstance(one, dict)] if isinstance(categories, list) else []
    return {str(one.get("id")): one["name"] for one in entries if isinstance(one.get("name"), str)}


def _images_by_id(path: Path, raw: list[Any], problems: Problems) -> dict[str, list[tuple[str, CocoImage]]]:
    by_id: dict[str, list[tuple[str, CocoImage]]] = defaultdict(list)
    for number, one in enumerate(raw):
        where = f"{path}: images.{number}"
        try:
            image = parse_entry(CocoImage, one, where)
        except InputError as error:
            problems(str(error))
            continue
        by_id[str(image.id)].append((where, image))
    for images in by_id.values():
        if len(images) > 1:
            (_, first), (where, second) = images[:2]
            problems(
                f"{where}: image id {second.id!r} occurs twice, for {_quoted_name(first)} and {_quoted_name(second)}; expected "
                "an id of its own for every image, as the annotations of both are mixed up"
            )
    return by_id


def _annotations_by_image(
    path: Path, raw: list[Any], image_ids: set[str], problems: Problems
) -> tuple[dict[str, list[tuple[str, Any]]], bool, set[str]]:
    """Annotations by image id, whether any belongs to no image, and the ids of images whose annotations share an id."""
    by_image: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    first_uses: dict[str, tuple[str, str]] = {}
    has_orphans = False
    ambiguous: set[str] = set()
    for number, one in enumerate(raw):
        where = f"{path}: annotations.{number}"
        try:
            ids_only = {name: one[name] for name in ("id", "image_id") if name in one} if isinstance(one, dict) else one
            ids = parse_entry(_AnnotationIds, ids_only, where)
            key = str(ids.image_id)
            if key not in image_ids:
                raise ManifestError(
                    f"{where}: image_id {ids.image_id!r} is the id of no image, so an image without annotations may be "
                    "defective; expected one of 'images'"
                )
        except InputError as error:
            has_orphans = True
            problems(str(error))
            continue
        by_image[key].append((where, one))
        if ids.id is None:
            continue
        if str(ids.id) in first_uses:
            first_use, first_image = first_uses[str(ids.id)]
            ambiguous |= {key, first_image}
            problems(
                f"{where}: annotation id {ids.id!r} occurs twice, at {first_use.removeprefix(f'{path}: ')} too; expected an "
                "id of its own for each (merged files must be renumbered)"
            )
        first_uses.setdefault(str(ids.id), (where, key))
    return by_image, has_orphans, ambiguous


def _quoted_name(image: CocoImage) -> str:
    return repr(image.file_name if image.file_name is not None else image.pair_id)


def _list_in(document: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise ManifestError(f"{path}: {key}: {type(value).__name__}; expected {_EXPECTED}")
    return value


def _region(annotation: _Annotation, raw: Any, where: str, size: tuple[int, int], *, is_ours: bool) -> Region:
    """The region of an annotation: its bbox rotated by `attributes.rotation`, or its segmentation."""
    degrees = _rotation(annotation, where)
    key = "bbox" if annotation.bbox else "segmentation"
    if not is_ours:
        _refuse_fractions(raw.get(key), where, key)
    outline = _outline(annotation, where, size)
    if not annotation.bbox:
        if outline is None:
            raise ManifestError(
                f"{where}: neither bbox nor segmentation; expected bbox as x, y, width, height in pixels"
            )
        return outline
    box = _corners(annotation.bbox, where)
    if outline is None or (outline.is_rectangle and _nearly_equal(box, outline.box)):
        # Some COCO readers need a polygon, so tools write the box's corners there, without the rotation.
        return rotated_about_center(box, degrees)
    if degrees % 360:
        return outline  # the shape was exported as its outline, which is already rotated
    if not _nearly_equal(box, outline.box) and iou(as_boxes(box), as_boxes(outline.box))[0] < _MIN_IOU:
        raise ManifestError(
            f"{where}: bbox {annotation.bbox} and the segmentation around {list(outline.box)} (x1, y1, x2, y2) mark different "
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


def _nearly_equal(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(np.abs(np.subtract(a, b)).max() <= _TOLERANCE)


def _rotation(annotation: _Annotation, where: str) -> float:
    value = (annotation.attributes or {}).get("rotation", 0)
    try:
        degrees = float(value)
    except (TypeError, ValueError):
        degrees = float("nan")
    if not np.isfinite(degrees):
        raise ManifestError(f"{where}: attributes.rotation {value!r}; expected degrees")
    return degrees


def _outline(annotation: _Annotation, where: str, size: tuple[int, int]) -> Region | None:
    """The region of a segmentation, None if there is none. Raises ManifestError."""
    shape = annotation.segmentation
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
    """The parts of a polygon. Some tools write a single part without the list around it."""
    return [list(part) for part in shape] if shape and isinstance(shape[0], list) else [list(shape)]


def _refuse_fractions(values: Any, where: str, key: str) -> None:
    """Refuse numbers that are all within 0..1, at least one a float: fractions of the sides, but COCO uses pixels."""
    flat = list(_numbers(values))
    if flat and all(0 <= value <= 1 for value in flat) and any(isinstance(value, float) for value in flat):
        raise ManifestError(f"{where}: {key} {values} holds fractions of the image's sides; expected pixels")


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, list):
        for value in values:
            yield from _numbers(value)
    elif isinstance(values, int | float):
        yield values
