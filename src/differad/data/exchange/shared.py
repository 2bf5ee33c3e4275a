"""Shared by all annotation formats: the data of a pair to export, the labels that are imported for it, and their checks.

Boxes are pixels of the target with its EXIF orientation applied, x1, y1, x2, y2, x2 and y2 exclusive. All formats
measure from the image's upper left corner in continuous coordinates, so nothing is shifted by half a pixel.
Paths in imported files are never opened; they are only matched with the manifest's pairs.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, clip, is_degenerate, no_boxes, order_corners
from differad.core import Pair
from differad.data.label_files import DIGITS, SAME_BOX_TOLERANCE, Size, check_size, clip_to_image, count_clipped
from differad.data.manifest import read_pairs
from differad.data.shapes import Mask, Region, boxes_of
from differad.errors import InputError, ManifestError
from differad.files import write_errors
from differad.images import image_size

Scores = NDArray[np.float64]
Predictions = Mapping[str, tuple[Boxes, Scores]]
Value = TypeVar("Value")

# The only class: differad says where a part is abnormal, not which type of defect it is.
LABEL = "defect"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
# URL prefix of local files served by Label Studio: https://labelstud.io/guide/storage.
URL_PREFIX = "/data/local-files/?d="


@dataclass(frozen=True)
class ExportOptions:
    """How images are named and stored: paths are relative to `root`; `copy` copies files instead of linking them."""

    root: Path
    copy: bool = False
    url_prefix: str = URL_PREFIX


@dataclass(frozen=True, eq=False)
class Item:
    """A pair to export, with its target's size in pixels and its boxes clipped to it.

    `boxes` (N, 4) are the true boxes; None if the pair is unlabelled or abnormal at an unknown place (`place_unknown`).
    `predicted` (M, 4) is None without a prediction; `scores` is (M,) or (0,).
    """

    pair: Pair
    width: int
    height: int
    boxes: Boxes | None
    predicted: Boxes | None
    scores: Scores

    @property
    def place_unknown(self) -> bool:
        """Whether the target is known to be abnormal, but not where."""
        return self.boxes is None and self.pair.anomalous is True

    def score(self, number: int) -> float | None:
        """The score of one predicted box, None if the prediction has no scores."""
        return float(self.scores[number]) if len(self.scores) else None


class Items:
    """The items of a manifest in its order, read lazily; `counts` covers those read so far.

    True and predicted boxes are clipped to the target. A predicted box that is completely outside is left out.
    Raises ManifestError, also for a true box outside, and ImageError.
    """

    def __init__(self, manifest: Path, predictions: Predictions) -> None:
        self._manifest = manifest
        self._predictions = predictions
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Item]:
        self.counts = Counter()
        for pair in read_pairs(self._manifest):
            item = self._item(pair)
            self.counts["pairs"] += 1
            self.counts["unlabelled"] += pair.anomalous is None
            self.counts["place_unknown"] += item.place_unknown
            self.counts["boxes"] += 0 if item.boxes is None else len(item.boxes)
            self.counts["predictions"] += item.predicted is not None
            yield item

    def _item(self, pair: Pair) -> Item:
        width, height = image_size(image_path(pair, "target"))
        boxes = None
        if pair.boxes is not None:
            boxes, clipped = clip_to_image(pair.boxes, width, height, f"pair {pair.id!r}")
            self.counts["cut_boxes"] += clipped
        predicted, scores = None, np.empty(0)
        if pair.id in self._predictions:
            raw, scores = self._predictions[pair.id]
            ordered = order_corners(raw)
            predicted = clip(ordered, width, height)
            self.counts["cut_boxes"] += count_clipped(predicted, ordered)
            has_area = np.logical_not(is_degenerate(predicted))
            predicted, scores = predicted[has_area], scores[has_area] if len(scores) else scores
        return Item(pair, width, height, boxes, predicted, scores)


def file_name(pair_id: str) -> str:
    """The name, without ending, of a pair's files: readable, safe on every file system, and unique for every id."""
    hash_digits = hashlib.sha256(pair_id.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    readable = _UNSAFE.sub("_", pair_id)[:60].strip("._-")
    return f"{readable}-{hash_digits}" if readable else hash_digits


def image_path(pair: Pair, field: str) -> Path:
    """The path of a pair's `target` or `reference`. Raises ManifestError for an image in memory."""
    value = getattr(pair, field)
    if not isinstance(value, str | Path):
        raise ManifestError(f"pair {pair.id!r}: {field} is an image in memory; save it and give its path")
    return Path(value)


def name_below(root: Path, pair: Pair, field: str) -> str:
    """The path of a pair's image relative to `root`, with slashes. Raises ManifestError if it is outside."""
    path = _absolute(image_path(pair, field))
    top = _absolute(root)
    if not path.is_relative_to(top):
        common = os.path.commonpath([path.parent, top])
        raise ManifestError(f"pair {pair.id!r}: {field} {path} is outside {top}; --root {common} contains it")
    name = path.relative_to(top).as_posix()
    # Python represents bytes that are not UTF-8 as lone surrogates.
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 or letter in "\ufffe\uffff" for letter in name):
        raise ManifestError(f"pair {pair.id!r}: {field} {name!r} holds a character that cannot be written; rename it")
    return name


