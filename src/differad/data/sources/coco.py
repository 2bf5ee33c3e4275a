"""COCO detection labels: boxes are defects, an image without any is a good part.

Every `*.json` of the root, of `annotations/` and of the root's folders (as exports with `train/_annotations.coco.json`
have it) that holds `images` and `annotations`. Format: https://cocodataset.org/#format-data.
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

# A word of its own, as "contest" is no test set.
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:id)?(?![a-z])")
_COUNTED = {
    "crowd": "crowd regions (iscrowd 1) left out: they mark no single defect",
    "cut": "boxes reached over their image's edge and were cut off there",
    "unlabelled": 'images left out that nobody has labelled ("labelled": false)',
}


def read_coco(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """COCO detection labels; the split is a file's name as far as it says train, val or test. Raises ManifestError."""
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
    found = [(entry, try_or_report(problems, folders.find, entry)) for entry in entries]
    listed = Counter(file for _, file in found if file is not None)
    for entry, file in found:
        if file is None:
            continue
        if listed[file] > 1:
            problems(
                f"{entry.where}: {file} has {listed[file]} entries; expected one, as its labels are divided among them"
            )
            continue
        sample = try_or_report(problems, _sample, entry, file, folder_name(root), split, counts)
        if sample is not None:
            yield sample
    for name, count in counts.items():
        warnings.warn(f"{path}: {count} {_COUNTED[name]}", InputWarning, stacklevel=2)


def _sample(entry: CocoEntry, file: Path, category: str, split: str, counts: Counter[str]) -> Sample | None:
    """What an image's annotations make of it; None where nobody has labelled it. Raises ManifestError, ImageError."""
    if entry.annotations:
        drawn = entry.drawn(image_size(file))
        counts.update({name: number for name, number in (("crowd", drawn.crowds), ("cut", drawn.cut)) if number})
        kind = "+".join(dict.fromkeys(drawn.categories))
        return Sample(file, category, is_normal=False, boxes=drawn.boxes, defect_type=kind, split=split)
    if entry.image.anomalous:
        return Sample(file, category, is_normal=False, split=split)
    if entry.image.labelled is False:
        counts["unlabelled"] += 1
        return None
    return Sample(file, category, is_normal=True, split=split)


def _split(path: Path) -> str:
    """What the file's name, or else its folder's, says: `instances_val2017.json` is val, `valid/labels.json` too."""
    found = _SPLIT.search(stem(path.name).lower())
    return found.group(1) if found else _split_of(path.parent.name)


def _split_of(folder: str) -> str:
    found = re.fullmatch(r"(train|val|test)(?:id)?[0-9]*", folder.lower())
    return found.group(1) if found else ""


class _Folders:
    """Finds the files of one label file's images. COCO does not say which folder `file_name` is relative to."""

    def __init__(self, root: Path, listing: Listing, path: Path, split: str, files: FileIndex) -> None:
        folders = [root / name for name in listing.folders]
        same_split = [folder for folder in folders if split and _split_of(folder.name) == split]
        # The nearest group that holds the file counts; within one, two files of that name are one too many.
        self._groups = [
            [path.parent],
            [root],
            [root / "images" / path.stem, root / "images"],
            same_split,
            folders,
        ]
        self._files = files

    def find(self, entry: CocoEntry) -> Path:
        """The image's file. Raises ManifestError where there is none, or two could be meant."""
        name, where = entry.image.file_name, entry.where
        if not name:
            raise ManifestError(f"{where}: no file_name; expected the path of its image")
        for bases in self._groups:
            found = [path for path in (path_inside(base, name, where) for base in bases) if path in self._files]
            if len(found) > 1:
                raise ManifestError(
                    f"{where}: {name} is at {found[0]} and {found[1]}; expected one, so name its folder in file_name"
                )
            if found:
                return found[0]
        raise ManifestError(
            f"{where}: {name} lies neither beside the labels nor in images/; add it or correct file_name"
        )
