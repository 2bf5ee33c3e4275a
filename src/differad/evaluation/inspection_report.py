"""`report.html` of an inspection: one file that opens offline, with the counts, what is not accepted, and all targets.

Names and a model's words are untrusted text: the template escapes everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from differad.evaluation.inspection_rows import Row
from differad.evaluation.report import TopCases, render_page, shortened_words, thumbnails
from differad.files import write_text

# A card takes some 50 kB of the page; all overlays lie beside it.
SHOWN = 60
SHOWN_NORMAL = 6
LISTED = 1000
SECTIONS = (
    ("reject", "Abnormal", "The surest first. Boxes are orange; scores stand on the overlays."),
    ("review", "Without an answer", "Not comparable, unreadable or failed, with the reason: look at these yourself."),
    ("accept", "Normal, the least sure", "Those that came nearest to being called abnormal."),
)


@dataclass
class Gallery:
    """Gathers what the report shows while rows pass; holds a fixed number of them, and of lines of its list."""

    listed: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    _shown: TopCases[Row] = field(default_factory=lambda: TopCases(SHOWN))
    _normal: TopCases[Row] = field(default_factory=lambda: TopCases(SHOWN_NORMAL))

    def add(self, row: Row) -> None:
        """Take a row into account."""
        confidence = row.prediction.confidence
        kept = self._normal if row.prediction.anomalous is False else self._shown
        kept.add(row.verdict, 0.0 if confidence is None else confidence, row)
        if len(self.listed) < LISTED:
            self.listed.append(_line(row))
        else:
            self.left_out += 1

    def rows(self, verdict: str) -> list[Row]:
        """The rows shown of a verdict."""
        return [*self._shown.highest(verdict), *self._normal.highest(verdict)]


def write_inspection_report(path: Path, model: str, counts: Mapping[str, int], gallery: Gallery) -> None:
    """Write the page; `counts` are numbers of targets by what became of them. Raises WriteError."""
    sections = [(title, note, [_card(row) for row in gallery.rows(verdict)]) for verdict, title, note in SECTIONS]
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
    found = row.prediction
    return {
        "id": row.pair.id,
        "verdict": row.verdict,
        "confidence": found.confidence,
        "boxes": len(found.boxes or []),
        "overlay": row.overlay,
        "reason": row.reason,
    }


def _card(row: Row) -> dict[str, Any]:
    return {
        **_line(row),
        "reference": str(row.pair.reference),
        "images": thumbnails(row.pair, row.prediction),
        "problem": row.prediction.why_no_answer,
        "words": shortened_words(row.prediction) if row.prediction.is_valid else "",
    }
