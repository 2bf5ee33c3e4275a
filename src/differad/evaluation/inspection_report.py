"""`report.html` of an inspection: one offline file with the counts, the targets that are not accepted, and a list of all.

Names and a model's text are untrusted: the template escapes everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from differad.evaluation.inspection_rows import Row
from differad.evaluation.report import TopCases, render_page, shortened_text, thumbnails
from differad.files import write_text

# A card takes about 50 kB of the page; all overlays are in files beside it.
SHOWN = 60
SHOWN_NORMAL = 6
LISTED = 1000
SECTIONS = (
    ("reject", "Abnormal", "Highest confidence first. Boxes are orange; the overlays show scores."),
    ("review", "Without an answer", "Not comparable, unreadable or failed, with the reason: inspect these yourself."),
    ("accept", "Normal, highest confidence", "The normal targets closest to being rejected."),
)


@dataclass
class Gallery:
    """Collects the report's content from a stream of rows; holds a bounded number of rows and list entries."""

    listed: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    _shown: TopCases[Row] = field(default_factory=lambda: TopCases(SHOWN))
    _normal: TopCases[Row] = field(default_factory=lambda: TopCases(SHOWN_NORMAL))

    def add(self, row: Row) -> None:
        """Add a row."""
        confidence = row.prediction.confidence
        cases = self._normal if row.prediction.anomalous is False else self._shown
        cases.add(row.verdict, 0.0 if confidence is None else confidence, row)
        if len(self.listed) < LISTED:
            self.listed.append(_line(row))
        else:
            self.left_out += 1

    def rows(self, verdict: str) -> list[Row]:
        """The rows to show of a verdict."""
        return [*self._shown.highest(verdict), *self._normal.highest(verdict)]


def write_inspection_report(path: Path, model: str, counts: Mapping[str, int], gallery: Gallery) -> None:
    """Write the page; `counts` are numbers of targets by outcome. Raises WriteError."""
    sections = [
        (title, description, [_card(row) for row in gallery.rows(verdict)]) for verdict, title, description in SECTIONS
    ]
    page = render_page(
        "inspection.html.j2",
        model=model,
        counts=counts,
        total=sum(counts.values()),
        sections=[section for section in sections if section[2]],
        rows=gallery.listed,
        left_out=gallery.left_out,
    )
    write_text(path, page)


def _line(row: Row) -> dict[str, Any]:
    prediction = row.prediction
    return {
        "id": row.pair.id,
        "verdict": row.verdict,
        "confidence": prediction.confidence,
        "boxes": len(prediction.boxes or []),
        "overlay": row.overlay,
        "reason": row.reason,
    }


def _card(row: Row) -> dict[str, Any]:
    return {
        **_line(row),
        "reference": str(row.pair.reference),
        "images": thumbnails(row.pair, row.prediction),
        "problem": row.prediction.why_no_answer,
        "words": shortened_text(row.prediction) if row.prediction.is_valid else "",
    }
