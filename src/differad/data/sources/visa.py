"""VisA: 12 objects, photographs below `OBJECT/Data/Images/{Normal,Anomaly}`, masks below `OBJECT/Data/Masks/Anomaly`.

`split_csv/1cls.csv` (object,split,label,image,mask) gives the split, `OBJECT/image_anno.csv` (image,label,mask) the
defect types. Without the former, folders decide. The authors' preparation script changes the layout to MVTec AD's.
Sources: https://github.com/amazon-science/spot-diff and
https://github.com/open-edge-platform/anomalib/blob/main/src/anomalib/data/datamodules/image/visa.py.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from differad.data.sources.inventory import Inventory
from differad.data.sources.mvtec import Layout, read_layout
from differad.data.sources.sample import (
    FileIndex,
    Listing,
    Problems,
    Sample,
    folder_name,
    list_folder,
    list_if_present,
    missing_mask_message,
    path_inside,
    read_text,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import ManifestError

_SPLIT_COLUMNS = ("object", "split", "label", "image", "mask")
_KIND_COLUMNS = ("image", "label", "mask")


def read_visa(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """VisA as published, or as the authors' script rearranges it. Raises ManifestError."""
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    if "split_csv" in listing.folders:
        table = _read_table(root / "split_csv" / "1cls.csv", _SPLIT_COLUMNS)
        return inventory.complete(_listed_samples(root, table, inventory), root)
    objects = [list_folder(root / name, inventory) for name in listing.folders]
    raw = [folder for folder in objects if "Data" in folder.folders]
    if raw:
        samples = (sample for folder in raw for sample in _folder_samples(folder, inventory))
        return inventory.complete(samples, root)
    if any("train" in folder.folders for folder in (listing, *objects)):
        return read_layout(root, Layout("VisA", endings=(".png",)), problems)
    raise ManifestError(
        f"{root}: no split_csv/1cls.csv and no OBJECT/Data/Images; give the folder that VisA unpacks to"
    )


def _listed_samples(root: Path, table: list[tuple[str, dict[str, str]]], problems: Problems) -> Iterator[Sample]:
    files = FileIndex(problems)
    kinds: dict[str, dict[str, str]] = {}
    for where, row in table:
        if row["object"] not in kinds:
            kinds[row["object"]] = _kinds(root, row["object"], problems)
        sample = try_or_report(problems, _listed_sample, root, row, kinds[row["object"]], where, files)
        if sample is not None:
            yield sample


def _listed_sample(root: Path, row: dict[str, str], kinds: dict[str, str], where: str, files: FileIndex) -> Sample:
    image = path_inside(root, row["image"], where)
    if image not in files:
        raise ManifestError(f"{where}: {image} does not exist; unpack the data set again")
    if row["label"] == "normal":
        if row["mask"].strip():
            raise ManifestError(f"{image}: normal at {where}, with mask {row['mask']!r}; correct the label or the mask")
        return Sample(image, row["object"], True, split=row["split"])
    mask = path_inside(root, row["mask"], where)
    if mask not in files:
        raise ManifestError(missing_mask_message(image, mask))
    return Sample(image, row["object"], False, (mask,), defect_type=kinds.get(row["image"], ""), split=row["split"])


def _folder_samples(folder: Listing, problems: Problems) -> Iterator[Sample]:
    name = folder_name(folder.path)
    data = list_folder(folder.path / "Data", problems)
    images = list_if_present(data, "Images", problems)
    images.require("Normal", why="VisA keeps images of good parts there")
    masks = list_if_present(list_if_present(data, "Masks", problems), "Anomaly", problems)
    kinds = _kinds(folder.path.parent, name, problems)
    normal = list_folder(images.path / "Normal", problems)
    yield from (Sample(normal.path / file, name, True) for file in normal.images)
    anomalous = list_if_present(images, "Anomaly", problems)
    for file in anomalous.images:
        mask = masks.find(f"{stem(file)}.png")
        if mask is None:
            problems(missing_mask_message(anomalous.path / file, masks.path / f"{stem(file)}.png"))
            continue
        kind = kinds.get(f"{name}/Data/Images/Anomaly/{file}", "")
        yield Sample(anomalous.path / file, name, False, (mask,), defect_type=kind)


def _kinds(root: Path, name: str, problems: Problems) -> dict[str, str]:
    """Defect type by image path from `image_anno.csv`; empty without that file."""
    path = try_or_report(problems, path_inside, root, f"{name}/image_anno.csv", str(root / "split_csv" / "1cls.csv"))
    if path is None or not path.is_file():
        return {}
    rows = try_or_report(problems, _read_table, path, _KIND_COLUMNS) or []
    return {row["image"]: row["label"] for _, row in rows}


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV file, each with `file:line`, checked to have `columns`. Raises ManifestError."""
    reader = csv.DictReader(read_text(path).splitlines(), restkey="more", restval="")
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ManifestError(f"{path}:1: no column {missing[0]}; VisA's own file has {','.join(columns)}")
    return [(f"{path}:{number}", row) for number, row in enumerate(reader, start=2)]
