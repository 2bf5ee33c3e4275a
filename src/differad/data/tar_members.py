"""Streams the files of an untrusted tar: only complete regular files, and nothing after the last one.

Knows nothing about pairs. `tarfile` stops silently at an unreadable header, follows links and trusts sizes; here each is an
error.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from differad.errors import ManifestError, shortened

_BLOCK = 1 << 20
_REMEDY = "write the shard again"
# Raised by `tarfile` for headers with non-numbers, huge numbers, or thousands of extension headers.
_HEADER_ERRORS = (ValueError, OverflowError, RecursionError, MemoryError)


class Member(NamedTuple):
    """A file of a tar: its name and its bytes."""

    name: str
    content: bytes


def read_members(path: Path) -> Iterator[Member]:
    """Stream the files of an uncompressed tar in order; folders are skipped. Raises ManifestError."""
    try:
        size = path.stat().st_size
        with _open(path) as tar:
            while (member := _next(tar, path)) is not None:
                _check(member, size, path)
                content = None if member.isdir() else tar.extractfile(member)
                if content is not None:
                    yield Member(member.name, content.read())
                # `tarfile` keeps every header, which would grow with the shard.
                tar.members.clear()  # type: ignore[attr-defined]
            end = tar.offset
        _check_rest(path, end)
    except (tarfile.TarError, EOFError) as error:
        raise ManifestError(f"{path}: not a complete tar ({error}); {_REMEDY}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a tar") from None


def _open(path: Path) -> tarfile.TarFile:
    """The opened tar, its first header read. Raises ManifestError for an invalid header."""
    try:
        return tarfile.open(path, "r:")
    except _HEADER_ERRORS as error:
        raise ManifestError(f"{path}: its first header cannot be read ({_reason(error)}); {_REMEDY}") from None


def _next(tar: tarfile.TarFile, path: Path) -> tarfile.TarInfo | None:
    """The next header. Raises ManifestError like `_open`."""
    try:
        return tar.next()
    except _HEADER_ERRORS as error:
        raise ManifestError(
            f"{path}: the header at byte {tar.offset} cannot be read ({_reason(error)}); {_REMEDY}"
        ) from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check(member: tarfile.TarInfo, size: int, path: Path) -> None:
    """Raise ManifestError for anything but a folder or a regular file within the tar of `size` bytes."""
    if member.isdir():
        return
    where = f"{path}: {shortened(member.name)}"
    if not member.isreg() or member.issparse():
        raise ManifestError(
            f"{where}: a link, a device or a sparse file; expected regular files, so write the shard without"
        )
    if member.size < 0 or member.offset_data + member.size > size:
        raise ManifestError(
            f"{where}: holds {member.size} bytes by its header, but the tar ends before; not a complete tar, so {_REMEDY}"
        )


def _check_rest(path: Path, end: int) -> None:
    """Raise ManifestError if anything but zeros follows the last header that was read: then the next one is broken."""
    with path.open("rb") as file:
        file.seek(end)
        position = end
        while block := file.read(_BLOCK):
            if block.strip(b"\0"):
                raise ManifestError(f"{path}: more files follow a broken header at byte {end} or later; {_REMEDY}")
            position += len(block)
    if position == end:
        raise ManifestError(f"{path}: incomplete, its end is missing; {_REMEDY}")
