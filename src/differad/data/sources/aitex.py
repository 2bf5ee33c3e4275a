"""AITEX fabrics: strips of 4096 x 256 pixels, cut here into square tiles given as `region`s of the strip.

`Defect_images/nnnn_ddd_ff.png` (number, code of the defect, code of the fabric), `Mask_images/nnnn_ddd_ff_mask.png`
(two images have `_mask1` and `_mask2`), `NODefect_images/ROLL/nnnn_000_ff.png`. Source: https://www.aitex.es/afid/.
Known irregularities: one image has no mask, one has an empty mask, one strip is 3796 pixels wide.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes
from differad.data.masks import boxes_from_mask, read_mask
from differad.data.sources.inventory import Inventory
from differad.data.sources.sample import (
    CropBox,
    Listing,
    Problems,
    Sample,
    list_folder,
    list_if_present,
    missing_mask_message,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import ManifestError
from differad.images import image_size

TILE = 256
# Defective strips of the published set without a marked defect: the first has no mask, the second a black one.
UNMARKED = frozenset({"0100_025_08", "0106_010_03"})
# Defect types by the codes in file names: https://github.com/dataset-ninja/afid/blob/main/src/convert.py.
DEFECT_TYPES = {
    "002": "broken end",
    "006": "broken yarn",
    "010": "broken pick",
    "016": "weft curling",
    "019": "fuzzyball",
    "022": "cut selvage",
    "023": "crease",
    "025": "warp ball",
    "027": "knots",
    "029": "contamination",
    "030": "nep",
    "036": "weft crack",
}


def read_aitex(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """AITEX as tiles: the fabric is the view, the strip the instance. Opens masks and headers of strips. Raises ManifestError.

    A tile of a defective strip without a marked pixel is normal. An incomplete tile at the right end is dropped.
    """
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    folders = "Defect_images", "Mask_images", "NODefect_images"
    listing.require(*folders, why="AITEX is unpacked into these three folders")
    ignored = [f"*/{name}{ending}.png" for name in sorted(UNMARKED) for ending in ("", "_mask")]
    return inventory.complete(_samples(listing, inventory), root, ignored=ignored, below=folders)


def tiles(width: int, height: int, side: int = TILE) -> list[CropBox]:
    """Squares of `side` pixels inside a strip, from left to right, then down."""
    return [
        (x, y, x + side, y + side) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)
    ]


def tile_boxes(mask: NDArray[np.bool_], region: CropBox) -> Boxes:
    """Boxes (N, 4), in pixels of the tile, of what a strip's mask (H, W) marks inside the tile."""
    x1, y1, x2, y2 = region
    return boxes_from_mask(mask[y1:y2, x1:x2])


def _samples(listing: Listing, inventory: Inventory) -> Iterator[Sample]:
    rolls = list_if_present(listing, "NODefect_images", inventory)
    for roll in rolls.folders:
        folder = list_folder(rolls.path / roll, inventory)
        for file in folder.images:
            inventory.account_for(folder.path / file)
            yield from try_or_report(inventory, _normal_tiles, folder.path / file) or []
    folder = list_if_present(listing, "Defect_images", inventory)
    masks = list_if_present(listing, "Mask_images", inventory)
    for file in folder.images:
        if stem(file) not in UNMARKED:
            inventory.account_for(folder.path / file, *_masks(folder.path / file, masks))
            yield from try_or_report(inventory, _defective_tiles, folder.path / file, masks) or []


def _normal_tiles(image: Path) -> list[Sample]:
    _, fabric = _codes(image)
    return [
        Sample(image, "aitex", True, instance_id=image.stem, view=fabric, region=region)
        for region in tiles(*image_size(image))
    ]


def _defective_tiles(image: Path, masks: Listing) -> list[Sample]:
    defect, fabric = _codes(image)
    paths = _masks(image, masks)
    if not paths:
        raise ManifestError(missing_mask_message(image, masks.path / f"{image.stem}_mask.png"))
    mask = _union(paths, image)
    defect_type = DEFECT_TYPES.get(defect, defect)
    tile_samples = []
    for region in tiles(*image_size(image)):
        boxes = tile_boxes(mask, region)
        tile = Sample(image, "aitex", True, instance_id=image.stem, view=fabric, region=region)
        if len(boxes):
            tile = replace(tile, is_normal=False, masks=paths, boxes=boxes, defect_type=defect_type)
        tile_samples.append(tile)
    return tile_samples


def _masks(image: Path, masks: Listing) -> tuple[Path, ...]:
    names = [f"{image.stem}{ending}.png" for ending in ("_mask", "_mask1", "_mask2")]
    return tuple(masks.path / name for name in names if name in masks.file_names)


def _union(paths: tuple[Path, ...], image: Path) -> NDArray[np.bool_]:
    width, height = image_size(image)
    union = np.zeros((height, width), dtype=np.bool_)
    for path in paths:
        union |= read_mask(path, (width, height))
    if not union.any():
        raise ManifestError(f"{image}: its mask marks nothing; correct the mask or leave the strip out (--skip-bad)")
    return union


def _codes(image: Path) -> tuple[str, str]:
    """Codes of the defect and of the fabric from a file name. Raises ManifestError."""
    fields = image.stem.split("_")
    if len(fields) != 3:
        raise ManifestError(f"{image}: expected a name nnnn_ddd_ff.png, as AITEX gives its strips")
    return fields[1], fields[2]
