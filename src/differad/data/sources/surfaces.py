"""Surfaces with a mask beside each image: KolektorSDD, KolektorSDD2 and the magnetic tiles.

KolektorSDD: `kosNN/PartM.jpg`, `kosNN/PartM_label.bmp`; one folder per commutator. KolektorSDD2: `{train,test}/ID.png`,
`ID_GT.png`. In both every image has a mask, and only the mask says whether the image is normal, so masks are opened.
Magnetic tiles: `MT_KIND/Imgs/NAME.jpg`, `NAME.png`; `MT_Free` is good.
Sources: https://www.vicos.si/resources/kolektorsdd/, https://www.vicos.si/resources/kolektorsdd2/,
https://github.com/abin24/Magnetic-tile-defect-datasets.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from differad.data.sources.inventory import Inventory
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    list_folder,
    list_if_present,
    marks_anything,
    missing_mask_message,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import ManifestError


def read_kolektor(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """KolektorSDD; the commutator is the instance. Raises ManifestError."""
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    names = [name for name in listing.folders if name.startswith("kos")]
    if not names:
        raise ManifestError(f"{root}: no folder kos01; KolektorSDD keeps the images of each commutator in kosNN")
    folders = [list_folder(root / name, inventory) for name in names]
    return inventory.complete((s for folder in folders for s in _commutator_samples(folder, inventory)), root)


def read_kolektor2(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """KolektorSDD2. Raises ManifestError."""
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    listing.require("train", "test", why="KolektorSDD2 keeps its images there, each with a mask ID_GT.png")
    samples = (
        sample
        for split in ("train", "test")
        for sample in _marked_samples(list_if_present(listing, split, inventory), split, inventory)
    )
    return inventory.complete(samples, root)


def read_magnetic_tile(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """Magnetic tiles; the defect type is the folder's name without `MT_`. Raises ManifestError."""
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    names = [name for name in listing.folders if name.startswith("MT_")]
    if not names:
        raise ManifestError(f"{root}: no folder MT_Free; the magnetic tiles are in MT_KIND/Imgs")
    kinds = [list_folder(root / name, inventory) for name in names]
    for kind in kinds:
        kind.require("Imgs", why="it holds the magnetic tiles of a kind, a .jpg and a .png mask each")
    samples = (sample for kind in kinds for sample in _tile_samples(kind, inventory))
    # The published archive has a mask beside every normal tile; figures of its repository are outside MT_*.
    return inventory.complete(samples, root, ignored=("MT_Free/Imgs/*.png",), below=names)


def _commutator_samples(folder: Listing, inventory: Inventory) -> Iterator[Sample]:
    for file in folder.images:
        if not stem(file).endswith("_label"):
            sample = Sample(folder.path / file, "kolektor_sdd", True, instance_id=folder.path.name)
            yield from _judged(sample, folder, f"{stem(file)}_label.bmp", inventory)


def _marked_samples(folder: Listing, split: str, inventory: Inventory) -> Iterator[Sample]:
    for file in folder.images:
        if not stem(file).endswith("_GT"):
            sample = Sample(folder.path / file, "kolektor_sdd2", True, split=split)
            yield from _judged(sample, folder, f"{stem(file)}_GT.png", inventory)


def _judged(sample: Sample, folder: Listing, mask: str, inventory: Inventory) -> Iterator[Sample]:
    """The sample, defective if its mask marks anything; nothing if the mask is missing or broken."""
    path = folder.find(mask)
    inventory.account_for(sample.image)
    if path is None:
        inventory(f"{sample.image}: no mask {mask} beside it; good parts have a black one, so unpack the data again")
        return
    marked = try_or_report(inventory, marks_anything, path)
    if marked:
        yield replace(sample, is_normal=False, masks=(path,), defect_type="defect")
    elif marked is not None:
        yield replace(sample, labels=(path,))


def _tile_samples(kind: Listing, problems: Problems) -> Iterator[Sample]:
    name = kind.path.name.removeprefix("MT_")
    folder = list_if_present(kind, "Imgs", problems)
    for file in folder.files:
        if not file.endswith(".jpg"):
            continue
        image = folder.path / file
        if name == "Free":
            yield Sample(image, "magnetic_tile", True)
            continue
        mask = folder.find(f"{stem(file)}.png")
        if mask is None:
            problems(missing_mask_message(image, image.with_suffix(".png")))
            continue
        yield Sample(image, "magnetic_tile", False, (mask,), defect_type=name)
