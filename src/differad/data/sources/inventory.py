"""What a reader made of the files of a data set: each label belongs to one image, and no file is dropped without a word.

A reader hands its problems through an `Inventory` and its samples through `complete`, which then looks at every file below
the root. Files that a published data set holds without needing them are excepted by pattern, each with its reason where
the reader states it.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from differad.data.sources.sample import Problems, Sample, is_image, marks_anything, stem, walk
from differad.errors import ManifestError

# Images that cannot be read here: in a data set they are parts that somebody photographed.
UNREADABLE_ENDINGS = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".jfif", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
    | {".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr", ".psd", ".dcm", ".npy", ".npz", ".dib"}
)
_DOCUMENTS = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog)\b.*|.*\.md", re.IGNORECASE)
_PLACE = re.compile(r"(.*?):(?:\d+:)? ")
# Names that an error lists; --skip-bad reports every one.
_LISTED = 20


class Inventory:
    """Stands between a reader and its `problems`, and keeps what they and the samples already account for."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._accounted: set[Path] = set()

    def __call__(self, message: str) -> None:
        """Pass a problem on; the file that it begins with is accounted for. Raises what `problems` raises."""
        place = _PLACE.match(message)
        if place is not None:
            self._accounted.add(Path(place.group(1)))
        self._problems(message)

    def account_for(self, *paths: Path) -> None:
        """Say that `paths` are known to the reader, whatever comes of them: their problem is reported elsewhere."""
        self._accounted.update(paths)

    def complete(
        self,
        samples: Iterable[Sample],
        root: Path,
        *,
        spare: Collection[str] = (),
        below: Sequence[str] = ("",),
    ) -> Iterator[Sample]:
        """The samples whose labels are theirs alone; then a problem for each file that belongs to none.

        `spare` are patterns of paths relative to `root` that may be left over (`*` takes slashes too), `below` the folders
        that are looked through. Raises ManifestError through `problems`.
        """
        found = list(samples)
        for sample in found:
            self.account_for(sample.image, *sample.masks, *sample.labels)
            if sample.template is not None:
                self.account_for(sample.template)
        kept = list(self._sole_owners(found))
        left = [path for name in below for path in self._left_over(root / name, root, spare)]
        beside = {path.with_suffix(""): path for path in left if not _is_image(path.name)}
        doubtful = {
            beside[name]: sample
            for sample in kept
            if sample.is_normal and (name := sample.image.with_suffix("")) in beside
        }
        report_all([_left_message(path, doubtful.get(path)) for path in left], left, root, self._problems)
        # Only --skip-bad comes here: what lies beside a good part may be its label, so nobody knows that it is good.
        refused = {sample.image for sample in doubtful.values()}
        yield from (sample for sample in kept if sample.image not in refused)

    def _sole_owners(self, samples: Sequence[Sample]) -> Iterator[Sample]:
        """Samples that share no mask and no label with another image; a file that two claim is reported."""
        owners: dict[Path, set[Path]] = defaultdict(set)
        for sample in samples:
            for path in (sample.image, *sample.masks, *sample.labels):
                owners[path].add(sample.image)
        shared = {path: sorted(images) for path, images in owners.items() if len(images) > 1}
        for path, images in shared.items():
            names = " and ".join(str(image) for image in images)
            self._problems(
                f"{path}: belongs to {names}; expected one image for each mask or label, so rename one of them"
            )
        for sample in samples:
            if not any(path in shared for path in (sample.image, *sample.masks, *sample.labels)):
                yield sample

    def _left_over(self, folder: Path, root: Path, spare: Collection[str]) -> Iterator[Path]:
        """Images anywhere, and other files in folders of images or labels, that nothing accounts for."""
        used = {path.parent for path in self._accounted}
        known: list[str] = []  # names that are not UTF-8: a reader reported those that it saw
        for listing in walk(folder, known.append):
            for name in listing.files:
                path = listing.path / name
                if path in self._accounted or not (_is_image(name) or listing.path in used):
                    continue
                below = path.relative_to(root).as_posix()
                if not _DOCUMENTS.fullmatch(name) and not any(fnmatchcase(below, pattern) for pattern in spare):
                    yield path


def report_all(messages: Sequence[str], paths: Sequence[Path], root: Path, problems: Problems) -> None:
    """Report each of `messages`; where the first is an error, it lists the other `paths` too. Raises ManifestError."""
    for message in messages:
        try:
            problems(message)
        except ManifestError as error:
            others = [str(path.relative_to(root)) for path in paths[1 : _LISTED + 1]]
            if not others:
                raise
            more = f", and {len(paths) - 1 - len(others)} more" if len(paths) - 1 > len(others) else ""
            raise ManifestError(f"{error} (likewise {', '.join(others)}{more})") from None


def check_black(masks: Sequence[Path], image: Path) -> None:
    """Check that the masks of a good part mark nothing. Raises ManifestError, ImageError."""
    for mask in masks:
        if marks_anything(mask):
            raise ManifestError(
                f"{mask}: marks a defect, but {image} lies among the good parts; correct one of the two"
            )


def _is_image(name: str) -> bool:
    return is_image(name) or name[len(stem(name)) :].lower() in UNREADABLE_ENDINGS


def _left_message(path: Path, beside: Sample | None) -> str:
    ending = path.suffix.lower()
    if beside is not None:
        return f"{path}: may be the label of {beside.image}, but is not read here; move one of the two elsewhere"
    if ending in UNREADABLE_ENDINGS:
        return (
            f"{path}: ending {path.suffix!r} names no image format that is read; expected PNG, JPEG, TIFF, BMP or WebP"
        )
    if not is_image(path.name):
        return f"{path}: belongs to no image of the data set; move it elsewhere, or correct its name if it is a label"
    return (
        f"{path}: neither an image in its place nor the mask of one; move it to where the layout has it, correct its name, or "
        "leave it out (--skip-bad)"
    )
