"""The nearest of many feature vectors, exactly, at the cost of a matrix product.

Distances of a block of queries come from one product, whose rounding is bounded. The few vectors that it cannot rule out are
measured anew, so that the order is that of `np.linalg.norm` of the differences, ties by number.
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

# Queries of one product: more gain little.
BLOCK = 64
# Vectors that are measured anew at first, and how many times more where these do not settle it.
_FIRST, _WIDER = 32, 8


class Ranking(Iterator[int]):
    """Numbers of vectors, the nearest first; what is not asked for is not ranked."""

    def __init__(self, runs: Iterator[list["_Alike"]]) -> None:
        # The generator does not know this object: a circle would keep its distances until the next garbage collection.
        self._dropped: list[int] = []
        self._numbers = _walk(runs, self._dropped)
        self._last = -1

    def __next__(self) -> int:
        self._last = next(self._numbers)
        return self._last

    def drop_copies(self) -> None:
        """Leave out the other copies of what came last."""
        self._dropped[:] = [self._last]


@dataclass(frozen=True)
class _Alike:
    """Numbers of equal vectors, in order: of copies of one file, or of different ones."""

    numbers: list[int]
    are_copies: bool = False


def _walk(runs: Iterator[list[_Alike]], dropped: list[int]) -> Iterator[int]:
    """Numbers by distance, ties by number; after one that is in `dropped` then, its copies are left out."""
    for run in runs:  # each of what is equally far
        heap = [(one.numbers[0], place, 0) for place, one in enumerate(run)]
        heapify(heap)
        while heap:
            number, place, at = heappop(heap)
            yield number
            one = run[place]
            if at + 1 < len(one.numbers) and not (one.are_copies and number in dropped):
                heappush(heap, (one.numbers[at + 1], place, at + 1))


class NearestIndex:
    """Ranks `vectors` (N, D), N >= 1, by their Euclidean distance to queries. Equal vectors are measured once.

    `files` are the N files that they are of, None where one is a part of a file; copies among them are dropped at once.
    """

    def __init__(self, vectors: Vectors, files: Sequence[Path | None], contents: FileComparer) -> None:
        numbers: dict[bytes, list[int]] = defaultdict(list)
        for number, vector in enumerate(vectors):
            numbers[hashlib.blake2b(vector.tobytes(), digest_size=16).digest()].append(number)
        self._members = [_split(one, files, contents) for one in numbers.values()]
        is_distinct = len(self._members) == len(vectors)
        self._vectors = vectors if is_distinct else vectors[[one[0] for one in numbers.values()]]
        self._squares = np.einsum("nd,nd->n", self._vectors, self._vectors)
        self._longest = float(np.sqrt(self._squares.max()))

    def ranked(self, queries: Sequence[Vectors]) -> list[Ranking]:
        """For each query (D,), the ranking of all vectors, ties by number.

        Takes 4 bytes a vector and query while the rankings live: hand in `BLOCK` queries at once.
        """
        if not queries:
            return []
        # Without the query's own square, which is the same for all.
        rough = self._squares - 2 * (np.stack(queries) @ self._vectors.T)
        return [Ranking(self._runs(query, row)) for query, row in zip(queries, rough, strict=True)]

    def _runs(self, query: Vectors, rough: Vectors) -> Iterator[list[_Alike]]:
        own = float(query @ query)
        # A sum of D products is wrong by at most D * eps times the product of the lengths, in the product and in the norm.
        slack = 2 * (len(query) + 8) * float(np.finfo(np.float32).eps) * (np.sqrt(own) + self._longest) ** 2
        done, wanted = 0, _FIRST
        while wanted < len(rough):
            order = np.argpartition(rough, wanted)
            chosen = order[:wanted]
            distances = self._distances(chosen, query)
            # Nearer than all that were not chosen, whatever the rounding.
            certain = distances.astype(np.float64) ** 2 < own + float(rough[order[wanted]]) - slack
            yield from self._in_order(chosen[certain], distances[certain], done)
            done, wanted = int(certain.sum()), wanted * _WIDER
        every = np.arange(len(rough))
        yield from self._in_order(every, self._distances(every, query), done)

    def _distances(self, chosen: NDArray[np.intp], query: Vectors) -> Vectors:
        return np.asarray(np.linalg.norm(self._vectors[chosen] - query, axis=1))

    def _in_order(self, chosen: NDArray[np.intp], distances: Vectors, start: int) -> Iterator[list[_Alike]]:
        """What the vectors `chosen` stand for, by distance; the first `start` of them are left out."""
        order = np.lexsort((chosen, distances))[start:]
        for _, tied in groupby(order, key=lambda at: float(distances[at])):
            yield [one for at in tied for one in self._members[chosen[at]]]


def _split(numbers: list[int], files: Sequence[Path | None], contents: FileComparer) -> list[_Alike]:
    """Numbers of equal vectors as those of copies of one file, and the others."""
    if len(numbers) == 1:
        return [_Alike(numbers)]
    of = {file: number for number in numbers if (file := files[number]) is not None}
    try:
        groups = contents.copies(of, lambda group: len(group) > 1)
    except ImageError:  # gone meanwhile
        groups = []
    copies = [_Alike([of[file] for file in group], are_copies=True) for group in groups]
    known = {number for one in copies for number in one.numbers}
    others = [number for number in numbers if number not in known]
    return [*copies, *([_Alike(others)] if others else [])]
