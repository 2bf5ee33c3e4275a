"""ZJU-Leaper fabrics: 19 patterns in 5 groups, `Images/ID.jpg`, masks and boxes below `Annotations`.

`ImageSets/Patterns/patternN.json` and `ImageSets/Groups/groupN.json` hold {normal, defect} x {train, test} lists of
ids. A reference must show the same pattern, so the group is the category and the pattern the view.
Source: https://github.com/nico-zck/ZJU-Leaper-Dataset/blob/master/dataset_api/zl_fabric.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel

from differad.boxes import Boxes, as_boxes, is_degenerate
from differad.data.manifest import parse_line
from differad.data.sources.inventory import Inventory, check_black
from differad.data.sources.sample import (
    FileIndex,
    Listing,
    Problems,
    Sample,
    list_folder,
    list_if_present,
    missing_mask_message,
    parse_numbers,
    path_inside,
    read_text,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import ManifestError

_ENDINGS = (".jpg", ".png")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Ids(BaseModel):
    train: list[str] = []
    test: list[str] = []


class _ImageSet(BaseModel):
    normal: _Ids
    defect: _Ids


def read_zju_leaper(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """ZJU-Leaper, pattern by pattern. Masks are preferred, as in the authors' evaluation; boxes are used without a mask.

    Raises ManifestError.
    """
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    listing.require("Images", "Annotations", "ImageSets", why="ZJU-Leaper is unpacked into these three folders")
    sets = list_if_present(listing, "ImageSets", inventory)
    sets.require("Patterns", why="ZJU-Leaper lists the images of each pattern there, in patternN.json")
    patterns = list_folder(sets.path / "Patterns", inventory)
    groups = list_if_present(sets, "Groups", inventory)
    samples = _samples(root, patterns, groups, inventory)
    # Boxes are published beside masks, and for normal images too; if there is a mask, only the mask is read.
    return inventory.complete(samples, root, ignored=("Annotations/xmls/*",), below=("Images", "Annotations"))


def _samples(root: Path, patterns: Listing, groups: Listing, inventory: Inventory) -> Iterator[Sample]:
    files = FileIndex(inventory)
    group_of = {image: stem(name) for name in _documents(groups) for image in _ids(groups.path / name)}
    for name in _documents(patterns):
        document = _image_set(patterns.path / name)
        view = stem(name)
        for is_normal, split, ids in (
            (True, "train", document.normal.train),
            (True, "test", document.normal.test),
            (False, "train", document.defect.train),
            (False, "test", document.defect.test),
        ):
            for image in ids:
                kind = "" if is_normal else "defect"
                draft = Sample(root, group_of.get(image, view), is_normal, defect_type=kind, split=split, view=view)
                inventory.account_for(*(root / "Images" / f"{image}{ending}" for ending in _ENDINGS))
                sample = try_or_report(inventory, _complete, draft, image, f"{patterns.path / name}: {image}", files)
                if sample is not None:
                    yield sample


def _documents(listing: Listing) -> list[str]:
    return [name for name in listing.files if name.endswith(".json")]


def _image_set(path: Path) -> _ImageSet:
    return parse_line(_ImageSet, read_text(path), str(path))


def _ids(path: Path) -> list[str]:
    document = _image_set(path)
    return document.normal.train + document.normal.test + document.defect.train + document.defect.test


def _complete(draft: Sample, id_: str, where: str, files: FileIndex) -> Sample:
    """Complete the draft, whose `image` is still the root: its image and its masks or boxes. Raises ManifestError."""
    root = draft.image
    images = [path_inside(root / "Images", id_ + ending, where) for ending in _ENDINGS]
    image = next((path for path in images if path in files), None)
    if image is None:
        raise ManifestError(f"{where}: {images[0]} does not exist; unpack the data set again")
    mask = root / "Annotations" / "masks" / f"{id_}.png"
    if draft.is_normal:
        masks = (mask,) if mask in files else ()
        check_black(masks, image)
        return replace(draft, image=image, labels=masks)
    if mask in files:
        return replace(draft, image=image, masks=(mask,))
    labels = root / "Annotations" / "xmls" / f"{id_}.xml"
    boxes = _xml_boxes(labels) if labels in files else None
    if boxes is None or not len(boxes):
        raise ManifestError(missing_mask_message(image, mask, labels))
    return replace(draft, image=image, boxes=boxes)


def _xml_boxes(path: Path) -> Boxes:
    """Every `<bbox>` with xmin, ymin, xmax, ymax. Raises ManifestError."""
    try:
        tree = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise ManifestError(f"{path}: not XML ({error}); unpack the data set again") from None
    rows = [[box.findtext(name, "") for name in _CORNERS] for box in tree.iter("bbox")]
    boxes = as_boxes([parse_numbers(row, f"{path}: bbox") for row in rows])
    if is_degenerate(boxes).any():
        raise ManifestError(f"{path}: a bbox without area; expected xmin < xmax and ymin < ymax in pixels")
    return boxes
