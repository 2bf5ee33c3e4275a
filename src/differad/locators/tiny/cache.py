"""Pair features on disk, one file per pair; a file that is empty, cut off or of another shape counts as missing.

Files are written without sync: what a power cut loses is computed again. Needs neither torch nor transformers.
"""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from differad.errors import InputError
from differad.files import make_folder, write_bytes
from differad.locators.tiny.evidence import WIDTH, PairFeatures

# The header that `numpy.save` gives such an array, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f2', 'fortran_order': False, 'shape': \((\d+), (\d+), %d\), \} *\n" % WIDTH,
    re.DOTALL,
)
_LONGEST_HEADER = 256
_BYTES = 2  # per number, in half precision


def pair_features_file(cache: Path, key: bytes) -> Path:
    """The file of a pair's features; `key` is the `digest` of its two images as `resized` returns them."""
    return cache / f"{key.hex()}.npy"


def write_pair_features(cache: Path, key: bytes, features: PairFeatures) -> NDArray[np.float16]:
    """Write the features of a pair in half precision and return them so. Raises WriteError."""
    half = np.ascontiguousarray(features, dtype="<f2")
    content = BytesIO()
    np.save(content, half)
    make_folder(cache)
    write_bytes(pair_features_file(cache, key), content.getvalue(), sync=False)
    return half


def has_pair_features(cache: Path, key: bytes, grid: tuple[int, int]) -> bool:
    """Whether the features (*grid, WIDTH) of a pair are cached and complete; their numbers are not read. Raises InputError."""
    return _open(pair_features_file(cache, key), grid, read=False) is not None


def read_pair_features(cache: Path, key: bytes, grid: tuple[int, int] | None = None) -> PairFeatures | None:
    """The features (h, w, WIDTH) of a pair; None if missing, incomplete or not (*grid, WIDTH). Raises InputError."""
    half = _open(pair_features_file(cache, key), grid, read=True)
    return None if half is None else half.astype(np.float32)


def _open(path: Path, grid: tuple[int, int] | None, *, read: bool) -> NDArray[np.float16] | None:
    """The array (h, w, WIDTH) of a file, (0, 0, WIDTH) without `read`; None for a file that holds no such array."""
    try:
        with path.open("rb") as file:
            header = _HEADER.match(file.read(_LONGEST_HEADER))
            if header is None:
                return None
            height, width = int(header[1]), int(header[2])
            size = height * width * WIDTH * _BYTES
            if path.stat().st_size != header.end() + size or grid not in (None, (height, width)):
                return None
            if not read:
                return np.empty((0, 0, WIDTH), np.float16)
            file.seek(header.end())
            content = file.read(size)
    except (FileNotFoundError, NotADirectoryError):  # writing reports what is wrong with the folder
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected the features of a pair") from None
    return np.frombuffer(content, "<f2").reshape(height, width, WIDTH) if len(content) == size else None
