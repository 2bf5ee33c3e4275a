"""The files of a tar from outside, one after the other: plain ones only, each of them whole, and nothing behind the last.

Knows nothing of pairs. The library ends without a word at a header that it cannot read, follows links and believes sizes; here
each is an error.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from differad.errors import ManifestError, shortened

_BLOCK = 1 << 20
_REMEDY = "write the shard again"
# What headers with other than numbers, with huge ones, or that build on each other thousands of times raise in the library.
_STUMBLES = (ValueError, OverflowError, RecursionError, MemoryError)


class Member(NamedTuple):
    """A file of a tar: its name and its bytes."""

    name: str
    content: bytes


def read_members(path: Path) -> Iterator[Member]:
    """Stream the files of an uncompressed tar in order; folders are passed over. Raises ManifestError."""
    try:
        size = path.stat().st_size
        with _open(path) as tar:
            while (member := _next(tar, path)) is not None:
                _check(member, size, path)
                content = None if member.isdir() else tar.extractfile(member)
                if content is not None:
                    yield Member(member.name, content.read())
                # The library keeps every header it has seen: a big shard would grow in memory.
                tar.members.clear()  # type: ignore[attr-defined]
            end = tar.offset
        _check_rest(path, end)
    except (tarfile.TarError, EOFError) as error:
        raise ManifestError(f"{path}: not a whole tar ({error}); {_REMEDY}") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); expected a tar") from None


def _open(path: Path) -> tarfile.TarFile:
    """The tar, whose first header is read. Raises ManifestError for one that the library stumbles over."""
    try:
        return tarfile.open(path, "r:")
    except _STUMBLES as error:
        raise ManifestError(f"{path}: its first header cannot be read ({_reason(error)}); {_REMEDY}") from None


def _next(tar: tarfile.TarFile, path: Path) -> tarfile.TarInfo | None:
    """The next header, as `_open`."""
    try:
        return tar.next()
    except _STUMBLES as error:
        raise ManifestError(
            f"{path}: the header at byte {tar.offset} cannot be read ({_reason(error)}); {_REMEDY}"
        ) from None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _check(member: tarfile.TarInfo, size: int, path: Path) -> None:
    """Raise ManifestError for anything but a folder or a plain file that is inside of the tar of `size` bytes."""
    if member.isdir():
        return
    where = f"{path}: {shortened(member.name)}"
    if not member.isreg() or member.issparse():
        raise ManifestError(
            f"{where}: a link, a device or a sparse file; expected plain files, so write the shard without"
        )
    if member.size < 0 or member.offset_data + member.size > size:
        raise ManifestError(
            f"{where}: holds {member.size} bytes by its header, and the tar ends before; not a whole tar, so {_REMEDY}"
        )


def _check_rest(path: Path, end: int) -> None:
    """Raise ManifestError where more than zeros follows on the last header that was read: the next one is broken."""
    with path.open("rb") as file:
        file.seek(end)
        at = end
        while block := file.read(_BLOCK):
            if block.strip(b"\0"):
                raise ManifestError(f"{path}: more files follow on a broken header at byte {end} or later; {_REMEDY}")
            at += len(block)
    if at == end:
        raise ManifestError(f"{path}: not whole, its end is missing; {_REMEDY}")
