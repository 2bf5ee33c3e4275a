"""Folders that a factory makes itself: `pos/` and `neg/` with a mask beside each defect, and anomalib's `Folder`.

`pos`/`neg`: what `pos` means differs from factory to factory, so a caller says which folder holds the defects. The root
holds both folders, or one folder per product that does. `Folder`: a folder of good parts, folders of defects, and
masks in the same folders below a mask folder or all in one. Source of the second:
https://github.com/open-edge-platform/anomalib/blob/main/src/anomalib/data/datasets/image/folder.py.
"""

from collections.abc import Iterator
from pathlib import Path

from differad.data.sources.sample import (
    Listing,
    Problems,
    Sample,
    folder_name,
    list_folder,
    list_if_there,
    missing_mask,
    refuse,
    stem,
)
from differad.errors import ManifestError, OptionError

# What tells a mask from the picture that it lies beside: `0007_mask.png`, or `0007.png` beside `0007.jpg`.
_MASK_MARKS = ("_mask", "_label", "_gt", "_GT", "")
_MASK_ENDINGS = (".png", ".bmp", ".tif")
_GOOD_NAMES = ("good", "normal", "ok", "OK")
_MASK_NAMES = ("ground_truth", "mask", "masks")


def read_pos_neg(root: Path, problems: Problems = refuse, *, defective: str) -> Iterator[Sample]:
    """`pos/` and `neg/`, of which `defective` names the one with defects. Raises ManifestError, OptionError."""
    if defective not in ("pos", "neg"):
        raise OptionError(f"defective: {defective!r}; expected 'pos' or 'neg', the folder that holds the defects")
    listing = list_folder(root, problems)
    if {"pos", "neg"} & set(listing.folders):
        products = [listing]
    else:
        products = [list_folder(root / name, problems) for name in listing.folders]
    if not products:
        raise ManifestError(
            f"{root}: no folders pos and neg, nor a folder per product that holds them; give their parent"
        )
    for product in products:
        product.require("pos", "neg", why="good parts lie in one and defective ones in the other, masks beside them")
    return (sample for product in products for sample in _product_samples(product, defective, problems))


def read_pos_defective(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """`pos/` holds the defects, `neg/` the good parts. Raises ManifestError."""
    return read_pos_neg(root, problems, defective="pos")


def read_neg_defective(root: Path, problems: Problems = refuse) -> Iterator[Sample]:
    """`neg/` holds the defects, `pos/` the good parts. Raises ManifestError."""
    return read_pos_neg(root, problems, defective="neg")


def read_folder(
    root: Path,
    problems: Problems = refuse,
    *,
    normal: str | None = None,
    abnormal: tuple[str, ...] | None = None,
    masks: str | None = None,
) -> Iterator[Sample]:
    """Anomalib's `Folder`. Left out: the usual names (good, normal, ok; ground_truth, masks), all others are defects.

    Raises ManifestError.
    """
    listing = list_folder(root, problems)
    normal = _chosen(listing, normal, _GOOD_NAMES)
    if normal is None:
        raise ManifestError(f"{root}: no folder good; good parts lie there (or in one of {', '.join(_GOOD_NAMES[1:])})")
    masks = _chosen(listing, masks, _MASK_NAMES)
    kinds = abnormal if abnormal is not None else tuple(n for n in listing.folders if n not in (normal, masks))
    listing.require(normal, *kinds, why="it was named as a folder of pictures")
    if kinds and masks is None:
        raise ManifestError(f"{root}: no folder ground_truth; the masks of {', '.join(kinds)} lie there")
    truth = list_if_there(listing, masks or "", problems)
    return _folder_samples(listing, normal, kinds, truth, problems)


def _chosen(listing: Listing, name: str | None, usual: tuple[str, ...]) -> str | None:
    if name is not None:
        listing.require(name, why="it was named as a folder of the data set")
        return name
    return next((candidate for candidate in usual if candidate in listing.folders), None)


def _product_samples(product: Listing, defective: str, problems: Problems) -> Iterator[Sample]:
    name = folder_name(product.path)
    good = list_if_there(product, "neg" if defective == "pos" else "pos", problems)
    yield from (Sample(good.path / file, name, True) for file in good.images if not _is_mask(file, good))
    bad = list_if_there(product, defective, problems)
    for file in bad.images:
        if _is_mask(file, bad):
            continue
        mask = bad.find(*(option for option in _mask_names(file) if option != file))
        if mask is None:
            problems(missing_mask(bad.path / file, bad.path / f"{stem(file)}_mask.png"))
            continue
        yield Sample(bad.path / file, name, False, (mask,), kind="defect")


def _mask_names(file: str) -> list[str]:
    return [stem(file) + mark + ending for mark in _MASK_MARKS for ending in _MASK_ENDINGS]


def _is_mask(file: str, folder: Listing) -> bool:
    name, ending = stem(file), file[len(stem(file)) :]
    if any(mark and name.endswith(mark) for mark in _MASK_MARKS):
        return True
    # Lossless beside lossy: the mask is the lossless one, since JPEG blurs a mask's edges.
    return ending in _MASK_ENDINGS and any(name + lossy in folder.known for lossy in (".jpg", ".jpeg", ".JPG"))


def _folder_samples(
    listing: Listing, normal: str, kinds: tuple[str, ...], truth: Listing, problems: Problems
) -> Iterator[Sample]:
    name = folder_name(listing.path)
    good = list_if_there(listing, normal, problems)
    yield from (Sample(good.path / file, name, True) for file in good.images)
    for kind in kinds:
        pictures = list_if_there(listing, kind, problems)
        masks = list_if_there(truth, kind, problems) if kind in truth.folders else truth
        for file in pictures.images:
            mask = masks.find(*_mask_names(file), file)
            if mask is None:
                problems(missing_mask(pictures.path / file, masks.path / f"{stem(file)}.png"))
                continue
            yield Sample(pictures.path / file, name, False, (mask,), kind=kind)
