"""The data card of a set of pairs: contents, defect sizes, sources and terms, checksums.

Written as `card.json` for programs and as `card.md` for people. Box areas as a share of the target need the target's header;
they are left out if images must not be opened.
"""

import html
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import area
from differad.core import Pair
from differad.data.build import is_place_unknown
from differad.data.sources.registry import SOURCES
from differad.data.stamps import sha256
from differad.errors import ManifestError
from differad.files import write_lines, write_text
from differad.images import image_file, image_size
from differad.progress import track

CHECKSUMS = "checksums.sha256"
# Lower limit of each size as a share of the target's area, as in the metrics by defect size.
SIZES = (("small", 0.0), ("medium", 0.01), ("large", 0.1))
_QUANTILES = (0, 25, 50, 75, 100)


def make_card(pairs: Sequence[Pair], title: str, *, open_images: bool = True, progress: bool = False) -> dict[str, Any]:
    """Counts, box sizes and terms of `pairs`. Raises ImageError if a target cannot be opened."""
    categories: dict[str, list[Pair]] = {}
    for pair in pairs:
        categories.setdefault(pair.category, []).append(pair)
    return {
        "title": title,
        **_counts(pairs),
        "categories": {
            name: {"group": members[0].group, **_counts(members)} for name, members in sorted(categories.items())
        },
        "groups": dict(Counter(pair.group for pair in pairs if pair.group)),
        "kinds": dict(Counter(str(pair.extra["kind"]) for pair in pairs if pair.extra.get("kind")).most_common()),
        "boxes": _box_sizes(pairs, open_images, progress),
        "sources": _sources(pairs),
    }


