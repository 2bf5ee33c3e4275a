"""COCO detection labels: boxes are defects, a picture without any is a good part.

Every `*.json` of the root, of `annotations/` and of the root's folders (as exports with `train/_annotations.coco.json`
have it) that holds `images` and `annotations`. Format: https://cocodataset.org/#format-data.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from differad.boxes import Boxes, as_boxes, is_degenerate
from differad.data.manifest import parse_line
from differad.data.sources.sample import (
    FileIndex,
    Listing,
    Problems,
    Sample,
    attempt,
    folder_name,
    inside,
    list_folder,
    read_text,
    refuse,
    stem,
)
from differad.errors import ManifestError

# A word of its own, as "contest" is no test set.
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:id)?(?![a-z])")


class _Image(BaseModel):
    id: int | str
    file_name: str


class _Annotation(BaseModel):
    image_id: int | str
    category_id: int | str = ""
    bbox: list[float] = []


class _Category(BaseModel):
    id: int | str
    name: str


class _Document(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


def read_coco(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """COCO detection labels; the split is a file's name as far as it says train, val or test. Raises ManifestError."""
    listing = list_folder(root, problems)
    folders = [listing, *(list_folder(root / name, problems) for name in listing.folders)]
    paths = [folder.path / name for folder in folders for name in folder.files if name.endswith(".json")]
    if not paths:
        raise ManifestError(f"{root}: no annotations/*.json; COCO keeps its labels there")
    return (sample for path in paths for sample in _document_samples(root, listing, path, problems))


def _document_samples(root: Path, listing: Listing, path: Path, problems: Problems) -> Iterator[Sample]:
    document = parse_line(_Document, read_text(path), str(path))
    names = {category.id: category.name for category in document.categories}
    found = defaultdict(list)
    for annotation in document.annotations:
        found[annotation.image_id].append(annotation)
    split = _split(path)
    # `file_name` is relative to a folder that COCO does not name: beside the labels, images/, or the split's folder.
    bases = [path.parent, root, *(root / name for name in listing.folders), root / "images" / path.stem]
    files = FileIndex(problems)
    for image in sorted(document.images, key=lambda image: image.file_name):
        place = f"{path}: image {image.id}"
        file = attempt(problems, _locate, bases, image.file_name, place, files)
        boxes = attempt(problems, _boxes, found[image.id], place) if file else None
        if file is None or boxes is None:
            continue
        kinds = dict.fromkeys(names.get(label.category_id, str(label.category_id)) for label in found[image.id])
        anomalous = len(boxes) > 0
        kind = "+".join(kinds)
        yield Sample(file, folder_name(root), not anomalous, boxes=boxes if anomalous else None, kind=kind, split=split)


def _split(path: Path) -> str:
    """What the file's name, or else its folder's, says: `instances_val2017.json` is val, `valid/labels.json` too."""
    found = _SPLIT.search(stem(path.name).lower()) or _SPLIT.fullmatch(path.parent.name.lower())
    return found.group(1) if found else ""


def _locate(bases: list[Path], name: str, place: str, files: FileIndex) -> Path:
    paths = [inside(base, name, place) for base in bases]
    found = next((path for path in paths if path in files), None)
    if found is None:
        raise ManifestError(f"{place}: {name} lies neither beside the labels nor in images/; add it or mend file_name")
    return found


def _boxes(labels: list[_Annotation], place: str) -> Boxes:
    """`bbox` x, y, width, height as (N, 4) corners. Raises ManifestError."""
    corners = []
    for label in labels:
        if len(label.bbox) != 4:
            raise ManifestError(f"{place}: bbox {label.bbox}; expected x, y, width, height")
        x, y, width, height = label.bbox
        corners.append([x, y, x + width, y + height])
    if is_degenerate(as_boxes(corners)).any():
        raise ManifestError(f"{place}: a bbox without area; expected width and height above 0 pixels")
    return as_boxes(corners)
