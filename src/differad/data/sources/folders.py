"""Folders that a factory makes itself: `pos/` and `neg/` with a mask beside each defect, and anomalib's `Folder`.

`pos`/`neg`: what `pos` means differs from factory to factory, so a caller says which folder holds the defects. The root
holds both folders, or one folder per product that does. `Folder`: a folder of good parts, folders of defects, and
masks in the same folders below a mask folder or all in one. Source of the second:
https://github.com/open-edge-platform/anomalib/blob/main/src/anomalib/data/datasets/image/folder.py.

Images are read at any depth below these folders. Where nobody drew masks at all, the defects are at an unknown place; where
only some images have one, the others are an error unless a caller says that they are at an unknown place too.
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

# What tells a mask from the image that it lies beside: `0007_mask.png`, or `0007.png` beside `0007.jpg`.
MASK_MARKS = ("_mask", "_label", "_gt", "_GT")
_LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff"})
_GOOD_NAMES = ("good", "normal", "ok")
_MASK_NAMES = ("ground_truth", "groundtruth", "gt", "mask", "masks", "label", "labels", "annotations", "segmentation")
# Without masks these names do not say that what lies in them is defective.
_NO_KINDS = frozenset(
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
    """`pos/` and `neg/`, of which `defective` names the one with defects. Raises ManifestError, OptionError.

    `unmasked` takes defects without a mask as at an unknown place even where others have one.
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
        product.require("pos", "neg", why="good parts lie in one and defective ones in the other, masks beside them")
    return inventory.complete(_products_samples(products, defective, unmasked, inventory), root)


def read_pos_defective(root: Path, problems: Problems = refuse, *, unmasked: bool = False) -> Iterator[Sample]:
    """`pos/` holds the defects, `neg/` the good parts. Raises ManifestError."""
    return read_pos_neg(root, problems, defective="pos", unmasked=unmasked)


def read_neg_defective(root: Path, problems: Problems = refuse, *, unmasked: bool = False) -> Iterator[Sample]:
    """`neg/` holds the defects, `pos/` the good parts. Raises ManifestError."""
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
    """Anomalib's `Folder`. Left out: the usual names (good, normal, ok; ground_truth, masks), all others are defects.

    `unmasked` takes defects without a mask as at an unknown place even where others have one. Raises ManifestError.
    """
    inventory = Inventory(problems)
    listing = list_folder(root, inventory)
    normal = _chosen(listing, normal, _GOOD_NAMES)
    if normal is None:
        raise ManifestError(
            f"{root}: no folder good; good parts lie there (or in one of {', '.join(_GOOD_NAMES[1:])}). Images that nobody has "
            "labelled: differad inspect GOOD TARGETS --out DIR"
        )
    masks = _chosen(listing, masks, _MASK_NAMES)
    kinds = abnormal if abnormal is not None else tuple(n for n in listing.folders if n not in (normal, masks))
    listing.require(normal, *kinds, why="it was named as a folder of images")
    if abnormal is None and (masks is None or unmasked):
        _check_kinds(listing, kinds)
    drafts = _folder_samples(listing, normal, kinds, masks, inventory)
    # Folders that a caller did not choose are left out on purpose.
    below = ("",) if abnormal is None else (normal, *kinds)
    samples = _settle(drafts, unmasked or masks is None, root / masks if masks else None, inventory)
    return inventory.complete(samples, root, below=below)


def _chosen(listing: Listing, name: str | None, usual: tuple[str, ...]) -> str | None:
    """The folder of that name, else the one with a usual name. Raises ManifestError where there are two such."""
    if name is not None:
        listing.require(name, why="it was named as a folder of the data set")
        return name
    found = [folder for folder in listing.folders if folder.lower() in usual]
    if len(found) > 1:
        raise ManifestError(
            f"{listing.path}: folders {' and '.join(found)} both have a name for {usual[0]}; put their files into one"
        )
    return found[0] if found else None


def _check_kinds(listing: Listing, kinds: Iterable[str]) -> None:
    """Check that folders without masks bear names of defects. Raises ManifestError."""
    for kind in kinds:
        words = kind.lower().replace("-", "_").split("_")
        if kind.lower() in _NO_KINDS or set(words) & {"mask", "masks", "gt", "label", "labels", "truth"}:
            raise ManifestError(
                f"{listing.path / kind}: the name does not say that it holds defects, and there are no masks; call it bad or "
                f"by the kind of defect, or ground_truth if it holds masks. Nobody has labelled it: differad inspect "
                f"GOOD {listing.path / kind} --out DIR"
            )


def _settle(samples: Iterable[Sample], unmasked: bool, masks: Path | None, problems: Problems) -> Iterator[Sample]:
    """The samples that may be used; a defect without a mask is reported unless `unmasked`.

    `masks` is the folder of masks, None where they lie beside the images.
    """
    for sample in samples:
        if unmasked or not sample.place_unknown:
            yield sample
            continue
        place = (masks / sample.defect_type if masks else sample.image.parent) / f"{sample.image.stem}_mask.png"
        problems(f"{missing_mask_message(sample.image, place)}, or say that its place is unknown (--unmasked unknown)")


