"""Checks that a reader used all files of a data set: each label belongs to one image, and no file is ignored silently.

A reader passes its problems through an `Inventory` and its samples through `complete`, which then checks every file below
the root. Files of a published data set that are not needed are excluded by pattern; each reader states the reason.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from differad.data.sources.sample import Problems, Sample, is_image, marks_anything, stem, walk
from differad.errors import ManifestError

# Images in formats that are not read. In a data set they are probably samples, so they must not be ignored silently.
UNREADABLE_ENDINGS = frozenset(
    {".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".jfif", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"}
    | {".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".exr", ".hdr", ".psd", ".dcm", ".npy", ".npz", ".dib"}
)
_DOCUMENTS = re.compile(r"(readme|licen[cs]e|copying|notice|citation|changelog)\b.*|.*\.md", re.IGNORECASE)
_PATH_PREFIX = re.compile(r"(.*?):(?:\d+:)? ")
# Names that an error lists; --skip-bad reports every one.
_MAX_LISTED = 20


class Inventory:
    """Wraps a reader's `problems` callable and records the files that problems and samples account for."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._accounted: set[Path] = set()

    def __call__(self, message: str) -> None:
        """Report a problem; the file that the message begins with is accounted for. Raises what `problems` raises."""
        match = _PATH_PREFIX.match(message)
        if match is not None:
            self._accounted.add(Path(match.group(1)))
        self._problems(message)

    def account_for(self, *paths: Path) -> None:
        """Mark `paths` as handled by the reader; their problems, if any, are reported elsewhere."""
        self._accounted.update(paths)

    def complete(
        self,
        samples: Iterable[Sample],
        root: Path,
        *,
        ignored: Collection[str] = (),
        below: Sequence[str] = ("",),
    ) -> Iterator[Sample]:
        """Yield the samples that share no label, and report each file that belongs to no sample.

        `ignored` are patterns of paths relative to `root` that may be unused (`*` matches slashes too); `below` are the
        folders to check. Raises ManifestError through `problems`.
        """
        all_samples = list(samples)
        for sample in all_samples:
            self.account_for(sample.image, *sample.masks, *sample.labels)
            if sample.template is not None:
                self.account_for(sample.template)
        kept = list(self._sole_owners(all_samples))
        unaccounted = [path for name in below for path in self._unaccounted(root / name, root, ignored)]
        other_files = {path.with_suffix(""): path for path in unaccounted if not _has_image_ending(path.name)}
        possible_labels = {
            other_files[name]: sample
            for sample in kept
            if sample.is_normal and (name := sample.image.with_suffix("")) in other_files
        }
        report_all(
            [_unaccounted_message(path, possible_labels.get(path)) for path in unaccounted],
            unaccounted,
            root,
            self._problems,
        )
        # Only reached with --skip-bad: a file beside a normal image may be its label, so it may not be normal.
        refused = {sample.image for sample in possible_labels.values()}
        yield from (sample for sample in kept if sample.image not in refused)

    def _sole_owners(self, samples: Sequence[Sample]) -> Iterator[Sample]:
        """Samples that share no mask or label with another image; a shared file is reported."""
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

    def _unaccounted(self, folder: Path, root: Path, ignored: Collection[str]) -> Iterator[Path]:
        """Unaccounted images anywhere, and other unaccounted files in folders of images or labels."""
        used = {path.parent for path in self._accounted}
        unreadable_names: list[str] = []  # names that are not UTF-8: the reader reported its own
        for listing in walk(folder, unreadable_names.append):
            for name in listing.files:
                path = listing.path / name
                if path in self._accounted or not (_has_image_ending(name) or listing.path in used):
                    continue
                below = path.relative_to(root).as_posix()
                if not _DOCUMENTS.fullmatch(name) and not any(fnmatchcase(below, pattern) for pattern in ignored):
                    yield path


def report_all(messages: Sequence[str], paths: Sequence[Path], root: Path, problems: Problems) -> None:
    """Report each of `messages`; if the first one raises, its error lists the other `paths` too. Raises ManifestError."""
    for message in messages:
        try:
            problems(message)
        except ManifestError as error:
            others = [str(path.relative_to(root)) for path in paths[1 : _MAX_LISTED + 1]]
            if not others:
                raise
            more = f", and {len(paths) - 1 - len(others)} more" if len(paths) - 1 > len(others) else ""
            raise ManifestError(f"{error} (likewise {', '.join(others)}{more})") from None


def check_black(masks: Sequence[Path], image: Path) -> None:
    """Check that the masks of a normal image mark nothing. Raises ManifestError, ImageError."""
    for mask in masks:
        if marks_anything(mask):
            raise ManifestError(f"{mask}: marks a defect, but {image} is among the good parts; correct one of the two")


def _has_image_ending(name: str) -> bool:
    return is_image(name) or name[len(stem(name)) :].lower() in UNREADABLE_ENDINGS


def _unaccounted_message(path: Path, beside: Sample | None) -> str:
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
