"""Atomic writes for the whole package: a file or folder is written whole or not at all; failures become one-line errors.

Content is written under a temporary name in the same folder, flushed to the disk and renamed in one step. So a full disk, a kill
or a power cut leaves the old file, or none. Files that grow line by line are `AppendFile`s: a line that does not fit is removed.
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
# Interval of flushes of growing files: a flush takes milliseconds, and a power cut loses the data of one interval at most.
SECONDS_BETWEEN_SYNCS = 2.0
# Maximum bytes of a file's name on all common file systems.
_LONGEST_NAME = 255
# Errors of file systems that do not support fsync for this kind of file; the write itself succeeded.
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})
_TEMPORARY = re.compile(rf"(.+)\.\d+{re.escape(TEMPORARY_ENDING)}", re.DOTALL)
# From this number of files on, several threads flush them.
_MANY, _THREADS = 64, 8
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path in the folder of `path`. It is renamed to `path` if the block succeeds, else removed.

    Without `sync` a power cut may lose the content: call `sync_files` before another file refers to this one.
    Raises WriteError.
    """
    with write_errors(path):
        target, temporary = _names(path)
        _check_replaceable(target)
    with write_errors(path, target, temporary):
        try:
            yield temporary
            if sync:
                _sync(temporary)
            temporary.replace(target)
            if sync:
                _sync_folder(target.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a whole file; see `atomic_write`. Raises WriteError."""
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a whole file of UTF-8; see `atomic_write`. Raises WriteError."""
    write_bytes(path, text.encode(), sync=sync)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a whole file of UTF-8 line by line; each of `lines` ends with its own newline. Raises WriteError."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`. It replaces `folder` if the block succeeds, else it is removed.

    Remains of a killed run are removed too: the caller ensures that no other process writes there. Raises WriteError.
    """
    temporary, old = unfinished(folder), unfinished(folder.with_name(f"{folder.name}.old"))
    with write_errors(folder, temporary, old):
        if old.exists() and not folder.exists():  # killed between the two steps below
            old.replace(folder)
        for path in (temporary, old):
            shutil.rmtree(path, ignore_errors=True)
        make_folder(folder.parent)
        temporary.mkdir()
        try:
            yield temporary
            sync_tree(temporary)
            if folder.exists():
                folder.replace(old)
            temporary.replace(folder)
            _sync_folder(folder.parent)
        finally:
            for path in (temporary, old):
                shutil.rmtree(path, ignore_errors=True)


def unfinished(folder: Path) -> Path:
    """The name of the temporary folder of `atomic_folder`, the same in every process."""
    return folder.with_name(f"{folder.name}{TEMPORARY_ENDING}")


class AppendFile:
    """A file to which texts are appended whole or not at all. Raises WriteError.

    The end of a `with` block flushes it to the disk. If the block fails, a new file that is still empty is removed.
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
        """Append a whole text or nothing, without a flush to the disk. Raises WriteError."""
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
        """Flush all appended texts to the disk. Raises WriteError."""
        with write_errors(self._path):
            _sync_descriptor(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # the file is unbuffered, so no content can be lost
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
    """Create a folder and its missing parents. Raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be made a folder ({_reason(error)}); {_remedy(error)}") from None


def sync_files(paths: Iterable[Path]) -> None:
    """Flush files and their folders to the disk. Raises WriteError."""
    files = list(paths)
    if len(files) < _MANY:
        for path in files:
            _sync_file(path)
    else:  # in parallel: a disk combines many flushes
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(_sync_file, files))
    for folder in {path.parent for path in files}:
        with write_errors(folder):
            _sync_folder(folder)


def sync_tree(folder: Path) -> None:
    """Flush a folder with everything below it to the disk. Raises WriteError."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    sync_files(path for parent in folders for path in parent.iterdir() if path.is_file() and not path.is_symlink())
    for parent in folders:
        with write_errors(parent):
            _sync_folder(parent)


@contextmanager
def write_errors(path: Path, *others: Path) -> Iterator[None]:
    """Turn an OSError of a write inside into a WriteError that names `path`.

    An OSError that names another file than `path` and `others`, or nothing at all, concerns no write to them and is re-raised.
    """
    names = {str(item) for item in (path, *others)}
    try:
        yield
    except OSError as error:
        concerned = [name for name in (error.filename, error.filename2) if name is not None]
        if not any(_is_within(str(name), names) for name in concerned) if concerned else error.errno is None:
            raise
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> WriteError:
    """The error for a failed write of `path`: one line with the reason and the remedy."""
    return WriteError(f"{path}: cannot be written ({_reason(error)}); {_remedy(error)}")


def is_pipe_or_device(path: Path) -> bool:
    """Whether a path is a pipe or a device, which may block a reader or have no end. False for a dangling link."""
    return path.exists() and not (path.is_file() or path.is_dir())


def ends_with(path: Path, ending: bytes) -> bool:
    """Whether a file ends with these bytes, as a file that was not cut off does. Raises OSError."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < len(ending):
            return False
        file.seek(-len(ending), os.SEEK_END)
        return file.read() == ending


def leftovers(paths: Iterable[Path]) -> list[Path]:
    """Temporary files that killed runs left of writes to these files."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in paths:
        names[path.parent] |= {path.name, _short(path.name)}
    return [
        path
        for folder, file_names in names.items()
        if folder.is_dir()
        for path in folder.iterdir()
        if (match := _TEMPORARY.fullmatch(path.name)) and match[1] in file_names
    ]


def _names(path: Path) -> tuple[Path, Path]:
    """The real path of a file, links resolved, and its temporary path."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    # Holds the process id: a process that outlives its run for a moment does not write into the next run's file.
    ending = f".{os.getpid()}{TEMPORARY_ENDING}"
    name = target.name
    if len(os.fsencode(name)) + len(ending) > _LONGEST_NAME:
        name = _short(name)
    return target, target.with_name(f"{name}{ending}")


def _short(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=8).hexdigest()


def _check_replaceable(path: Path) -> None:
    """Raise OSError for a path that a file must not replace: a folder, a device, a write-protected file."""
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
    if os.name == "nt":  # Windows cannot open folders
        return
    try:
        _sync(folder)
    except PermissionError:  # the folder is writable but not readable
        return
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None  # no folder name: the error concerns the written file


def _sync_descriptor(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _is_within(name: str, paths: set[str]) -> bool:
    return any(name == path or name.startswith(f"{path}{os.sep}") for path in paths)


def _reason(error: OSError) -> str:
    if error.errno in _FULL:  # libraries add their own text
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "make room there, or choose another place"
    if error.errno in _FORBIDDEN:
        return "allow writing there, or choose another place"
    return "choose another place"