def _products_samples(
    products: Sequence[Listing], defective: str, unmasked: bool, inventory: Inventory
) -> Iterator[Sample]:
    found: list[Sample] = []
    for product in products:
        found += _product_samples(product, defective, inventory)
        for part in ("pos", "neg"):
            _check_images(product.path / part, inventory)
    nobody_drew = not any(
        _is_mask(name, folder)
        for product in products
        for part in ("pos", "neg")
        for folder in walk(product.path / part, inventory)
        for name in folder.images
    )
    yield from _settle(found, unmasked or nobody_drew, None, inventory)


def _product_samples(product: Listing, defective: str, inventory: Inventory) -> Iterator[Sample]:
    for part, is_normal in (("neg" if defective == "pos" else "pos", True), (defective, False)):
        for folder in walk(product.path / part, inventory):
            masks = _keyed((folder.path / name for name in folder.images if _is_mask(name, folder)), folder.path)
            draft = Sample(folder.path, folder_name(product.path), is_normal, defect_type="" if is_normal else "defect")
            for name in folder.images:
                if not _is_mask(name, folder):
                    found = masks.get(PurePosixPath(stem(name)), [])
                    yield from try_or_report(inventory, _with_masks, draft, folder.path / name, found) or []


def _is_mask(file: str, folder: Listing) -> bool:
    name, ending = stem(file), file[len(stem(file)) :].lower()
    if name.endswith(MASK_MARKS):
        return True
    # Lossless beside lossy: the mask is the lossless one, since JPEG blurs a mask's edges.
    return ending in _LOSSLESS and any(name + lossy in folder.known for lossy in (".jpg", ".jpeg", ".JPG", ".JPEG"))


def _folder_samples(
    listing: Listing, normal: str, kinds: tuple[str, ...], masks: str | None, inventory: Inventory
) -> Iterator[Sample]:
    top = listing.path / masks if masks else None
    truth = _keyed(_images_below(top, inventory), top) if top else {}
    of_kinds = set(list_folder(top, inventory).folders) if top else set()
    drafts = {kind: Sample(listing.path / kind, folder_name(listing.path), False, defect_type=kind) for kind in kinds}
    defective: list[Sample] = []
    for kind, draft in drafts.items():
        for image, below in _parts(draft.image, inventory):
            key = PurePosixPath(kind) / below if kind in of_kinds else below
            found = truth.get(key, [])
            defective += try_or_report(inventory, _with_masks, draft, image, found) or []
    claimed = {mask for sample in defective for mask in sample.masks}
    draft = Sample(listing.path / normal, folder_name(listing.path), True)
    for image, below in _parts(draft.image, inventory):
        # A mask that no defect has may speak of a good part of that name: such a part is good only if it is black.
        found = [*truth.get(PurePosixPath(normal) / below, []), *(m for m in truth.get(below, []) if m not in claimed)]
        yield from try_or_report(inventory, _with_masks, draft, image, found) or []
    yield from defective


def _parts(folder: Path, inventory: Inventory) -> Iterator[tuple[Path, PurePosixPath]]:
    """Images below a folder with their path below it, without ending; what looks like a mask among them is reported."""
    images = list(_images_below(folder, inventory))
    _check_images(folder, inventory)
    beside = _beside(images)
    for image in images:
        if image in beside:
            inventory(f"{image}: its name says that it is the mask of {beside[image]}; expected masks in ground_truth")
        else:
            yield image, PurePosixPath(image.relative_to(folder).as_posix()).with_suffix("")


def _check_images(folder: Path, problems: Problems) -> None:
    """Report a folder that holds files, and no image among them."""
    if not any(_images_below(folder, problems)) and any(listing.files for listing in walk(folder, problems)):
        problems(no_image_message(folder))


def _images_below(folder: Path, problems: Problems) -> Iterator[Path]:
    return (listing.path / name for listing in walk(folder, problems) for name in listing.images)


def _beside(images: Sequence[Path]) -> dict[Path, Path]:
    """Images whose name is another one's with a mark of masks behind it, and that other one."""
    known = {image.with_suffix(""): image for image in images}
    found = {}
    for image in images:
        for mark in MASK_MARKS:
            name = image.stem.removesuffix(mark)
            if name and name != image.stem and image.with_name(name) in known:
                found[image] = known[image.with_name(name)]
    return found


def _keyed(masks: Iterable[Path], top: Path) -> _Masks:
    """Masks by what an image of theirs may be called: their path below `top` without ending, and without a mark."""
    found: dict[PurePosixPath, list[Path]] = defaultdict(list)
    for path in masks:
        below = PurePosixPath(path.relative_to(top).as_posix())
        names = {below.stem, *(below.stem.removesuffix(mark) for mark in MASK_MARKS)} - {""}
        for name in names:
            found[below.with_name(name)].append(path)
    return found


def _with_masks(draft: Sample, image: Path, masks: Sequence[Path]) -> list[Sample]:
    """The draft with its image and mask; at an unknown place where it has none. Raises ManifestError, ImageError."""
    if draft.is_normal:
        check_black(masks, image)
        return [replace(draft, image=image, labels=tuple(masks))]
    if len(masks) > 1:
        raise ManifestError(f"{image}: masks {' and '.join(map(str, masks))}; expected one, so leave out the others")
    return [replace(draft, image=image, masks=tuple(masks))]
