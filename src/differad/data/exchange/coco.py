"""COCO object detection: `instances.json` with the truth, `predictions.json` in the results format.

Layouts: https://cocodataset.org/#format-data (its source is
https://github.com/cocodataset/cocodataset.github.io/blob/master/dataset/format-data.htm) and
https://cocodataset.org/#format-results. A box is `[x, y, width, height]` in pixels, measured from 0.

The keys `pair_id`, `reference`, `category`, `group`, `labelled` and `anomalous` of an image are ours; readers of COCO pass
over them. A file that another tool has written without them is matched by `file_name`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from differad.data.coco_labels import CocoEntry, read_coco_file
from differad.data.exchange.shared import LABEL, Corrections, ExportOptions, Item, name_below, write_json
from differad.data.output_folder import OutputFolder
from differad.errors import ManifestError

_CATEGORY = 1
_DIGITS = 4


def write_coco(folder: OutputFolder, items: Sequence[Item], options: ExportOptions) -> None:
    """Write `instances.json`, and `predictions.json` if any item has a prediction. Raises ManifestError, WriteError."""
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
    write_json(folder.new_file("instances.json"), document)
    if any(item.predicted is not None for item in items):
        write_json(folder.new_file("predictions.json"), results)


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
        # Abnormal, and nobody marked where: readers of boxes must not take it for an image without any.
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
        # Some readers need a polygon; the box's own corners say nothing more than the box.
        "segmentation": [[x1, y1, x1, y2, x2, y2, x2, y1]],
        "iscrowd": 0,
    }


def _bbox(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(value, _DIGITS) for value in (x1, y1, x2 - x1, y2 - y1)]


def read_coco(path: Path, corrections: Corrections) -> None:
    """Read the boxes of an `instances.json` into `corrections`; every category counts as a defect, crowd regions do not.

    An image without annotations is normal where it says `"labelled": true`, abnormal at an unknown place where it says
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
        ids = corrections.ids_named(entry.place, image.file_name)
    else:
        raise ManifestError(f"{entry.place}: neither pair_id nor file_name; expected one that tells the pair")
    for pair_id in ids:
        drawn = entry.drawn(corrections.size(entry.place, pair_id))
        corrections.crowds += drawn.crowds
        if entry.annotations:
            corrections.add(entry.place, pair_id, drawn.regions)
        else:
            said = True if image.anomalous else False if image.labelled else image.anomalous
            is_blank = image.labelled is False
            corrections.add(entry.place, pair_id, None, image.size, anomalous=said, is_blank=is_blank)
