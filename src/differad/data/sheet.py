"""A contact sheet: one HTML file without external files, with a few pairs of each category and their boxes.

Names come from untrusted files and labels, so the template escapes everything.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from differad.boxes import Boxes
from differad.core import Pair
from differad.data.build import is_place_unknown
from differad.data.masks import boxes_from_mask, read_mask
from differad.drawing import jpeg_data_url, thumbnail
from differad.errors import ImageError
from differad.files import write_text
from differad.images import image_size, read_images
from differad.progress import track

THUMBNAIL_SIDE = 200
PAIRS_PER_CATEGORY = 4
NO_GROUP = ""


def write_sheet(
    path: str | Path,
    pairs: Sequence[Pair],
    title: str,
    *,
    shown: int = PAIRS_PER_CATEGORY,
    note: str = "",
    progress: bool = False,
) -> int:
    """Write the page with up to `shown` pairs of each category, by group; return how many pairs it shows.

    A pair whose images cannot be read is shown with the error message.
    """
    from jinja2 import Environment, PackageLoader  # imported on use: it would slow down the start of other commands

    chosen = {name: pick(members, shown) for name, members in _by_category(pairs).items()}
    count = sum(map(len, chosen.values()))
    order = [pair for members in chosen.values() for pair in members]
    cards = iter([_card(pair) for pair in track(order, "contact sheet", count, shown=progress)])
    groups: dict[str, list[dict[str, Any]]] = {}
    totals = _by_category(pairs)
    for name, members in chosen.items():
        category = {
            "name": name or "(no category)",
            "pairs": len(totals[name]),
            "cards": [next(cards) for _ in members],
        }
        groups.setdefault(members[0].group or NO_GROUP, []).append(category)
    environment = Environment(
        loader=PackageLoader("differad.data"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("sheet.html.j2").render(title=title, note=note, pairs=len(pairs), groups=groups)
    write_text(Path(path), page)
    return count


def pick(pairs: Sequence[Pair], shown: int) -> list[Pair]:
    """Up to `shown` pairs spread evenly over the anomalous ones; the last one is normal if there is a normal pair."""
    defective = [pair for pair in pairs if pair.anomalous is not False]
    normal = [pair for pair in pairs if pair.anomalous is False]
    last = normal[:1] if shown > 1 or not defective else []
    wanted = min(shown - len(last), len(defective))
    indices = np.linspace(0, max(0, len(defective) - 1), wanted).round().astype(int)
    return [defective[index] for index in indices] + last


def _by_category(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    by_category: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_category.setdefault(pair.category, []).append(pair)
    return by_category


def _card(pair: Pair) -> dict[str, Any]:
    kind = str(pair.extra.get("kind", ""))
    card: dict[str, Any] = {"id": pair.id, "kind": kind, "images": [], "problem": "", "boxes": 0, "known": True}
    card["place_unknown"] = is_place_unknown(pair)
    try:
        boxes = _boxes(pair)
        reference, target = read_images(pair.reference, pair.target)
    except ImageError as error:
        return {**card, "problem": str(error)}
    images = [thumbnail(reference, THUMBNAIL_SIDE), thumbnail(target, THUMBNAIL_SIDE, truth=boxes)]
    return {
        **card,
        "images": [jpeg_data_url(image) for image in images],
        "boxes": 0 if boxes is None else len(boxes),
        "known": boxes is not None,
    }


def _boxes(pair: Pair) -> Boxes | None:
    """The true boxes, from the mask if the pair has only a mask. Raises ImageError."""
    if pair.boxes is None and pair.mask is not None:
        return boxes_from_mask(read_mask(pair.mask, image_size(pair.target)))
    return pair.boxes
