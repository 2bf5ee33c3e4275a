"""A row of an inspection: a target with its prediction, as a line of `results.csv` and as JSON."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from differad.core import Pair
from differad.data.exchange.shared import file_name
from differad.evaluation.predictions import Prediction

# Verdicts by `anomalous`: None is a target without an answer, which a person must inspect.
VERDICTS = {False: "accept", True: "reject", None: "review"}
COLUMNS = (
    *("target", "verdict", "confidence", "comparable", "boxes", "reason", "seconds"),
    *("anomalous", "scores", "threshold", "id", "reference", "overlay", "model"),
)
OVERLAYS = "overlays"


@dataclass(frozen=True, eq=False)
class Row:
    """A target with its prediction; `overlay` is the path of its overlay in the output folder, "" if it has none."""

    pair: Pair
    prediction: Prediction

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return VERDICTS[self.prediction.anomalous]

    @property
    def target(self) -> str:
        """The path of the target."""
        return str(self.pair.target)

    @property
    def overlay(self) -> str:
        """Path of the overlay; "" for accepted targets and for those that could not be located."""
        has_overlay = self.prediction.error is None and self.prediction.anomalous is not False
        return f"{OVERLAYS}/{file_name(self.pair.id)}.jpg" if has_overlay else ""

    @property
    def reason(self) -> str:
        """The reason in one line."""
        return self.prediction.why_no_answer or " ".join(self.prediction.reasoning.split())

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON: its images, the verdict, and the prediction."""
        names = {"id": self.pair.id, "target": self.target, "reference": str(self.pair.reference)}
        answer = {"anomalous": self.prediction.anomalous, "confidence": self.prediction.confidence}
        excluded = {"id", *answer, *(() if self.prediction.error is None else ("comparable", "model"))}
        prediction = self.prediction.model_dump(exclude=excluded, exclude_none=True)
        return {**names, "verdict": self.verdict, **answer, **prediction, "overlay": self.overlay}

    def to_csv(self) -> str:
        """The row as a line of `results.csv`."""
        prediction = self.prediction
        return _to_line(
            (
                self.target,
                self.verdict,
                _text(prediction.confidence),
                _text(prediction.comparable if prediction.error is None else None),
                json.dumps(prediction.boxes or []),
                self.reason,
                _text(prediction.seconds),
                _text(prediction.anomalous),
                json.dumps(prediction.scores or []),
                _text(prediction.threshold),
                self.pair.id,
                str(self.pair.reference),
                self.overlay,
                prediction.model,
            )
        )


def header_line() -> str:
    """The first line of `results.csv`."""
    return _to_line(COLUMNS)


def _text(value: object) -> str:
    """`value` as JSON text; empty for None."""
    return "" if value is None else json.dumps(value)


def _to_line(cells: Iterable[str]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
