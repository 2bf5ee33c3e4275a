"""`Sample`, which every reader of a data set yields, and helpers of readers: listing folders, checking paths, reporting problems.

A folder is listed once, names in order. Whether a file exists is looked up in that listing instead of on the disk, so that
50,000 files are indexed in seconds.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import ParamSpec, TypeVar

from differad.boxes import Boxes, as_boxes
from differad.data.masks import read_mask
from differad.errors import InputError, ManifestError, WriteError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
# Files that operating systems and archivers leave in folders; hidden files are ignored too.
JUNK = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"})
# A folder that differad is writing to holds this marker; a finished one holds a manifest.
MARKER, _MANIFEST = ".differad-unfinished", "pairs.jsonl"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
Problems = Callable[[str], None]
CropBox = tuple[int, int, int, int]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a data set with its labels.

    `boxes` (N, 4) are pixels of the image, or of `region` if it has one; None takes them from the masks. A normal sample has
    neither masks nor boxes; for a defective one without either the place of the defect is unknown. `labels` are
    further files that belong to this image alone: the text file of its boxes, the black mask of a normal image. `template`
    is a reference that the data set provides. `defect_type` is empty for a normal sample. `instance_id` names the physical
    part (a split must not put two samples of one part on both sides), `view` the camera, exposure or pose; a reference must
    match the view. `region` is x1, y1, x2, y2 in pixels, x2/y2 exclusive.
    """

    image: Path
    category: str
    is_normal: bool
    masks: tuple[Path, ...] = ()
    boxes: Boxes | None = None
    template: Path | None = None
    defect_type: str = ""
    split: str = ""
    instance_id: str = ""
    view: str = ""
    region: CropBox | None = None
    labels: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.boxes is not None:
            object.__setattr__(self, "boxes", as_boxes(self.boxes))

    @property
    def place_unknown(self) -> bool:
        """Whether the sample is defective without a label that says where."""
        return not self.is_normal and not self.masks and self.boxes is None


def refuse(message: str) -> None:
    """The default way to report a problem. Raises ManifestError."""
    raise ManifestError(message)


@dataclass
class ProblemList:
    """A `problems` callable that stores the messages and lets the reader continue without the sample."""

    messages: list[str] = field(default_factory=list)

    def __call__(self, message: str) -> None:
        """Store a message on one line."""
        self.messages.append(" ".join(message.split()))