def write_card(
    out: Path,
    card: Mapping[str, Any],
    manifest: Path,
    *,
    files: Iterable[Path] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write card.json and card.md into `out`, with the manifest's checksum; return the card as written.

    The checksums of `files` are written to `checksums.sha256`, which `sha256sum --check` reads when run in `out`.

    Raises InputError, WriteError.
    """
    whole: dict[str, Any] = {**card, "manifest": {"name": manifest.name, "sha256": sha256(manifest)}}
    if files is not None:
        listed = sorted(set(files))
        lines = [
            _checksum_line(sha256(path), _relative(path, out))
            for path in track(listed, "checksums", len(listed), shown=progress)
        ]
        write_lines(out / CHECKSUMS, lines)
        whole["files"] = {"count": len(lines), "checksums": CHECKSUMS, "sha256": sha256(out / CHECKSUMS)}
    text = json.dumps(whole, ensure_ascii=False, indent=2, allow_nan=False)
    write_text(out / "card.json", text + "\n")
    write_text(out / "card.md", card_text(whole))
    return whole


def _checksum_line(checksum: str, name: str) -> str:
    """A line as `sha256sum` writes it: backslashes and line breaks in a name are escaped, and then the line begins with one."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{checksum}  {escaped}\n"


def files_of(pairs: Iterable[Pair]) -> set[Path]:
    """Every file that the pairs name. Raises ManifestError for an image in memory."""
    paths: set[Path] = set()
    for pair in pairs:
        for value in (pair.reference, pair.target, pair.mask):
            if value is not None:
                if not isinstance(value, str | Path):
                    raise ManifestError(f"pair {pair.id!r}: holds an image in memory; save it and give its path")
                paths.add(image_file(value))
    return paths


def card_text(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    return "\n".join([*_head(card), *_category_table(card), *_box_lines(card["boxes"]), *_source_lines(card), ""])


def _counts(pairs: Sequence[Pair]) -> dict[str, int]:
    normal = sum(pair.anomalous is False for pair in pairs)
    only_masks = [pair for pair in pairs if pair.boxes is None and pair.mask is not None]
    targets = len({str(pair.target) for pair in pairs})
    return {
        "pairs": len(pairs),
        "anomalous": sum(pair.anomalous is True for pair in pairs) + sum(pair.anomalous is None for pair in only_masks),
        "place_unknown": sum(map(is_place_unknown, pairs)),
        "normal": normal,
        "targets": targets,
        "boxes_left_to_masks": len(only_masks),
    }


def _box_sizes(pairs: Sequence[Pair], open_images: bool, progress: bool) -> dict[str, Any]:
    """Quantiles of the boxes' width and height in pixels and of their share of the target's area."""
    with_boxes = [pair for pair in pairs if pair.boxes is not None and len(pair.boxes)]
    boxes = (
        np.concatenate([pair.boxes for pair in with_boxes if pair.boxes is not None])
        if with_boxes
        else np.empty((0, 4))
    )
    result: dict[str, Any] = {"count": len(boxes)}
    if len(boxes):
        result["per_pair"] = _quantiles(np.array([len(pair.boxes) for pair in with_boxes if pair.boxes is not None]))
        result["width_px"] = _quantiles(boxes[:, 2] - boxes[:, 0])
        result["height_px"] = _quantiles(boxes[:, 3] - boxes[:, 1])
        if open_images:
            shares = np.concatenate(
                [_shares(pair) for pair in track(with_boxes, "measuring", len(with_boxes), shown=progress)]
            )
            result["area_share"] = _quantiles(shares, digits=5)
            names = [[name for name, begins in SIZES if share >= begins][-1] for share in shares]
            result["sizes"] = {name: names.count(name) for name, _ in SIZES}
    return result


def _shares(pair: Pair) -> NDArray[np.float64]:
    width, height = image_size(pair.target)
    return area(pair.boxes) / (width * height) if pair.boxes is not None else np.empty(0)


def _quantiles(values: NDArray[Any], digits: int = 1) -> dict[str, float]:
    quantiles = np.percentile(values, _QUANTILES)
    return {f"p{q}": round(float(value), digits) for q, value in zip(_QUANTILES, quantiles, strict=True)}


def _sources(pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    counts = Counter(str(pair.extra.get("source", "")) for pair in pairs)
    return {
        name: {
            "pairs": count,
            "title": SOURCES[name].title if name in SOURCES else "unknown",
            "licence": SOURCES[name].licence if name in SOURCES else "unknown; the pairs name no known source",
            "url": SOURCES[name].url if name in SOURCES else "",
        }
        for name, count in sorted(counts.items())
    }


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _head(card: Mapping[str, Any]) -> list[str]:
    lines = [f"# {_escape(card['title'])}", ""]
    lines.append(
        f"{card['pairs']} pairs: {card['anomalous']} anomalous, {card['normal']} normal; {card['targets']} different targets."
    )
    if card["boxes_left_to_masks"]:
        lines.append(f"The boxes of {card['boxes_left_to_masks']} pairs are left to their masks.")
    if card["place_unknown"]:
        lines.append(f"{card['place_unknown']} anomalous of unknown place.")
    lines += [f"\n{_escape(note)}" for note in card.get("notes", [])]
    lines.append(f"\n`{card['manifest']['name']}`: sha256 `{card['manifest']['sha256']}`")
    if "files" in card:
        lines.append(f"\nChecksums of {card['files']['count']} files: `{card['files']['checksums']}`")
    return lines


def _category_table(card: Mapping[str, Any]) -> list[str]:
    lines = ["\n## Categories\n", "| category | group | pairs | anomalous | normal |", "|---|---|---|---|---|"]
    for name, entry in card["categories"].items():
        group = entry["group"] or ""
        lines.append(
            f"| {_cell(name)} | {_cell(group)} | {entry['pairs']} | {entry['anomalous']} | {entry['normal']} |"
        )
    return lines


def _box_lines(boxes: Mapping[str, Any]) -> list[str]:
    lines = ["\n## Boxes\n", f"{boxes['count']} boxes."]
    rows = {"per_pair": "per pair", "width_px": "width, pixels", "height_px": "height, pixels"}
    rows["area_share"] = "share of the target's area"
    present = {key: title for key, title in rows.items() if key in boxes}
    if present:
        lines += ["\n| | least | quarter | median | three quarters | most |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {title} | {' | '.join(f'{v:g}' for v in boxes[key].values())} |" for key, title in present.items()
        ]
    if "sizes" in boxes:
        lines.append("\n" + ", ".join(f"{count} {name}" for name, count in boxes["sizes"].items()))
        lines.append("(small under 1 %, large from 10 % of the target's area).")
    return lines


def _source_lines(card: Mapping[str, Any]) -> list[str]:
    lines = [
        "\n## Sources and terms\n",
        "| source | pairs | what | licence or terms | where |",
        "|---|---|---|---|---|",
    ]
    for name, entry in card["sources"].items():
        lines.append(f"| {_cell(name)} | {entry['pairs']} | {entry['title']} | {entry['licence']} | {entry['url']} |")
    return lines


def _cell(text: str) -> str:
    return _escape(text).replace("|", "\\|")


def _escape(text: str) -> str:
    """Untrusted text as one line of Markdown, escaped so that it is neither HTML nor a link."""
    return html.escape(" ".join(text.splitlines()), quote=False).replace("[", "\\[")