def same_boxes(a: Boxes | None, b: Boxes | None) -> bool:
    """Whether two sets hold the same boxes in any order, up to rounding; None only equals None."""
    if a is None or b is None:
        return a is b
    near = np.all(np.abs(a[:, None] - b) <= SAME_BOX_TOLERANCE, axis=-1)
    return len(a) == len(b) and bool(np.any(near, axis=1).all() and np.any(near, axis=0).all())


@dataclass(frozen=True, eq=False)
class Label:
    """A tool's label of one pair.

    `boxes` is (N, 4); None if the tool has no box and does not say whether the image was reviewed. `anomalous` is an
    explicit tag or choice: True without boxes means abnormal at an unknown place. `is_blank`: the file itself calls the
    image unlabelled, so that missing boxes were not removed by an annotator. `regions` are the shapes of the boxes.
    """

    boxes: Boxes | None
    anomalous: bool | None = None
    is_blank: bool = False
    regions: tuple[Region, ...] = ()


class Corrections:
    """Collects the labels of a manifest's pairs from a tool's file and checks each.

    `labels` maps an id to its label. With `skip_bad`, invalid entries are listed in `problems` and their pairs are
    unchanged. `clipped` counts clipped boxes, `crowds` crowd regions, which are left out as they mark no single defect.
    """

    def __init__(self, pairs: Iterable[Pair], root: Path, *, skip_bad: bool = False) -> None:
        self.labels: dict[str, Label] = {}
        self.problems: list[str] = []
        self.clipped = 0
        self.crowds = 0
        self._skip_bad = skip_bad
        self._disputed: set[str] = set()
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

    @property
    def unlabelled(self) -> set[str]:
        """Ids of the unlabelled pairs of the manifest."""
        return {pair.id for pair in self._pairs.values() if pair.anomalous is None}

    @contextmanager
    def entry(self) -> Iterator[None]:
        """Wrap one entry of a file: an error of the entry is passed to `report`."""
        try:
            yield
        except InputError as error:
            self.report(str(error))

    def report(self, problem: str) -> None:
        """List a problem of an entry with `skip_bad`; otherwise raise it as ManifestError."""
        if not self._skip_bad:
            raise ManifestError(f"{problem}; --skip-bad leaves it out") from None
        self.problems.append(problem)

    def ids_named(self, where: str, name: str) -> list[str]:
        """Ids of the pairs whose target has the path `name`, relative to the root, else as the end of its path.

        Raises ManifestError for a name that fits no target, or several.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        candidates = self._targets.get(parts[-1], {}) if parts and ".." not in parts else {}
        exact = _absolute(self._root.joinpath(*parts)).as_posix()
        end = "/" + "/".join(part for part in parts if part != "/")
        paths = [exact] if exact in candidates else [path for path in candidates if path.endswith(end)]
        if not paths:
            raise ManifestError(f"{where}: image {name!r} is the target of no pair; expected an image of the manifest")
        if len(paths) > 1:
            raise ManifestError(f"{where}: image {name!r} fits {paths[0]} and {paths[1]}; give the folder with --root")
        return candidates[paths[0]]

    def size(self, where: str, pair_id: str) -> tuple[int, int]:
        """(width, height) of a pair's target in pixels. Raises ManifestError for an unknown id, ImageError."""
        if pair_id not in self._pairs:
            raise ManifestError(f"{where}: id {pair_id!r} is not in the manifest; expected an id of its pairs")
        if pair_id not in self._sizes:
            self._sizes[pair_id] = image_size(image_path(self._pairs[pair_id], "target"))
        return self._sizes[pair_id]

    def check_size(self, where: str, pair_id: str, size: Size) -> None:
        """Raise ManifestError if a file states another size than the target's: it was rotated or resized."""
        check_size(f"{where}: id {pair_id!r}", size, self.size(where, pair_id))

    def add(
        self,
        where: str,
        pair_id: str,
        regions: Sequence[Region] | None,
        size: Size = (None, None),
        *,
        anomalous: bool | None = None,
        is_blank: bool = False,
    ) -> None:
        """Add the label of one pair: the `regions` on its target, None if the file does not say whether it was reviewed.
        `size` is the image's in pixels as far as the file states it.

        Raises ManifestError for an unknown or repeated id, another size, a box without area in the image, or boxes on an
        image that the file calls normal.
        """
        actual = self.size(where, pair_id)
        if pair_id in self.labels or pair_id in self._disputed:
            # Either entry may be right, so with `skip_bad` the pair keeps its label.
            self.labels.pop(pair_id, None)
            self._disputed.add(pair_id)
            raise ManifestError(f"{where}: id {pair_id!r} occurs twice; expected one entry a pair")
        self.check_size(where, pair_id, size)
        if regions and anomalous is False:
            raise ManifestError(
                f"{where}: id {pair_id!r}: called normal, with {len(regions)} boxes; expected one or the other"
            )
        boxes = None
        if regions is not None:
            boxes, clipped = clip_to_image(boxes_of(regions), *actual, f"{where}: id {pair_id!r}")
            self.clipped += clipped
            boxes = np.round(boxes, DIGITS)
        self.labels[pair_id] = Label(boxes, anomalous, is_blank, tuple(regions or ()))

    def mask(self, pair_id: str) -> Mask | None:
        """The shapes on a pair's target as a mask (H, W); None if its boxes say the same. Raises ImageError."""
        label = self.labels.get(pair_id)
        if label is None or all(region.is_rectangle for region in label.regions):
            return None
        width, height = self.size("", pair_id)
        canvas = np.zeros((height, width), dtype=np.bool_)
        for region in label.regions:
            region.paint(canvas)
        return canvas


