"""Label Studio: `tasks.json` to import there, `config.xml` to paste as labeling interface, and reading its JSON export.

Layouts: https://labelstud.io/guide/task_format, https://labelstud.io/guide/predictions and
https://labelstud.io/tags/rectanglelabels. A box is x, y, width, height in percent of the image's sides, rotated clockwise
about its upper left corner by `rotation` degrees; an ellipse has its centre and radii in percent, a polygon its points, a
brush region its mask. The task's data hold the pair's id, which Label Studio's export repeats, and its reference, which the
interface shows beside the target.

True boxes become an annotation (empty for a normal target, none for an unlabelled one), predicted boxes a prediction. The
choice `abnormal` means that the target is abnormal at an unknown place, `normal` that it is normal.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from differad.boxes import Boxes
from differad.data.exchange.shared import (
    LABEL,
    Corrections,
    ExportOptions,
    Item,
    json_list,
    json_text,
    name_below,
)
from differad.data.label_files import load_json, parse_entry
from differad.data.output_folder import OutputFolder
from differad.data.shapes import Region, bitmap, brush_to_mask, ellipse, polygon, rotated
from differad.errors import ManifestError
from differad.files import write_lines, write_text

_STATE, _NORMAL, _ABNORMAL = "state", "normal", "abnormal"
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
      <Choices name="{_STATE}" toName="image" choice="single" showInline="true">
        <Choice value="{_NORMAL}"/>
        <Choice value="{_ABNORMAL}" hint="Abnormal, but nowhere to draw a box"/>
      </Choices>
    </View>
  </View>
</View>
"""
_DIGITS = 6
_EXPECTED = "a list of tasks, as Label Studio exports it under the name JSON"
# Results that are no regions. A type in neither table is an error, since it may be a region.
_NO_REGIONS = frozenset(
    {"choices", "textarea", "rating", "number", "datetime", "taxonomy", "pairwise", "ranker", "relation"}
)
_Number = Annotated[float, Field(allow_inf_nan=False)]


def _aware(date: datetime) -> datetime:
    """The date in UTC if it has no time zone, as Label Studio means it."""
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


# Old versions write seconds since 1970.
_Date = Annotated[datetime, Field(strict=False), AfterValidator(_aware)]
_NEVER = datetime.min.replace(tzinfo=UTC)


