"""The one way to write: a file or a folder is there whole or not at all, and what cannot be written is one line.

What is written gets a temporary name beside its own, is brought to the disk, and takes its name in one step. So a full disk, a
kill or a power cut leaves the old file, or none. Files that grow line by line are `AppendFile`s: a line that does not fit is cut
off again.
"""

import errno
import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from differad.errors import WriteError

TEMPORARY_ENDING = ".tmp"
# Files that grow are brought to the disk this often: it takes milliseconds, and a power cut loses no more than that.
SECONDS_BETWEEN_SYNCS = 2.0
# Bytes of a file's name, on all common file systems.
_LONGEST_NAME = 255
# What a file system answers that knows no such call for this kind of file; the write itself was not refused.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})
_TEMPORARY = re.compile(rf"(.+)\.\d+{re.escape(TEMPORARY_ENDING)}", re.DOTALL)
# From so many files on they are brought to the disk by several threads.
_MANY, _SIDE_BY_SIDE = 64, 8
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A name beside `path` to write a file to. It becomes `path` when the block ends well, and is removed when it does not.

    Without `sync` a power cut may take the content: whoever names the file elsewhere calls `sync_files` before.
    Raises WriteError.
    """
    with write_errors(path):
        target, fresh = _names(path)
        _check_replaceable(target)
    with write_errors(path, target, fresh):
        try:
            yield fresh
            if sync:
                _sync(fresh)
            fresh.replace(target)
            if sync:
                _sync_folder(target.parent)
        finally:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a whole file; see `atomic_write`. Raises WriteError."""
    with atomic_write(path, sync=sync) as fresh:
        fresh.write_bytes(content)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a whole file of UTF-8; see `atomic_write`. Raises WriteError."""
    write_bytes(path, text.encode(), sync=sync)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a whole file of UTF-8 line by line; each of `lines` ends with its own newline. Raises WriteError."""
    with atomic_write(path) as fresh, fresh.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write to. It takes the place of `folder` when the block ends well.

    It is removed when the block does not, and so is what a kill left of an earlier one: the caller lets nobody else write there.
    Raises WriteError.
    """
    fresh, old = unfinished(folder), unfinished(folder.with_name(f"{folder.name}.old"))
    with write_errors(folder, fresh, old):
        if old.exists() and not folder.exists():  # killed between the two steps below
            old.replace(folder)
        for rest in (fresh, old):
            shutil.rmtree(rest, ignore_errors=True)
        make_folder(folder.parent)
        fresh.mkdir()
        try:
            yield fresh
            sync_tree(fresh)
            if folder.exists():
                folder.replace(old)
            fresh.replace(folder)
            _sync_folder(folder.parent)
        finally:
            for rest in (fresh, old):
                shutil.rmtree(rest, ignore_errors=True)


def unfinished(folder: Path) -> Path:
    """The name of a folder while `atomic_folder` is at work, the same in every process."""
    return folder.with_name(f"{folder.name}{TEMPORARY_ENDING}")


class AppendFile:
    """A file that grows by whole texts: one that does not fit is cut off again. Raises WriteError.

    At the end of a `with` block all of it is brought to the disk. Where the block fails, a new file that is still empty is
    removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with write_errors(path):
            self._is_new = not path.exists()
            self._file = path.open("ab", buffering=0)
            self._end = self._file.seek(0, os.SEEK_END)
            if self._is_new:
                _sync_folder(path.parent)

    def append(self, text: str) -> None:
        """Hand a text to the operating system, all of it or nothing. Raises WriteError."""
        content = memoryview(text.encode())
        with write_errors(self._path):
            try:
                written = 0
                while written < len(content):
                    written += self._file.write(content[written:]) or 0
            except OSError:
                with suppress(OSError):
                    self._file.truncate(self._end)
                raise
        self._end += len(content)

    def sync(self) -> None:
        """Bring all that was appended to the disk. Raises WriteError."""
        with write_errors(self._path):
            _sync_descriptor(self._file.fileno())

    def close(self) -> None:
        """Append no more."""
        with suppress(OSError):  # nothing is held back that could still fail
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.sync()
        finally:
            self.close()
        if error is not None and self._is_new and not self._end:
            with suppress(OSError):
                self._path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing. Raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be made a folder ({_reason(error)}); {_remedy(error)}") from None


def sync_files(paths: Iterable[Path]) -> None:
    """Bring files, and the folders that name them, to the disk. Raises WriteError."""
    files = list(paths)
    if len(files) < _MANY:
        for path in files:
            _sync_file(path)
    else:  # side by side: a disk does many in one go
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            list(pool.map(_sync_file, files))
    for folder in {path.parent for path in files}:
        with write_errors(folder):
            _sync_folder(folder)


def sync_tree(folder: Path) -> None:
    """Bring a folder, with all below it, to the disk. Raises WriteError."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    sync_files(path for one in folders for path in one.iterdir() if path.is_file() and not path.is_symlink())
    for one in folders:
        with write_errors(one):
            _sync_folder(one)


@contextmanager
def write_errors(path: Path, *others: Path) -> Iterator[None]:
    """Raise the OSError of a write inside as a WriteError that names `path`.

    An OSError that names another file than `path` and `others`, or nothing at all, was no write to them, and stays as it is.
    """
    names = {str(one) for one in (path, *others)}
    try:
        yield
    except OSError as error:
        concerned = [name for name in (error.filename, error.filename2) if name is not None]
        if not any(_is_within(str(name), names) for name in concerned) if concerned else error.errno is None:
            raise
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> WriteError:
    """What a write of `path` that failed is to raise: one line with the reason and the remedy."""
    return WriteError(f"{path}: cannot be written ({_reason(error)}); {_remedy(error)}")


def is_pipe_or_device(path: Path) -> bool:
    """Whether a path can be read only once, or without end; it may keep a reader waiting for ever. A link to nothing is none."""
    return path.exists() and not (path.is_file() or path.is_dir())


def ends_with(path: Path, ending: bytes) -> bool:
    """Whether a file's last bytes are these: a file that was cut off has others. Raises OSError."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < len(ending):
            return False
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def leftovers(paths: Iterable[Path]) -> list[Path]:
    """What kills left of writes of these files."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in paths:
        names[path.parent] |= {path.name, _short(path.name)}
    return [
        one
        for folder, known in names.items()
        if folder.is_dir()
        for one in folder.iterdir()
        if (match := _TEMPORARY.fullmatch(one.name)) and match[1] in known
    ]


def _names(path: Path) -> tuple[Path, Path]:
    """Where a file really goes, a link followed, and its temporary name."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    # Named by process: one that outlives its run for a moment does not write into the next run's file.
    ending = f".{os.getpid()}{TEMPORARY_ENDING}"
    name = target.name
    if len(os.fsencode(name)) + len(ending) > _LONGEST_NAME:
        name = _short(name)
    return target, target.with_name(f"{name}{ending}")


def _short(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def _check_replaceable(path: Path) -> None:
    """Raise OSError for what a file must not take the place of: a folder, a device, a file that is write-protected."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _sync_file(path: Path) -> None:
    with write_errors(path):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        _sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        _sync(folder)
    except PermissionError:  # one that may be written to and not be read
        return
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None  # it is about what was written there


def _sync_descriptor(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _is_within(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(f"{place}{os.sep}") for place in places)


def _reason(error: OSError) -> str:
    if error.errno in _FULL:  # libraries add words of their own
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room there, or choose another place"
    if error.errno in _FORBIDDEN:
        return "allow writing there, or choose another place"
    return "choose another place"
