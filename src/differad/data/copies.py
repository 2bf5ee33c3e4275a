"""Finds files with the same bytes cheaply: by size first, then by their first bytes, then by all bytes."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from differad.errors import ImageError

_BLOCK = 1 << 16
_FileId = tuple[int, int, int]


class FileComparer:
    """Compares files by their bytes. Hashes are cached, so an instance is valid as long as the files do not change."""

    def __init__(self) -> None:
        self._file_ids: dict[Path, _FileId | None] = {}
        self._hashes: dict[tuple[Path, int | None], bytes] = {}

    def same(self, a: Path, b: Path) -> bool:
        """Whether two files are one file or hold the same bytes; False if one is missing or empty. Raises ImageError.

        Files of different sizes are not opened.
        """
        first, second = self._file_id(a), self._file_id(b)
        if first is None or second is None or first[0] != second[0]:
            return False
        return first == second or (self._head(a) == self._head(b) and self._whole(a) == self._whole(b))

    def copies(self, paths: Iterable[Path], predicate: Callable[[Sequence[Path]], bool]) -> list[list[Path]]:
        """Groups of files with the same bytes for which `predicate` holds, in order. Raises ImageError.

        Only files that may still be in such a group are read.
        """
        groups = [list(paths)]
        for key in (self._size, self._head, self._whole):
            groups = [part for group in groups for part in _grouped(group, key) if predicate(part)]
        return groups

    def _file_id(self, path: Path) -> _FileId | None:
        """Size, device and inode number of a file; None if it is missing or empty."""
        if path not in self._file_ids:
            try:
                status = path.stat()
            except OSError:
                self._file_ids[path] = None
            else:
                self._file_ids[path] = (status.st_size, status.st_dev, status.st_ino) if status.st_size else None
        return self._file_ids[path]

    def _size(self, path: Path) -> int | None:
        file_id = self._file_id(path)
        return None if file_id is None else file_id[0]

    def _head(self, path: Path) -> bytes:
        return self._hash(path, _BLOCK)

    def _whole(self, path: Path) -> bytes:
        return self._hash(path, None)

    def _hash(self, path: Path, length: int | None) -> bytes:
        """BLAKE2b-128 of a file, or of its first `length` bytes. Raises ImageError."""
        key = path, length
        if key not in self._hashes:
            try:
                with path.open("rb") as file:
                    hasher = hashlib.blake2b(digest_size=16)
                    for block in iter(lambda: file.read(_BLOCK), b""):
                        hasher.update(block)
                        if length is not None:
                            break
            except OSError as error:
                raise ImageError(f"{path}: cannot be read ({error.strerror}); expected an image") from None
            self._hashes[key] = hasher.digest()
        return self._hashes[key]


def _grouped(paths: Iterable[Path], key: Callable[[Path], Hashable | None]) -> list[list[Path]]:
    """Groups of two or more files with an equal key; files whose key is None are dropped."""
    by_key: dict[Hashable, list[Path]] = defaultdict(list)
    for path in paths:
        value = key(path)
        if value is not None:
            by_key[value].append(path)
    return [part for part in by_key.values() if len(part) > 1]
