"""Record of a run's inputs, so that a later run continues it only if nothing has changed.

The record holds model, weights, options and manifests. The image log has a line for each finished pair: its images, and a
stamp of each file that is not in an earlier line. A line is written before its prediction, so every prediction has one.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from differad.core import Pair
from differad.data.stamps import Stamp, combined, file_of, image_name, stamp
from differad.errors import InputError, ManifestError
from differad.evaluation.identity import FORMAT, changes, describe_run
from differad.evaluation.own_files import check_is_result
from differad.evaluation.predictions import IMAGES_AFTER_ID, finished_ids, is_cut_off, keep_finished
from differad.files import AppendFile, atomic_write, leftovers, write_errors, write_text
from differad.locators import Locator
from differad.locators.remembered import LRUCache

REMEDY = "choose another --out or remove it"
# Number of cached stamps: a reference is soon needed again, and an evicted file is stamped once more.
_CACHED = 4096


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run's files; messages name `out`, and the files in `others` are written at the end."""

    out: Path
    predictions: Path
    record: Path
    images: Path
    others: tuple[Path, ...] = ()
    folder: Path | None = None

    def check_free(self, manifests: Iterable[Path]) -> None:
        """Check that only files of a run would be overwritten. Raises InputError.

        With a record, the predictions and the image log are checked line by line when they are read.
        """
        for path in (self.predictions, self.record, self.images, *self.others):
            for manifest in manifests:
                if path.exists() and manifest.exists() and path.samefile(manifest):
                    raise InputError(f"{path}: is a manifest of this or an earlier run; choose another --out")
            if path.is_dir():
                raise InputError(f"{path}: a folder; expected a file to write to, so choose another --out")
            if not self.record.exists() and path.exists() and path.stat().st_size:
                raise InputError(f"{path}: exists without the {self.record.name} of its run beside it; {REMEDY}")
        folder = self.folder
        if folder is not None and folder.exists() and not self.record.exists():
            if not folder.is_dir():
                raise InputError(f"{folder}: a file; expected a folder to write to, so {REMEDY}")
            if any(folder.iterdir()):
                raise InputError(f"{folder}: holds files without the {self.record.name} of their run; {REMEDY}")
        for path in self.others:
            check_is_result(path, REMEDY)

    def discard_leftovers(self) -> None:
        """Remove temporary files of a killed run. Raises WriteError."""
        for path in leftovers((self.predictions, self.record, self.images, *self.others)):
            with write_errors(path):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Inputs:
    """The names of a pair's images, reference first, and the stamps of their files, both from before it was located."""

    images: tuple[str, str]
    stamps: dict[Path, Stamp]


