"""DAGM 2007: ten synthetic textures, one weakly labelled elliptic defect in each defective image.

Two versions exist. Later one: `ClassN/{Train,Test}/NNNN.PNG` with `Label/NNNN_label.PNG` and `Label/Labels.txt`, lines
`id, 0 or 1, image, 0, mask or 0`. Competition version: `ClassN/N.png` without defects and `ClassN_def/N.png` with
`labels.txt`: `number, semi-major axis, semi-minor axis, rotation (radians), x, y` of an ellipse.
Sources: https://conferences.mpi-inf.mpg.de/dagm/2007/prizes.html, https://zenodo.org/records/12750201.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from differad.boxes import Boxes, as_boxes, clip, is_degenerate, no_boxes
from differad.data.sources.inventory import Inventory
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    list_folder,
    list_if_present,
    missing_mask_message,
    parse_numbers,
    read_lines,
    read_text,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import ManifestError

SIDE = 512  # every image is 512 x 512, and some ellipses extend past its edge


def read_dagm(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """DAGM 2007 in either version, detected class by class. Raises ManifestError."""
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    names = [name for name in listing.folders if name.startswith("Class") and not name.endswith("_def")]
    if not names:
        raise ManifestError(f"{root}: no folder Class1; DAGM 2007 keeps each texture in ClassN")
    classes = [_unnested(list_folder(root / name, inventory), inventory) for name in names]
    for name, folder in zip(names, classes, strict=True):
        if "Train" not in folder.folders and f"{name}_def" not in listing.folders:
            raise ManifestError(
                f"{folder.path}: no folder Train and no {name}_def beside it; one of them holds defects"
            )
    samples = (sample for folder in classes for sample in _class_samples(folder, inventory))
    return inventory.complete(samples, root, ignored=("*/[Ll]abels.txt",))


def ellipse_box(major: float, minor: float, angle: float, x: float, y: float) -> Boxes:
    """The (1, 4) box around an ellipse of semi-axes `major`, `minor` (pixels), rotated by `angle` (radians)."""
    half_width = np.hypot(major * np.cos(angle), minor * np.sin(angle))
    half_height = np.hypot(major * np.sin(angle), minor * np.cos(angle))
    return as_boxes([x - half_width, y - half_height, x + half_width, y + half_height])


def _unnested(folder: Listing, problems: Problems) -> Listing:
    """The inner folder of Class1/Class1, which some archives unpack to."""
    name = folder.path.name
    if "Train" not in folder.folders and name in folder.folders:
        return list_folder(folder.path / name, problems)
    return folder


def _class_samples(folder: Listing, problems: Problems) -> Iterator[Sample]:
    if "Train" in folder.folders:
        for split in ("Train", "Test"):
            yield from _masked_samples(list_if_present(folder, split, problems), split.lower(), problems)
        return
    name = folder.path.name
    yield from (Sample(folder.path / file, name, True) for file in folder.images)
    yield from _ellipse_samples(list_folder(folder.path.parent / f"{name}_def", problems), name, problems)


def _masked_samples(folder: Listing, split: str, problems: Problems) -> Iterator[Sample]:
    label = list_if_present(folder, "Label", problems)
    flags = _flags(label, problems)
    name = folder.path.parent.name
    for file in sorted(set(flags) - folder.file_names):
        problems(f"{label.path / 'Labels.txt'}: names {file}, which is not in {folder.path}; unpack the data set again")
    for file in folder.images:
        mask = label.find(f"{stem(file)}_label.PNG", f"{stem(file)}_label.png")
        if mask is not None and flags.get(file, True):
            yield Sample(folder.path / file, name, False, (mask,), defect_type="defect", split=split)
        elif mask is not None:
            problems(f"{folder.path / file}: has a mask and is good in Labels.txt; correct one of them")
            problems(f"{mask}: belongs to {file}, which is good in Labels.txt; correct one of them")
        elif flags.get(file):
            problems(missing_mask_message(folder.path / file, label.path / f"{stem(file)}_label.PNG"))
        else:
            yield Sample(folder.path / file, name, True, split=split)


def _flags(label: Listing, problems: Problems) -> dict[str, bool]:
    """Whether Labels.txt calls an image defective, by file name; empty without that file: then only masks say so."""
    path = label.find("Labels.txt", "labels.txt")
    lines = (try_or_report(problems, read_lines, path) or []) if path else []
    fields = [line.split() for _, line in lines]
    return {columns[2]: columns[1] == "1" for columns in fields if len(columns) >= 3}


def _ellipse_samples(folder: Listing, name: str, problems: Problems) -> Iterator[Sample]:
    boxes = _ellipses(folder)
    for number in sorted(set(boxes) - {stem(file) for file in folder.images}):
        problems(f"{folder.path / 'labels.txt'}: image {number} is not in {folder.path}; unpack the data set again")
    for file in folder.images:
        if stem(file) in boxes:
            yield Sample(folder.path / file, name, False, boxes=boxes[stem(file)], defect_type="defect")
        else:
            problems(f"{folder.path / file}: no line in labels.txt; a defective part needs its ellipse (--skip-bad)")


def _ellipses(folder: Listing) -> dict[str, Boxes]:
    """Box of each ellipse by the image's number. Raises ManifestError."""
    path = folder.path / "labels.txt"
    # A label is six values, on one line or with the image's number on a separate line.
    fields = read_text(path).split()
    if len(fields) % 6:
        raise ManifestError(f"{path}: {len(fields)} values; expected six per image: number, axes, angle, x, y")
    boxes: dict[str, Boxes] = {}
    for start in range(0, len(fields), 6):
        number, *values = fields[start : start + 6]
        where = f"{path}: image {number}"
        major, minor, angle, x, y = parse_numbers(values, where)
        box = clip(ellipse_box(major, minor, angle, x, y), SIDE, SIDE)
        if is_degenerate(box).any():
            raise ManifestError(f"{where}: its ellipse is outside of {SIDE}x{SIDE} pixels; correct the labels")
        # An image may occur twice, with one defect each time.
        boxes[stem(number)] = np.concatenate([boxes.get(stem(number), no_boxes()), box])
    return boxes
