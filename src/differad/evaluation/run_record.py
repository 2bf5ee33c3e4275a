"""What a run was made with, so that a later one goes on with it only where nothing has changed.

The record says which model, weights, options and manifests; the image log has a line for each finished pair: its images, and a
stamp of each file that no line before has. A line is written before the prediction that it stands for, so that none is without.
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
from differad.evaluation.own_files import check_own
from differad.evaluation.predictions import IMAGES_GO_ON, finished_ids, is_cut_off, keep_finished
from differad.files import AppendFile, atomic_write, leftovers, write_errors, write_text
from differad.locators import Locator
from differad.locators.remembered import Remembered

REMEDY = "choose another --out or remove it"
# Files whose stamps stay in memory: a reference comes again soon, and one that was dropped is stamped once more.
_CACHED = 4096


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what it needs to go on; `out` is what its messages name, `others` what it writes at the end."""

    out: Path
    predictions: Path
    record: Path
    images: Path
    others: tuple[Path, ...] = ()
    folder: Path | None = None

    def check_free(self, manifests: Iterable[Path]) -> None:
        """See that nothing which is not a run's own would be written over. Raises InputError.

        Beside a record the predictions and the image log are recognised line by line where they are read.
        """
        for path in (self.predictions, self.record, self.images, *self.others):
            for manifest in manifests:
                if path.exists() and manifest.exists() and path.samefile(manifest):
                    raise InputError(f"{path}: is the manifest itself, or one of an earlier run; choose another --out")
            if path.is_dir():
                raise InputError(f"{path}: a folder; expected a file to write to, so choose another --out")
            if not self.record.exists() and path.exists() and path.stat().st_size:
                raise InputError(
                    f"{path}: exists, and no {self.record.name} beside it says which run it is of; {REMEDY}"
                )
        folder = self.folder
        if folder is not None and folder.exists() and not self.record.exists():
            if not folder.is_dir():
                raise InputError(f"{folder}: a file; expected a folder to write to, so {REMEDY}")
            if any(folder.iterdir()):
                raise InputError(
                    f"{folder}: holds files, and no {self.record.name} says which run they are of; {REMEDY}"
                )
        for path in self.others:
            check_own(path, REMEDY)

    def discard_leftovers(self) -> None:
        """Remove what a killed run left of a write. Raises WriteError."""
        for rest in leftovers((self.predictions, self.record, self.images, *self.others)):
            with write_errors(rest):
                rest.unlink(missing_ok=True)


@dataclass(frozen=True)
class Inputs:
    """The images of one pair by name, reference first, and the stamps of their files, both before it was located."""

    images: tuple[str, str]
    stamps: dict[Path, Stamp]


