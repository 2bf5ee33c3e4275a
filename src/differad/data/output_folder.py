"""The folder that a build or an export writes to: new or empty, this process's alone, and marked until it is finished.

The marker lists what is made, each name before its file. Where that fails, all of it is removed. A kill leaves the marker, and
`force` starts over: it removes what the marker lists, and nothing else. Nothing is finished before it is on the disk.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from differad.data.locks import LOCK, sole_run
from differad.data.sources.sample import MARKER, is_storable
from differad.errors import InputError, WriteError
from differad.files import AppendFile, leftovers, make_folder, sync_files, write_errors

_HEADER = "files of an unfinished {}"
# Files that are brought to the disk in one go, so that no list of all is held.
_AT_ONCE = 512


class OutputFolder:
    """A claimed folder. `path` is where it is, `work` what writes to it. Raises WriteError."""

    def __init__(self, path: Path, work: str) -> None:
        self.path = path
        self._work = work
        self._marker = AppendFile(path / MARKER)
        try:
            self._list(_HEADER.format(work))
        except WriteError:
            self.discard()
            raise

    def record(self, *paths: Path) -> None:
        """List files of the folder in the marker; called before each is made. Raises WriteError."""
        for path in paths:
            self._list(path.relative_to(self.path).as_posix())

    def new_file(self, name: str) -> Path:
        """The path of a file that is made next, listed, its folder made. Raises WriteError."""
        path = self.path / name
        self.record(path)
        make_folder(path.parent)
        return path

    def new_folder(self, name: str) -> None:
        """Make a folder that may stay empty, listed. Raises WriteError."""
        self._list(name)
        make_folder(self.path / name)

    def finish(self) -> None:
        """Bring all that was made to the disk, then remove the marker. Raises WriteError."""
        self.sync()
        self._marker.close()
        with write_errors(self.path / MARKER):
            (self.path / MARKER).unlink(missing_ok=True)

    def sync(self) -> None:
        """Bring all that was made so far to the disk. Raises WriteError."""
        names = _names_in(self.path / MARKER)
        next(names)  # what the marker is of
        made = (path for name in names if (path := self.path / name).is_file() and not path.is_symlink())
        while some := list(islice(made, _AT_ONCE)):
            sync_files(some)

    def discard(self) -> None:
        """Remove what was made."""
        self._marker.close()
        _remove_recorded(self.path, self._work)

    def _list(self, line: str) -> None:
        self._marker.append(json.dumps(line) + "\n")


@contextmanager
def claim_folder(out: str | Path, *, force: bool = False, work: str = "build") -> Iterator[OutputFolder]:
    """Make the folder `out`, or take it where it is empty; nothing is ever overwritten. `work` is what is done, in a word.

    `force` first removes what killed work of the same kind left in it. Where the block ends with an exception, what it made is
    removed. Raises InputError where the folder is in use, or holds anything else, and WriteError.
    """
    out = Path(out)
    if not is_storable(str(out)):
        raise InputError(f"--out {str(out)!r}: not UTF-8; a manifest could not name it, so choose another folder")
    make_folder(out)
    with sole_run(out):
        folder = _take(out, force, work)
        try:
            yield folder
            folder.finish()
        except BaseException:
            folder.discard()
            raise


def _take(out: Path, force: bool, work: str) -> OutputFolder:
    with write_errors(out):
        if (out / MARKER).exists():
            if not force:
                raise InputError(
                    f"{out}: holds an unfinished {work}; --force removes what it made and starts over, or choose another folder"
                )
            _remove_recorded(out, work)
        check_empty(out)
    return OutputFolder(out, work)


def check_empty(out: Path) -> None:
    """Raise InputError where `out` is there and holds anything that no unfinished work has made."""
    if not out.is_dir() or (out / MARKER).exists():
        return
    rest = next((path.name for path in out.iterdir() if path.name != LOCK), None)
    if rest is not None:
        raise InputError(
            f"{out}: not empty; expected a new or empty folder, so that nothing is overwritten (it holds {rest})"
        )


def _remove_recorded(out: Path, work: str) -> None:
    """Remove the files that the marker lists, folders that are empty then, and the marker. Raises InputError, OSError."""
    recorded = _recorded(out, work)
    for rest in leftovers(recorded):
        rest.unlink(missing_ok=True)
    for path in recorded:
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder:
            path.unlink(missing_ok=True)
        for folder in (path, *path.parents) if is_folder else path.parents:
            if folder == out:
                break
            with suppress(OSError):
                folder.rmdir()
    (out / MARKER).unlink(missing_ok=True)


def _recorded(out: Path, work: str) -> list[Path]:
    marker, expected = out / MARKER, _HEADER.format(work)
    try:
        header, *names = list(_names_in(marker)) or [expected]
    except ValueError:
        header, names = "", []
    paths = [Path(name) for name in names]
    if header != expected or any(path.is_absolute() or ".." in path.parts for path in paths):
        raise InputError(f"{marker}: does not list what a build made; remove the folder or choose another")
    return [out / path for path in paths]


def _names_in(marker: Path) -> Iterator[str]:
    """What a marker says it is of, then the names that it lists. Raises ValueError where it is none, OSError."""
    with marker.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # a kill may cut off the last one, whose file was not made yet
                yield str(json.loads(line))
