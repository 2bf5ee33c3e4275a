"""Where the files of a pair lie: where the data set has them, or copied, linked or cut out under the output folder.

A tile of a strip (`region`) becomes a PNG under `images/`, its mask or the union of several masks one under `masks/`,
and copies or links keep their names relative to the data set's root under `files/`.
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
# By how many pixels a box may pass the edge: what is left of a fraction rounded to whole pixels.
_ROUNDING = 0.5
Mask = NDArray[np.bool_]
# What links between two file systems, or on one without hard links, fail with.
_NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP})


class FileStore:
    """Gives each sample's image and mask a path that a manifest can point at; makes each file once."""

    def __init__(
        self, root: Path, out: Path, files: str = "point", *, record: Callable[[Path], None] | None = None
    ) -> None:
        if files not in FILES:
            raise OptionError(f"files={files!r}: expected one of {', '.join(FILES)}")
        self._root, self._out, self._files = root, out, files
        self._placed: dict[tuple[Path, object], Path] = {}
        # Called with each path before its file is made.
        self._record = record or (lambda _: None)

    def name(self, sample: Sample) -> str:
        """What tells a sample from all others of its data set: its path below the root, and where its tile begins."""
        name = relative(sample.image, self._root).as_posix()
        return name if sample.region is None else f"{name}@{sample.region[0]},{sample.region[1]}"

    def image(self, sample: Sample) -> Path:
        """The path of the sample's image. Raises ImageError, InputError where a file cannot be made."""
        key = sample.image, sample.region
        if key not in self._placed:
            if sample.region is None:
                self._placed[key] = self._place(sample.image)
            else:
                path = self._made("images", sample)
                write_image(path, read_region(sample.image, sample.region))
                self._placed[key] = path
        return self._placed[key]

    def mask(self, sample: Sample, union: Mask | None) -> Path | None:
        """The path of the sample's one mask, which is made from `union` (H, W) where the data set has no such file."""
        if not sample.masks:
            return None
        if len(sample.masks) == 1 and sample.region is None:
            return self._place(sample.masks[0])
        key = sample.image, ("mask", sample.region)
        if key not in self._placed:
            path = self._made("masks", sample)
            marked = (union if union is not None else read_union(sample)).astype(np.uint8) * 255
            write_image(path, cv2.cvtColor(marked, cv2.COLOR_GRAY2RGB))
            self._placed[key] = path
        return self._placed[key]

    def _made(self, folder: str, sample: Sample) -> Path:
        below = relative(sample.image, self._root)
        # The ending stays in the name: a.png and a.jpg of one folder are two images.
        place = "" if sample.region is None else f"@{sample.region[0]},{sample.region[1]}"
        path = self._out / folder / below.with_name(f"{below.name}{place}.png")
        self._record(path)
        return path

    def _place(self, path: Path) -> Path:
        if self._files == "point":
            return path
        key = path, self._files
        if key not in self._placed:
            target = self._out / "files" / relative(path, self._root)
            self._record(target)
            make_folder(target.parent)
            copy_or_link(path, target, copy=self._files == "copy")
            self._placed[key] = target
        return self._placed[key]


def relative(path: Path, root: Path) -> Path:
    """The path below `root`. Raises ManifestError where it lies elsewhere."""
    if path.is_relative_to(root):
        below = path.relative_to(root)
        if ".." not in below.parts:
            return below
    raise ManifestError(f"{path}: lies outside of {root}; expected only files of the data set, so give its own folder")


def read_union(sample: Sample) -> Mask:
    """All masks of a defective sample as one (H, W), of its region where it has one.

    Raises ImageError, also where a mask's size is not its image's, and ManifestError where nothing is marked.
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
    """True boxes (N, 4) in pixels of the sample: its own, or those of its masks (`union`, where it was read).

    (0, 4) for a normal sample; one whose place is unknown has none to ask for. Raises ImageError, ManifestError.
    """
    if sample.is_normal:
        return no_boxes()
    if sample.boxes is not None:
        return sample.boxes
    return boxes_from_mask(read_union(sample) if union is None else union)


def check_sample(sample: Sample) -> None:
    """Decode the sample's image, template and masks and see that they fit. Raises ImageError, ManifestError."""
    pixels = read_image(sample.image) if sample.region is None else read_region(sample.image, sample.region)
    if sample.template is not None:
        read_image(sample.template)
    if sample.is_normal:
        return
    if sample.masks:
        read_union(sample)
    if not sample.place_unknown:
        check_boxes(sample, sample_boxes(sample), pixels.shape[1], pixels.shape[0])


def check_boxes(sample: Sample, boxes: Boxes, width: int, height: int) -> Boxes:
    """Boxes of a defective sample cut off at its `width` x `height` pixels, which they may pass by rounding only.

    Raises ManifestError.
    """
    if len(boxes) == 0 or is_degenerate(boxes).any():
        raise ManifestError(f"{sample.image}: no box that holds any area, but it is defective; correct its labels")
    kept = clip(boxes, width, height)
    if np.abs(kept - boxes).max() > _ROUNDING:
        raise ManifestError(
            f"{sample.image}: boxes {to_list(boxes)} reach out of its {width}x{height} pixels; correct the labels"
        )
    return kept


@lru_cache(maxsize=4)
def _whole_union(masks: tuple[Path, ...], image: Path) -> Mask:
    width, height = image_size(image)
    union = np.zeros((height, width), dtype=np.bool_)
    for path in masks:
        union |= read_mask(path, (width, height))
    return union


def copy_or_link(path: Path, target: Path, *, copy: bool) -> None:
    """The file `path` as `target`, whose folder is there: a copy, or a link, hard where there can be one, else symbolic.

    A copy is brought to the disk by whoever names it. Raises InputError for a file that cannot be read, and WriteError.
    """
    # Of the file itself: a hard link to a relative symbolic link would lead nowhere from another folder.
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
