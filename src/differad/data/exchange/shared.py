"""What the exchanges share: what is written for a pair, what comes back for it, and the checks of both.

Boxes are pixels of the target with its EXIF orientation applied, x1, y1, x2, y2, x2 and y2 exclusive. Every format here
measures from the image's upper left corner in continuous coordinates, so nothing is shifted by half a pixel.
No path that a foreign file names is ever opened: names only find pairs of the manifest.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, as_boxes, clip, is_degenerate, no_boxes, order_corners, to_list
from differad.core import Pair
from differad.data.manifest import Record, parse_line
from differad.errors import InputError, ManifestError
from differad.images import image_size

Scores = NDArray[np.float64]
# Width and height in pixels, as far as a file tells them.
Size = tuple[float | None, float | None]
Predictions = Mapping[str, tuple[Boxes, Scores]]

# The one class: differad says where a part is abnormal, not in which way.
LABEL = "defect"
# Where Label Studio serves local files: https://labelstud.io/guide/storage.
URL_PREFIX = "/data/local-files/?d="
# What a manifest holds of a coordinate: `write_pairs` rounds to hundredths of a pixel.
DIGITS = 2
# Two formats' roundings apart: such boxes are the same box.
SAME = 0.02


@dataclass(frozen=True)
class ExportOptions:
    """How names are written: `root` is the folder that they are relative to."""

    root: Path
    copy: bool = False
    url_prefix: str = URL_PREFIX


@dataclass(frozen=True, eq=False)
class Item:
    """A pair with what an export needs of it: its target's size in pixels, its boxes inside of that.

    `boxes` (N, 4) is the truth, None where nobody has labelled the pair; `predicted` (M, 4) is None where there is no
    prediction; `scores` is (M,) or (0,).
    """

    pair: Pair
    width: int
    height: int
    boxes: Boxes | None
    predicted: Boxes | None
    scores: Scores

    def score(self, number: int) -> float | None:
        """The score of one predicted box, None where the prediction gives none."""
        return float(self.scores[number]) if len(self.scores) else None


def prepare(pairs: Sequence[Pair], predictions: Predictions) -> tuple[list[Item], int]:
    """Measure the targets and cut boxes off at their edges; return the items and how many boxes were cut.

    A predicted box that lies wholly outside is left out. Raises ImageError, and ManifestError on such a true box.
    """
    items, cut = [], 0
    for pair in pairs:
        width, height = image_size(image_path(pair, "target"))
        boxes = None
        if pair.boxes is not None:
            boxes = inside(pair.boxes, width, height, f"pair {pair.id!r}")
            cut += _count_moved(boxes, pair.boxes)
        predicted, scores = None, np.empty(0)
        if pair.id in predictions:
            raw, scores = predictions[pair.id]
            ordered = order_corners(raw)
            predicted = clip(ordered, width, height)
            cut += _count_moved(predicted, ordered)
            has_area = np.logical_not(is_degenerate(predicted))
            predicted, scores = predicted[has_area], scores[has_area] if len(scores) else scores
        items.append(Item(pair, width, height, boxes, predicted, scores))
    return items, cut


def image_path(pair: Pair, field: str) -> Path:
    """The path of a pair's `target` or `reference`. Raises ManifestError for an image in memory."""
    value = getattr(pair, field)
    if not isinstance(value, str | Path):
        raise ManifestError(f"pair {pair.id!r}: {field} is an image in memory; save it and give its path")
    return Path(value)


def name_below(root: Path, pair: Pair, field: str) -> str:
    """The path of a pair's image relative to `root`, with slashes. Raises ManifestError where it lies outside."""
    path = _absolute(image_path(pair, field))
    top = _absolute(root)
    if not path.is_relative_to(top):
        common = os.path.commonpath([path.parent, top])
        raise ManifestError(f"pair {pair.id!r}: {field} {path} lies outside {top}; --root {common} would hold it")
    name = path.relative_to(top).as_posix()
    # Half surrogates are how Python shows bytes that are no UTF-8.
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 or letter in "\ufffe\uffff" for letter in name):
        raise ManifestError(f"pair {pair.id!r}: {field} {name!r} holds a character that cannot be written; rename it")
    return name


