"""Whether files hold the same bytes, found cheaply: by size first, then by what they begin with, then by all of it."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from differad.errors import ImageError

_BLOCK = 1 << 16
_Facts = tuple[int, int, int]


class FileComparer:
    """Compares files by their bytes; what was read of a file is kept, so one instance serves while files do not change."""

    def __init__(self) -> None:
        self._facts: dict[Path, _Facts | None] = {}
        self._hashes: dict[tuple[Path, int | None], bytes] = {}

    def same(self, a: Path, b: Path) -> bool:
        """Whether two files are one file or hold the same bytes; False where one is missing or empty. Raises ImageError.

        Files of different sizes are told apart without being opened.
        """
        first, second = self._look(a), self._look(b)
        if first is None or second is None or first[0] != second[0]:
            return False
        return first == second or (self._head(a) == self._head(b) and self._whole(a) == self._whole(b))

    def copies(self, paths: Iterable[Path], wanted: Callable[[Sequence[Path]], bool]) -> list[list[Path]]:
        """Groups of files with the same bytes for which `wanted` holds, in order. Raises ImageError.

        Only files that may still be in such a group are read.
        """
        groups = [list(paths)]
        for key in (self._size, self._head, self._whole):
            groups = [part for group in groups for part in _grouped(group, key) if wanted(part)]
        return groups

    def _look(self, path: Path) -> _Facts | None:
        """Size, device and number of a file; None where it is missing or empty."""
        if path not in self._facts:
            try:
                facts = path.stat()
            except OSError:
                self._facts[path] = None
            else:
                self._facts[path] = (facts.st_size, facts.st_dev, facts.st_ino) if facts.st_size else None
        return self._facts[path]

    def _size(self, path: Path) -> int | None:
        facts = self._look(path)
        return None if facts is None else facts[0]

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
                    found = hashlib.blake2b(digest_size=16)
                    for block in iter(lambda: file.read(_BLOCK), b""):
                        found.update(block)
                        if length is not None:
                            break
            except OSError as error:
                raise ImageError(f"{path}: cannot be read ({error.strerror}); expected an image") from None
            self._hashes[key] = found.digest()
        return self._hashes[key]


def _grouped(paths: Iterable[Path], key: Callable[[Path], Hashable | None]) -> list[list[Path]]:
    """Two or more files with an equal key; those whose key is None are dropped."""
    parts: dict[Hashable, list[Path]] = defaultdict(list)
    for path in paths:
        value = key(path)
        if value is not None:
            parts[value].append(path)
    return [part for part in parts.values() if len(part) > 1]