class RunRecord:
    """The record of a run whose files this process has locked. `done` holds the ids of finished pairs.

    Nothing is written before all that is there was read and fits. Raises InputError where other options, another model,
    other manifests or other images gave it, ManifestError where the predictions are none, WriteError.
    """

    def __init__(self, files: RunFiles, locator: Locator, manifests: Sequence[Path]) -> None:
        earlier = read_run(files.record)
        files.check_free([*manifests, *map(Path, (earlier or {}).get("manifests", ()))])
        run = describe_run(locator, manifests, earlier)
        self._files = files
        try:
            self.done = finished_ids(files.predictions, begun=earlier is not None)
        except ManifestError as error:
            raise ManifestError(f"{error}; no file of predictions, so {REMEDY}") from None
        self._images_of: dict[str, str] = {}
        self._stamps: Remembered[Path, Stamp] = Remembered(_CACHED)
        self._logged: Remembered[Path, Stamp] = Remembered(_CACHED)
        if self.done:
            changed = changes(earlier or {}, run)
            if changed:
                raise InputError(f"{files.out}: holds a run with other {' and '.join(changed)}; {REMEDY}")
        files.discard_leftovers()
        lost = self._check_images()
        self.done -= lost
        write_text(files.record, json.dumps(run, indent=2) + "\n")
        keep_finished(files.predictions, begun=earlier is not None, without=lost)
        self._log = AppendFile(files.images)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.__exit__(kind, error, trace)

    def inputs(self, pair: Pair) -> Inputs:
        """What a pair shows now. A file that cannot be read has no stamp: the locator says what is wrong with it."""
        stamps = {}
        for path in filter(None, (file_of(pair.reference), file_of(pair.target))):
            try:
                fresh = stamp(path, self._stamps.get(path))
            except OSError:
                continue
            self._stamps.keep(path, fresh)
            stamps[path] = fresh
        return Inputs((image_name(pair.reference), image_name(pair.target)), stamps)

    def check_finished(self, pair: Pair) -> None:
        """See that a finished pair names the images that it was located with. Raises InputError."""
        if self._images_of[pair.id] != combined((image_name(pair.reference), image_name(pair.target))):
            raise InputError(f"{self._files.out}: holds an answer to other images for pair {pair.id!r}; {REMEDY}")

    def add(self, pair_id: str, inputs: Inputs) -> None:
        """Log the images of a pair that is finished. Raises InputError where one changed since an earlier pair, WriteError."""
        fresh = {}
        for path, now in inputs.stamps.items():
            logged = self._logged.get(path)
            if logged is not None and logged.content != now.content:
                raise InputError(f"{path}: changed while the run was at work; {REMEDY}")
            if logged is None:
                fresh[path] = now
                self._logged.keep(path, now)
        self._log.append(_to_line(pair_id, inputs.images, fresh))

    def sync(self) -> None:
        """Bring the log to the disk. Raises WriteError."""
        self._log.sync()

    def _check_images(self) -> set[str]:
        """Rewrite the image log: finished pairs only, their stamps renewed. Raises InputError naming what changed.

        Returns the finished pairs that it does not name because a power cut took its end; those are to be located again.
        """
        is_there = self._files.images.exists()
        if not (is_there or self.done):
            return set()
        with atomic_write(self._files.images) as fresh, fresh.open("w", encoding="utf-8") as file:
            for line in self._renewed():
                file.write(line)
            lost = self.done - self._images_of.keys()
            if lost and not is_there:
                missing = min(lost)
                raise InputError(f"{self._files.images}: does not say which images pair {missing!r} shows; {REMEDY}")
        return lost

    def _renewed(self) -> Iterator[str]:
        for number, entry in _entries(self._files.images):
            try:
                pair_id, images = entry["id"], tuple(entry["images"])
                stamps = {Path(path): Stamp(*values) for path, values in entry["files"].items()}
            except (KeyError, TypeError, AttributeError):
                raise InputError(f"{self._files.images}:{number}: is no line of an image log; {REMEDY}") from None
            if pair_id in self.done:
                self._images_of[pair_id] = combined(images)
                yield _to_line(pair_id, images, {path: self._renew(path, old) for path, old in stamps.items()})

    def _renew(self, path: Path, earlier: Stamp) -> Stamp:
        """The stamp of a file now. One that is gone cannot contradict its answer."""
        try:
            now = stamp(path, earlier)
        except OSError:
            now = earlier
        if now.content != earlier.content:
            raise InputError(f"{self._files.out}: holds answers to an earlier content of {path}; {REMEDY}")
        self._logged.keep(path, now)
        self._stamps.keep(path, now)
        return now


def read_run(path: Path) -> dict[str, Any] | None:
    """The record at `path`, None where there is no such file. Raises InputError where it is anything else."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise InputError(f"{path}: no record of a run that this version goes on with; {REMEDY}")
    return run


def _to_line(pair_id: str, images: tuple[str, ...], stamps: Mapping[Path, Stamp]) -> str:
    files = {str(path): astuple(one) for path, one in stamps.items()}
    return json.dumps({"id": pair_id, "images": images, "files": files}) + "\n"


def _entries(path: Path) -> Iterator[tuple[int, Any]]:
    """The lines of an image log with their number; what a kill or a power cut left of the last one is passed over."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, raw in enumerate(file, start=1):
            if is_cut_off(raw, number, IMAGES_GO_ON):
                return
            try:
                yield number, json.loads(raw)
            except (ValueError, RecursionError):
                yield number, None
