"""COCO detection labels: boxes are defects, an image without boxes is normal.

Reads every `*.json` with `images` and `annotations` in the root, in `annotations/` and in the root's folders (some exports
write `train/_annotations.coco.json`). Format: https://cocodataset.org/#format-data.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from differad.data.coco_labels import CocoEntry, read_coco_file
from differad.data.sources.sample import (
    FileIndex,
    Listing,
    Problems,
    Sample,
    folder_name,
    list_folder,
    path_inside,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import InputWarning, ManifestError
from differad.images import image_size

# Whole words only: "contest" is not a test set.
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:id)?(?![a-z])")
_COUNTED = {
    "crowd": "crowd regions (iscrowd 1) left out: they mark no single defect",
    "cut": "boxes extended past their image's edge and were clipped",
    "unlabelled": 'unlabelled images left out ("labelled": false)',
}


def read_coco(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """COCO detection labels; the split is train, val or test if the file's name holds that word. Raises ManifestError."""
    listing = list_folder(root, problems)
    folders = [listing, *(list_folder(root / name, problems) for name in listing.folders)]
    paths = [folder.path / name for folder in folders for name in folder.files if name.endswith(".json")]
    if not paths:
        raise ManifestError(f"{root}: no annotations/*.json; COCO keeps its labels there")
    return (sample for path in paths for sample in _document_samples(root, listing, path, problems))


def _document_samples(root: Path, listing: Listing, path: Path, problems: Problems) -> Iterator[Sample]:
    split = _split(path)
    folders = _Folders(root, listing, path, split, FileIndex(problems))
    counts: Counter[str] = Counter()
    entries = sorted(read_coco_file(path, problems), key=lambda entry: entry.image.file_name or "")
    entries_with_files = [(entry, try_or_report(problems, folders.find, entry)) for entry in entries]
    entries_per_file = Counter(file for _, file in entries_with_files if file is not None)
    for entry, file in entries_with_files:
        if file is None:
            continue
        if entries_per_file[file] > 1:
            problems(
                f"{entry.where}: {file} has {entries_per_file[file]} entries; expected one, as its labels are divided among them"
            )
            continue
        sample = try_or_report(problems, _sample, entry, file, folder_name(root), split, counts)
        if sample is not None:
            yield sample
    for name, count in counts.items():
        warnings.warn(f"{path}: {count} {_COUNTED[name]}", InputWarning, stacklevel=2)


def _sample(entry: CocoEntry, file: Path, category: str, split: str, counts: Counter[str]) -> Sample | None:
    """The sample of an image from its annotations; None if it is unlabelled. Raises ManifestError, ImageError."""
    if entry.annotations:
        parsed = entry.parse(image_size(file))
        counts.update({name: number for name, number in (("crowd", parsed.crowds), ("cut", parsed.clipped)) if number})
        kind = "+".join(dict.fromkeys(parsed.categories))
        return Sample(file, category, is_normal=False, boxes=parsed.boxes, defect_type=kind, split=split)
    if entry.image.anomalous:
        return Sample(file, category, is_normal=False, split=split)
    if entry.image.labelled is False:
        counts["unlabelled"] += 1
        return None
    return Sample(file, category, is_normal=True, split=split)


def _split(path: Path) -> str:
    """The split from the file's name, else from its folder's: `instances_val2017.json` and `valid/labels.json` are val."""
    match = _SPLIT.search(stem(path.name).lower())
    return match.group(1) if match else _split_of(path.parent.name)


def _split_of(folder: str) -> str:
    match = re.fullmatch(r"(train|val|test)(?:id)?[0-9]*", folder.lower())
    return match.group(1) if match else ""


class _Folders:
    """Finds the files of one label file's images. COCO does not say which folder `file_name` is relative to."""

    def __init__(self, root: Path, listing: Listing, path: Path, split: str, files: FileIndex) -> None:
        folders = [root / name for name in listing.folders]
        same_split = [folder for folder in folders if split and _split_of(folder.name) == split]
        # The first group that holds the file counts; two files of that name within one group are an error.
        self._groups = [
            [path.parent],
            [root],
            [root / "images" / path.stem, root / "images"],
            same_split,
            folders,
        ]
        self._files = files

    def find(self, entry: CocoEntry) -> Path:
        """The image's file. Raises ManifestError if there is none, or if the name is ambiguous."""
        name, where = entry.image.file_name, entry.where
        if not name:
            raise ManifestError(f"{where}: no file_name; expected the path of its image")
        for candidates in self._groups:
            matches = [path for path in (path_inside(base, name, where) for base in candidates) if path in self._files]
            if len(matches) > 1:
                raise ManifestError(
                    f"{where}: {name} is at {matches[0]} and {matches[1]}; expected one, so name its folder in file_name"
                )
            if matches:
                return matches[0]
        raise ManifestError(f"{where}: {name} is neither beside the labels nor in images/; add it or correct file_name")
