"""COCO object detection: `instances.json` with the truth, `predictions.json` in the results format.

Layouts: https://cocodataset.org/#format-data (its source is
https://github.com/cocodataset/cocodataset.github.io/blob/master/dataset/format-data.htm) and
https://cocodataset.org/#format-results. A box is `[x, y, width, height]` in pixels, measured from 0.

The keys `pair_id`, `reference`, `category`, `group` and `labelled` of an image are ours; readers of COCO pass over them. A
file that another tool has written without them is matched by `file_name`.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from differad.data.exchange.shared import (
    LABEL,
    Corrections,
    ExportOptions,
    Item,
    load_json,
    name_below,
    parse_entry,
    write_json,
)
from differad.errors import ManifestError

_CATEGORY = 1
_DIGITS = 4
_EXPECTED = "a COCO object with lists 'images' and 'annotations'"
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Image(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: int | str
    file_name: str | None = None
    width: _Number | None = None
    height: _Number | None = None
    pair_id: str | None = None
    labelled: bool | None = None


class _Belongs(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    image_id: int | str


class _Annotation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    bbox: tuple[_Number, _Number, _Number, _Number]


def write_coco(out: Path, items: Sequence[Item], options: ExportOptions) -> None:
    """Write `instances.json`, and `predictions.json` if any item has a prediction. Raises ManifestError."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, item in enumerate(items, start=1):
        images.append(_image_entry(number, item, options))
        for box in [] if item.boxes is None else item.boxes.tolist():
            annotations.append(_annotation_entry(len(annotations) + 1, number, box))
        for rank, box in enumerate([] if item.predicted is None else item.predicted.tolist()):
            score = item.score(rank)
            results.append(
                {
                    "image_id": number,
                    "category_id": _CATEGORY,
                    "bbox": _bbox(box),
                    # The results format demands a score.
                    "score": 1.0 if score is None else score,
                }
            )
    document = {
        "info": {"description": "differad pairs", "version": "1.0"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": _CATEGORY, "name": LABEL, "supercategory": LABEL}],
    }
    write_json(out / "instances.json", document)
    if any(item.predicted is not None for item in items):
        write_json(out / "predictions.json", results)


def _image_entry(number: int, item: Item, options: ExportOptions) -> dict[str, Any]:
    return {
        "id": number,
        "width": item.width,
        "height": item.height,
        "file_name": name_below(options.root, item.pair, "target"),
        "pair_id": item.pair.id,
        "reference": name_below(options.root, item.pair, "reference"),
        "category": item.pair.category,
        "group": item.pair.group,
        "labelled": item.boxes is not None,
    }


def _annotation_entry(number: int, image: int, box: list[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(value, _DIGITS) for value in box)
    x, y, width, height = _bbox(box)
    return {
        "id": number,
        "image_id": image,
        "category_id": _CATEGORY,
        "bbox": [x, y, width, height],
        "area": round(width * height, _DIGITS),
        # Some readers need a polygon; the box's own corners say nothing more than the box.
        "segmentation": [[x1, y1, x1, y2, x2, y2, x2, y1]],
        "iscrowd": 0,
    }


def _bbox(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(value, _DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]


def read_coco(path: Path, corrections: Corrections) -> None:
    """Read the boxes of an `instances.json` into `corrections`; every category counts as a defect.

    An image without annotations is normal where it says `"labelled": true`. Raises ManifestError.
    """
    document = load_json(path, dict, _EXPECTED)
    grouped: dict[int | str, list[tuple[int, Any]]] = defaultdict(list)
    for number, raw in enumerate(_list_in(document, "annotations", path)):
        with corrections.entry():
            owner = parse_entry(_Belongs, raw, f"{path}: annotations.{number}").image_id
            grouped[owner].append((number, raw))
    seen: set[int | str] = set()
    for number, raw in enumerate(_list_in(document, "images", path)):
        with corrections.entry():
            place = f"{path}: images.{number}"
            image = parse_entry(_Image, raw, place)
            if image.id in seen:
                raise ManifestError(f"{place}: image id {image.id!r} stands twice; expected one entry an image")
            seen.add(image.id)
            _read_image(path, place, image, grouped.get(image.id, []), corrections)
    for owner, annotations in grouped.items():
        if owner not in seen:
            with corrections.entry():
                place = f"{path}: annotations.{annotations[0][0]}"
                raise ManifestError(f"{place}: image_id {owner!r} is the id of no image; expected one of 'images'")


def _read_image(
    path: Path, place: str, image: _Image, annotations: list[tuple[int, Any]], corrections: Corrections
) -> None:
    boxes: list[list[float]] | None = [] if image.labelled else None
    if annotations:
        parsed = (parse_entry(_Annotation, raw, f"{path}: annotations.{number}") for number, raw in annotations)
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (entry.bbox for entry in parsed)]
    if image.pair_id is not None:
        ids = [image.pair_id]
    elif image.file_name is not None:
        ids = corrections.ids_named(place, image.file_name)
    else:
        raise ManifestError(f"{place}: neither pair_id nor file_name; expected one that tells the pair")
    for pair_id in ids:
        corrections.add(place, pair_id, boxes, (image.width, image.height))


def _list_in(document: dict[str, Any], key: str, path: Path) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise ManifestError(f"{path}: {key}: {type(value).__name__}; expected {_EXPECTED}")
    return value
