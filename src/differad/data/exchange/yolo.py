"""Ultralytics YOLO detection: `data.yaml`, `images/`, `labels/`, and the manifest beside them.

Layout: https://docs.ultralytics.com/datasets/detect/. A line of a label file is `class cx cy width height`, fractions of the
image's sides in [0, 1]. A normal target has an empty label file, which means background. A target that is unlabelled, or
abnormal at an unknown place, has no label file; its image is in `images/unlabelled`, which `data.yaml` leaves out, because
Ultralytics would train on it as background. `pairs.jsonl` distinguishes the two. Predictions are written like
`yolo predict save_txt save_conf` does, score last.

File names are made from ids only (`file_name`), since ids may contain slashes or differ by case only.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from differad.boxes import Boxes
from differad.core import Pair
from differad.data.exchange.shared import LABEL, Corrections, ExportOptions, Item, file_name, finite, image_path
from differad.data.manifest import numbered_lines, read_pairs, write_pairs
from differad.data.output_folder import OutputFolder
from differad.data.placing import copy_or_link
from differad.data.shapes import Region, polygon
from differad.errors import InputError, ManifestError
from differad.files import write_text
from differad.images import image_file

_DATA = f"""\
# Ultralytics YOLO detection data. Paths are relative to this file.
# Training and validation name the same images: split them before you trust a score.
train: images/labelled
val: images/labelled
names:
  0: {LABEL}
"""
_MAX_OVERSHOOT = 0.01
_FIELDS = ("class", "cx", "cy", "width", "height")


def write_yolo(folder: OutputFolder, items: Iterable[Item], options: ExportOptions) -> None:
    """Write the layout; images are linked, or copied with `options.copy`. Raises InputError, WriteError."""
    for name in ("images/labelled", "images/unlabelled", "labels/labelled"):
        folder.new_folder(name)
    write_text(folder.new_file("data.yaml"), _DATA)
    write_pairs(folder.new_file("pairs.jsonl"), _write_files(folder, items, options))


def _write_files(folder: OutputFolder, items: Iterable[Item], options: ExportOptions) -> Iterator[Pair]:
    """Write image and labels of each item; yield its pair."""
    for item in items:
        name = file_name(item.pair.id)
        target = image_path(item.pair, "target")
        split = "unlabelled" if item.boxes is None else "labelled"
        if image_file(target) != target:
            raise InputError(
                f"{target}: is one page of {image_file(target)}; a YOLO folder holds files, so save the page as its own image"
            )
        copy_or_link(target, folder.new_file(f"images/{split}/{name}{target.suffix}"), copy=options.copy)
        if item.boxes is not None:
            _write_labels(folder.new_file(f"labels/{split}/{name}.txt"), item, item.boxes)
        if item.predicted is not None:
            _write_labels(folder.new_file(f"predictions/labels/{name}.txt"), item, item.predicted, with_scores=True)
        yield item.pair


def _write_labels(path: Path, item: Item, boxes: Boxes, *, with_scores: bool = False) -> None:
    lines = []
    for rank, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        values = [(x1 + x2) / 2 / item.width, (y1 + y2) / 2 / item.height]
        values += [(x2 - x1) / item.width, (y2 - y1) / item.height]
        score = item.score(rank) if with_scores else None
        # Eight decimals: half a thousandth of a pixel in an image of 50,000.
        numbers = [f"{value:.8f}" for value in values] + ([] if score is None else [f"{score:.6f}"])
        lines.append(" ".join(["0", *numbers]) + "\n")
    write_text(path, "".join(lines), sync=False)  # the whole folder is synced at the end


def read_yolo(path: Path, corrections: Corrections) -> None:
    """Read the files below `labels/` of an exported folder (or of its `data.yaml`) into `corrections`.

    An empty file means normal, unless the pair was exported as abnormal at an unknown place, which an empty file does not
    revoke. A pair without a file is not mentioned. Every class counts as a defect, a polygon as the box around it. Raises
    ManifestError.
    """
    folder = path.parent if path.is_file() else path
    labels = folder / "labels"
    if not labels.is_dir():
        raise ManifestError(f"{labels}: no such folder; expected a YOLO folder, or its data.yaml, with labels/ in it")
    exported = list(read_pairs(folder / "pairs.jsonl")) if (folder / "pairs.jsonl").is_file() else []
    ids = {file_name(pair_id): pair_id for pair_id in [*corrections.ids, *(pair.id for pair in exported)]}
    place_unknown = {pair.id for pair in exported if pair.anomalous and pair.boxes is None}
    for file in sorted(labels.rglob("*.txt")):
        if file.name == "classes.txt":  # LabelImg puts its class names beside the labels
            continue
        with corrections.entry():
            if file.stem not in ids:
                raise ManifestError(f"{file}: is the name of no pair; expected names as differad export wrote them")
            pair_id = ids[file.stem]
            width, height = corrections.size(str(file), pair_id)
            regions = [_read_region(line, f"{file}:{number}", width, height) for number, line in numbered_lines(file)]
            corrections.add(str(file), pair_id, regions, anomalous=True if pair_id in place_unknown else None)
    for pair_id in sorted(place_unknown & corrections.unlabelled):
        if pair_id not in corrections.labels:
            corrections.add(str(folder), pair_id, None, anomalous=True)


def _read_region(line: str, where: str, width: int, height: int) -> Region:
    parts = line.split()
    is_polygon = len(parts) > len(_FIELDS) + 1 and len(parts) % 2 == 1
    if len(parts) != len(_FIELDS) and not is_polygon:
        raise ManifestError(
            f"{where}: {len(parts)} values; expected five: {' '.join(_FIELDS)}, or class and x, y of a polygon's points"
        )
    fields = [f"value {number}" for number in range(len(parts))] if is_polygon else _FIELDS
    _, *shares = (finite(text, where, field) for text, field in zip(parts, fields, strict=True))
    # Rounding extends a little past the edge, which Ultralytics allows too.
    if not all(-_MAX_OVERSHOOT <= share <= 1 + _MAX_OVERSHOOT for share in shares):
        raise ManifestError(
            f"{where}: {line.strip()!r}; expected parts of the image's sides between 0 and 1, not pixels"
        )
    if is_polygon:
        points = [[shares[at] * width, shares[at + 1] * height] for at in range(0, len(shares), 2)]
        return polygon([points], where)
    cx, cy, w, h = shares
    return Region(((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height))