def try_or_report(
    problems: Problems, step: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result | None:
    """The result of `step`, or None after its InputError went to `problems`. Raises WriteError, which no sample causes."""
    try:
        return step(*args, **kwargs)
    except WriteError:
        raise
    except InputError as error:
        problems(str(error))
        return None


def missing_mask_message(image: Path, *expected: Path) -> str:
    """The message for a defective image whose mask is at none of the `expected` paths."""
    paths = " or ".join(str(where) for where in expected)
    return f"{image}: no mask at {paths}; a defective part needs one, so add it or leave the part out (--skip-bad)"


def no_image_message(folder: Path) -> str:
    """The message for a folder that should hold images and holds none in a format that is read."""
    return f"{folder}: holds no image; expected {', '.join(sorted(IMAGE_ENDINGS))}, so add them or remove the folder"


@dataclass(frozen=True)
class Listing:
    """The names in one folder, sorted: `folders` and `files`; `file_names` holds the files as a set."""

    path: Path
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    file_names: frozenset[str] = frozenset()

    @property
    def images(self) -> Iterator[str]:
        """Files whose ending names an image format, in order."""
        return (name for name in self.files if is_image(name))

    def find(self, *names: str) -> Path | None:
        """The path of the first of `names` that is a file of this folder, or None."""
        return next((self.path / name for name in names if name in self.file_names), None)

    def require(self, *names: str, why: str) -> None:
        """Check that the folders `names` exist. Raises ManifestError, which says `why` they are expected."""
        for name in names:
            if name not in self.folders:
                raise ManifestError(f"{self.path}: no folder {name}; {why}")


class FileIndex:
    """Says whether the files named by label files exist; each folder is listed once, on first use."""

    def __init__(self, problems: Problems = refuse) -> None:
        self._problems = problems
        self._file_names: dict[Path, frozenset[str]] = {}

    def __contains__(self, path: Path) -> bool:
        folder = path.parent
        if folder not in self._file_names:
            self._file_names[folder] = (
                list_folder(folder, self._problems).file_names if folder.is_dir() else frozenset()
            )
        return path.name in self._file_names[folder]


def list_folder(path: Path, problems: Problems = refuse) -> Listing:
    """List a folder without hidden files, junk and earlier builds; names that are not UTF-8 are reported and left out.

    Raises ManifestError if `path` is not a readable folder.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not is_storable(entry.name):
                    problems(f"{path}: file name {entry.name!r} is not UTF-8; rename the file")
                elif not (entry.name.startswith(".") or entry.name.lower() in JUNK or _is_built(entry)):
                    (folders if entry.is_dir() else files).append(entry.name)
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such folder; give the folder that holds the data set") from None
    except NotADirectoryError:
        raise ManifestError(f"{path}: a file; expected a folder, so unpack the archive and give its folder") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be listed ({error.strerror}); check the permissions") from None
    return Listing(path, tuple(folders), tuple(files), frozenset(files))


def _is_built(entry: os.DirEntry[str]) -> bool:
    """Whether a folder is the output of an earlier build, or holds nothing else: then it is not part of the data set."""
    if not entry.is_dir():
        return False
    if any(Path(entry.path, name).is_file() for name in (_MANIFEST, MARKER)):
        return True
    if entry.is_symlink():  # links may form a cycle
        return False
    try:
        with os.scandir(entry.path) as below:
            first = next(below, None)
            return first is not None and _is_built(first) and all(map(_is_built, below))
    except OSError:  # reported when the folder is listed
        return False


def list_if_present(parent: Listing, name: str, problems: Problems = refuse) -> Listing:
    """List the folder `name` of `parent`; an empty listing if it does not exist."""
    path = parent.path / name
    return list_folder(path, problems) if name in parent.folders else Listing(path)


def walk(path: Path, problems: Problems = refuse) -> Iterator[Listing]:
    """The listings of a folder and of all folders below it, parents first; a folder reached by several links comes once.

    Raises ManifestError.
    """
    visited: set[tuple[int, int]] = set()
    pending = [path]
    while pending:
        folder = pending.pop()
        status = folder.stat() if folder.exists() else None
        if status is not None and (status.st_dev, status.st_ino) in visited:
            continue
        if status is not None:
            visited.add((status.st_dev, status.st_ino))
        listing = list_folder(folder, problems)
        yield listing
        pending += [folder / name for name in reversed(listing.folders)]


def is_image(name: str) -> bool:
    """Whether the ending names an image format."""
    return name[len(stem(name)) :].lower() in IMAGE_ENDINGS


def is_storable(name: str) -> bool:
    """Whether the name can be written into a UTF-8 manifest."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def stem(name: str) -> str:
    """The file name without its last ending."""
    return PurePosixPath(name).stem


def folder_name(path: Path) -> str:
    """The folder's name, also if it is given as `.`."""
    return path.name or path.resolve().name


def marks_anything(path: Path) -> bool:
    """Whether a mask marks any pixel. Raises ImageError."""
    return bool(read_mask(path).any())


def path_inside(root: Path, name: str, where: str) -> Path:
    """The path `name` from a label file, below `root`. Raises ManifestError if it is absolute or leaves `root`."""
    slashed = name.replace("\\", "/")
    path = PurePosixPath(slashed)
    if not name.strip() or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise ManifestError(f"{where}: path {name!r} leads out of the data set; expected one relative to {root}")
    return root / path


def read_text(path: Path) -> str:
    """A label file as text, without a byte order mark. Raises ManifestError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ManifestError(f"{path}: no such file; it holds the labels of the data set") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a label file") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The non-blank lines of a label file with their numbers from 1. Raises ManifestError."""
    return [(number, line) for number, line in enumerate(read_text(path).splitlines(), start=1) if line.strip()]


def parse_numbers(fields: Iterable[str], where: str) -> list[float]:
    """Fields of a label line as finite decimal numbers (`1_0` is not one). Raises ManifestError."""
    values = []
    for text in fields:
        value = float(text) if _NUMBER.fullmatch(text.strip()) else float("nan")
        if not abs(value) < float("inf"):
            raise ManifestError(f"{where}: {text.strip()!r} is not a number; correct the label file")
        values.append(value)
    return values
