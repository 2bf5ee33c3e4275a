"""`report.html`: one offline file with the table of metrics, the distribution of IoU and selected pairs.

A model's text is untrusted: the template escapes everything. Knows nothing of locators; it shows recorded predictions.
"""

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from differad.boxes import Boxes, as_boxes
from differad.core import Pair
from differad.drawing import draw_no_answer, jpeg_data_url, thumbnail
from differad.errors import ImageError
from differad.evaluation.metrics import PairResult
from differad.evaluation.predictions import Prediction
from differad.files import write_text
from differad.images import read_images

Item = TypeVar("Item")
SHOWN = 6
THUMBNAIL_SIDE = 360
BINS = 10
REASONING_LIMIT = 600


@dataclass(frozen=True, eq=False)
class Case:
    """A pair with its prediction and result."""

    pair: Pair
    prediction: Prediction | None
    result: PairResult


@dataclass
class TopCases(Generic[Item]):
    """The highest items of each kind in a stream; holds at most `size` per kind."""

    size: int
    _order: "itertools.count[int]" = field(default_factory=itertools.count)
    _heaps: dict[str, list[tuple[float, int, Item]]] = field(default_factory=dict)

    def add(self, kind: str, value: float, item: Item) -> None:
        """Add an item; of equal ones the first are kept."""
        heap = self._heaps.setdefault(kind, [])
        entry = (value, -next(self._order), item)
        if len(heap) < self.size:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def highest(self, kind: str) -> list[Item]:
        """The highest items of a kind, highest first."""
        return [item for _, _, item in sorted(self._heaps.get(kind, []), key=lambda entry: entry[:2], reverse=True)]


@dataclass
class Showcase:
    """Collects a report's content from a stream of pairs; holds a bounded number of cases."""

    shown: int = SHOWN
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    _kept: TopCases[Case] = field(init=False)

    def __post_init__(self) -> None:
        self._kept = TopCases(self.shown)

    def add(self, case: Case) -> None:
        """Add a case; of equal ones the first are kept."""
        result, prediction = case.result, case.prediction
        confidence = result.confidence or 0.0
        if prediction is not None and not prediction.is_valid:
            self._kept.add("no_answer" if prediction.error is None else "errors", 0.0, case)
        if result.anomalous and not result.has_location:
            detected = result.gave_box and result.valid
            self._kept.add("found" if detected else "overlooked", confidence if detected else -confidence, case)
        elif result.anomalous:
            self.histogram[min(BINS - 1, int(result.iou * BINS))] += 1
            # Of the pairs that were missed entirely, those with the highest confidence are the worst.
            self._kept.add("worst", -result.iou + (confidence if result.iou == 0 else 0.0), case)
            self._kept.add("best", result.iou, case)
        elif result.gave_box and result.valid:
            self._kept.add("false_alarms", confidence, case)

    def cases(self, kind: str) -> list[Case]:
        """The cases of a section in `SECTIONS`, most extreme first."""
        return self._kept.highest(kind)


SECTIONS = (
    (
        "worst",
        "Worst pairs",
        "Anomalous pairs with the lowest IoU; of those missed entirely, the ones with the highest confidence.",
    ),
    ("best", "Best pairs", "Anomalous pairs with the highest IoU."),
    (
        "overlooked",
        "Overlooked pairs",
        "Abnormal, place unknown, and no box predicted; lowest confidence first.",
    ),
    ("found", "Found pairs", "Abnormal, place unknown, and a box predicted; highest confidence first."),
    ("false_alarms", "False alarms", "Normal pairs with a predicted box, highest confidence first."),
    (
        "no_answer",
        "Pairs without an answer",
        "Not comparable, or the answer could not be read, with the reason; never normal.",
    ),
    ("errors", "Failed pairs", "Pairs that could not be answered, with the reason."),
)
COLUMNS = (
    ("miou", "mIoU"),
    ("acc_0.3", "Acc@0.3"),
    ("acc_0.5", "Acc@0.5"),
    ("f1_0.3", "F1@0.3"),
    ("detection_f1", "Detection F1"),
    ("normal_accuracy", "Normal accuracy"),
    ("auroc", "AUROC"),
    ("valid", "Valid"),
)