def inside(boxes: Boxes, width: int, height: int, place: str) -> Boxes:
    """Boxes cut off at an image of `width` x `height` pixels. Raises ManifestError where nothing of one remains."""
    kept = clip(boxes, width, height)
    for box, bad in zip(to_list(boxes, 4), is_degenerate(np.round(kept, DIGITS)).tolist(), strict=True):
        if bad:
            raise ManifestError(
                f"{place}: box {box} (x1, y1, x2, y2) has no area inside the {width}x{height} target; "
                "expected x1 < x2 and y1 < y2 in pixels of the target"
            )
    return kept


def same_boxes(a: Boxes | None, b: Boxes | None) -> bool:
    """Whether two sets hold the same boxes in any order, up to rounding; None equals only None."""
    if a is None or b is None:
        return a is b
    near = np.all(np.abs(a[:, None] - b) <= SAME, axis=-1)
    return len(a) == len(b) and bool(np.any(near, axis=1).all() and np.any(near, axis=0).all())


def turned(box: Sequence[float], degrees: float, pivot: tuple[float, float]) -> list[float]:
    """The upright box around one (x1, y1, x2, y2) that was turned clockwise about `pivot`, in pixels."""
    if degrees % 360 == 0:
        return list(box)
    angle = math.radians(degrees)
    corners = np.array([(x, y) for x in box[::2] for y in box[1::2]]) - pivot
    # With y pointing down this matrix turns clockwise.
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = corners @ matrix.T + pivot
    return [*moved.min(axis=0).tolist(), *moved.max(axis=0).tolist()]


class Corrections:
    """Gathers what a tool's file says of the pairs of a manifest, and checks it pair by pair.

    `boxes` maps an id to its corrected boxes; None says that the tool showed the image and holds no box, but cannot
    tell whether anybody looked. With `skip_bad`, what is wrong is listed in `problems` and the pair stays as it was.
    """

    def __init__(self, pairs: Iterable[Pair], root: Path, *, skip_bad: bool = False) -> None:
        self.boxes: dict[str, Boxes | None] = {}
        self.problems: list[str] = []
        self.cut = 0
        self._skip_bad = skip_bad
        self._root = root
        self._pairs = {pair.id: pair for pair in pairs}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._targets: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for pair in self._pairs.values():
            path = _absolute(image_path(pair, "target"))
            self._targets[path.name][path.as_posix()].append(pair.id)

    @property
    def ids(self) -> list[str]:
        """The ids of the manifest."""
        return list(self._pairs)

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Around one entry of a file: what is wrong with it ends the import, or is listed."""
        try:
            yield
        except InputError as error:
            if not self._skip_bad:
                raise ManifestError(f"{error}; --skip-bad leaves it out") from None
            self.problems.append(str(error))

    def ids_named(self, place: str, name: str) -> list[str]:
        """Ids of the pairs whose target a tool calls `name`: relative to the root, else by the end of the path.

        Raises ManifestError for a name that fits no target, or several.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        candidates = self._targets.get(parts[-1], {}) if parts and ".." not in parts else {}
        exact = _absolute(self._root / name).as_posix()
        end = "/" + "/".join(part for part in parts if part != "/")
        found = [exact] if exact in candidates else [path for path in candidates if path.endswith(end)]
        if not found:
            raise ManifestError(f"{place}: image {name!r} is the target of no pair; expected an image of the manifest")
        if len(found) > 1:
            raise ManifestError(f"{place}: image {name!r} fits {found[0]} and {found[1]}; tell the folder with --root")
        return candidates[found[0]]

    def size(self, place: str, pair_id: str) -> tuple[int, int]:
        """(width, height) of a pair's target in pixels. Raises ManifestError for an unknown id, ImageError."""
        if pair_id not in self._pairs:
            raise ManifestError(f"{place}: id {pair_id!r} is not in the manifest; expected an id of its pairs")
        if pair_id not in self._sizes:
            self._sizes[pair_id] = image_size(image_path(self._pairs[pair_id], "target"))
        return self._sizes[pair_id]

    def check_size(self, place: str, pair_id: str, size: Size) -> None:
        """Raise ManifestError where a file tells another size for an image than its own: it was turned or resized."""
        actual = self.size(place, pair_id)
        for said, true in zip(size, actual, strict=True):
            if said is not None and said != true:
                raise ManifestError(
                    f"{place}: id {pair_id!r}: a side of {said:g} pixels, but its target is {actual[0]}x{actual[1]}; "
                    "expected annotations of the image as it is, upright and not resized"
                )

    def add(
        self,
        place: str,
        pair_id: str,
        boxes: Sequence[Sequence[float]] | None,
        size: Size = (None, None),
    ) -> None:
        """Take over what the file says of one pair; `size` is the image's in pixels, where the file tells.

        Raises ManifestError for an unknown id, one that stands twice, another size, or a box without area in the image.
        """
        actual = self.size(place, pair_id)
        if pair_id in self.boxes:
            raise ManifestError(f"{place}: id {pair_id!r} stands twice; expected one entry a pair")
        self.check_size(place, pair_id, size)
        if boxes is None:
            self.boxes[pair_id] = None
            return
        given = as_boxes(boxes)
        kept = inside(given, *actual, f"{place}: id {pair_id!r}")
        self.cut += _count_moved(kept, given)
        self.boxes[pair_id] = np.round(kept, DIGITS)


