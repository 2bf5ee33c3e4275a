"""Detects changed files: by size and times if these are unchanged, else by a hash of the bytes."""

import errno
import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from differad.errors import InputError
from differad.files import is_pipe_or_device
from differad.images import ImageSource, image_file


@dataclass(frozen=True)
class Stamp:
    """Size in bytes, modification and metadata-change time (mtime, ctime) in nanoseconds, BLAKE2b-128 of the bytes.

    The ctime (on Windows the creation time) reveals a file that replaced another one and has its mtime.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    content: str


def content_hash(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, which other tools compute too, in hexadecimal digits. Raises InputError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); its checksum is needed") from None


def stamp(path: Path, earlier: Stamp | None = None) -> Stamp:
    """The stamp of a file; its bytes are not read if size and times equal those of `earlier`. Raises OSError.

    Raises OSError for a pipe or a device too.
    """
    if is_pipe_or_device(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # Times are read first: a file that changes while it is hashed then has other times and is hashed again next time.
    status = path.stat()
    current = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if earlier is not None and (earlier.size, earlier.mtime_ns, earlier.ctime_ns) == current:
        return earlier
    return Stamp(*current, content_hash(path))


def stamp_files(files: Mapping[str, Path], earlier: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """The stamps of named files; files that have not changed since `earlier` are not read. Raises OSError."""
    with ThreadPoolExecutor() as pool:
        stamps = pool.map(lambda name: stamp(files[name], earlier.get(name)), files)
        return dict(zip(files, stamps, strict=True))


def combined(contents: Iterable[str]) -> str:
    """One hash of several content hashes in their order."""
    hasher = hashlib.blake2b(digest_size=16)
    for content in contents:
        hasher.update(f"{content}\n".encode())
    return hasher.hexdigest()


def file_of(image: ImageSource) -> Path | None:
    """The absolute path of an image's file, `image.tif` for `image.tif[2]`; None for an image in memory."""
    if not isinstance(image, str | Path):
        return None
    return image_file(image).absolute()


def image_name(image: object) -> str:
    """A unique name of an image: its absolute path, or a hash of its bytes or pixels if it is in memory."""
    if isinstance(image, str | Path):
        return str(Path(image).absolute())
    if isinstance(image, bytes | bytearray | memoryview):
        return f"file {hashlib.blake2b(image, digest_size=16).hexdigest()}"
    if not isinstance(image, Image.Image | np.ndarray):
        return f"no image: {type(image).__name__}"  # the locator reports the error
    pixels = np.ascontiguousarray(image) if not isinstance(image, Image.Image) else np.asarray(image)
    hasher = hashlib.blake2b(f"{pixels.shape} {pixels.dtype} ".encode(), digest_size=16)
    hasher.update(pixels.tobytes())
    return f"pixels {hasher.hexdigest()}"