def write_report(path: str | Path, metrics: dict[str, Any], showcase: Showcase) -> None:
    """Write the page for `metrics` (the result of `summarise`, with baselines) and the collected cases."""
    page = render_page(
        "report.html.j2",
        metrics=metrics,
        overall=metrics["overall"],
        columns=COLUMNS,
        rows=list(_rows(metrics)),
        bars=_bars(showcase.histogram),
        sections=[
            (title, description, [_card(case) for case in showcase.cases(kind)])
            for kind, title, description in SECTIONS
            if showcase.cases(kind)
        ],
    )
    write_text(Path(path), page)


def render_page(template: str, **values: Any) -> str:
    """A template of this package with its values, all text escaped."""
    from jinja2 import Environment, PackageLoader  # imported late: commands that only locate start faster

    environment = Environment(
        loader=PackageLoader("differad.evaluation"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def thumbnails(pair: Pair, prediction: Prediction | None, truth: Boxes | None = None) -> list[str]:
    """Data URLs of the reference and the target with its boxes, crossed out if there is no answer; none if unreadable."""
    is_valid = prediction is not None and prediction.is_valid
    predicted = as_boxes(prediction.boxes if prediction and is_valid else None)
    try:
        reference, target = read_images(pair.reference, pair.target)
    except ImageError:
        return []
    shown = thumbnail(target, THUMBNAIL_SIDE, truth=truth, predicted=predicted)
    return [
        jpeg_data_url(thumbnail(reference, THUMBNAIL_SIDE)),
        jpeg_data_url(shown if is_valid or prediction is None else draw_no_answer(shown)),
    ]


def shortened_text(prediction: Prediction | None) -> str:
    """A model's reasoning or answer, shortened to the length of a card."""
    text = (prediction.reasoning or prediction.answer) if prediction else ""
    return text if len(text) <= REASONING_LIMIT else text[:REASONING_LIMIT] + " …"


def _rows(metrics: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of the table: each category followed by its baselines; then groups, sizes and all pairs."""
    baselines = metrics.get("baselines", {})
    for name, values in metrics["categories"].items():
        yield {"name": name or "(no category)", "values": values, "kind": "category"}
        for baseline, parts in baselines.items():
            if name in parts["categories"]:
                yield {"name": baseline.replace("_", " "), "values": parts["categories"][name], "kind": "baseline"}
    for part, title in (("groups", "group"), ("sizes", "defects:")):
        for name, values in metrics.get(part, {}).items():
            yield {"name": f"{title} {name}", "values": values, "kind": "part"}
    macro = metrics["overall"]["macro"]
    if len(metrics["categories"]) > 1:
        yield {
            "name": "mean over categories",
            "values": {**macro, "pairs": metrics["overall"]["pairs"]},
            "kind": "total",
        }
        yield {"name": "all pairs", "values": metrics["overall"], "kind": "total"}


def _bars(histogram: Sequence[int]) -> list[dict[str, Any]]:
    """Bars of the histogram in an SVG of 600 x 160 units."""
    highest, width = max(1, *histogram), 600 / len(histogram)
    return [
        {
            "x": index * width + 2,
            "width": width - 4,
            "height": 120 * count / highest,
            "count": count,
            "label": f"{index / len(histogram):.1f}",
        }
        for index, count in enumerate(histogram)
    ]


def _card(case: Case) -> dict[str, Any]:
    return {
        "id": case.pair.id,
        "category": case.pair.category,
        "truth": _truth(case.result),
        "confidence": case.result.confidence,
        "images": thumbnails(case.pair, case.prediction, case.pair.boxes),
        "words": shortened_text(case.prediction),
        "problem": _problem(case.prediction),
    }


def _truth(result: PairResult) -> str:
    if not result.anomalous:
        return "normal"
    return f"IoU {result.iou:.3f}" if result.has_location else "abnormal, place unknown"


def _problem(prediction: Prediction | None) -> str:
    if prediction is None:
        return "no prediction"
    return "" if prediction.is_valid else prediction.error or f"no answer: {prediction.why_no_answer}"
