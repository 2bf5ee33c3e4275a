"""Exact nearest neighbours among many feature vectors at the cost of a matrix product.

Approximate distances of a block of queries come from one product, whose rounding error is bounded. Only vectors within
that bound are measured exactly, so the order is that of `np.linalg.norm` of the differences, ties by number.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from differad.data.copies import FileComparer
from differad.errors import ImageError

Vectors = NDArray[np.float32]

# Queries per product; larger blocks are hardly faster.
BLOCK = 64
# The number of vectors that are measured exactly at first, and the factor by which it grows if they do not suffice.
_FIRST_CANDIDATES, _GROWTH = 32, 8


class Ranking(Iterator[int]):
    """Numbers of vectors, the nearest first, ranked lazily."""

    def __init__(self, runs: Iterator[list["_EqualVectors"]]) -> None:
        # The generator holds no reference to this object: a cycle would keep its memory until the next garbage collection.
        self._dropped: list[int] = []
        self._numbers = _ranked_numbers(runs, self._dropped)
        self._last = -1

    def __next__(self) -> int:
        self._last = next(self._numbers)
        return self._last

    def drop_copies(self) -> None:
        """Leave out the other copies of the last number."""
        self._dropped[:] = [self._last]


@dataclass(frozen=True)
class _EqualVectors:
    """Numbers of equal vectors, in order: all of copies of one file, or of different files."""

    numbers: list[int]
    are_copies: bool = False


def _ranked_numbers(runs: Iterator[list[_EqualVectors]], dropped: list[int]) -> Iterator[int]:
    """Numbers by distance, ties by number. If the consumer puts a number into `dropped`, its copies are left out."""
    for run in runs:  # each run holds vectors at equal distance
        heap = [(equal.numbers[0], index, 0) for index, equal in enumerate(run)]
        heapify(heap)
        while heap:
            number, index, at = heappop(heap)
            yield number
            equal = run[index]
            if at + 1 < len(equal.numbers) and not (equal.are_copies and number in dropped):
                heappush(heap, (equal.numbers[at + 1], index, at + 1))


class NearestIndex:
    """Ranks `vectors` (N, D), N >= 1, by their Euclidean distance to queries. Equal vectors are measured once.

    `files` are the N files of the vectors, None for a part of a file; `Ranking.drop_copies` drops copies of a file together.
    """

    def __init__(self, vectors: Vectors, files: Sequence[Path | None], comparer: FileComparer) -> None:
        numbers: dict[bytes, list[int]] = defaultdict(list)
        for number, vector in enumerate(vectors):
            numbers[hashlib.blake2b(vector.tobytes(), digest_size=16).digest()].append(number)
        self._members = [_split(equal, files, comparer) for equal in numbers.values()]
        is_distinct = len(self._members) == len(vectors)
        self._vectors = vectors if is_distinct else vectors[[equal[0] for equal in numbers.values()]]
        self._squares = np.einsum("nd,nd->n", self._vectors, self._vectors)
        self._longest = float(np.sqrt(self._squares.max()))

    def ranked(self, queries: Sequence[Vectors]) -> list[Ranking]:
        """For each query (D,), the ranking of all vectors, ties by number.

        Takes 4 bytes per vector and query as long as the rankings exist, so pass at most `BLOCK` queries.
        """
        if not queries:
            return []
        # Without the query's square, which is the same for all vectors.
        approximate = self._squares - 2 * (np.stack(queries) @ self._vectors.T)
        return [Ranking(self._runs(query, row)) for query, row in zip(queries, approximate, strict=True)]

    def _runs(self, query: Vectors, approximate: Vectors) -> Iterator[list[_EqualVectors]]:
        query_square = float(query @ query)
        # The rounding error of a sum of D products is at most D * eps times the product of the lengths, in product and norm.
        margin = 2 * (len(query) + 8) * float(np.finfo(np.float32).eps) * (np.sqrt(query_square) + self._longest) ** 2
        ranked, wanted = 0, _FIRST_CANDIDATES
        while wanted < len(approximate):
            order = np.argpartition(approximate, wanted)
            chosen = order[:wanted]
            distances = self._distances(chosen, query)
            # Nearer than all vectors that were not chosen, despite rounding.
            certain = distances.astype(np.float64) ** 2 < query_square + float(approximate[order[wanted]]) - margin
            yield from self._in_order(chosen[certain], distances[certain], ranked)
            ranked, wanted = int(certain.sum()), wanted * _GROWTH
        every = np.arange(len(approximate))
        yield from self._in_order(every, self._distances(every, query), ranked)

    def _distances(self, chosen: NDArray[np.intp], query: Vectors) -> Vectors:
        return np.asarray(np.linalg.norm(self._vectors[chosen] - query, axis=1))

    def _in_order(self, chosen: NDArray[np.intp], distances: Vectors, start: int) -> Iterator[list[_EqualVectors]]:
        """The members of the vectors `chosen`, by distance, without the first `start` vectors."""
        order = np.lexsort((chosen, distances))[start:]
        for _, tied in groupby(order, key=lambda at: float(distances[at])):
            yield [equal for at in tied for equal in self._members[chosen[at]]]


def _split(numbers: list[int], files: Sequence[Path | None], comparer: FileComparer) -> list[_EqualVectors]:
    """Split the numbers of equal vectors into copies of one file each, and the others."""
    if len(numbers) == 1:
        return [_EqualVectors(numbers)]
    number_of = {file: number for number in numbers if (file := files[number]) is not None}
    try:
        groups = comparer.copies(number_of, lambda group: len(group) > 1)
    except ImageError:  # the file was removed meanwhile
        groups = []
    copies = [_EqualVectors([number_of[file] for file in group], are_copies=True) for group in groups]
    copied = {number for equal in copies for number in equal.numbers}
    others = [number for number in numbers if number not in copied]
    return [*copies, *([_EqualVectors(others)] if others else [])]
