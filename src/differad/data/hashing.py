"""Near-duplicates among many images: difference hashes find candidates, thumbnails confirm them.

A near-duplicate is an image that was re-encoded, resized, changed in brightness, or changed in one faint or tiny place. Images
of two similar parts in one fixture should not count. The 64-bit difference hash (the sign of the difference of
neighbouring grey levels on a 9 x 8 grid, https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html)
cannot distinguish such parts, so a candidate is confirmed by the root mean square difference of 32 x 32 thumbnails,
relative to their contrast.

Hashes that differ in at most 3 bits agree in at least one of their four 16-bit pieces, so only images that share a piece are
compared.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from differad.data.sources.sample import CropBox
from differad.data.thumbnails import SIDE, read_thumbnail
from differad.errors import OptionError
from differad.images import RGB

BITS = 64
_PIECES = 4
_PIECE_BITS = BITS // _PIECES
MAX_HASH_RADIUS = _PIECES - 1
# A step between cells counts above this many grey levels of 255; in plain areas noise alone would set a bit.
# With 4, copies as below never differ in more than 2 bits on 25 synthetic images of each kind; with 2, in up to 6.
_MIN_STEP = 4
# Two thumbnails are equal up to a noise floor (grey levels of 255) plus a share of their contrast (standard deviation). JPEG at
# quality 40, half the size and 10 levels more brightness stay below that on synthetic images of every kind, other parts of
# the same kind above it; tests/data/test_hashing.py measures both.
NOISE_FLOOR = 0.6
CONTRAST_SHARE = 0.1
# Rows of a block of comparisons, which bounds the memory for many equal images.
_BLOCK = 512

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """An image's difference hash and its grey thumbnail (SIDE * SIDE,), mean removed."""

    hash: int
    grey: NDArray[np.float32]


def dhash(image: RGB) -> int:
    """The 64-bit difference hash of (H, W, 3) RGB: bit set where a cell is clearly brighter than its right neighbour."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    cells = np.asarray(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)).astype(np.int16)
    return int.from_bytes(np.packbits(cells[:, :-1] - cells[:, 1:] > _MIN_STEP).tobytes(), "big")


def fingerprint(image: RGB) -> Fingerprint:
    """The fingerprint of (H, W, 3) RGB."""
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32).ravel()
    return Fingerprint(dhash(image), np.asarray(grey - grey.mean(), dtype=np.float32))


def fingerprint_file(path: Path, region: CropBox | None = None) -> Fingerprint:
    """The fingerprint of an image on disk, read at a fraction of its size. Raises ImageError."""
    return fingerprint(read_thumbnail(path, region).pixels)


def distance(a: int, b: int) -> int:
    """Hamming distance of two 64-bit hashes."""
    return (a ^ b).bit_count()


def near_duplicates(fingerprints: Sequence[Fingerprint], radius: int = MAX_HASH_RADIUS) -> Iterator[tuple[int, int]]:
    """Index pairs (i < j) of fingerprints within `radius` bits whose thumbnails are the same up to noise.

    Each pair comes once. Raises OptionError for a radius that four pieces cannot guarantee.
    """
    if not 0 <= radius <= MAX_HASH_RADIUS:
        raise OptionError(f"radius={radius!r}: expected 0 to {MAX_HASH_RADIUS} bits of 64")
    if not fingerprints:
        return
    hashes = np.array([entry.hash for entry in fingerprints], dtype=np.uint64)
    greys = np.stack([entry.grey for entry in fingerprints])
    for piece in range(_PIECES):
        for bucket in _buckets(_piece(hashes, piece)):
            for i, j in _close_in_bucket(hashes, greys, bucket, radius):
                # Already found if an earlier piece agrees too.
                if not any(_piece(hashes[i], earlier) == _piece(hashes[j], earlier) for earlier in range(piece)):
                    yield i, j


def groups(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """The connected component of each of `count` items under `links`, named by its smallest member."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(item) for item in range(count)]


def _piece(hashes: Hashes, number: int) -> Hashes:
    return np.asarray((hashes >> np.uint64(number * _PIECE_BITS)) & np.uint64(2**_PIECE_BITS - 1))


def _buckets(keys: Hashes) -> Iterator[NDArray[np.intp]]:
    """Groups of at least two indices with equal keys, in order."""
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order])) + 1
    return (bucket for bucket in np.split(order, starts) if len(bucket) > 1)


def _close_in_bucket(
    hashes: Hashes, greys: NDArray[np.float32], bucket: NDArray[np.intp], radius: int
) -> Iterator[tuple[int, int]]:
    norms = np.sum(greys[bucket] ** 2, axis=1)
    # Root mean squares from here on are scaled by the root of the number of cells, as the norms are.
    limits = NOISE_FLOOR * np.sqrt(greys.shape[1]) + CONTRAST_SHARE * np.sqrt(norms)
    for start in range(0, len(bucket), _BLOCK):
        rows, columns = bucket[start : start + _BLOCK], bucket[start:]
        close = np.triu(_count_bits(hashes[rows, None] ^ hashes[None, columns]) <= radius, 1)
        products = greys[rows] @ greys[columns].T
        squares = norms[start : start + _BLOCK, None] + norms[None, start:] - 2 * products
        limit = np.minimum(limits[start : start + _BLOCK, None], limits[None, start:])
        ys, xs = np.nonzero(close & (squares <= limit**2))
        yield from zip(rows[ys].tolist(), columns[xs].tolist(), strict=True)


def _count_bits(values: Hashes) -> Hashes:
    """The number of set bits of each 64-bit value: sums in fields of 2, 4, then 8 bits, added up by a product."""
    values = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    values = (values & np.uint64(0x3333333333333333)) + ((values >> np.uint64(2)) & np.uint64(0x3333333333333333))
    values = (values + (values >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.asarray((values * np.uint64(0x0101010101010101)) >> np.uint64(56))
