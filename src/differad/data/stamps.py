"""What tells one content of a file from another: size and times where they are as they were, else a hash of the bytes."""

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
    """Size in bytes, times of the last change of content and of entry in nanoseconds, BLAKE2b of the bytes.

    The second time (on Windows that of creation) tells a file that was put in the place of another with the other's time.
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
    """The checksum of a file that others compute too, in hexadecimal digits. Raises InputError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); its checksum was asked for") from None


def stamp(path: Path, earlier: Stamp | None = None) -> Stamp:
    """The stamp of a file, whose bytes are not read where size and time are those of `earlier`. Raises OSError.

    A pipe or a device has none.
    """
    if is_pipe_or_device(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    # The time first: a file that changes while it is read has another one afterwards, and is read again next time.
    status = path.stat()
    now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if earlier is not None and (earlier.size, earlier.mtime_ns, earlier.ctime_ns) == now:
        return earlier
    return Stamp(*now, content_hash(path))


def stamp_files(files: Mapping[str, Path], earlier: Mapping[str, Stamp]) -> dict[str, Stamp]:
    """The stamps of named files; `earlier` spares reading those that have not changed. Raises OSError."""
    with ThreadPoolExecutor() as pool:
        stamps = pool.map(lambda name: stamp(files[name], earlier.get(name)), files)
        return dict(zip(files, stamps, strict=True))


def combined(contents: Iterable[str]) -> str:
    """One hash of several contents in their order."""
    whole = hashlib.blake2b(digest_size=16)
    for content in contents:
        whole.update(f"{content}\n".encode())
    return whole.hexdigest()


def file_of(image: ImageSource) -> Path | None:
    """The absolute path of the file that an image is read from; None for one in memory. `image.tif[2]` is in `image.tif`."""
    if not isinstance(image, str | Path):
        return None
    return image_file(image).absolute()


def image_name(image: object) -> str:
    """What tells an image from others: its absolute path, or its bytes or pixels where it is in memory."""
    if isinstance(image, str | Path):
        return str(Path(image).absolute())
    if isinstance(image, bytes | bytearray | memoryview):
        return f"file {hashlib.blake2b(image, digest_size=16).hexdigest()}"
    if not isinstance(image, Image.Image | np.ndarray):
        return f"no image: {type(image).__name__}"  # the locator says what is wrong with it
    pixels = np.ascontiguousarray(image) if not isinstance(image, Image.Image) else np.asarray(image)
    whole = hashlib.blake2b(f"{pixels.shape} {pixels.dtype} ".encode(), digest_size=16)
    whole.update(pixels.tobytes())
    return f"pixels {whole.hexdigest()}"
