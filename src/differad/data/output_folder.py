"""The output folder of a build or an export: new or empty, locked by this process, and marked until it is finished.

The marker lists every file before it is made. After an error all listed files are removed. A kill leaves the marker, and then
`force` removes the listed files, and nothing else, and starts over. A folder is finished only after all files are synced.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from differad.data.locks import LOCK, exclusive_run
from differad.data.sources.sample import MARKER, is_storable
from differad.errors import InputError, WriteError
from differad.files import AppendFile, leftovers, make_folder, sync_files, write_errors

_HEADER = "files of an unfinished {}"
# Files per call of `sync_files`, so that no list of all files is in memory.
_SYNC_BATCH = 512


class OutputFolder:
    """An output folder with its marker. `work` says in a word what writes to it. Raises WriteError."""

    def __init__(self, path: Path, work: str) -> None:
        self.path = path
        self._work = work
        self._marker = AppendFile(path / MARKER)
        try:
            self._append(_HEADER.format(work))
        except WriteError:
            self.discard()
            raise

    def record(self, *paths: Path) -> None:
        """List files of the folder in the marker, before they are made. Raises WriteError."""
        for path in paths:
            self._append(path.relative_to(self.path).as_posix())

    def new_file(self, name: str) -> Path:
        """List a file in the marker, make its folder and return its path. Raises WriteError."""
        path = self.path / name
        self.record(path)
        make_folder(path.parent)
        return path

    def new_folder(self, name: str) -> None:
        """List and make a folder that may stay empty. Raises WriteError."""
        self._append(name)
        make_folder(self.path / name)

    def finish(self) -> None:
        """Sync all listed files to the disk, then remove the marker. Raises WriteError."""
        self.sync()
        self._marker.close()
        with write_errors(self.path / MARKER):
            (self.path / MARKER).unlink(missing_ok=True)

    def sync(self) -> None:
        """Sync all files listed so far to the disk. Raises WriteError."""
        names = _names_in(self.path / MARKER)
        next(names)  # the header
        made = (path for name in names if (path := self.path / name).is_file() and not path.is_symlink())
        while batch := list(islice(made, _SYNC_BATCH)):
            sync_files(batch)

    def discard(self) -> None:
        """Remove all listed files."""
        self._marker.close()
        _remove_recorded(self.path, self._work)

    def _append(self, line: str) -> None:
        self._marker.append(json.dumps(line) + "\n")


@contextmanager
def create_output_folder(out: str | Path, *, force: bool = False, work: str = "build") -> Iterator[OutputFolder]:
    """Make the folder `out`, or use it if it is empty; nothing is ever overwritten. `work` names the task, in a word.

    `force` first removes the files of a killed task of the same name. If the block raises, its files are removed. Raises
    InputError if the folder is in use or holds anything else, and WriteError.
    """
    out = Path(out)
    if not is_storable(str(out)):
        raise InputError(f"--out {str(out)!r}: not UTF-8; a manifest could not name it, so choose another folder")
    make_folder(out)
    with exclusive_run(out):
        folder = _create(out, force, work)
        try:
            yield folder
            folder.finish()
        except BaseException:
            folder.discard()
            raise


def _create(out: Path, force: bool, work: str) -> OutputFolder:
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
    """Raise InputError if `out` exists and holds files, unless it has a marker."""
    if not out.is_dir() or (out / MARKER).exists():
        return
    leftover = next((path.name for path in out.iterdir() if path.name != LOCK), None)
    if leftover is not None:
        raise InputError(
            f"{out}: not empty; expected a new or empty folder, so that nothing is overwritten (it holds {leftover})"
        )


def _remove_recorded(out: Path, work: str) -> None:
    """Remove the files that the marker lists, the folders that become empty, and the marker. Raises InputError, OSError."""
    recorded = _recorded(out, work)
    for leftover in leftovers(recorded):
        leftover.unlink(missing_ok=True)
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
    """The header of a marker, then the names that it lists. Raises ValueError if it is not a marker, and OSError."""
    with marker.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # a kill may truncate the last line, whose file does not exist yet
                yield str(json.loads(line))
