"""Label Studio: `tasks.json` to import, `config.xml` to paste as labeling interface, its JSON export back.

Layouts: https://labelstud.io/guide/task_format, https://labelstud.io/guide/predictions and
https://labelstud.io/tags/rectanglelabels. A box is x, y, width, height in percent of the image's sides, turned clockwise
about its upper left corner by `rotation` degrees. The task's data hold the pair's id, which the export gives back, and its
reference, which the interface shows beside the target.

The truth is an annotation (an empty one says normal; none at all says unlabelled), a prediction a prediction.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from differad.boxes import Boxes
from differad.data.exchange.shared import (
    LABEL,
    Corrections,
    ExportOptions,
    Item,
    load_json,
    name_below,
    parse_entry,
    turned,
    write_json,
)
from differad.errors import ManifestError

_CONFIG = f"""\
<View>
  <RectangleLabels name="label" toName="image" canRotate="false">
    <Label value="{LABEL}" background="#d62728"/>
  </RectangleLabels>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1">
      <Header value="Good part"/>
      <Image name="reference" value="$reference"/>
    </View>
    <View style="flex: 1">
      <Header value="Part to inspect"/>
      <Image name="image" value="$image" zoom="true" zoomControl="true"/>
    </View>
  </View>
</View>
"""
_DIGITS = 6
_EXPECTED = "a list of tasks, as Label Studio exports it under the name JSON"
_SHAPES = frozenset({"brushlabels", "brush", "ellipselabels", "ellipse", "keypointlabels", "keypoint", "polygonlabels"})
_OTHER_SHAPES = _SHAPES | {"polygon", "bitmask", "bitmasklabels", "vector", "vectorlabels"}
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    x: _Number
    y: _Number
    width: _Number
    height: _Number
    rotation: _Number = 0


class _Region(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    to_name: str = "image"
    original_width: _Number | None = None
    original_height: _Number | None = None
    image_rotation: _Number = 0
    value: dict[str, Any] = {}


class _Annotation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    result: list[_Region]
    was_cancelled: bool = False
    ground_truth: bool = False
    created_at: str | None = None
    updated_at: str | None = None


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    pair_id: Annotated[str, Field(min_length=1)]


class _Task(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    data: _Data
    annotations: list[_Annotation] = []


def write_label_studio(out: Path, items: Sequence[Item], options: ExportOptions) -> None:
    """Write `tasks.json` and `config.xml`. Raises ManifestError."""
    write_json(out / "tasks.json", [_task(number, item, options) for number, item in enumerate(items, start=1)])
    (out / "config.xml").write_text(_CONFIG, encoding="utf-8")


def _task(number: int, item: Item, options: ExportOptions) -> dict[str, Any]:
    def url(field: str) -> str:
        return options.url_prefix + quote(name_below(options.root, item.pair, field))

    annotations, predictions = [], []
    if item.boxes is not None:
        annotations = [{"result": _regions(item, item.boxes, f"pair{number}-truth")}]
    if item.predicted is not None:
        regions = _regions(item, item.predicted, f"pair{number}-predicted")
        regions = [_with_score(region, item.score(rank)) for rank, region in enumerate(regions)]
        best = max((region.get("score", 0.0) for region in regions), default=0.0)
        predictions = [{"model_version": "differad", "score": best, "result": regions}]
    data = {"image": url("target"), "reference": url("reference"), "pair_id": item.pair.id}
    data |= {"category": item.pair.category, "group": item.pair.group or ""}
    return {"data": data, "annotations": annotations, "predictions": predictions}


def _regions(item: Item, boxes: Boxes, name: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}-{rank}",
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": item.width,
            "original_height": item.height,
            "image_rotation": 0,
            "value": {
                "rotation": 0,
                "x": round(100 * x1 / item.width, _DIGITS),
                "y": round(100 * y1 / item.height, _DIGITS),
                "width": round(100 * (x2 - x1) / item.width, _DIGITS),
                "height": round(100 * (y2 - y1) / item.height, _DIGITS),
                "rectanglelabels": [LABEL],
            },
        }
        for rank, (x1, y1, x2, y2) in enumerate(boxes.tolist(), start=1)
    ]


def _with_score(region: dict[str, Any], score: float | None) -> dict[str, Any]:
    return region if score is None else {**region, "score": score}


def read_label_studio(path: Path, corrections: Corrections) -> None:
    """Read the annotations of a JSON export into `corrections`; its predictions are passed over.

    Of several annotations the one marked as ground truth counts, else the latest. A skipped task, or one without
    annotations, is not mentioned. Raises ManifestError.
    """
    for number, raw in enumerate(load_json(path, list, _EXPECTED)):
        with corrections.entry():
            place = f"{path}: {number}"
            task = parse_entry(_Task, raw, place)
            given = [annotation for annotation in task.annotations if not annotation.was_cancelled]
            pair_id = task.data.pair_id
            width, height = corrections.size(place, pair_id)
            if not given:
                continue
            # sorted is stable: without dates the last one in the file is the latest.
            chosen = sorted(given, key=lambda entry: (entry.ground_truth, entry.updated_at or entry.created_at or ""))[
                -1
            ]
            regions = [region for region in chosen.result if region.to_name != "reference"]
            for region in regions:
                corrections.check_size(place, pair_id, (region.original_width, region.original_height))
            found = [_read_box(region, f"{place}: id {pair_id!r}", width, height) for region in regions]
            corrections.add(place, pair_id, [box for box in found if box is not None])


def _read_box(region: _Region, place: str, width: int, height: int) -> list[float] | None:
    """The upright box of a region in pixels; None for what is no region (a choice, a comment)."""
    if region.type in _OTHER_SHAPES:
        raise ManifestError(f"{place}: a region of type {region.type!r}; expected rectangles only")
    if region.type not in ("rectanglelabels", "rectangle"):
        return None
    if region.image_rotation % 360 != 0:
        raise ManifestError(
            f"{place}: drawn on an image turned by {region.image_rotation:g} degrees; turn it back first"
        )
    value = parse_entry(_Value, region.value, f"{place}: value")
    x, y = value.x / 100 * width, value.y / 100 * height
    box = [x, y, x + value.width / 100 * width, y + value.height / 100 * height]
    if value.width <= 0 or value.height <= 0:  # turning it would hide this
        raise ManifestError(f"{place}: box {value.width:g} by {value.height:g} percent; expected sides above 0")
    return turned(box, value.rotation, (x, y))