@dataclass(frozen=True)
class Merged:
    """The pairs of a manifest with their corrections, and how many were changed, confirmed, or left as they were."""

    pairs: list[Pair]
    corrected: int
    confirmed: int
    kept: int


def merge(pairs: Iterable[Pair], corrections: Corrections, *, empty_is_normal: bool = False) -> Merged:
    """Put corrections into pairs; those without one keep their truth.

    An image that comes back without boxes is normal if its pair was labelled (its boxes were removed) or if
    `empty_is_normal`; an unlabelled pair stays unlabelled. A mask that the new boxes contradict is dropped.
    """
    merged, counts = [], {"corrected": 0, "confirmed": 0, "kept": 0}
    for pair in pairs:
        boxes = corrections.boxes.get(pair.id)
        if pair.id in corrections.boxes and boxes is None and (pair.boxes is not None or empty_is_normal):
            boxes = no_boxes()
        if boxes is None:
            outcome = "kept"
        elif same_boxes(boxes, pair.boxes):
            outcome = "confirmed"
        else:
            outcome = "corrected"
            pair = replace(pair, boxes=boxes, mask=None)
        counts[outcome] += 1
        merged.append(pair)
    return Merged(merged, **counts)


def load_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]], expected: str) -> Any:
    """The JSON document of a file, a `kind`. Raises ManifestError saying what was `expected`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; expected {expected}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); expected {expected}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: no JSON, or cut off ({error}); expected {expected}") from None
    if not isinstance(document, kind):
        raise ManifestError(f"{path}: holds a {type(document).__name__}; expected {expected}")
    return document


def write_json(path: Path, document: Any) -> None:
    """One JSON document as a file."""
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def parse_entry(kind: type[Record], value: Any, place: str) -> Record:
    """One entry of a document as a `kind`. Raises ManifestError naming `place`, the field and its value."""
    return parse_line(kind, json.dumps(value), place)


def finite(text: str | None, place: str, field: str) -> float:
    """A number in a text file. Raises ManifestError for what is none, NaN and infinity."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ManifestError(f"{place}: {field}: {text!r}; expected a finite number")
    return value


def _count_moved(kept: Boxes, given: Boxes) -> int:
    """How many boxes reached over the edge by more than a format's rounding."""
    return int(np.count_nonzero(np.abs(kept - given).max(axis=-1, initial=0.0) > SAME))


def _absolute(path: Path) -> Path:
    # Not `resolve`: a link stands for a name in the data set, not for where its bytes lie.
    return Path(os.path.normpath(Path.cwd() / path))
