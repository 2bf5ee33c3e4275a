"""YOLO labels: `images/…` and `labels/…` with a line `class cx cy width height` (shares of the picture) per defect.

Layouts `images/SPLIT` + `labels/SPLIT`, `SPLIT/images` + `SPLIT/labels`, `images` + `labels`. A picture without a
label file, or with an empty one, is a good part. Names of classes come from `data.yaml`, read by a small tolerant
reader, since YAML is no dependency. Format: https://docs.ultralytics.com/datasets/detect/.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from differad.boxes import as_boxes, clip, is_degenerate, scale
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    attempt,
    folder_name,
    list_folder,
    list_if_there,
    numbers,
    read_lines,
    read_text,
    refuse,
    stem,
)
from differad.errors import ManifestError
from differad.images import image_size

_ENTRY = re.compile(r"""^(?:-\s*|(\d+)\s*:\s*)?["']?(.*?)["']?$""")


def read_yolo(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """YOLO detection or segmentation labels (polygons become their boxes). Opens the headers of defective pictures.

    Raises ManifestError.
    """
    listing = list_folder(root, problems)
    pairs = list(_folder_pairs(listing, problems))
    if not pairs:
        raise ManifestError(f"{root}: no folders images and labels; YOLO keeps pictures and their labels there")
    path = listing.find("data.yaml", "data.yml", "dataset.yaml")
    names = class_names(read_text(path)) if path else {}
    return (
        sample
        for images, labels, split in pairs
        for sample in _folder_samples(images, labels, split, folder_name(root), names, problems)
    )


def class_names(text: str) -> dict[int, str]:
    """The `names` of a data.yaml, as a list or by number, in one line or in several; empty where there is none."""
    match = re.search(r"^names\s*:[ \t]*(.*(?:\n(?:[ \t]+\S.*|-.*|\].*|\}.*|[ \t]*$))*)", text, re.MULTILINE)
    if match is None:
        return {}
    block = re.sub(r"#.*", "", match.group(1)).strip()
    entries = block.strip("[]{}").split(",") if block.startswith(("[", "{")) else block.splitlines()
    found: dict[int, str] = {}
    for entry in filter(None, (entry.strip() for entry in entries)):
        parsed = _ENTRY.match(entry)
        if parsed is not None:
            found[int(parsed.group(1) or len(found))] = parsed.group(2)
    return found


def _folder_pairs(listing: Listing, problems: Problems) -> Iterator[tuple[Listing, Listing, str]]:
    images = list_if_there(listing, "images", problems)
    labels = list_if_there(listing, "labels", problems)
    if "labels" in listing.folders:
        if any(images.images):
            yield images, labels, ""
        for split in images.folders:
            yield list_folder(images.path / split, problems), list_if_there(labels, split, problems), split
    for split in listing.folders:
        folder = list_folder(listing.path / split, problems)
        if {"images", "labels"} <= set(folder.folders):
            yield list_if_there(folder, "images", problems), list_if_there(folder, "labels", problems), split


def _folder_samples(
    images: Listing, labels: Listing, split: str, category: str, names: dict[int, str], problems: Problems
) -> Iterator[Sample]:
    for file in images.images:
        image = images.path / file
        path = labels.find(f"{stem(file)}.txt")
        sample = attempt(problems, _sample, image, path, category, split, names)
        if sample is not None:
            yield sample


def _sample(image: Path, path: Path | None, category: str, split: str, names: dict[int, str]) -> Sample:
    rows = [_label(line, f"{path}:{number}") for number, line in read_lines(path)] if path else []
    if not rows:
        return Sample(image, category, True, split=split)
    width, height = image_size(image)
    boxes = clip(scale(as_boxes([box for _, box in rows]), width, height), width, height)
    if is_degenerate(boxes).any():
        raise ManifestError(f"{path}: a box without area inside the picture; mend the labels")
    kinds = dict.fromkeys(names.get(kind, str(kind)) for kind, _ in rows)
    return Sample(image, category, False, boxes=boxes, kind="+".join(kinds), split=split)


def _label(line: str, place: str) -> tuple[int, list[float]]:
    """Class and box, as shares of the picture. Raises ManifestError."""
    kind, *values = numbers(line.split(), place)
    if len(values) == 4:
        cx, cy, width, height = values
        box = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
    elif len(values) >= 6 and len(values) % 2 == 0:
        box = [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    else:
        raise ManifestError(f"{place}: {line.strip()!r}; expected class cx cy width height, or class and a polygon")
    # Rounding and rotated labels overshoot the edge a little, as YOLO's own trainer allows; boxes are cut off there.
    if not all(-0.01 <= value <= 1.01 for value in values):
        raise ManifestError(f"{place}: {line.strip()!r}; expected shares of the picture between 0 and 1, not pixels")
    return int(kind), box