class _Value(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Rectangle(_Value):
    x: _Number
    y: _Number
    width: _Number
    height: _Number
    rotation: _Number | None = 0


class _Ellipse(_Value):
    x: _Number
    y: _Number
    radius_x: _Number = Field(alias="radiusX")
    radius_y: _Number = Field(alias="radiusY")
    rotation: _Number | None = 0


class _Polygon(_Value):
    points: list[tuple[_Number, _Number]]
    closed: bool = True


class _Brush(_Value):
    format: Literal["rle"] = "rle"
    rle: list[int]


class _Choices(_Value):
    choices: list[str]


class _Result(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    id: str | None = None
    from_name: str | None = None
    to_name: str = "image"
    original_width: _Number | None = None
    original_height: _Number | None = None
    image_rotation: _Number | None = 0
    value: dict[str, Any] = {}


class _Annotation(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    result: list[_Result]
    was_cancelled: bool = False
    ground_truth: bool = False
    created_at: _Date | None = None
    updated_at: _Date | None = None

    @property
    def date(self) -> datetime:
        """The last change; the earliest possible date if unknown."""
        return self.updated_at or self.created_at or _NEVER


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    pair_id: Annotated[str, Field(min_length=1)]


class _Task(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    data: _Data
    annotations: list[_Annotation] = []


def write_label_studio(folder: OutputFolder, items: Iterable[Item], options: ExportOptions) -> None:
    """Write `tasks.json` and `config.xml`. Raises ManifestError, WriteError."""
    tasks = (json_text(_task(number, item, options)) for number, item in enumerate(items, start=1))
    write_lines(folder.new_file("tasks.json"), chain(json_list(tasks), "\n"))
    write_text(folder.new_file("config.xml"), _CONFIG)


def _task(number: int, item: Item, options: ExportOptions) -> dict[str, Any]:
    def url(field: str) -> str:
        return options.url_prefix + quote(name_below(options.root, item.pair, field))

    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    if item.boxes is not None:
        annotations = [{"result": _regions(item, item.boxes, f"pair{number}-truth")}]
    elif item.place_unknown:
        choice = {"type": "choices", "from_name": _STATE, "to_name": "image", "value": {"choices": [_ABNORMAL]}}
        annotations = [{"result": [{"id": f"pair{number}-{_STATE}", **choice}]}]
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
    """Read the annotations of a JSON export into `corrections`; its predictions are ignored.

    Of several annotations the one marked as ground truth counts, else the latest. A skipped task, or one without
    annotations, gives no label. Raises ManifestError.
    """
    for number, raw in enumerate(load_json(path, list, _EXPECTED)):
        with corrections.entry():
            where = f"{path}: {number}"
            task = parse_entry(_Task, raw, where)
            annotations = [annotation for annotation in task.annotations if not annotation.was_cancelled]
            pair_id = task.data.pair_id
            width, height = corrections.size(where, pair_id)
            if not annotations:
                continue
            # sorted is stable: without dates the last annotation in the file counts.
            chosen = sorted(annotations, key=lambda entry: (entry.ground_truth, entry.date))[-1]
            results = [result for result in chosen.result if result.to_name != "reference"]
            for result in results:
                corrections.check_size(where, pair_id, (result.original_width, result.original_height))
            subject = f"{where}: id {pair_id!r}"
            regions = [_read_region(result, subject, width, height) for result in _regions_of(results, subject)]
            corrections.add(where, pair_id, regions, anomalous=_state(results, subject))


def _regions_of(results: list[_Result], where: str) -> list[_Result]:
    """The results that are regions. Raises ManifestError for an unknown type, which may be a region."""
    regions = [result for result in results if result.type in _SHAPES]
    region_ids = {region.id for region in regions}
    for result in results:
        # A label that was added to a region separately is a result with the region's id.
        if result.type not in _SHAPES.keys() | _NO_REGIONS and not (
            result.type == "labels" and result.id in region_ids
        ):
            raise ManifestError(
                f"{where}: a region of type {result.type!r}; expected rectangles, polygons, ellipses or brush strokes, which "
                "have an area"
            )
    return regions


def _state(results: list[_Result], where: str) -> bool | None:
    """Whether the choice `state` is abnormal; None without a choice. Raises ManifestError if it is both."""
    chosen = {
        choice
        for result in results
        if result.type == "choices" and result.from_name == _STATE
        for choice in parse_entry(_Choices, result.value, f"{where}: value").choices
    }
    if chosen >= {_NORMAL, _ABNORMAL}:
        raise ManifestError(f"{where}: chosen as {_NORMAL!r} and {_ABNORMAL!r}; expected one of them")
    return True if _ABNORMAL in chosen else False if _NORMAL in chosen else None


def _read_region(region: _Result, where: str, width: int, height: int) -> Region:
    """A region in pixels. Raises ManifestError."""
    if (region.image_rotation or 0) % 360 != 0:
        raise ManifestError(
            f"{where}: annotated on an image rotated by {region.image_rotation:g} degrees; rotate it back first"
        )
    return _SHAPES[region.type](region.value, f"{where}: value", width, height)


def _rectangle(raw: dict[str, Any], where: str, width: int, height: int) -> Region:
    value = parse_entry(_Rectangle, raw, where)
    x, y = value.x / 100 * width, value.y / 100 * height
    box = [x, y, x + value.width / 100 * width, y + value.height / 100 * height]
    if value.width <= 0 or value.height <= 0:  # a rotation would hide this
        raise ManifestError(f"{where}: box {value.width:g} by {value.height:g} percent; expected sides above 0")
    return rotated(box, value.rotation or 0, (x, y))


def _polygon(raw: dict[str, Any], where: str, width: int, height: int) -> Region:
    value = parse_entry(_Polygon, raw, where)
    if not value.closed:
        raise ManifestError(f"{where}: a polygon that is not closed; close it, as a line has no area")
    return polygon([[(x / 100 * width, y / 100 * height) for x, y in value.points]], where)


def _ellipse(raw: dict[str, Any], where: str, width: int, height: int) -> Region:
    value = parse_entry(_Ellipse, raw, where)
    center = value.x / 100 * width, value.y / 100 * height
    return ellipse(center, (value.radius_x / 100 * width, value.radius_y / 100 * height), value.rotation or 0, where)


def _brush(raw: dict[str, Any], where: str, width: int, height: int) -> Region:
    return bitmap(brush_to_mask(parse_entry(_Brush, raw, where).rle, height, width, where), where)


_Shape = Callable[[dict[str, Any], str, int, int], Region]
_SHAPES: dict[str, _Shape] = {
    name + ending: shape
    for name, shape in (("rectangle", _rectangle), ("polygon", _polygon), ("ellipse", _ellipse), ("brush", _brush))
    for ending in ("", "labels")
}
