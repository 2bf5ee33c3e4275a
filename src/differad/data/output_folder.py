"""The folder that a build writes to: new or empty, this process's alone, and marked until it is finished.

The marker lists what the build makes, each name before its file. A build that fails removes it all; one that is killed leaves
the marker, and `force` starts it over: it removes what the marker lists, and nothing else.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from differad.data.atomic import TEMPORARY_ENDING
from differad.data.locks import LOCK, sole_run
from differad.data.sources.sample import is_storable
from differad.errors import InputError

MARKER = ".differad-unfinished"
_HEADER = "files of an unfinished build"


class OutputFolder:
    """A claimed folder. `path` is where it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._marker = (path / MARKER).open("a", encoding="utf-8")
        self._write(_HEADER)

    def record(self, *paths: Path) -> None:
        """List files of the folder in the marker; called before each is made."""
        for path in paths:
            self._write(path.relative_to(self.path).as_posix())

    def finish(self) -> None:
        """Remove the marker."""
        self._marker.close()
        (self.path / MARKER).unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what was made."""
        self._marker.close()
        _remove_recorded(self.path)

    def _write(self, line: str) -> None:
        self._marker.write(json.dumps(line) + "\n")
        self._marker.flush()


@contextmanager
def claim_folder(out: str | Path, *, force: bool = False) -> Iterator[OutputFolder]:
    """Make the folder `out`, or take it where it is empty; nothing is ever overwritten.

    `force` first removes what a killed build left in it. Where the block ends with an exception, what it made is removed.
    Raises InputError where the folder is in use, or holds anything else.
    """
    out = Path(out)
    if not is_storable(str(out)):
        raise InputError(f"--out {str(out)!r}: not UTF-8; a manifest could not name it, so choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    with sole_run(out):
        folder = _take(out, force)
        try:
            yield folder
        except BaseException:
            folder.discard()
            raise
        folder.finish()


def _take(out: Path, force: bool) -> OutputFolder:
    try:
        if (out / MARKER).exists():
            if not force:
                raise InputError(
                    f"{out}: holds an unfinished build; --force removes what it made and starts over, or choose another folder"
                )
            _remove_recorded(out)
        rest = next((path.name for path in out.iterdir() if path.name != LOCK), None)
        if rest is not None:
            raise InputError(
                f"{out}: not empty; expected a new or empty folder, so that nothing is overwritten (it holds {rest})"
            )
        return OutputFolder(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None


def _remove_recorded(out: Path) -> None:
    """Remove the files that the marker lists, folders that are empty then, and the marker. Raises InputError, OSError."""
    for path in _recorded(out):
        # What a write in one step left of it, too.
        unfinished = re.compile(re.escape(path.name) + r"\.\d+" + re.escape(TEMPORARY_ENDING))
        if path.parent.is_dir():
            for rest in [one for one in path.parent.iterdir() if unfinished.fullmatch(one.name)]:
                rest.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == out:
                break
            with suppress(OSError):
                parent.rmdir()
    (out / MARKER).unlink(missing_ok=True)


def _recorded(out: Path) -> list[Path]:
    marker = out / MARKER
    # A kill may cut off the last line, whose file was not made yet.
    lines = [line for line in marker.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        header, *names = [str(json.loads(line)) for line in lines] or [_HEADER]
    except ValueError:
        header, names = "", []
    paths = [Path(name) for name in names]
    if header != _HEADER or any(path.is_absolute() or ".." in path.parts for path in paths):
        raise InputError(f"{marker}: does not list what a build made; remove the folder or choose another")
    return [out / path for path in paths]
