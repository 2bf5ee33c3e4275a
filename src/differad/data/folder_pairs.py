"""Pairs from one normal image, or a folder of them, and images to inspect, all unlabelled.

Each target is paired with the most similar normal image (`pairing.describe`), never with its own file or a copy of it if
there is another one. An unreadable file is no error here: a target remains a pair, and its locator reports the problem; a
normal image is left out with a warning.
"""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from differad.core import Pair
from differad.data.copies import FileComparer
from differad.data.nearest import BLOCK, NearestIndex, Ranking
from differad.data.pairing import describe
from differad.data.sources.inventory import UNREADABLE_ENDINGS
from differad.data.sources.sample import folder_name, is_image, no_image_message, walk
from differad.data.thumbnails import read_thumbnail
from differad.errors import ImageError, InputError, InputWarning
from differad.files import is_pipe_or_device
from differad.images import image_file
from differad.progress import track

# Images decoded at once while references are chosen; each may have tens of megapixels.
_AT_ONCE = 4
_Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Folder:
    """Normal images (`good`), and the images to inspect by id: paths below their common folder, with slashes."""

    good: tuple[Path, ...]
    targets: Mapping[str, Path]
    category: str


def list_parts(good: Path, targets: Sequence[Path]) -> Folder:
    """List normal images and targets, each a file or a folder with all images below it; no image is opened.

    Normal images below a folder of targets are no targets. Images in formats that are not read are still targets, so that none
    is ignored silently; other files in a folder are ignored with a warning. Raises InputError if a path is missing or there is
    no image.
    """
    for path in (good, *targets):
        if not image_file(path).exists():
            raise InputError(f"{path}: no such file or folder; expected an image, or a folder of images")
        if is_pipe_or_device(image_file(path)):
            raise InputError(f"{path}: can be read only once; save it to a file and name that")
    references = tuple(_images(good)) if good.is_dir() else (good,)
    if not references:
        raise InputError(no_image_message(good))
    excluded = {_resolved(path) for path in references}
    top = _common_folder(targets)
    by_path = {_absolute(path): path for target in targets for path in _targets_in(target, excluded)}
    if not by_path:
        names = ", ".join(map(str, targets))
        hint = "; the good parts are no targets" if any(map(Path.is_dir, targets)) and _images_in(targets) else ""
        raise InputError(
            f"{names}: holds no image to inspect{hint}; give the folder or the images of the parts to inspect"
        )
    ids = {path.relative_to(top).as_posix(): target for path, target in by_path.items()}
    return Folder(references, ids, folder_name(top))


def pair_with_nearest(folder: Folder, fixed: Mapping[str, Path], *, progress: bool = True) -> list[Pair]:
    """A pair for each target with the most similar normal image, in the order of the targets.

    `fixed` are references that are already chosen, by target id. Warns of normal images that cannot be read. Raises
    ImageError if none can.
    """
    good = {_absolute(path): path for path in folder.good}
    chosen = {name: good[path_key] for name, path in fixed.items() if (path_key := _absolute(path)) in good}
    open_ids = [name for name in folder.targets if name not in chosen]
    if open_ids:
        finder = _Finder(folder.good, progress)
        chosen |= finder.find_all({name: folder.targets[name] for name in open_ids}, progress)
    return [
        Pair(reference=chosen[name], target=path, id=name, category=folder.category)
        for name, path in folder.targets.items()
    ]


class _Finder:
    """Finds the normal image that is most similar to a target."""

    def __init__(self, good: Sequence[Path], progress: bool) -> None:
        self._comparer = FileComparer()
        self._references: list[Path] = []
        vectors: list[_Vector] = []
        problems: list[ImageError] = []
        for path, vector in zip(good, _describe_all(good, "good parts", progress), strict=True):
            if isinstance(vector, ImageError):
                problems.append(vector)
            else:
                self._references.append(path)
                vectors.append(vector)
        if not vectors:
            raise ImageError(f"no good part can be read, the first: {problems[0]}")
        if problems:
            warnings.warn(
                f"{len(problems)} of {len(good)} good parts cannot be read and are left out, the first: {problems[0]}",
                InputWarning,
                stacklevel=3,
            )
        self._index = NearestIndex(np.stack(vectors), self._references, self._comparer)

    def find_all(self, targets: Mapping[str, Path], progress: bool) -> dict[str, Path]:
        """The reference of each target by its id."""
        if len(self._references) == 1:  # nothing to choose: no target is opened
            return dict.fromkeys(targets, self._references[0])
        vectors = _describe_all(list(targets.values()), "references", progress)
        described = zip(targets.items(), vectors, strict=True)
        references: dict[str, Path] = {}
        while block := list(islice(described, BLOCK)):
            ranks = iter(self._index.ranked([vector for _, vector in block if not isinstance(vector, ImageError)]))
            for (name, path), vector in block:
                # A target that cannot be read gets the first normal image; its locator reports the problem.
                references[name] = (
                    self._references[0] if isinstance(vector, ImageError) else self._nearest_other(path, next(ranks))
                )
        return references

    def _nearest_other(self, target: Path, ranking: Ranking) -> Path:
        """The nearest normal image that is not the target's file or a copy of it; if all are, the nearest."""
        nearest = None
        for number in ranking:
            good = self._references[number]
            if not self._is_same(good, target):
                return good
            nearest = nearest or good
            ranking.drop_copies()
        return nearest or self._references[0]

    def _is_same(self, good: Path, target: Path) -> bool:
        try:
            return self._comparer.same(good, target)
        except ImageError:  # the file was removed meanwhile
            return False


def _describe_all(paths: Sequence[Path], what: str, progress: bool) -> Iterator[_Vector | ImageError]:
    """The descriptor of each image, or the error if it cannot be read, in order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from track(pool.map(_describe, paths), what, len(paths), shown=progress and len(paths) > 1)


def _describe(path: Path) -> _Vector | ImageError:
    try:
        return describe(read_thumbnail(path))
    except ImageError as error:
        return error.with_traceback(None)


def _targets_in(target: Path, excluded: Collection[str]) -> list[Path]:
    if not target.is_dir():
        return [target]
    return [path for path in _images(target) if _resolved(path) not in excluded]


def _images_in(targets: Iterable[Path]) -> bool:
    return any(True for target in targets if target.is_dir() for _ in _images(target))


def _images(folder: Path) -> list[Path]:
    """All images at any depth below a folder, in order. Warns of other files and of names that are not UTF-8."""
    images: list[Path] = []
    problems: list[str] = []
    for listing in walk(folder, problems.append):
        for name in listing.files:
            path = listing.path / name
            if is_pipe_or_device(path):
                problems.append(f"{path}: a pipe or a device")
            elif is_image(name) or path.suffix.lower() in UNREADABLE_ENDINGS:
                images.append(path)
            else:
                problems.append(f"{path}: its ending names no image format")
    if problems:
        files = "1 file is" if len(problems) == 1 else f"{len(problems)} files are"
        warnings.warn(f"{folder}: {files} ignored, the first: {problems[0]}", InputWarning, stacklevel=4)
    return images


def _common_folder(targets: Sequence[Path]) -> Path:
    """The folder that holds all targets. Raises InputError."""
    try:
        return Path(os.path.commonpath([_absolute(path if path.is_dir() else path.parent) for path in targets]))
    except ValueError:  # Windows
        raise InputError("the targets are on several drives; inspect those of each drive separately") from None


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` follows links, and a link is a separate name


def _resolved(path: Path) -> str:
    return os.path.realpath(path)
