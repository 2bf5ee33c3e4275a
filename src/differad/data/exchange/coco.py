"""COCO object detection: `instances.json` with the true boxes, `predictions.json` in the results format.

Layouts: https://cocodataset.org/#format-data (its source is
https://github.com/cocodataset/cocodataset.github.io/blob/master/dataset/format-data.htm) and
https://cocodataset.org/#format-results. A box is `[x, y, width, height]` in pixels, measured from 0.

The keys `pair_id`, `reference`, `category`, `group`, `labelled` and `anomalous` of an image are differad's own; other COCO
readers ignore them. In a file without them, images are matched by `file_name`.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from differad.data.coco_labels import CocoEntry, read_coco_file
from differad.data.exchange.shared import (
    LABEL,
    Corrections,
    ExportOptions,
    Item,
    Spool,
    json_list,
    json_text,
    name_below,
)
from differad.data.output_folder import OutputFolder
from differad.errors import ManifestError
from differad.files import write_lines

_CATEGORY = 1
_DIGITS = 4


def write_coco(folder: OutputFolder, items: Iterable[Item], options: ExportOptions) -> None:
    """Write `instances.json`, and `predictions.json` if any item has a prediction. Raises ManifestError, WriteError.

    The items are read once: images are written directly, the lists that follow them are spooled to disk.
    """
    with Spool[str](folder.path) as annotations, Spool[list[str]](folder.path) as results:
        images = _images(items, options, annotations, results)
        write_lines(folder.new_file("instances.json"), _document(images, annotations))
        if len(results):
            write_lines(folder.new_file("predictions.json"), chain(json_list(chain.from_iterable(results)), "\n"))


def _document(images: Iterator[str], annotations: Iterable[str]) -> Iterator[str]:
    """The text of `instances.json`; `annotations` are read after the last image."""
    yield f'{{"info": {json_text({"description": "differad pairs", "version": "1.0"})},\n"licenses": [],\n"images": '
    yield from json_list(images)
    yield ',\n"annotations": '
    yield from json_list(annotations)
    yield f',\n"categories": {json_text([{"id": _CATEGORY, "name": LABEL, "supercategory": LABEL}])}}}\n'


def _images(
    items: Iterable[Item], options: ExportOptions, annotations: Spool[str], results: Spool[list[str]]
) -> Iterator[str]:
    """The entries of the images; their boxes are added to `annotations`, the predictions of an item to `results`."""
    for number, item in enumerate(items, start=1):
        for box in [] if item.boxes is None else item.boxes.tolist():
            annotations.add(json_text(_annotation_entry(len(annotations) + 1, number, box)))
        if item.predicted is not None:
            results.add([json_text(_result(number, item, rank)) for rank in range(len(item.predicted))])
        yield json_text(_image_entry(number, item, options))


def _result(number: int, item: Item, rank: int) -> dict[str, Any]:
    """The predicted box `rank` of an item whose image id is `number`. The results format requires a score."""
    score = item.score(rank)
    box = [] if item.predicted is None else item.predicted[rank].tolist()
    return {
        "image_id": number,
        "category_id": _CATEGORY,
        "bbox": _bbox(box),
        "score": 1.0 if score is None else score,
    }


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
        # Abnormal at an unknown place: a reader of boxes must not take it for a normal image.
        **({"anomalous": True} if item.place_unknown else {}),
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
        # Some readers need a polygon; the box's corners add no information.
        "segmentation": [[x1, y1, x1, y2, x2, y2, x2, y1]],
        "iscrowd": 0,
    }


def _bbox(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(value, _DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]


def read_coco(path: Path, corrections: Corrections) -> None:
    """Read the boxes of an `instances.json` into `corrections`; every category counts as a defect, crowd regions do not.

    An image without annotations is normal if it says `"labelled": true`, abnormal at an unknown place if it says
    `"anomalous": true`. Raises ManifestError.
    """
    for entry in read_coco_file(path, corrections.report):
        with corrections.entry():
            _read_image(entry, corrections)


def _read_image(entry: CocoEntry, corrections: Corrections) -> None:
    image = entry.image
    if image.pair_id is not None:
        ids = [image.pair_id]
    elif image.file_name is not None:
        ids = corrections.ids_named(entry.where, image.file_name)
    else:
        raise ManifestError(f"{entry.where}: neither pair_id nor file_name; expected one that identifies the pair")
    for pair_id in ids:
        parsed = entry.parse(corrections.size(entry.where, pair_id))
        corrections.crowds += parsed.crowds
        if entry.annotations:
            corrections.add(entry.where, pair_id, parsed.regions)
        else:
            anomalous = True if image.anomalous else False if image.labelled else image.anomalous
            is_blank = image.labelled is False
            corrections.add(entry.where, pair_id, None, image.size, anomalous=anomalous, is_blank=is_blank)
