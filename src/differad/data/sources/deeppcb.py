"""DeepPCB: 1,500 pairs of a template and an aligned test board, 640 x 640 pixels, with boxes of six kinds of defects.

`PCBData/groupNNNNN/NNNNN/NNNNNIII_test.jpg`, `…_temp.jpg` and `PCBData/groupNNNNN/NNNNN_not/NNNNNIII.txt` with a line
`x1 y1 x2 y2 type` per defect (the README writes commas, the files have spaces); `trainval.txt` and
`test.txt` give the split. Source: https://github.com/tangsanli5201/DeepPCB.
"""

from collections.abc import Iterator
from pathlib import Path

from differad.boxes import as_boxes, is_degenerate
from differad.data.sources.inventory import Inventory
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    list_folder,
    list_if_present,
    parse_numbers,
    read_lines,
    refuse,
    try_or_report,
)
from differad.errors import ManifestError

DEFECT_TYPES = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pin-hole"}
_TEST = "_test.jpg"


def read_deeppcb(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """DeepPCB from its repository or from `PCBData`; each sample has its template. Raises ManifestError.

    Templates are not samples: a template is the only normal image of its board, so that nothing could be its reference.
    """
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    if "PCBData" in listing.folders:
        listing = list_folder(root / "PCBData", inventory)
    groups = [name for name in listing.folders if name.startswith("group")]
    if not groups:
        raise ManifestError(f"{root}: no folder PCBData/group00041; DeepPCB keeps its boards in groupNNNNN")
    return inventory.complete(_samples(listing, groups, inventory), listing.path, below=groups)


def _samples(listing: Listing, groups: list[str], inventory: Inventory) -> Iterator[Sample]:
    splits = {**_split(listing, "trainval.txt", "train"), **_split(listing, "test.txt", "test")}
    for group in groups:
        folders = list_folder(listing.path / group, inventory)
        for board in folders.folders:
            if board.endswith("_not"):
                continue
            images = list_folder(folders.path / board, inventory)
            labels = list_if_present(folders, f"{board}_not", inventory)
            for file in images.files:
                if file.endswith(_TEST):
                    name = file.removesuffix(_TEST)
                    inventory.account_for(images.path / file, images.path / f"{name}_temp.jpg")
                    inventory.account_for(labels.path / f"{name}.txt")
                    sample = try_or_report(inventory, _sample, images, labels, name, splits.get(name, ""))
                    if sample is not None:
                        yield sample


def _split(listing: Listing, name: str, split: str) -> dict[str, str]:
    """The split by the board's number, from lines `group…/…/NNNNNIII.jpg group…/…_not/NNNNNIII.txt`."""
    path = listing.find(name)
    lines = read_lines(path) if path else []
    return {Path(line.split()[0]).stem: split for _, line in lines}


def _sample(images: Listing, labels: Listing, name: str, split: str) -> Sample:
    image = images.path / f"{name}{_TEST}"
    template = images.find(f"{name}_temp.jpg")
    if template is None:
        raise ManifestError(
            f"{image}: no template {name}_temp.jpg beside it; add it or leave the board out (--skip-bad)"
        )
    path = labels.find(f"{name}.txt")
    if path is None:
        raise ManifestError(
            f"{image}: no labels {labels.path / name}.txt; add them or leave the board out (--skip-bad)"
        )
    rows = [_label(line, f"{path}:{number}") for number, line in read_lines(path)]
    boxes = as_boxes([row[:4] for row in rows])
    kinds = dict.fromkeys(DEFECT_TYPES.get(int(row[4]), f"type {row[4]:g}") for row in rows)
    return Sample(
        image,
        "deeppcb",
        not rows,
        boxes=boxes if rows else None,
        template=template,
        defect_type="+".join(kinds),
        split=split,
        instance_id=name,
        view=name,
        labels=(path,),
    )


def _label(line: str, where: str) -> list[float]:
    values = parse_numbers(line.replace(",", " ").split(), where)
    if len(values) != 5 or values[4] != int(values[4]) or is_degenerate(as_boxes(values[:4])).any():
        raise ManifestError(
            f"{where}: {line.strip()!r}; expected x1 y1 x2 y2 and a whole number with x1 < x2 and y1 < y2"
        )
    return values