class RunRecord:
    """The record of a run whose files this process has locked. `done` holds the ids of finished pairs.

    All existing files are read and checked before anything is written. Raises InputError if they are from another model or
    other options, manifests or images, ManifestError if the predictions are not a file of predictions, WriteError.
    """

    def __init__(self, files: RunFiles, locator: Locator, manifests: Sequence[Path]) -> None:
        earlier = read_run(files.record)
        files.check_free([*manifests, *map(Path, (earlier or {}).get("manifests", ()))])
        run = describe_run(locator, manifests, earlier)
        self._files = files
        try:
            self.done = finished_ids(files.predictions, recognised=earlier is not None)
        except ManifestError as error:
            raise ManifestError(f"{error}; not a file of predictions, so {REMEDY}") from None
        self._images_of: dict[str, str] = {}
        self._stamps: LRUCache[Path, Stamp] = LRUCache(_CACHED)
        self._logged: LRUCache[Path, Stamp] = LRUCache(_CACHED)
        if self.done:
            changed = changes(earlier or {}, run)
            if changed:
                raise InputError(f"{files.out}: holds a run with other {' and '.join(changed)}; {REMEDY}")
        files.discard_leftovers()
        lost = self._check_images()
        self.done -= lost
        write_text(files.record, json.dumps(run, indent=2) + "\n")
        keep_finished(files.predictions, recognised=earlier is not None, without=lost)
        self._log = AppendFile(files.images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.__exit__(kind, error, trace)

    def inputs(self, pair: Pair) -> Inputs:
        """The current images of a pair. A file that cannot be read has no stamp: the locator reports it."""
        stamps = {}
        for path in filter(None, (file_of(pair.reference), file_of(pair.target))):
            try:
                current = stamp(path, self._stamps.get(path))
            except OSError:
                continue
            self._stamps.keep(path, current)
            stamps[path] = current
        return Inputs((image_name(pair.reference), image_name(pair.target)), stamps)

    def check_finished(self, pair: Pair) -> None:
        """Check that a finished pair has the images that it was located with. Raises InputError."""
        if self._images_of[pair.id] != combined((image_name(pair.reference), image_name(pair.target))):
            raise InputError(f"{self._files.out}: holds an answer to other images for pair {pair.id!r}; {REMEDY}")

    def add(self, pair_id: str, inputs: Inputs) -> None:
        """Log the images of a finished pair. Raises InputError if one changed since an earlier pair, WriteError."""
        new = {}
        for path, current in inputs.stamps.items():
            logged = self._logged.get(path)
            if logged is not None and logged.content != current.content:
                raise InputError(f"{path}: changed during the run; {REMEDY}")
            if logged is None:
                new[path] = current
                self._logged.keep(path, current)
        self._log.append(_to_line(pair_id, inputs.images, new))

    def sync(self) -> None:
        """Flush the log to the disk. Raises WriteError."""
        self._log.sync()

    def _check_images(self) -> set[str]:
        """Rewrite the image log with finished pairs only and current stamps. Raises InputError that names a changed file.

        Returns the finished pairs that are missing from it because a power cut removed its end; they must be located again.
        """
        exists = self._files.images.exists()
        if not (exists or self.done):
            return set()
        with atomic_write(self._files.images) as temporary, temporary.open("w", encoding="utf-8") as file:
            for line in self._renewed():
                file.write(line)
            lost = self.done - self._images_of.keys()
            if lost and not exists:
                missing = min(lost)
                raise InputError(f"{self._files.images}: has no line with the images of pair {missing!r}; {REMEDY}")
        return lost

    def _renewed(self) -> Iterator[str]:
        for number, entry in _entries(self._files.images):
            try:
                pair_id, images = entry["id"], tuple(entry["images"])
                stamps = {Path(path): Stamp(*values) for path, values in entry["files"].items()}
            except (KeyError, TypeError, AttributeError):
                raise InputError(f"{self._files.images}:{number}: not a line of an image log; {REMEDY}") from None
            if pair_id in self.done:
                self._images_of[pair_id] = combined(images)
                yield _to_line(pair_id, images, {path: self._renew(path, old) for path, old in stamps.items()})

    def _renew(self, path: Path, earlier: Stamp) -> Stamp:
        """The current stamp of a file. A missing file keeps its earlier stamp, since it cannot contradict its answer."""
        try:
            current = stamp(path, earlier)
        except OSError:
            current = earlier
        if current.content != earlier.content:
            raise InputError(f"{self._files.out}: holds answers to an earlier content of {path}; {REMEDY}")
        self._logged.keep(path, current)
        self._stamps.keep(path, current)
        return current


def read_run(path: Path) -> dict[str, Any] | None:
    """The record at `path`, None if there is no such file. Raises InputError if it is anything else."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise InputError(f"{path}: not a record of a run that this version can continue; {REMEDY}")
    return run


def _to_line(pair_id: str, images: tuple[str, ...], stamps: Mapping[Path, Stamp]) -> str:
    files = {str(path): astuple(entry) for path, entry in stamps.items()}
    return json.dumps({"id": pair_id, "images": images, "files": files}) + "\n"


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """The lines of an image log with their number; a last line cut off by a kill or a power cut is skipped."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, raw in enumerate(file, start=1):
            if is_cut_off(raw, number, IMAGES_AFTER_ID):
                return
            try:
                yield number, json.loads(raw)
            except (ValueError, RecursionError):
                yield number, None
