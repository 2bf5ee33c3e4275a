"""YOLO labels: `images/…` and `labels/…` with a line `class cx cy width height` (fractions of the image) per defect.

Layouts `images/SPLIT` + `labels/SPLIT`, `SPLIT/images` + `SPLIT/labels`, `images` + `labels`, at any depth: an image and its
label have the same relative path. An image without a label file, or with an empty one, is normal; a label file without its
image is an error. Corners of polygons and of oriented boxes (8 values) become the box around them. Fractions refer to the
upright image, EXIF orientation applied, as Ultralytics reads it. Class names come from `data.yaml`, read by a small
tolerant parser, since a YAML library is no dependency. Formats:
https://docs.ultralytics.com/datasets/detect/, …/segment/, …/obb/.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from differad.boxes import as_boxes, clip, is_degenerate, scale
from differad.data.sources.inventory import Inventory, report_all
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    folder_name,
    list_folder,
    parse_numbers,
    read_lines,
    read_text,
    refuse,
    try_or_report,
    walk,
)
from differad.errors import ManifestError
from differad.images import image_size

# Files that annotation tools and trainers put beside labels.
_NO_LABELS = frozenset({"classes.txt", "notes.txt", "predefined_classes.txt"})
_IGNORED = ("*.cache", *(f"*/{name}" for name in sorted(_NO_LABELS)))
# A label may extend past the image's edge by this share of its side.
_MAX_OVERSHOOT = 0.01
_Fractions = tuple[float, float, float, float]
_ENTRY = re.compile(r"""^(?:-\s*|(\d+)\s*:\s*)?["']?(.*?)["']?$""")


def read_yolo(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """YOLO labels of detection, segmentation or oriented boxes. Opens the headers of defective images.

    Raises ManifestError.
    """
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    bases = list(_bases(listing, inventory))
    if not bases:
        raise ManifestError(f"{root}: no folders images and labels; YOLO keeps images and their labels there")
    path = listing.find("data.yaml", "data.yml", "dataset.yaml")
    names = class_names(read_text(path)) if path else {}
    return inventory.complete(_samples(root, _match(bases, inventory), names, inventory), root, ignored=_IGNORED)


def class_names(text: str) -> dict[int, str]:
    """The `names` of a data.yaml, as a list or by number, on one line or several; empty if there are none."""
    match = re.search(r"^names\s*:[ \t]*(.*(?:\n(?:[ \t]+\S.*|-.*|\].*|\}.*|[ \t]*$))*)", text, re.MULTILINE)
    if match is None:
        return {}
    block = re.sub(r"#.*", "", match.group(1)).strip()
    entries = block.strip("[]{}").split(",") if block.startswith(("[", "{")) else block.splitlines()
    names: dict[int, str] = {}
    for entry in filter(None, (entry.strip() for entry in entries)):
        parsed = _ENTRY.match(entry)
        if parsed is not None:
            names[int(parsed.group(1) or len(names))] = parsed.group(2)
    return names


@dataclass(frozen=True)
class _Base:
    """Two folders whose files match by relative path, and their split ("": see `split_of`)."""

    images: Path
    labels: Path
    split: str = ""

    def split_of(self, image: Path) -> str:
        """The split of the whole base, else the first folder below `images`."""
        parts = image.relative_to(self.images).parts
        return self.split or (parts[0] if len(parts) > 1 else "")

    def key(self, path: Path) -> str:
        """The path below `images` or `labels` without ending, which an image and its label share."""
        top = self.labels if path.is_relative_to(self.labels) else self.images
        return path.relative_to(top).with_suffix("").as_posix()


def _bases(listing: Listing, problems: Problems) -> Iterator[_Base]:
    if {"images", "labels"} <= set(listing.folders):
        yield _Base(listing.path / "images", listing.path / "labels")
    for name in listing.folders:
        folder = list_folder(listing.path / name, problems)
        if {"images", "labels"} <= set(folder.folders):
            yield _Base(folder.path / "images", folder.path / "labels", name)


@dataclass
class _Matches:
    """Images with their label files, labels without an image, and image folders without a label folder."""

    matched: list[tuple[_Base, Path, Path | None]] = field(default_factory=list)
    orphan_labels: list[Path] = field(default_factory=list)
    unlabelled: list[tuple[_Base, Path]] = field(default_factory=list)

    def without_label(self) -> Iterator[Path]:
        """Images without a label file."""
        yield from (image for _, image, label in self.matched if label is None)
        for base, folder in self.unlabelled:
            yield from (base.images / folder / name for name in list_folder(base.images / folder).images)


def _match(bases: Sequence[_Base], inventory: Inventory) -> _Matches:
    """Match each label file with the image of its name; a name with several files is reported."""
    matches = _Matches()
    for base in bases:
        folders = list(walk(base.labels, inventory))
        labels: dict[str, list[Path]] = defaultdict(list)
        for path in (folder.path / name for folder in folders for name in folder.files if _is_label(name)):
            labels[base.key(path)].append(path)
        labelled = {folder.path.relative_to(base.labels) for folder in folders}
        images: dict[str, list[Path]] = defaultdict(list)
        for listing in walk(base.images, inventory):
            paths = [listing.path / name for name in listing.images]
            matches.orphan_labels += [listing.path / name for name in listing.files if _is_label(name)]
            inventory.account_for(*paths)
            subfolder = listing.path.relative_to(base.images)
            if paths and subfolder not in labelled:
                matches.unlabelled.append((base, subfolder))
                continue
            for path in paths:
                images[base.key(path)].append(path)
        for key, same_key in images.items():
            own_labels = labels.pop(key, [])
            inventory.account_for(*own_labels)
            if own_labels and len(same_key) + len(own_labels) > 2:
                listed = " and ".join(map(str, (*same_key, *own_labels)))
                inventory(
                    f"{same_key[0]}: one name for {listed}; expected one label for one image, so rename one of them"
                )
            else:
                matches.matched += [(base, image, own_labels[0] if own_labels else None) for image in same_key]
        matches.orphan_labels += [path for paths in labels.values() for path in paths]
    return matches


def _is_label(name: str) -> bool:
    return name.lower().endswith(".txt") and name.lower() not in _NO_LABELS


def _samples(root: Path, matches: _Matches, names: dict[int, str], inventory: Inventory) -> Iterator[Sample]:
    inventory.account_for(*matches.orphan_labels)
    without = {image.stem.casefold(): image for image in matches.without_label()}
    report_all(
        [_orphan_message(path, without) for path in matches.orphan_labels], matches.orphan_labels, root, inventory
    )
    for base, below in matches.unlabelled:
        inventory(
            f"{base.images / below}: no folder {base.labels / below}; an empty one says that all images here are good"
        )
    orphans = {path.stem.casefold(): path for path in matches.orphan_labels}
    for base, image, label in matches.matched:
        if label is None and image.stem.casefold() in orphans:
            # Only reached with --skip-bad: the label elsewhere may be this image's, so it may not be normal.
            inventory(
                f"{image}: no label in its place, but {orphans[image.stem.casefold()]} has its name; move that label"
            )
            continue
        sample = try_or_report(inventory, _sample, image, label, folder_name(root), base.split_of(image), names)
        if sample is not None:
            yield sample


def _orphan_message(path: Path, without: Mapping[str, Path]) -> str:
    image = without.get(path.stem.casefold())
    if image is None:
        return f"{path}: no image has this label; add the image or remove the label"
    return f"{path}: no image has this label, and {image} has none; give both the same path below images and labels"


def _sample(image: Path, path: Path | None, category: str, split: str, names: dict[int, str]) -> Sample:
    # A repeated row is one defect, as for YOLO's own trainer.
    rows = dict.fromkeys(_label(line, f"{path}:{number}", names) for number, line in read_lines(path)) if path else {}
    labels = (path,) if path else ()
    if not rows:
        return Sample(image, category, True, split=split, labels=labels)
    width, height = image_size(image)
    boxes = clip(scale(as_boxes([box for _, box in rows]), width, height), width, height)
    if is_degenerate(boxes).any():
        raise ManifestError(f"{path}: a box without area inside the image; correct the labels")
    kinds = dict.fromkeys(names.get(kind, str(kind)) for kind, _ in rows)
    return Sample(image, category, False, boxes=boxes, defect_type="+".join(kinds), split=split, labels=labels)


def _label(line: str, where: str, names: Mapping[int, str]) -> tuple[int, _Fractions]:
    """Class and box, as fractions of the image. Raises ManifestError."""
    kind, *values = parse_numbers(line.split(), where)
    if kind != int(kind) or kind < 0 or (names and int(kind) not in names):
        expected = f"one of {', '.join(map(str, sorted(names)))} as in data.yaml" if names else "a whole number"
        raise ManifestError(f"{where}: class {kind:g}; expected {expected}")
    if len(values) == 4:
        cx, cy, width, height = values
        box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    elif len(values) == 5 or (len(values) > 6 and len(values) % 2):
        raise ManifestError(
            f"{where}: {line.strip()!r}: {len(values)} values after the class; expected 4, or x and y of each corner; "
            "labels hold no confidence, so take it out"
        )
    else:
        raise ManifestError(f"{where}: {line.strip()!r}; expected class cx cy width height, or class and a polygon")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ManifestError(f"{where}: {line.strip()!r}; a box without area: expected width and height above 0")
    # Rounding and rotated labels extend a little past the edge, which YOLO's own trainer allows too; boxes are clipped.
    if not all(-_MAX_OVERSHOOT <= value <= 1 + _MAX_OVERSHOOT for value in (*values, *box)):
        raise ManifestError(
            f"{where}: {line.strip()!r} extends past the image; expected fractions of it between 0 and 1, not pixels"
        )
    return int(kind), box
