"""Real-IAD: 30 objects, each part photographed by five cameras C1 to C5, labels in one JSON file per object.

`realiad_jsons/OBJECT.json` holds `train` and `test` lists of {category, anomaly_class, image_path, mask_path}, paths
relative to `realiad_1024/OBJECT` (or another size). If a camera does not see the defect of a part, that camera's image is
`OK`. Sources: https://github.com/Tencent/AnomalyDetection_Real-IAD and
https://github.com/open-edge-platform/anomalib/blob/main/src/anomalib/data/datasets/image/realiad.py.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from differad.data.manifest import parse_line
from differad.data.sources.inventory import Inventory, check_black
from differad.data.sources.sample import (
    FileIndex,
    Problems,
    Sample,
    list_folder,
    missing_mask_message,
    path_inside,
    read_text,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import ManifestError

# The largest size of most downloads comes first; images of `realiad_raw` are ten times larger.
_IMAGE_FOLDERS = ("realiad_1024", "realiad_raw", "realiad_512", "realiad_256")
_LABELS = "realiad_jsons"
_VIEW = re.compile(r"_(C\d)_")


class _Entry(BaseModel):
    anomaly_class: str
    image_path: str
    mask_path: str | None = None


class _Meta(BaseModel):
    normal_class: str = "OK"


class _Document(BaseModel):
    meta: _Meta = _Meta()
    train: list[_Entry] = []
    test: list[_Entry] = []


def read_real_iad(root: Path, problems: Problems = refuse, *, labels: str = _LABELS) -> Iterator[Sample]:
    """Real-IAD with the labels in the folder `labels` (`realiad_jsons_sv`: one view only). Raises ManifestError."""
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    images = next((root / name for name in _IMAGE_FOLDERS if name in listing.folders), None)
    if images is None:
        raise ManifestError(f"{root}: no folder {_IMAGE_FOLDERS[0]}; Real-IAD keeps OBJECT/OK and OBJECT/NG there")
    documents = [path for path in _label_files(root, labels, inventory) if (images / stem(path.name)).is_dir()]
    if not documents:
        raise ManifestError(f"{images}: no folder of an object that {labels} names; unpack the objects there")
    samples = (s for path in documents for s in _object_samples(path, images / stem(path.name), inventory))
    # A camera that does not see a defect may still have a mask; partial label sets leave images out.
    ignored = ("*.png",) if labels == _LABELS else ("*.png", "*.jpg")
    return inventory.complete(samples, root, ignored=ignored, below=(images.name,))


def _label_files(root: Path, labels: str, problems: Problems) -> list[Path]:
    """The JSON files in the folder `labels`, which the archive nests in another folder `realiad_jsons`."""
    for folder in (root / "realiad_jsons" / labels, root / labels):
        if folder.is_dir():
            paths = [folder / name for name in list_folder(folder, problems).files if name.endswith(".json")]
            if paths:
                return paths
    raise ManifestError(f"{root}: no {labels}/OBJECT.json; unpack realiad_jsons.zip there")


def _object_samples(path: Path, folder: Path, inventory: Inventory) -> Iterator[Sample]:
    document = parse_line(_Document, read_text(path), str(path))
    files = FileIndex(inventory)
    for split, entries in (("train", document.train), ("test", document.test)):
        build = partial(_sample, folder=folder, split=split, normal=document.meta.normal_class, files=files)
        for number, entry in enumerate(entries):
            inventory.account_for(folder / entry.image_path)
            sample = try_or_report(inventory, build, entry, where=f"{path}: {split}.{number}")
            if sample is not None:
                yield sample


def _sample(entry: _Entry, where: str, folder: Path, split: str, normal: str, files: FileIndex) -> Sample:
    image = path_inside(folder, entry.image_path, where)
    if image not in files:
        raise ManifestError(f"{where}: {image} does not exist; unpack the object again")
    view = _VIEW.search(image.name)
    is_normal = entry.anomaly_class == normal
    named = (path_inside(folder, entry.mask_path, where),) if entry.mask_path else ()
    masks = tuple(path for path in named if path in files)
    if is_normal:
        check_black(masks, image)
    elif not masks:
        raise ManifestError(missing_mask_message(image, *(named or (image.with_suffix(".png"),))))
    return Sample(
        image,
        folder.name,
        is_normal,
        () if is_normal else masks,
        defect_type="" if is_normal else entry.anomaly_class,
        split=split,
        # OBJECT/NG/BX/S0001 or OBJECT/OK/S0001: one folder per instance.
        instance_id=f"{folder.name}/{image.parent.relative_to(folder).as_posix()}",
        view=view.group(1) if view else "",
        labels=masks if is_normal else (),
    )
