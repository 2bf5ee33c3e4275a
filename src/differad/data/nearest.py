"""The nearest of many feature vectors, exactly, at the cost of a matrix product.

Distances of a block of queries come from one product, whose rounding is bounded. The few vectors that it cannot rule out are
measured anew, so that the order is that of `np.linalg.norm` of the differences, ties by number.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

# Queries of one product: more gain little.
BLOCK = 64
# Vectors that are measured anew at first, and how many times more where these do not settle it.
_FIRST, _WIDER = 32, 8


class NearestIndex:
    """Ranks `vectors` (N, D), N >= 1, by their Euclidean distance to queries. Equal vectors are measured once."""

    def __init__(self, vectors: Vectors) -> None:
        numbers: dict[bytes, list[int]] = defaultdict(list)
        for number, vector in enumerate(vectors):
            numbers[hashlib.blake2b(vector.tobytes(), digest_size=16).digest()].append(number)
        self._members = list(numbers.values())
        is_distinct = len(self._members) == len(vectors)
        self._vectors = vectors if is_distinct else vectors[[members[0] for members in self._members]]
        self._squares = np.einsum("nd,nd->n", self._vectors, self._vectors)
        self._longest = float(np.sqrt(self._squares.max()))

    def ranked(self, queries: Sequence[Vectors]) -> list[Iterator[int]]:
        """For each query (D,), the numbers of all vectors, the nearest first; what is not asked for is not ranked.

        Takes 4 bytes a vector and query while the iterators live: hand in `BLOCK` queries at once.
        """
        if not queries:
            return []
        # Without the query's own square, which is the same for all.
        rough = self._squares - 2 * (np.stack(queries) @ self._vectors.T)
        return [self._walk(query, row) for query, row in zip(queries, rough, strict=True)]

    def _walk(self, query: Vectors, rough: Vectors) -> Iterator[int]:
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

    def _in_order(self, chosen: NDArray[np.intp], distances: Vectors, start: int) -> Iterator[int]:
        """What the vectors `chosen` stand for, by distance, ties by number; the first `start` of them are left out."""
        order = np.lexsort((chosen, distances))[start:]
        for _, tied in groupby(order, key=lambda at: float(distances[at])):
            yield from merge(*(self._members[chosen[at]] for at in tied))