@dataclass(frozen=True)
class MergeResult:
    """The pairs of a manifest with their corrections, and how many were corrected, confirmed, or not mentioned."""

    pairs: list[Pair]
    corrected: int
    confirmed: int
    kept: int


def merge(pairs: Iterable[Pair], corrections: Corrections, *, empty_is_normal: bool = False) -> MergeResult:
    """Apply corrections to pairs; pairs without one keep their label.

    An image without boxes is normal if its pair was labelled (its boxes were removed) or if `empty_is_normal`; an
    unlabelled pair stays unlabelled, and a pair whose image the file calls unlabelled is unchanged. A pair that is abnormal
    at an unknown place stays so until there are boxes or the tool calls it normal: a missing box says nothing new. A mask
    that the new label contradicts is dropped.
    """
    merged, counts = [], {"corrected": 0, "confirmed": 0, "kept": 0}
    for pair in pairs:
        label_of_tool = corrections.labels.get(pair.id)
        label = None if label_of_tool is None else _resolved_label(pair, label_of_tool, empty_is_normal=empty_is_normal)
        if label is None:
            outcome = "kept"
        elif same_boxes(label.boxes, pair.boxes) and label.anomalous == pair.anomalous:
            outcome = "confirmed"
        else:
            outcome = "corrected"
            pair = replace(pair, boxes=label.boxes, anomalous=label.anomalous, mask=None)
        counts[outcome] += 1
        merged.append(pair)
    return MergeResult(merged, **counts)


def _resolved_label(pair: Pair, label: Label, *, empty_is_normal: bool) -> Label | None:
    """The new label of a pair after a tool's label, with consistent `boxes` and `anomalous`; None leaves it unchanged."""
    if label.boxes is not None and len(label.boxes):
        return Label(label.boxes, True)
    if label.anomalous:
        return Label(None, True)
    if label.anomalous is None:
        if pair.boxes is None and pair.anomalous:
            return None
        if label.boxes is None and (pair.boxes is None or label.is_blank) and not empty_is_normal:
            return None
    return Label(no_boxes(), False)


class Spool(Generic[Value]):
    """Stores JSON values on disk until everything that precedes them in an output file is written. Raises WriteError.

    They are in an unnamed temporary file in `folder`, which the system removes even after a kill.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        with write_errors(folder):
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the with block that this object is for

    def add(self, value: Value) -> int:
        """Append a value and return its offset for `at`."""
        with write_errors(self._folder):
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(value).encode("ascii") + b"\n")
        self._count += 1
        return offset

    def at(self, offset: int) -> Value:
        """The value that `add` stored at an offset."""
        self._file.seek(offset)
        return self._next()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Value]:
        self._file.seek(0)
        for _ in range(self._count):
            yield self._next()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it is not read any more
            self._file.close()

    def _next(self) -> Value:
        value: Value = json.loads(self._file.readline())
        return value


def json_text(value: Any) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def json_list(entries: Iterable[str]) -> Iterator[str]:
    """The text of a JSON list from entries that are JSON already, one per line."""
    before = "[\n"
    for entry in entries:
        yield before + entry
        before = ",\n"
    yield "[]" if before == "[\n" else "\n]"


def finite(text: str | None, where: str, field: str) -> float:
    """A number from a text file. Raises ManifestError for anything else, NaN and infinity."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ManifestError(f"{where}: {field}: {text!r}; expected a finite number")
    return value


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - not `resolve`: a link's own name belongs to the data set
