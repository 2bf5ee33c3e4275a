"""Folders of a factory's own data: `pos/` and `neg/` with a mask beside each defect, and anomalib's `Folder`.

`pos`/`neg`: the meaning of `pos` differs from factory to factory, so the caller says which folder holds the defects. The
root holds both folders, or one folder per product with both. `Folder`: a folder of normal images, folders of defects, and
masks in folders of the same names below a mask folder, or all in one. Source of the second layout:
https://github.com/open-edge-platform/anomalib/blob/main/src/anomalib/data/datasets/image/folder.py.

Images are read at any depth below these folders. If there are no masks at all, the places of the defects are unknown. If only
some images have a mask, the others are an error, unless the caller says that their places are unknown too.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from differad.data.sources.inventory import Inventory, check_black
from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    folder_name,
    list_folder,
    missing_mask_message,
    no_image_message,
    refuse,
    stem,
    try_or_report,
    walk,
)
from differad.errors import ManifestError, OptionError

# Suffixes of a mask beside its image: `0007_mask.png`. Without a suffix, `0007.png` beside `0007.jpg` is a mask.
MASK_SUFFIXES = ("_mask", "_label", "_gt", "_GT")
_LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff"})
_GOOD_NAMES = ("good", "normal", "ok")
_MASK_NAMES = ("ground_truth", "groundtruth", "gt", "mask", "masks", "label", "labels", "annotations", "segmentation")
# Without masks, folders of these names do not say that their images are defective.
_NOT_DEFECT_NAMES = frozenset(
    {"train", "test", "val", "valid", "validation", "image", "images", "img", "data", "all", "backup", "tmp"}
    | {
        "unlabelled",
        "unlabeled",
        "unknown",
        "unsorted",
        "background",
        "reference",
        "references",
        "template",
        "templates",
    }
)
_Masks = Mapping[PurePosixPath, Sequence[Path]]


def read_pos_neg(
    root: Path, problems: Problems = refuse, *, defective: str, unmasked: bool = False
) -> Iterator[Sample]:
    """`pos/` and `neg/`; `defective` names the one with defects. Raises ManifestError, OptionError.

    `unmasked` accepts defects without a mask, at an unknown place, even if others have one.
    """
    if defective not in ("pos", "neg"):
        raise OptionError(f"defective: {defective!r}; expected 'pos' or 'neg', the folder that holds the defects")
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    if {"pos", "neg"} & set(listing.folders):
        products = [listing]
    else:
        products = [list_folder(root / name, inventory) for name in listing.folders]
    if not products:
        raise ManifestError(
            f"{root}: no folders pos and neg, nor a folder per product that holds them; give their parent"
        )
    for product in products:
        product.require("pos", "neg", why="one holds good parts, the other defective ones with masks beside them")
    return inventory.complete(_products_samples(products, defective, unmasked, inventory), root)


def read_pos_defective(root: Path, problems: Problems = refuse, *, unmasked: bool = False) -> Iterator[Sample]:
    """`pos/` holds the defects, `neg/` the normal samples. Raises ManifestError."""
    return read_pos_neg(root, problems, defective="pos", unmasked=unmasked)


def read_neg_defective(root: Path, problems: Problems = refuse, *, unmasked: bool = False) -> Iterator[Sample]:
    """`neg/` holds the defects, `pos/` the normal samples. Raises ManifestError."""
    return read_pos_neg(root, problems, defective="neg", unmasked=unmasked)


def read_folder(
    root: Path,
    problems: Problems = refuse,
    *,
    normal: str | None = None,
    abnormal: tuple[str, ...] | None = None,
    masks: str | None = None,
    unmasked: bool = False,
) -> Iterator[Sample]:
    """Anomalib's `Folder`. Default folders: good, normal or ok; ground_truth or masks; all others hold defects.

    `unmasked` accepts defects without a mask, at an unknown place, even if others have one. Raises ManifestError.
    """
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    normal = _choose_folder(listing, normal, _GOOD_NAMES)
    if normal is None:
        raise ManifestError(
            f"{root}: no folder good; good parts go there (or in one of {', '.join(_GOOD_NAMES[1:])}). For "
            "unlabelled images: differad inspect GOOD TARGETS --out DIR"
        )
    masks = _choose_folder(listing, masks, _MASK_NAMES)
    kinds = abnormal if abnormal is not None else tuple(n for n in listing.folders if n not in (normal, masks))
    listing.require(normal, *kinds, why="it was named as a folder of images")
    if abnormal is None and (masks is None or unmasked):
        _check_defect_names(listing, kinds)
    drafts = _folder_samples(listing, normal, kinds, masks, inventory)
    # Folders that the caller did not choose are left out on purpose.
    below = ("",) if abnormal is None else (normal, *kinds)
    samples = _require_masks(drafts, unmasked or masks is None, root / masks if masks else None, inventory)
    return inventory.complete(samples, root, below=below)


def _choose_folder(listing: Listing, name: str | None, usual: tuple[str, ...]) -> str | None:
    """The folder `name`, else the one with a usual name. Raises ManifestError if two folders have one."""
    if name is not None:
        listing.require(name, why="it was named as a folder of the data set")
        return name
    matches = [folder for folder in listing.folders if folder.lower() in usual]
    if len(matches) > 1:
        raise ManifestError(
            f"{listing.path}: folders {' and '.join(matches)} both have a name for {usual[0]}; put their files into one"
        )
    return matches[0] if matches else None


def _check_defect_names(listing: Listing, kinds: Iterable[str]) -> None:
    """Check that folders without masks have names of defects. Raises ManifestError."""
    for kind in kinds:
        words = kind.lower().replace("-", "_").split("_")
        if kind.lower() in _NOT_DEFECT_NAMES or set(words) & {"mask", "masks", "gt", "label", "labels", "truth"}:
            raise ManifestError(
                f"{listing.path / kind}: the name does not say that it holds defects, and there are no masks; call it bad or "
                f"by the kind of defect, or ground_truth if it holds masks. If it is unlabelled: differad inspect "
                f"GOOD {listing.path / kind} --out DIR"
            )


def _require_masks(
    samples: Iterable[Sample], unmasked: bool, masks: Path | None, problems: Problems
) -> Iterator[Sample]:
    """Drop and report defective samples without a mask, unless `unmasked`.

    `masks` is the folder of masks, None if they are beside the images.
    """
    for sample in samples:
        if unmasked or not sample.place_unknown:
            yield sample
            continue
        expected = (masks / sample.defect_type if masks else sample.image.parent) / f"{sample.image.stem}_mask.png"
        problems(
            f"{missing_mask_message(sample.image, expected)}, or say that its place is unknown (--unmasked unknown)"
        )


def _products_samples(
    products: Sequence[Listing], defective: str, unmasked: bool, inventory: Inventory
) -> Iterator[Sample]:
    samples: list[Sample] = []
    for product in products:
        samples += _product_samples(product, defective, inventory)
        for part in ("pos", "neg"):
            _check_images(product.path / part, inventory)
    has_no_masks = not any(
        _is_mask(name, folder)
        for product in products
        for part in ("pos", "neg")
        for folder in walk(product.path / part, inventory)
        for name in folder.images
    )
    yield from _require_masks(samples, unmasked or has_no_masks, None, inventory)


def _product_samples(product: Listing, defective: str, inventory: Inventory) -> Iterator[Sample]:
    for part, is_normal in (("neg" if defective == "pos" else "pos", True), (defective, False)):
        for folder in walk(product.path / part, inventory):
            masks = _masks_by_name(
                (folder.path / name for name in folder.images if _is_mask(name, folder)), folder.path
            )
            draft = Sample(folder.path, folder_name(product.path), is_normal, defect_type="" if is_normal else "defect")
            for name in folder.images:
                if not _is_mask(name, folder):
                    image_masks = masks.get(PurePosixPath(stem(name)), [])
                    yield from try_or_report(inventory, _with_masks, draft, folder.path / name, image_masks) or []


def _is_mask(file: str, folder: Listing) -> bool:
    name, ending = stem(file), file[len(stem(file)) :].lower()
    if name.endswith(MASK_SUFFIXES):
        return True
    # Of a lossless and a lossy file the lossless one is the mask, since JPEG blurs a mask's edges.
    return ending in _LOSSLESS and any(
        name + lossy in folder.file_names for lossy in (".jpg", ".jpeg", ".JPG", ".JPEG")
    )


def _folder_samples(
    listing: Listing, normal: str, kinds: tuple[str, ...], masks: str | None, inventory: Inventory
) -> Iterator[Sample]:
    top = listing.path / masks if masks else None
    masks_by_name = _masks_by_name(_images_below(top, inventory), top) if top else {}
    mask_folders = set(list_folder(top, inventory).folders) if top else set()
    drafts = {kind: Sample(listing.path / kind, folder_name(listing.path), False, defect_type=kind) for kind in kinds}
    defective: list[Sample] = []
    for kind, draft in drafts.items():
        for image, below in _images_with_keys(draft.image, inventory):
            key = PurePosixPath(kind) / below if kind in mask_folders else below
            image_masks = masks_by_name.get(key, [])
            defective += try_or_report(inventory, _with_masks, draft, image, image_masks) or []
    used_masks = {mask for sample in defective for mask in sample.masks}
    draft = Sample(listing.path / normal, folder_name(listing.path), True)
    for image, below in _images_with_keys(draft.image, inventory):
        # A mask that no defect uses may belong to a normal image of that name, which is normal only if the mask is black.
        image_masks = [
            *masks_by_name.get(PurePosixPath(normal) / below, []),
            *(m for m in masks_by_name.get(below, []) if m not in used_masks),
        ]
        yield from try_or_report(inventory, _with_masks, draft, image, image_masks) or []
    yield from defective


def _images_with_keys(folder: Path, inventory: Inventory) -> Iterator[tuple[Path, PurePosixPath]]:
    """Images below a folder with their relative paths, without ending; images that look like masks are reported."""
    images = list(_images_below(folder, inventory))
    _check_images(folder, inventory)
    mask_like = _mask_like(images)
    for image in images:
        if image in mask_like:
            inventory(
                f"{image}: its name says that it is the mask of {mask_like[image]}; expected masks in ground_truth"
            )
        else:
            yield image, PurePosixPath(image.relative_to(folder).as_posix()).with_suffix("")


def _check_images(folder: Path, problems: Problems) -> None:
    """Report a folder that holds files but no image."""
    if not any(_images_below(folder, problems)) and any(listing.files for listing in walk(folder, problems)):
        problems(no_image_message(folder))


def _images_below(folder: Path, problems: Problems) -> Iterator[Path]:
    return (listing.path / name for listing in walk(folder, problems) for name in listing.images)


def _mask_like(images: Sequence[Path]) -> dict[Path, Path]:
    """Images named like another image plus a mask suffix, mapped to that other image."""
    by_name = {image.with_suffix(""): image for image in images}
    originals = {}
    for image in images:
        for suffix in MASK_SUFFIXES:
            name = image.stem.removesuffix(suffix)
            if name and name != image.stem and image.with_name(name) in by_name:
                originals[image] = by_name[image.with_name(name)]
    return originals


def _masks_by_name(masks: Iterable[Path], top: Path) -> _Masks:
    """Masks by the possible names of their image: the path below `top` without ending, with and without a mask suffix."""
    by_name: dict[PurePosixPath, list[Path]] = defaultdict(list)
    for path in masks:
        below = PurePosixPath(path.relative_to(top).as_posix())
        names = {below.stem, *(below.stem.removesuffix(suffix) for suffix in MASK_SUFFIXES)} - {""}
        for name in names:
            by_name[below.with_name(name)].append(path)
    return by_name


def _with_masks(draft: Sample, image: Path, masks: Sequence[Path]) -> list[Sample]:
    """The draft with its image and mask; without a mask its place is unknown. Raises ManifestError, ImageError."""
    if draft.is_normal:
        check_black(masks, image)
        return [replace(draft, image=image, labels=tuple(masks))]
    if len(masks) > 1:
        raise ManifestError(f"{image}: masks {' and '.join(map(str, masks))}; expected one, so leave out the others")
    return [replace(draft, image=image, masks=tuple(masks))]
