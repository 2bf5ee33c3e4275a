"""The index against distances measured one by one."""

import numpy as np
import pytest

from differad.data.nearest import NearestIndex


def brute_force(vectors, query):
    """Numbers by distance, ties by number, as pairing had them before there was an index."""
    return np.argsort(np.linalg.norm(vectors - query, axis=1), kind="stable").tolist()


def vectors_of(kind, count, size=24):
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(count, size)).astype(np.float32)
    if kind == "near":  # differences of the last bits, which the product of matrices rounds away
        vectors = (vectors[:1] + vectors * 1e-6).astype(np.float32)
    if kind == "far":
        vectors = (vectors + 1e4).astype(np.float32)
    if kind == "few":  # most are equal to others
        vectors = vectors[rng.integers(0, min(7, count), count)]
    if kind == "whole":  # many different ones at equal distances
        vectors = rng.integers(-1, 2, (count, size)).astype(np.float32)
    return vectors


@pytest.mark.parametrize("kind", ["random", "near", "far", "few", "whole"])
@pytest.mark.parametrize("count", [1, 2, 31, 33, 700])
def test_all_are_ranked_as_by_brute_force(kind, count):
    vectors = vectors_of(kind, count)
    queries = [*vectors[:20], *vectors_of("random", 5)]
    for query, ranked in zip(queries, NearestIndex(vectors).ranked(queries), strict=True):
        assert list(ranked) == brute_force(vectors, query)


def test_no_query_gives_no_rank():
    assert NearestIndex(vectors_of("random", 3)).ranked([]) == []


def test_equal_vectors_are_measured_once(monkeypatch):
    """20,000 blank images are one vector: asking for the first costs nothing for each of the others."""
    measured = []
    norm = np.linalg.norm
    monkeypatch.setattr(np.linalg, "norm", lambda rows, **how: measured.append(len(rows)) or norm(rows, **how))
    vectors = np.zeros((20_000, 4), dtype=np.float32)
    (ranked,) = NearestIndex(vectors).ranked([vectors[0]])
    assert [next(ranked), next(ranked)] == [0, 1]
    assert sum(measured) == 1
