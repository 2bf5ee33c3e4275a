"""Paths of a pair's files: the data set's own files, or files copied, linked or cropped below the output folder.

A tile of a strip (`region`) becomes a PNG in `images/`; its mask, or the union of several masks, becomes a PNG in `masks/`.
Copies and links are in `files/`, under their paths relative to the data set's root.
"""

import errno
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.boxes import Boxes, clip, is_degenerate, no_boxes, to_list
from differad.data.masks import boxes_from_mask, read_mask
from differad.data.sources.sample import Sample
from differad.data.thumbnails import read_region
from differad.errors import InputError, ManifestError, OptionError
from differad.files import atomic_write, make_folder, write_errors
from differad.images import image_size, read_image, write_image

FILES = ("point", "copy", "link")
# A box may extend this many pixels past the edge, the rounding of a fraction to whole pixels.
_ROUNDING = 0.5
Mask = NDArray[np.bool_]
# Error codes of a hard link between two file systems, or on one without hard links.
_NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})


class FileStore:
    """Gives each sample's image and mask a path for the manifest; makes each file at most once."""

    def __init__(
        self, root: Path, out: Path, files: str = "point", *, record: Callable[[Path], None] | None = None
    ) -> None:
        if files not in FILES:
            raise OptionError(f"files={files!r}: expected one of {', '.join(FILES)}")
        self._root, self._out, self._files = root, out, files
        self._stored: dict[tuple[Path, object], Path] = {}
        # Called with each new path before its file is written.
        self._record = record or (lambda _: None)

    def name(self, sample: Sample) -> str:
        """A unique name of a sample in its data set: its path below the root, and its tile's corner."""
        name = relative(sample.image, self._root).as_posix()
        return name if sample.region is None else f"{name}@{sample.region[0]},{sample.region[1]}"

    def image(self, sample: Sample) -> Path:
        """The path of the sample's image. Raises ImageError, and InputError if a file cannot be made."""
        key = sample.image, sample.region
        if key not in self._stored:
            if sample.region is None:
                self._stored[key] = self._store(sample.image)
            else:
                path = self._new_path("images", sample)
                write_image(path, read_region(sample.image, sample.region))
                self._stored[key] = path
        return self._stored[key]

    def mask(self, sample: Sample, union: Mask | None) -> Path | None:
        """The path of the sample's single mask, which is written from `union` (H, W) if the data set has no such file."""
        if not sample.masks:
            return None
        if len(sample.masks) == 1 and sample.region is None:
            return self._store(sample.masks[0])
        key = sample.image, ("mask", sample.region)
        if key not in self._stored:
            path = self._new_path("masks", sample)
            marked = (union if union is not None else read_union(sample)).astype(np.uint8) * 255
            write_image(path, cv2.cvtColor(marked, cv2.COLOR_GRAY2RGB))
            self._stored[key] = path
        return self._stored[key]

    def _new_path(self, folder: str, sample: Sample) -> Path:
        below = relative(sample.image, self._root)
        # The ending stays in the name, since a folder may hold both a.png and a.jpg.
        tile_suffix = "" if sample.region is None else f"@{sample.region[0]},{sample.region[1]}"
        path = self._out / folder / below.with_name(f"{below.name}{tile_suffix}.png")
        self._record(path)
        return path

    def _store(self, path: Path) -> Path:
        if self._files == "point":
            return path
        key = path, self._files
        if key not in self._stored:
            target = self._out / "files" / relative(path, self._root)
            self._record(target)
            make_folder(target.parent)
            copy_or_link(path, target, copy=self._files == "copy")
            self._stored[key] = target
        return self._stored[key]


def relative(path: Path, root: Path) -> Path:
    """The path relative to `root`. Raises ManifestError if it is outside."""
    if path.is_relative_to(root):
        below = path.relative_to(root)
        if ".." not in below.parts:
            return below
    raise ManifestError(f"{path}: is outside of {root}; expected only files of the data set, so give its own folder")


def read_union(sample: Sample) -> Mask:
    """The union (H, W) of all masks of a defective sample, cropped to its region if it has one.

    Raises ImageError, also if a mask's size differs from its image's, and ManifestError if nothing is marked.
    """
    union = _whole_union(sample.masks, sample.image)
    if sample.region is not None:
        x1, y1, x2, y2 = sample.region
        union = union[y1:y2, x1:x2]
    if not union.any():
        raise ManifestError(
            f"{sample.masks[0]}: marks nothing, but {sample.image} is defective; correct the mask or leave it out (--skip-bad)"
        )
    return union


def sample_boxes(sample: Sample, union: Mask | None = None) -> Boxes:
    """True boxes (N, 4) in pixels of the sample: its own, or those of its masks (`union` if already read).

    (0, 4) for a normal sample; not defined if the place is unknown. Raises ImageError, ManifestError.
    """
    if sample.is_normal:
        return no_boxes()
    if sample.boxes is not None:
        return sample.boxes
    return boxes_from_mask(read_union(sample) if union is None else union)


def check_sample(sample: Sample) -> None:
    """Decode the sample's image, template and masks and check that they match. Raises ImageError, ManifestError."""
    pixels = read_image(sample.image) if sample.region is None else read_region(sample.image, sample.region)
    if sample.template is not None:
        read_image(sample.template)
    if sample.is_normal:
        return
    if sample.masks:
        read_union(sample)
    if not sample.place_unknown:
        clip_sample_boxes(sample, sample_boxes(sample), pixels.shape[1], pixels.shape[0])


def clip_sample_boxes(sample: Sample, boxes: Boxes, width: int, height: int) -> Boxes:
    """Boxes of a defective sample clipped to its `width` x `height` pixels; they may extend past the edge by rounding only.

    Raises ManifestError.
    """
    if len(boxes) == 0 or is_degenerate(boxes).any():
        raise ManifestError(f"{sample.image}: no box with an area, but it is defective; correct its labels")
    clipped = clip(boxes, width, height)
    if np.abs(clipped - boxes).max() > _ROUNDING:
        raise ManifestError(
            f"{sample.image}: boxes {to_list(boxes)} extend past its {width}x{height} pixels; correct the labels"
        )
    return clipped


@lru_cache(maxsize=4)
def _whole_union(masks: tuple[Path, ...], image: Path) -> Mask:
    width, height = image_size(image)
    union = np.zeros((height, width), dtype=np.bool_)
    for path in masks:
        union |= read_mask(path, (width, height))
    return union


def copy_or_link(path: Path, target: Path, *, copy: bool) -> None:
    """Copy or link `path` to `target`, whose folder exists. Links are hard if possible, else symbolic.

    A copy is not synced; that is up to the caller. Raises InputError for a file that cannot be read, and WriteError.
    """
    # Link to the file itself: a hard link to a relative symbolic link would be broken in another folder.
    source = path.resolve()
    try:
        source.stat()
        if copy:
            with atomic_write(target, sync=False) as fresh:
                shutil.copy2(source, fresh)
            return
        with write_errors(target):
            _link(source, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be made from {path} ({error.strerror})") from None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        target.symlink_to(source)
