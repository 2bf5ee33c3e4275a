"""`report.html`: one file that opens offline, with the table, the distribution of IoU and the pairs worth a look.

A model's words are untrusted text: the template escapes everything. Knows nothing of locators; it draws what was recorded.
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
    """A pair with what was predicted for it and how that scored."""

    pair: Pair
    prediction: Prediction | None
    result: PairResult


@dataclass
class TopCases(Generic[Item]):
    """The highest items of each kind while many pass; holds at most `size` of a kind."""

    size: int
    _order: "itertools.count[int]" = field(default_factory=itertools.count)
    _heaps: dict[str, list[tuple[float, int, Item]]] = field(default_factory=dict)

    def add(self, kind: str, value: float, item: Item) -> None:
        """Take an item into account; of equal ones the first are kept."""
        heap = self._heaps.setdefault(kind, [])
        entry = (value, -next(self._order), item)
        if len(heap) < self.size:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def highest(self, kind: str) -> list[Item]:
        """The items kept of a kind, highest first."""
        return [item for _, _, item in sorted(self._heaps.get(kind, []), key=lambda entry: entry[:2], reverse=True)]


@dataclass
class Showcase:
    """Gathers what a report shows while pairs stream by; holds a fixed number of cases."""

    shown: int = SHOWN
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    _kept: TopCases[Case] = field(init=False)

    def __post_init__(self) -> None:
        self._kept = TopCases(self.shown)

    def add(self, case: Case) -> None:
        """Take a case into account; of equally good ones the first are kept."""
        result, prediction = case.result, case.prediction
        sureness = result.confidence or 0.0
        if prediction is not None and not prediction.is_valid:
            self._kept.add("no_answer" if prediction.error is None else "errors", 0.0, case)
        if result.anomalous and not result.placed:
            found = result.gave_box and result.valid
            self._kept.add("found" if found else "overlooked", sureness if found else -sureness, case)
        elif result.anomalous:
            self.histogram[min(BINS - 1, int(result.iou * BINS))] += 1
            # Among pairs that were all missed, the ones where the locator was surest are the worst.
            self._kept.add("worst", -result.iou + (sureness if result.iou == 0 else 0.0), case)
            self._kept.add("best", result.iou, case)
        elif result.gave_box and result.valid:
            self._kept.add("false_alarms", sureness, case)

    def cases(self, kind: str) -> list[Case]:
        """The cases kept under a name of `SECTIONS`, most telling first."""
        return self._kept.highest(kind)


SECTIONS = (
    (
        "worst",
        "Worst pairs",
        "Anomalous pairs with the lowest IoU; of those missed entirely, the ones the locator was surest of.",
    ),
    ("best", "Best pairs", "Anomalous pairs with the highest IoU."),
    (
        "overlooked",
        "Overlooked pairs",
        "Abnormal, place unknown, and no box was given; the least sure first.",
    ),
    ("found", "Found pairs", "Abnormal, place unknown, and a box was given; the surest first."),
    ("false_alarms", "False alarms", "Normal pairs in which a box was given, the surest first."),
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
    """Write the page for `metrics` (as `summarise` makes them, with baselines) and the gathered cases."""
    page = render_page(
        "report.html.j2",
        metrics=metrics,
        overall=metrics["overall"],
        columns=COLUMNS,
        rows=list(_rows(metrics)),
        bars=_bars(showcase.histogram),
        sections=[
            (title, note, [_card(case) for case in showcase.cases(kind)])
            for kind, title, note in SECTIONS
            if showcase.cases(kind)
        ],
    )
    write_text(Path(path), page)


def render_page(template: str, **values: Any) -> str:
    """A template of this package with its values, all text escaped."""
    from jinja2 import Environment, PackageLoader  # a light start matters more to those who only locate

    environment = Environment(
        loader=PackageLoader("differad.evaluation"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def thumbnails(pair: Pair, prediction: Prediction | None, truth: Boxes | None = None) -> list[str]:
    """Data URLs of the reference and the target with its boxes, crossed out where there is no answer; none if unreadable."""
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


def shortened_words(prediction: Prediction | None) -> str:
    """What a model said, as much of it as a card holds."""
    words = (prediction.reasoning or prediction.answer) if prediction else ""
    return words if len(words) <= REASONING_LIMIT else words[:REASONING_LIMIT] + " …"


def _rows(metrics: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """The lines of the table: each category, with the baselines beside it; then groups, sizes and all pairs."""
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
    """Bars of the histogram in a drawing of 600 x 160 units."""
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
        "words": shortened_words(case.prediction),
        "problem": _problem(case.prediction),
    }


def _truth(result: PairResult) -> str:
    if not result.anomalous:
        return "normal"
    return f"IoU {result.iou:.3f}" if result.placed else "abnormal, place unknown"


def _problem(prediction: Prediction | None) -> str:
    if prediction is None:
        return "no prediction"
    return "" if prediction.is_valid else prediction.error or f"no answer: {prediction.why_no_answer}"
