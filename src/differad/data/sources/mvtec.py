"""MVTec AD and data sets in its layout: MPDD, 3CAD, BTAD, MVTec LOCO AD, and MVTec AD 2 in a similar one.

`CATEGORY/train/good`, `CATEGORY/test/KIND` and masks below `CATEGORY/ground_truth/KIND`; each data set names masks in
its own way. The root may also be a single category. Layouts read at:
https://github.com/open-edge-platform/anomalib/tree/main/src/anomalib/data/datasets/image (mvtecad.py, mvtecad2.py,
mvtec_loco.py, mpdd.py, btech.py) and
https://github.com/EnquanYang2022/3CAD/blob/main/train_utils/toolbox/datasets/Data_3CAD.py.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from differad.data.sources.inventory import Inventory, check_black
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    folder_name,
    list_folder,
    list_if_present,
    missing_mask_message,
    no_image_message,
    refuse,
    stem,
    try_or_report,
)
from differad.errors import InputWarning, ManifestError

# The private test sets of MVTec AD 2 are published without labels.
_PRIVATE = ("*test_private/*", "*test_private_mixed/*")


@dataclass(frozen=True)
class Layout:
    """How a data set differs from MVTec AD: its name, the folder of normal images, the endings of its mask files.

    `many_masks`: the masks of an image are in a folder of the image's name.
    """

    title: str
    good: str = "good"
    endings: tuple[str, ...] = ("_mask.png",)
    many_masks: bool = False


def read_mvtec(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """MVTec AD, masks `NNN_mask.png` (or `NNN.png`, in copies of the layout). Raises ManifestError."""
    return read_layout(root, Layout("MVTec AD", endings=("_mask.png", ".png")), problems)


def read_mpdd(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """MPDD, masks `NNN_mask.png`. Raises ManifestError."""
    return read_layout(root, Layout("MPDD", endings=("_mask.png", ".png")), problems)


def read_3cad(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """3CAD, masks named like their image. Raises ManifestError."""
    return read_layout(root, Layout("3CAD", endings=(".png",)), problems)


def read_btad(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """BTAD: `ok` and `ko`, masks `.png` in products 01 and 02, `.bmp` in 03. Raises ManifestError."""
    return read_layout(root, Layout("BTAD", good="ok", endings=(".png", ".bmp")), problems)


def read_mvtec_loco(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """MVTec LOCO AD: masks `ground_truth/KIND/NNN/000.png`, `001.png` …, one per anomaly. Raises ManifestError."""
    return read_layout(root, Layout("MVTec LOCO AD", many_masks=True), problems)


def read_mvtec2(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """MVTec AD 2: train, validation and the public test set; the private ones have no labels. Raises ManifestError.

    File names are `NNN_LIGHT.png`: the light (`regular`, `overexposed`, `shift_1` …) is the view, since a reference in
    another light is no fair comparison; the number is the instance.
    """
    inventory = Inventory(problems)
    categories = _categories(root, Layout("MVTec AD 2"), inventory)
    for category in categories:
        category.require("test_public", why="MVTec AD 2 keeps its labelled test images there")
    samples = (sample for category in categories for sample in _light_samples(category, inventory))
    return inventory.complete(samples, root, ignored=_PRIVATE)


def read_layout(root: Path, layout: Layout, problems: Problems = refuse) -> Iterator[Sample]:
    """Any data set in this layout, categories in order of their names. Raises ManifestError."""
    inventory = Inventory(problems)
    categories = _categories(root, layout, inventory)
    samples = (sample for category in categories for sample in _category_samples(category, layout, inventory))
    return inventory.complete(samples, root)


def _categories(root: Path, layout: Layout, problems: Problems) -> list[Listing]:
    listing = list_folder(root, problems)
    if "train" in listing.folders:
        categories = [listing]
    else:
        below = [list_folder(root / name, problems) for name in listing.folders]
        categories = [folder for folder in below if {"train", "test", "ground_truth"} & set(folder.folders)] or below
    if not categories:
        raise ManifestError(f"{root}: no folders; {layout.title} keeps good parts in CATEGORY/train/{layout.good}")
    why = f"{layout.title} keeps good parts there"
    for category in categories:
        if layout.good not in list_if_present(category, "train").folders:
            raise ManifestError(f"{category.path}: no folder train/{layout.good}; {why}")
    return categories


def _category_samples(category: Listing, layout: Layout, problems: Problems) -> Iterator[Sample]:
    name = folder_name(category.path)
    truth = list_if_present(category, "ground_truth", problems)
    if "test" not in category.folders:
        warnings.warn(f"{category.path}: no folder test; only good parts are read there", InputWarning, stacklevel=2)
    for split in ("train", "validation", "test"):
        parts = list_if_present(category, split, problems)
        for kind in parts.folders:
            images = list_folder(parts.path / kind, problems)
            if images.files and not any(images.images):
                problems(no_image_message(images.path))
            find = _mask_finder(list_if_present(truth, kind, problems), layout, problems)
            draft = Sample(
                images.path, name, kind == layout.good, defect_type="" if kind == layout.good else kind, split=split
            )
            for file in images.images:
                sample = try_or_report(problems, _with_masks, replace(draft, image=images.path / file), *find(file))
                if sample is not None:
                    yield sample


def _with_masks(draft: Sample, masks: tuple[Path, ...], expected: Path) -> Sample:
    """The draft with its masks; a normal image may have black ones. Raises ManifestError, ImageError."""
    if draft.is_normal:
        # Mask folders name the defect type only, not the split: masks of normal images belong to the test set.
        masks = masks if draft.split == "test" else ()
        check_black(masks, draft.image)
        return replace(draft, labels=masks)
    if not masks:
        raise ManifestError(missing_mask_message(draft.image, expected))
    return replace(draft, masks=masks)


def _mask_finder(folder: Listing, layout: Layout, problems: Problems) -> Callable[[str], tuple[tuple[Path, ...], Path]]:
    """A function from an image's name to its masks and the path where one is expected."""

    def one(file: str) -> tuple[tuple[Path, ...], Path]:
        names = [stem(file) + ending for ending in layout.endings]
        mask = folder.find(*names)
        return () if mask is None else (mask,), folder.path / names[0]

    def many(file: str) -> tuple[tuple[Path, ...], Path]:
        masks = list_if_present(folder, stem(file), problems)
        return tuple(masks.path / name for name in masks.images), masks.path / "000.png"

    return many if layout.many_masks else one


def _light_samples(category: Listing, problems: Problems) -> Iterator[Sample]:
    name = folder_name(category.path)
    public = list_folder(category.path / "test_public", problems)
    masks = list_if_present(list_if_present(public, "ground_truth", problems), "bad", problems)
    for parent, split, kind in (
        (list_if_present(category, "train", problems), "train", "good"),
        (list_if_present(category, "validation", problems), "validation", "good"),
        (public, "test", "good"),
        (public, "test", "bad"),
    ):
        folder = list_if_present(parent, kind, problems)
        for file in folder.images:
            number, _, light = stem(file).partition("_")
            mask = masks.find(f"{stem(file)}_mask.png") if kind == "bad" else None
            if kind == "bad" and mask is None:
                problems(missing_mask_message(folder.path / file, masks.path / f"{stem(file)}_mask.png"))
                continue
            yield Sample(
                folder.path / file,
                name,
                kind == "good",
                (mask,) if mask else (),
                defect_type="" if kind == "good" else kind,
                split=split,
                instance_id=f"{name}/{split}/{kind}/{number}",
                view=light,
            )
