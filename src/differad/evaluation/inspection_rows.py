"""A row of an inspection: a target and what was found, as a line of `results.csv` and as JSON."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from differad.core import Pair
from differad.data.exchange.shared import file_name
from differad.evaluation.predictions import Prediction

# What is to be done with a part: None is a target without an answer, at which a person has to look.
VERDICTS = {False: "accept", True: "reject", None: "review"}
COLUMNS = (
    *("target", "verdict", "confidence", "comparable", "boxes", "reason", "seconds"),
    *("anomalous", "scores", "threshold", "id", "reference", "overlay", "model"),
)
OVERLAYS = "overlays"


@dataclass(frozen=True, eq=False)
class Row:
    """A target with what was found; `overlay` is where its overlay lies in the output folder, "" where it has none."""

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
        """Targets that are accepted have none, nor those that could not be located."""
        is_drawn = self.prediction.error is None and self.prediction.anomalous is not False
        return f"{OVERLAYS}/{file_name(self.pair.id)}.jpg" if is_drawn else ""

    @property
    def reason(self) -> str:
        """Why, in a line."""
        return self.prediction.why_no_answer or " ".join(self.prediction.reasoning.split())

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON: which images it is of, the verdict, and the prediction."""
        names = {"id": self.pair.id, "target": self.target, "reference": str(self.pair.reference)}
        answer = {"anomalous": self.prediction.anomalous, "confidence": self.prediction.confidence}
        left_out = {"id", *answer, *(() if self.prediction.error is None else ("comparable", "model"))}
        found = self.prediction.model_dump(exclude=left_out, exclude_none=True)
        return {**names, "verdict": self.verdict, **answer, **found, "overlay": self.overlay}

    def to_csv(self) -> str:
        """The row as a line of `results.csv`."""
        found = self.prediction
        return _to_line(
            (
                self.target,
                self.verdict,
                _text(found.confidence),
                _text(found.comparable if found.error is None else None),
                json.dumps(found.boxes or []),
                self.reason,
                _text(found.seconds),
                _text(found.anomalous),
                json.dumps(found.scores or []),
                _text(found.threshold),
                self.pair.id,
                str(self.pair.reference),
                self.overlay,
                found.model,
            )
        )


def header_line() -> str:
    """The first line of `results.csv`."""
    return _to_line(COLUMNS)


def _text(value: object) -> str:
    """As in JSON; nothing for None."""
    return "" if value is None else json.dumps(value)


def _to_line(cells: Iterable[str]) -> str:
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
